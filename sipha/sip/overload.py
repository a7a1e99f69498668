"""Overload: which requests are refused when more comes than can be served, and how (RFC 6357, RFC 7339 §5.10).

What decides is how long the datagrams that are read now have waited. Each priority bears a wait of its own, so that the
least urgent requests are refused first, and the wait settles where that is enough: nothing is estimated, and nothing
swings. All of them are shorter than T1, after which a phone sends its request again and makes the load larger
(RFC 3261 §17.1.2.2). A request is judged at a glance, by its bytes: refused, it must cost a fraction of what it would
cost to serve it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Literal
from zlib import crc32

from sipha.sip.flow import Flow

Priority = Literal["other", "first register", "register", "invite", "urgent"]
"""How urgent a datagram says that it is.

A first REGISTER has no credentials, so that to serve it means a challenge, and another one. Urgent are responses, what
belongs to a dialog, ACK, CANCEL and emergency calls: never refused, they are ignored beyond the SHARE of a host.
"""

PATIENCE: dict[Priority, float] = {"other": 0.1, "first register": 0.2, "register": 0.3, "invite": 0.4, "urgent": 0.45}
"""The seconds that a request of each priority may wait."""

SHARE, LEAST_SHARE = 4, 100
"""Once urgent datagrams have waited too long, a host that is neither peer nor edge may have a quarter of what a second
serves, or so many a second: nobody keeps phones waiting by saying of whatever he sends that it is urgent.
"""

T1 = 0.5
"""Seconds after which a phone sends its request again (RFC 3261 §17.1.1.1)."""

LATE, ADMITTED = 1024, 64
"""Of so many requests of a priority that have waited too long so many are served all the same, in a row, so that they
are one entry of the log: no flood keeps phones out.
"""

CREDIT = 100_000
"""How many are answered 503 without T1 between two of them: a storm. Then half as many are answered as are served.

