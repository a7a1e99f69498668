"""What stands before the admin's routes: who may ask, how much and how often, and for how long they may take."""

from __future__ import annotations

import math
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from sipha.admin.access import CONNECTION, NOBODY, REFUSED, Access, ICaller
from sipha.admin.limits import Rates
from sipha.admin.messages import Refusal, refuse

MAX_BODY = 1024 * 1024
"""Bytes that a request's body may have."""

MAX_CONNECTIONS = 64
"""The connections at a time."""

RATE = 100.0
"""The requests of one address in a second. It may make twice as many connections, so that it can be told to wait."""

PATIENCE = 60.0
"""Seconds in which a request must have come, counted from the answer to the one before it."""

QUIET = 60.0
"""Seconds between two lines in the log about callers that aren't known."""

_MAX_FORGOTTEN = 16 * MAX_BODY
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_READS = frozenset((b"GET", b"HEAD"))


class Front(Resource):
    """Hands on what may be asked, and refuses the rest.

    That is what somebody sends who has no `access`, or too often for `rates`, and what a web page in an operator's
    browser could send here. One that rebinds its own name to this address sends that name as Host (under TLS it has no
    certificate for it); one that posts across origins sends its own as Origin. `host` is the address that is listened
    on. For reading `open_paths` nobody is asked who he is.
    """

    isLeaf = True

    def __init__(
        self,
        clock: IReactorTime,
        behind: IResource,
        host: str,
        access: Access,
        rates: Rates,
        *,
        open_paths: frozenset[bytes] = frozenset(),
    ) -> None:
        super().__init__()
        self._clock = clock
        self._behind = behind
        self._host = host
        self._access = access
        self._rates = rates
        self._open_paths = open_paths
        self._log = Logger(namespace="sipha.admin")
        self._unknown = 0
        self._quiet_until = 0.0

    def render(self, request: Request) -> bytes | int:
        """Answer a request, or let the resource behind do so."""
        try:
            self._check(request)
            is_open = request.method in _READS and request.path in self._open_paths
            request.setComponent(ICaller, NOBODY if is_open else self._access.identify(request))
        except Refusal as refusal:
            if refusal.fault.error.status == 401:
                self._note(request.getClientAddress().host)
            return refuse(request, refusal)
        answer: bytes | int = self._behind.render(request)
        return answer

    def _note(self, host: str) -> None:
        """Tell the log of who isn't known, but not of each."""
        self._unknown += 1
        now = self._clock.seconds()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            self._log.warn("who asks from {host} isn't known ({count} so far)", host=host, count=self._unknown)

    def _check(self, request: Request) -> None:
        """Raise Refusal for what nobody may send."""
        wait = self._rates.take(request.getClientAddress().host, self._clock.seconds())
        if wait:
            raise Refusal(429, "you ask too often", retry_after=math.ceil(wait))
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) != 1 or not (request.isSecure() or self._is_ours(hosts[0])):
            raise Refusal(403, f"the Host must be localhost, a loopback address or {self._host}")
        origin = request.getHeader(b"Origin")
        own = (b"https://" if request.isSecure() else b"http://") + hosts[0]
        if request.method not in _READS and origin not in {None, own}:
            raise Refusal(403, "writes from pages of another origin are refused")
        try:
            unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:
            raise Refusal(400, "the path is not UTF-8") from None
        if _size(request) > MAX_BODY:
            raise Refusal(413, f"the body may have {MAX_BODY} bytes")

    def _is_ours(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host.decode("ascii", "replace"))
        if match is None:
            return False
        name = match["name"].strip("[]").lower()
        if name in {"localhost", self._host}:
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False


def _size(request: Request) -> int:
    """The bytes of the body."""
    content = request.content
    assert content is not None  # noqa: S101 - Twisted has read the body
    size: int = content.seek(0, 2)
    content.seek(0)
    return size


class BoundedRequest(Request):
    """A request that keeps no more of its body than it may have, and hangs up on one that goes on and on."""

    channel: Channel
    _received = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body."""
        # What is too much is read and forgotten, so that the client gets to see the 413.
        if self._received <= MAX_BODY:
            super().handleContentChunk(data)
        self._received += len(data)
        if self._received > _MAX_FORGOTTEN:
            self.code = 413  # which nobody reads any more
            self.channel.site.log(self)
            self.channel.loseConnection()


class Channel(HTTPChannel):
    """A connection whose requests must each come in time, however they dribble in."""

    site: AdminSite
    transport: Any  # Twisted doesn't say that it is a TCP one
    answering = False
    """True while a request is answered."""

    def connectionMade(self) -> None:
        """Take a place."""
        super().connectionMade()
        if not self.site.admit(self):
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give the place back."""
        super().connectionLost(reason)
        self.site.gone(self)

    def resetTimeout(self) -> None:
        """Let no byte buy time for the next one."""

    def timeoutConnection(self) -> None:
        """Hang up, and don't log it as Twisted does: strangers could fill the disk."""
        self.transport.abortConnection()

    def allContentReceived(self) -> None:
        """Let the request be answered, which may take its time."""
        self.answering = True
        super().allContentReceived()

    def requestDone(self, request: HTTPRequest) -> None:
        """Go on to the next one."""
        self.answering = False
        super().requestDone(request)


class AdminSite(Site):
    """The HTTP server of the admin, which listens on `host`, for those who have `access`: all, if it isn't given.

    When it is full, the oldest connection on which nothing is being answered makes place for a new one.
    """

    protocol = Channel  # type: ignore[assignment]  # Twisted's own may become HTTP/2
    requestFactory = BoundedRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        reactor: Any,
        api: IResource,
        host: str,
        access: Access | None = None,
        rate: float = RATE,
        *,
        open_paths: frozenset[bytes] = frozenset(),
    ) -> None:
        self._access = Access() if access is None else access
        front = Front(reactor, api, host, self._access, Rates(rate), open_paths=open_paths)
        super().__init__(front, timeout=PATIENCE, reactor=reactor)
        self._rates = Rates(2 * rate)
        self._channels: dict[Channel, None] = {}  # in the order in which they came

    def admit(self, channel: Channel) -> bool:
        """Return False if there is no place for a new connection."""
        if self._rates.take(channel.transport.getPeer().host, self.reactor.seconds()) or not self._make_place():
            self._access.refused[CONNECTION] += 1
            return False
        self._channels[channel] = None
        return True

    def _make_place(self) -> bool:
        if len(self._channels) >= MAX_CONNECTIONS:
            waiting = next((channel for channel in self._channels if not channel.answering), None)
            if waiting is None:
                return False
            del self._channels[waiting]
            waiting.transport.abortConnection()
        return True

    def gone(self, channel: Channel) -> None:
        """Forget a connection."""
        self._channels.pop(channel, None)

    def acceptableProtocols(self) -> list[bytes]:
        """Speak no HTTP/2: its connections aren't Channels."""
        return [b"http/1.1"]

    def log(self, request: HTTPRequest) -> None:
        """Count what was refused, and say nothing: siphactl and monitors ask every few seconds."""
        if request.code in REFUSED:
            self._access.refused[REFUSED[request.code]] += 1
