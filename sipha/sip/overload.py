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
from typing import Literal, TypeAlias
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

CREDIT, EARNED = 40_000, 0.25
"""So many are answered 503 without T1 between two of them: a storm. Then a quarter as many are answered as are served.

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
_REGISTER = b"REGISTER "
_EMPTY_LINES = b"\r\n"
_COPIED = re.compile(rb"\n(Via|From|To|Call-ID|CSeq): ([^\r\n]*)")

Datagram: TypeAlias = tuple[bytes, Flow]
"""What came, and the flow that it came by."""

Sifted: TypeAlias = tuple[list[Datagram], list[Datagram], int, float, tuple[int, int, int], tuple[int, int, int]]
"""What goes on, and the REGISTERs that are to be refused; how many others are served, and the credit that is left.

Then how many first REGISTERs had waited too long, how many of them are refused and ignored; and of the others.
"""


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

    def sift(self, datagrams: list[Datagram], now: float) -> tuple[list[Datagram], list[Datagram]]:
        """Decide on the REGISTERs among datagrams, once something is to be refused.

        Return those that are to be served, among what else came; and those that are to be answered 503.
        """
        self._fill_up(now)
        first, known = self.tallies["first register"], self.tallies["register"]
        rest, refused, served, self._credit, *more = _sift(
            datagrams,
            first.late % LATE if self.wait > PATIENCE["first register"] else -1,
            known.late % LATE if self.wait > PATIENCE["register"] else -1,
            self._credit,
            (EARNED, CREDIT),
            (ADMITTED, LATE),
        )
        self._count(now, served)
        for tally, (late, told, ignored) in zip((first, known), more, strict=True):
            tally.late += late
            tally.refused += told
            tally.ignored += ignored
            if told or ignored:
                self._note(now)
        return rest, refused

    def judge(self, data: bytes, flow: Flow, now: float) -> Verdict:
        """Decide on a datagram, once something is to be refused; on REGISTERs `sift` has decided."""
        if data.startswith(_REGISTER):
            return Verdict.SERVED
        priority = priority_of(data)
        if self.wait > PATIENCE[priority] and not self._is_spared(priority, data, flow, now):
            tally = self.tallies[priority]
            tally.late += 1
            if tally.late % LATE >= ADMITTED:
                self._fill_up(now)
                self._note(now)
                # A final response would end a call, or mean nothing.
                if priority == "urgent" or self._credit < 1:
                    tally.ignored += 1
                    return Verdict.IGNORED
                self._credit -= 1
                tally.refused += 1
                return Verdict.REFUSED
        self._credit = min(self._credit + EARNED, CREDIT)
        self._count(now, 1)
        return Verdict.SERVED

    def refusals(self, datagrams: list[Datagram], now: float) -> list[bytes | None]:
        """The 503s to REGISTERs, each as `refusal` says."""
        spread = self._spread(now)
        trusted = {place for place, (_, flow) in enumerate(datagrams) if self.trusts(flow)}
        # A peer or an edge would give up this server for all its calls or phones (RFC 3261 §21.5.4).
        answers = (
            [_refusals([each], 1, 0 if place in trusted else spread)[0] for place, each in enumerate(datagrams)]
            if trusted
            else _refusals(datagrams, 1, spread)
        )
        self._expect(sum(answer is not None and place not in trusted for place, answer in enumerate(answers)), now)
        return answers

    def log_is_behind(self, now: float) -> None:
        """A REGISTER was refused, because others have waited for the log too long."""
        self.behind += 1
        self._fill_up(now)
        self._note(now)

    def add(self, tally: Mapping[Priority, Tally], behind: int, wait: float, now: float) -> None:
        """Count what another process, which judges alike, has refused while requests waited for so long."""
        for priority, more in tally.items():
            self.tallies[priority].refused += more.refused
            self.tallies[priority].ignored += more.ignored
        self.behind += behind
        if tally or behind:
            self.wait = wait
            self._fill_up(now)
            self._note(now)

    def lasts(self, now: float) -> bool:
        """Return True if requests were refused within the last QUIET seconds."""
        return now - self._last < QUIET

    def retry_after(self, mark: int, now: float, least: int = 1) -> int:
        """After how many seconds a phone may come again: it differs with the mark of the request.

        Those who are told come back within as long as it takes to serve them all, by the most that a second has seen.
        """
        self._expect(1, now)
        return least + mark % self._spread(now)

    def _expect(self, count: int, now: float) -> None:
        """Take note of so many more that come back."""
        if self._rate:
            self._back = min(max(self._back, now) + count / self._rate, now + LONGEST_SPREAD)

    def _spread(self, now: float) -> int:
        """The seconds within which those that are told come back."""
        return int(min(max(self._back - now, SPREAD), LONGEST_SPREAD))

    def _fill_up(self, now: float) -> None:
        """Have all credit again after some rest."""
        if now - self._last >= T1:
            self._credit = float(CREDIT)

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

    def _count(self, now: float, served: int) -> None:
        """Count requests that are served, to know how many are in a second."""
        self._served += served
        if now - self._second >= 1.0:
            self._rate = max(self._rate, int(self._served / (now - self._second)))
            self._second, self._served = now, 0

    def _note(self, now: float) -> None:
        rest, self._last = now - self._last, now
        if rest >= QUIET:
            self._second, self._served, self._rate = now, 0, 0
            self._begun(self.wait)


def priority_of(data: bytes) -> Priority:
    """The priority of a datagram, at a glance."""
    # "Implementations processing SIP messages over stream-oriented transports MUST ignore any CRLF appearing before
    # the start-line" (§7.5): the parser does so in datagrams, too.
    data = data.lstrip(_EMPTY_LINES)
    if data.startswith(_REGISTER):
        return "register" if _CREDENTIALS.search(data) else "first register"
    if data.startswith(_URGENT) or data[:4].upper() == b"SIP/" or _TO_TAG.search(data) or _EMERGENCY.search(data):
        return "urgent"
    return "invite" if data.startswith(b"INVITE ") else "other"


def sift_by_pattern(  # noqa: PLR0917  what a kernel takes
    datagrams: list[Datagram],
    first: int,
    known: int,
    credit: float,
    earning: tuple[float, float],
    admission: tuple[int, int],
) -> Sifted:
    """Decide on REGISTERs: those that have waited too long are refused, or ignored if there is no credit.

    `first` and `known` say how many have, without credentials and with them; -1 if none of that kind has. Some of so
    many of them are admitted, as `admission` says. `earning` says how much credit is earned by what is served, and the
    most that there may be.
    """
    earned, most = earning
    admitted, of = admission
    rest, refused, served = [], [], 0
    tallies = {"first register": Tally(), "register": Tally()}
    before = {"first register": first, "register": known}
    for datagram in datagrams:
        priority = priority_of(datagram[0])
        if priority in {"register", "first register"}:
            tally = tallies[priority]
            if before[priority] >= 0:
                tally.late += 1
                if (before[priority] + tally.late) % of >= admitted:
                    if credit < 1:
                        tally.ignored += 1
                    else:
                        credit -= 1
                        tally.refused += 1
                        refused.append(datagram)
                    continue
            served += 1
            credit = min(credit + earned, most)
        rest.append(datagram)
    first_tally, known_tally = tallies.values()
    return rest, refused, served, credit, _counts(first_tally), _counts(known_tally)


def _counts(tally: Tally) -> tuple[int, int, int]:
    return tally.late, tally.refused, tally.ignored


def mark_of(request: bytes) -> int:
    """A number of 32 bits of a request's bytes, or of some that nearly no other has: each copy has the same."""
    return crc32(request)