An answer costs three times as much as silence, after which the phone sends its request again.
"""

SPREAD, LONGEST_SPREAD = 8, 120
"""Seconds within which those that are refused come back, at least and at most."""

QUIET = 10.0
"""Seconds without a refusal after which it is over."""

_MOST_HOSTS = 65536
_URGENT = (b"ACK ", b"BYE ", b"CANCEL ", b"INFO ", b"NOTIFY ", b"PRACK ", b"UPDATE ")
_CREDENTIALS = re.compile(rb"\nAuthorization[ \t]*:", re.IGNORECASE)
_TO_TAG = re.compile(rb"\nT(?:o)?[ \t]*:[^\r\n]*;[ \t]*tag[ \t]*=", re.IGNORECASE)
_EMERGENCY = re.compile(rb"\n(?:Priority[ \t]*:[ \t]*emergency|Resource-Priority[ \t]*:[^\r\n]*esnet)", re.IGNORECASE)
_COPIED = re.compile(r"\n(Via|From|To|Call-ID|CSeq): ([^\r\n]*)")


class Verdict(Enum):
    """What is to become of a datagram."""

    SERVED = "served"
    REFUSED = "answered 503"
    IGNORED = "not answered"


@dataclass(slots=True)
class Tally:
    """How many requests of a priority had waited too long, and what became of them; the others were served."""

    late: int = 0
    refused: int = 0
    ignored: int = 0


class Overload:
    """Which requests are refused, and when they may come again; times in seconds on the clock that `now` is of.

    `begun` is called with the wait when the first request is refused. `wait` is that of what was read last. `tallies`
    has what was refused since it waited, `behind` how many REGISTERs were because of what waits for the log.
    """

    def __init__(self, begun: Callable[[float], object] = lambda _: None) -> None:
        self.tallies: dict[Priority, Tally] = {priority: Tally() for priority in PATIENCE}
        self.behind = 0
        self._begun = begun
        self._last = -inf
        self.wait = 0.0
        self._second, self._served, self._rate = -inf, 0, 0  # when it began, served in it, most served in one before
        self._back = -inf  # until when all that were refused would have been served
        self._credit = float(CREDIT)
        self._urgent: Counter[str] = Counter()  # late, by host, in the second that began then
        self._urgent_since = -inf
        self.adopt(lambda _: False, ())

    def adopt(self, trusts: Callable[[Flow], bool], emergency_numbers: Iterable[str]) -> None:
        """Decide by these from the next request on.

        `trusts` tells of a flow whether it is a peer's or an edge's: those give up a server that leaves their OPTIONS
        unanswered, or has them retry after some time (RFC 3261 §21.5.4). The numbers are the users of Request-URIs.
        """
        self.trusts = trusts
        forms = ("sip:{}@", "sips:{}@", "tel:{} ", "tel:{};")
        called = [form.format(number) for number in emergency_numbers for form in forms]
        self._emergency = tuple(f"INVITE {uri}".encode() for uri in ("urn:service:sos", *called))

    def waited(self, age: float, fill: float) -> bool:
        """Take note of what waits to be read, and return whether anything is to be refused.

        `age` is for how long the oldest has waited, `fill` the share of the room that is taken: full, it is as bad as
        T1, since the kernel drops whatever comes then.
        """
        self.wait = max(age, fill * T1)
        return self.wait > PATIENCE["other"]

    def judge(self, data: bytes, flow: Flow, now: float) -> Verdict:
        """Decide on a datagram, once something is to be refused."""
        priority = priority_of(data)
        if self.wait > PATIENCE[priority] and not self._is_spared(priority, data, flow, now):
            tally = self.tallies[priority]
            tally.late += 1
            if tally.late % LATE >= ADMITTED:
                self._note(now)
                # A final response would end a call, or mean nothing.
                if priority == "urgent" or self._credit < 1:
                    tally.ignored += 1
                    return Verdict.IGNORED
                self._credit -= 1
                tally.refused += 1
                return Verdict.REFUSED
        self._credit = min(self._credit + 0.5, CREDIT)
        self._count(now)
        return Verdict.SERVED

    def log_is_behind(self, now: float) -> None:
        """A REGISTER was refused, because others have waited for the log too long."""
        self.behind += 1
        self._note(now)

    def add(self, tally: Mapping[Priority, Tally], behind: int, wait: float, now: float) -> None:
        """Count what another process, which judges alike, has refused while requests waited for so long."""
        for priority, more in tally.items():
            self.tallies[priority].refused += more.refused
            self.tallies[priority].ignored += more.ignored
        self.behind += behind
        if tally or behind:
            self.wait = wait
            self._note(now)

    def lasts(self, now: float) -> bool:
        """Return True if requests were refused within the last QUIET seconds."""
        return now - self._last < QUIET

    def retry_after(self, mark: int, now: float, least: int = 1) -> int:
        """After how many seconds a phone may come again: it differs with the mark of the request.

        Those who are told come back within as long as it takes to serve them all, by the most that a second has seen.
        """
        if self._rate:
            self._back = min(max(self._back, now) + 1 / self._rate, now + LONGEST_SPREAD)
        return least + mark % int(min(max(self._back - now, SPREAD), LONGEST_SPREAD))

    def _is_spared(self, priority: Priority, data: bytes, flow: Flow, now: float) -> bool:
        if priority == "urgent":
            return self.trusts(flow) or not self._floods(flow.remote[0], now)
        if priority == "invite":
            return data.startswith(self._emergency)
        # What comes from our own address asks whether we still answer.
        return priority == "other" and data.startswith(b"OPTIONS ") and (flow.remote == flow.local or self.trusts(flow))

    def _floods(self, host: str, now: float) -> bool:
        """Count an urgent datagram that has waited too long; True if its host has had its share."""
        if now - self._urgent_since >= 1.0 or len(self._urgent) > _MOST_HOSTS:
            self._urgent_since = now
            self._urgent.clear()
        self._urgent[host] += 1
        return self._urgent[host] > max(self._rate // SHARE, LEAST_SHARE)

    def _count(self, now: float) -> None:
        """Count a request that is served, to know how many are in a second."""
        self._served += 1
        if now - self._second >= 1.0:
            self._rate = max(self._rate, int(self._served / (now - self._second)))
            self._second, self._served = now, 0

    def _note(self, now: float) -> None:
        rest, self._last = now - self._last, now
        if rest >= T1:
            self._credit = float(CREDIT)
        if rest >= QUIET:
            self._second, self._served, self._rate = now, 0, 0
            self._begun(self.wait)


def priority_of(data: bytes) -> Priority:
    """The priority of a datagram, at a glance."""
    # "Implementations processing SIP messages over stream-oriented transports MUST ignore any CRLF appearing before
    # the start-line" (§7.5): the parser does so in datagrams, too.
    data = data.lstrip(b"\r\n")
    if data.startswith(b"REGISTER "):
        return "register" if _CREDENTIALS.search(data) else "first register"
    if data.startswith(_URGENT) or data[:4].upper() == b"SIP/" or _TO_TAG.search(data) or _EMERGENCY.search(data):
        return "urgent"
    return "invite" if data.startswith(b"INVITE ") else "other"


def mark_of(request: bytes) -> int:
    """A number of 32 bits that each copy of a request has, and nearly no other request."""
    return crc32(request)


def refusal(request: bytes, flow: Flow, mark: int, retry_after: int | None) -> bytes | None:
    """The 503 to a request as most phones write it, made at a glance (RFC 3261 §8.2.6); None if it isn't so written.

    It goes back by the flow that the request came by, as its only Via asks for (RFC 3581 §4). The To tag is its mark,
    the same for each copy (§8.2.7), and none that we sign: nobody relies on it.
    """
    head, end, _ = request.decode("utf-8", "surrogateescape").partition("\r\n\r\n")
    found = _COPIED.findall(head)
    fields = dict(found)
    if not end or len(found) != len(fields) or len(fields) != 5 or "\n " in head or "\n\t" in head:
        return None
    via, to = fields["Via"], fields["To"]
    before, rport, after = via.partition(";rport")
    if not rport or after[:1] not in {"", ";"} or via[:12] != "SIP/2.0/UDP " or "," in via or "received" in via.lower():
        return None
    host, port = flow.remote
    tag = "" if "tag=" in to.lower() else f";tag={mark:08x}"
    wait = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    return (
        f"SIP/2.0 503 Service Unavailable\r\nVia: {before};rport={port}{after};received={host}\r\n"
        f"From: {fields['From']}\r\nTo: {to}{tag}\r\nCall-ID: {fields['Call-ID']}\r\nCSeq: {fields['CSeq']}\r\n"
        f"{wait}Content-Length: 0\r\n\r\n"
    ).encode("utf-8", "surrogateescape")
