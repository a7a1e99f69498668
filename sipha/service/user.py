"""What the transaction layer's events come to: the registrar, the proxy, or whoever has asked (RFC 3261 §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zope.interface import implementer

from sipha.proxy.invite import read as read_invite
from sipha.proxy.plain import read
from sipha.proxy.proxy import Proxy
from sipha.registrar.registrar import Registrar
from sipha.sip.events import Event, RequestReceived, StrayResponse
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response
from sipha.transport.interfaces import ITransactionUser


@implementer(ITransactionUser)
class TransactionUser:
    """Hands each event to the registrar or the proxy, and none once the lease has ended (RFC 3261 §5).

    A response that belongs to no transaction is offered to `askers` first: those who send requests without keeping
    anything of them. Each returns True if the response is its own. `served` hears of the first request that was, of
    those that come from elsewhere. `catch_up` has all events handed over that are due, before a message is acted on at
    once. `is_held`, if there are workers, is offered each request but REGISTERs, and takes it if its call is theirs.
    """

    def __init__(
        self,
        registrar: Registrar,
        proxy: Proxy,
        leading: Callable[[], bool],
        askers: Sequence[Callable[[Response, Flow], bool]],
        *,
        served: Callable[[str], None],
        catch_up: Callable[[float], None],
        is_held: Callable[[Request, Flow], bool] | None = None,
    ) -> None:
        self._registrar = registrar
        self._proxy = proxy
        self._leading = leading
        self._askers = askers
        self._served: Callable[[str], None] | None = served
        self._catch_up = catch_up
        self._is_held = is_held

    def event_received(self, event: Event, now: float) -> None:
        """Act on an event."""
        if not self._leading():
            return
        if isinstance(event, RequestReceived) and event.request.method == "REGISTER":
            self._registrar.request_received(event.request, event.flow, now)
        elif self._is_held and isinstance(event, RequestReceived) and self._is_held(event.request, event.flow):
            return
        elif not (isinstance(event, StrayResponse) and self._is_asked_for(event)):
            self._proxy.event_received(event, now)
        if self._served is not None and isinstance(event, RequestReceived):
            self._note_served(event.request.method, event.flow)

    def datagram_received(self, data: bytes, flow: Flow, now: float) -> bool:
        """Act on a datagram at once if it is a plain REGISTER, INVITE or request within a dialog; else return False.

        The endpoint asks only while the lease lasts.
        """
        if data.startswith(b"SIP/2.0 "):
            return False
        if data.startswith(b"REGISTER "):
            method, taken = "REGISTER", self._registrar.datagram_received(data, flow, now)
        elif plain := read(data):
            self._catch_up(now)  # what came before is of the same call, perhaps
            method, taken = plain.method, self._proxy.plain_received(plain, flow, now)
        elif self._is_held is None and (invite := read_invite(data)):
            self._catch_up(now)
            method, taken = "INVITE", self._proxy.invite_received(invite, flow, now)
        else:
            return False
        if taken and self._served is not None:
            self._note_served(method, flow)
        return taken

    def served_elsewhere(self, method: str) -> None:
        """Take note that a request was served by another process of ours."""
        if self._served is not None:
            self._served(method)
            self._served = None

    def _note_served(self, method: str, flow: Flow) -> None:
        if self._served is not None and flow.remote != flow.local:
            self._served(method)
            self._served = None

    def _is_asked_for(self, event: StrayResponse) -> bool:
        return any(asker(event.response, event.flow) for asker in self._askers)
