"""One line in the log for each outcome of a REGISTER, for who asks for that (log.registers)."""

from __future__ import annotations

from twisted.logger import Logger

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.message import Response
from sipha.sip.parser import parse
from sipha.transport.endpoint import Tap

_OWN = b" REGISTER\r\n"


class RegisterOutcomes:
    """A tap of the endpoint that logs each response to a REGISTER."""

    log = Logger(namespace="sipha.registrar")

    def adopt(self, taps: list[Tap], *, on: bool) -> None:
        """Be among the taps, or not: what isn't asked for costs nothing."""
        others = [tap for tap in taps if tap != self.passed]
        taps[:] = [*others, self.passed] if on else others

    def passed(self, data: bytes, flow: Flow, *, sent: bool) -> None:
        """Take note of a message."""
        if not (sent and data.startswith(b"SIP/2.0 ") and _OWN in data):
            return
        try:
            response = parse(data)
            if not isinstance(response, Response) or response.cseq.method != "REGISTER":
                return
            aor, call_id = response.to.uri, response.call_id
        except MalformedMessage:
            return  # an answer to what was malformed itself
        host, port = flow.remote
        self.log.info(
            "REGISTER of {aor} from {source}: {status} {reason}, {contacts} contacts, Call-ID {call_id}",
            aor=aor,
            source=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            transport=flow.transport,
            status=response.status,
            reason=response.reason,
            contacts=len(response.headers.values("Contact")),
            call_id=call_id,
        )
