"""An operator at a terminal, who types siphactl's command lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result
from treq.client import HTTPClient
from treq.testing import _SynchronousProducer
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError as Refusal
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent
from zope.interface import implementer

from sipha.admin.client import Bearer
from sipha.ctl import cli
from sipha.ctl.credentials import Credentials
from sipha.ctl.session import Main, Session
from tests.admin.fakes import Console, FakeNode


@implementer(IAgent)
class _Network:
    """Requests reach a node by the host of their URL; nothing listens elsewhere."""

    def __init__(self, nodes: dict[str, FakeNode]) -> None:
        self.consoles = {host: Console(node) for host, node in nodes.items()}
        self.asked: list[str] = []

    def request(self, method: bytes, uri: bytes, headers: object = None, bodyProducer: object = None) -> Deferred[Any]:
        host = uri.decode().split("/")[2]
        self.asked.append(host)
        if host not in self.consoles:
            return fail(Refusal())
        return self.consoles[host].agent.request(method, uri, headers, bodyProducer)  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Carry what was written since, and let a little time pass at the nodes."""
        for console in self.consoles.values():
            console.flush()
            console.clock.advance(0.1)


class _Socket:
    """A UDP socket of the terminal's machine; who is asked answers at once, or not at all."""

    def __init__(self, operator: Operator, protocol: DatagramProtocol) -> None:
        self.operator = operator
        self.protocol = protocol
        self.open = True
        protocol.transport = self  # type: ignore[assignment]

    def write(self, request: bytes, server: tuple[str, int]) -> None:
        assert self.open
        if server not in self.operator.answers:
            raise OSError(101, "Network is unreachable")
        head, _, rest = request.partition(b"\r\n")
        assert head == b"OPTIONS sip:%s:%d SIP/2.0" % (server[0].encode(), server[1])
        self.protocol.datagramReceived(b"SIP/2.0 200 OK\r\n" + rest, server)

    def stopListening(self) -> None:
        self.open = False


class _Reactor(Clock):
    """The time of a command, and the terminal's machine."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def listenUDP(self, port: int, protocol: DatagramProtocol, interface: str = "") -> _Socket:
        assert (port, interface) == (0, "")
        self.operator.sockets.append(_Socket(self.operator, protocol))
        return self.operator.sockets[-1]


class Operator:
    """Types siphactl's command lines; `meanwhile` is what goes on while a command waits.

    `answers` are the SIP servers that answer, and `sockets` those that were opened to ask them.
    """

    def __init__(self, nodes: dict[str, FakeNode]) -> None:
        self.network = _Network(nodes)
        self.run: Callable[[Main, Credentials], None] = self.carry_out
        self.answers = {("127.0.0.10", 5060)}
        self.sockets: list[_Socket] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def types(self, *words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        session = Session(run=self.run)
        return CliRunner().invoke(cli, words, obj=session, input=stdin, env={"SIPHA_URL": "", **(env or {})})

    def carry_out(self, main: Main, shown: Credentials) -> None:
        """Let a command ask the nodes."""
        results: list[Any] = []
        clock = _Reactor(self)
        agent = Bearer(self.network, shown.token) if shown.token else self.network
        http = HTTPClient(agent, data_to_body_producer=_SynchronousProducer)
        Deferred.fromCoroutine(main(http, clock)).addBoth(results.append)
        for _ in range(200):
            if not results:
                self.network.flush()
                clock.pump([0.02] * 5)
                self.meanwhile()
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()

    def reads(self, *words: str) -> Any:
        """What a command prints with --json."""
        result = self.types(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)
