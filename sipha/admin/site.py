"""What stands before the admin's routes: who may ask, and how much they may send."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from sipha.admin.messages import Refusal, refuse

MAX_BODY = 1024 * 1024
"""Bytes that a request's body may have."""

_MAX_FORGOTTEN = 16 * MAX_BODY
_IDLE_TIMEOUT = 60.0
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_READS = frozenset((b"GET", b"HEAD"))


class Front(Resource):
    """Refuses what a web page in an operator's browser could send here, and hands the rest on.

    A page that rebinds its own name to this address sends that name as Host; one that posts across origins sends its
    own as Origin. `host` is the address that is listened on.
    """

    isLeaf = True

    def __init__(self, behind: IResource, host: str) -> None:
        super().__init__()
        self._behind = behind
        self._host = host

    def render(self, request: Request) -> bytes | int:
        """Answer a request, or let the resource behind do so."""
        refusal = self._refusal(request)
        return self._behind.render(request) if refusal is None else refuse(request, refusal)

    def _refusal(self, request: Request) -> Refusal | None:
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return Refusal(403, f"the Host must be localhost, a loopback address or {self._host}")
        origin = request.getHeader(b"Origin")
        if request.method not in _READS and origin not in {None, b"http://" + hosts[0]}:
            return Refusal(403, "writes from pages of another origin are refused")
        try:
            unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:
            return Refusal(400, "the path is not UTF-8")
        if _size(request) > MAX_BODY:
            return Refusal(413, f"the body may have {MAX_BODY} bytes")
        return None

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

    _received = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body."""
        # What is too much is read and forgotten, so that the client gets to see the 413.
        if self._received <= MAX_BODY:
            super().handleContentChunk(data)
        self._received += len(data)
        if self._received > _MAX_FORGOTTEN:
            self.channel.loseConnection()


class AdminSite(Site):
    """The HTTP server of the admin, which listens on `host`."""

    requestFactory = BoundedRequest
    displayTracebacks = False
    noisy = False

    def __init__(self, reactor: Any, api: IResource, host: str) -> None:
        super().__init__(Front(api, host), timeout=_IDLE_TIMEOUT, reactor=reactor)

    def log(self, request: HTTPRequest) -> None:
        """Keep quiet: siphactl and monitors ask every few seconds."""