def refusal(request: bytes, flow: Flow, least: int, spread: int) -> bytes | None:
    """The 503 to a REGISTER as most phones write it, made at a glance (RFC 3261 §8.2.6); None if it isn't so written.

    It goes back by the flow that the request came by, as its only Via asks for (RFC 3581 §4). The To tag is its mark,
    the same for each copy (§8.2.7), and none that we sign: nobody relies on it. Retry-After is the `least` that it can
    be, and up to `spread` seconds more, by the mark; there is none if the spread is 0.
    """
    head, end, _ = request.lstrip(_EMPTY_LINES).partition(b"\r\n\r\n")
    found = _COPIED.findall(head)
    fields = dict(found)
    if not end or not head.startswith(_REGISTER) or b"\n " in head or b"\n\t" in head:
        return None
    if len(found) != len(fields) or len(fields) != 5:
        return None
    via, to = fields[b"Via"], fields[b"To"]
    before, rport, after = via.partition(b";rport")
    if not rport or after[:1] not in {b"", b";"} or not via.startswith(b"SIP/2.0/UDP ") or b"," in via:
        return None
    if b"received" in via.lower():
        return None
    mark = mark_of(fields[b"Call-ID"] + fields[b"CSeq"])
    host, port = flow.remote
    return b"".join(
        (
            b"SIP/2.0 503 Service Unavailable\r\nVia: ",
            *(before, f";rport={port}".encode(), after, b";received=", host.encode()),
            *(b"\r\nFrom: ", fields[b"From"], b"\r\nTo: ", to),
            b"" if b"tag=" in to.lower() else f";tag={mark:08x}".encode(),
            *(b"\r\nCall-ID: ", fields[b"Call-ID"], b"\r\nCSeq: ", fields[b"CSeq"]),
            f"\r\nRetry-After: {least + mark % spread}".encode() if spread else b"",
            b"\r\nContent-Length: 0\r\n\r\n",
        )
    )


def refusals_by_pattern(datagrams: list[Datagram], least: int, spread: int) -> list[bytes | None]:
    """The refusal of each."""
    return [refusal(data, flow, least, spread) for data, flow in datagrams]


def _decider() -> tuple[Callable[..., Sifted], Callable[[list[Datagram], int, int], list[bytes | None]]]:
    try:
        from sipha.sip import _overload  # noqa: PLC0415  if it has been built
    except ImportError:
        return sift_by_pattern, refusals_by_pattern
    return _overload.sift, _overload.refusals


_sift, _refusals = _decider()
