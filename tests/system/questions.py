"""A stream of OPTIONS to the virtual address, as a phone would send them: repeated once if nobody answers."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import Self

from tests.system.wire import options

INTERVAL = 0.02
"""Seconds between two new requests."""

T1 = 0.5
"""Seconds after which a request without an answer is sent again (RFC 3261 §17.1.2.2)."""

_CALL_ID = re.compile(rb"\r\nCall-ID: ([^\r]+)\r\n", re.IGNORECASE)


class Questions:
    """Sends an OPTIONS to `server`, port 5060, each 20 ms from its start to its end."""

    def __init__(self, host: str, server: str) -> None:
        self.repeated = 0
        """How many requests were sent again."""
        self.longest = 0.0
        """The longest time without an answer, in seconds."""
        self._server = server
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._waiting: dict[
            bytes, tuple[float, bytes, bool]
        ] = {}  # by Call-ID: when sent last, what, and whether again
        self._unanswered: list[float] = []
        self._answered_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def unanswered(self) -> int:
        """How many requests had no answer, repeated as they were; to be asked after the end."""
        return len(self._unanswered)

    def _run(self) -> None:
        next_at = time.monotonic()
        while not self._ended.is_set() or self._waiting:
            now = time.monotonic()
            if now >= next_at and not self._ended.is_set():
                next_at = now + INTERVAL
                request = options(self._server)
                self._send(request, now, again=False)
            self._receive(min(next_at, now + INTERVAL))
            self._repeat(time.monotonic())

    def _send(self, request: bytes, now: float, *, again: bool) -> None:
        found = _CALL_ID.search(request)
        assert found
        self._waiting[found[1]] = (now, request, again)
        self._socket.sendto(request, (self._server, 5060))

    def _receive(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                answer = self._socket.recv(65535)
            except OSError:
                continue
            found = _CALL_ID.search(answer)
            if found and self._waiting.pop(found[1], None):
                now = time.monotonic()
                self.longest = max(self.longest, now - self._answered_at)
                self._answered_at = now

    def _repeat(self, now: float) -> None:
        for call_id, (sent, request, again) in list(self._waiting.items()):
            if now - sent < T1:
                continue
            del self._waiting[call_id]
            if again:
                self._unanswered.append(now)
            else:
                self.repeated += 1
                self._send(request, now, again=True)
