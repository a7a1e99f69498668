"""Keeps the way to phones behind NAT open: one ping for each in every interval, from the leader alone (design §1.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twisted.application.service import Service
from twisted.logger import Logger

from sipha.errors import Unavailable
from sipha.nat.answers import Answers, Awaited
from sipha.nat.interfaces import IPingTransport
from sipha.nat.ping import ANSWER, BRANCH, Pings, path_of
from sipha.nat.schedule import SLOT, Schedule
from sipha.sip.flow import Flow
from sipha.sip.message import Response
from sipha.sip.token import Tokens
from sipha.state.binding import BEHIND_NAT, PINGED, Binding
from sipha.state.entries import RemoveUnreachable
from sipha.state.interfaces import ILog
from sipha.state.location import Location
from sipha.state.machine import Machine
from sipha.state.outcomes import Done, Outcome

SETTING = "pings"
"""The setting of the log by which an operator turns pings off for the cluster."""

OFF = "off"

PER_TURN = 500
"""AORs that are pinged in one turn of the reactor: some 10 ms."""

PER_STEP = 250
"""AORs that are looked at in one turn, for those to be pinged, when leadership begins: some 2 ms."""

GAP = 0.1
"""Seconds by which a turn may be late; after more this process was held up, and answers wait in its sockets."""

SUSPENDED_AFTER = 3
"""So many sends in succession that fail are this node's fault, and not one bad address's."""

FAILING = 0.25
"""Seconds for which sends must have failed, too: of many phones, a few in succession may be where no route leads."""

SCHEMA = 3
"""The first schema of the log that knows RemoveUnreachable."""

_LOST_AT_EDGE = frozenset((408, 430, 480, 503))
"""What a proxy answers for a phone that it can't reach (pitfalls-sip 10)."""

_SCOPES = {"nated": BEHIND_NAT | PINGED, "flagged": PINGED, "all": 0, "none": 0}
"""Of the cflags those of which a binding has one, or 0 for all bindings; with `none` nobody is looked for."""


@dataclass(frozen=True, slots=True)
class KeepaliveSettings:
    """How pings go; times in seconds.

    `method` is OPTIONS, or udp: four zero bytes, and on streams a double CRLF, which nobody answers. `scope` says whom
    they are for: those behind NAT or flagged, all, flagged ones (PINGED), none. `sender` is the URI in From. With
    `remove` a binding goes that has left `max_lost` OPTIONS in succession unanswered for `timeout`.
    """

    interval: float = 25.0
    method: Literal["OPTIONS", "udp"] = "OPTIONS"
    scope: Literal["nated", "all", "flagged", "none"] = "nated"
    sender: str = "sip:ping@localhost"
    remove: bool = False
    max_lost: int = 4
    timeout: float = 3.0


@dataclass(slots=True)
class Counters:
    """What has become of pings since the start of the process; `unsent` are those that this node failed to send."""

    sent: int = 0
    answered: int = 0
    lost: int = 0
    unsent: int = 0


class Keepalive(Service):
    """A child of LeaderServices, which pings the bindings of `machine` over `transport`, None while that isn't open.

    `served_until` is the cluster time in ms at which another leader was last heard to ping; `tokens` are None while
    there is no key. No binding is removed while this node isn't `well`.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: KeepaliveSettings,
        log: ILog,
        machine: Machine,
        *,
        transport: Callable[[], IPingTransport | None],
        tokens: Callable[[], Tokens | None],
        served_until: Callable[[], int],
        well: Callable[[], bool] = lambda: True,
    ) -> None:
        self.counters = Counters()
        self._reactor = reactor
        self._settings = settings
        self._log = log
        self._machine = machine
        self._transport = transport
        self._tokens = tokens
        self._served_until = served_until
        self._well = well
        self._pinged_until = 0
        self._failures = 0  # sends in succession that have failed
        self._failing_since = 0.0
        self._suspended = False
        self._call: Any = None
        self._begin()

    def _begin(self) -> None:
        """Know nothing of who is to be pinged."""
        now, interval = self._now(), int(self._settings.interval * 1000)
        self._schedule = Schedule(interval, max(self._served_until(), self._pinged_until), now)
        self._answers = Answers(int(self._settings.timeout * 1000) // SLOT)
        self._location: Location | None = None
        self._indexing: Iterator[None] | None = None
        self._counts_from = 0  # the slot from which on a ping that is lost counts
        self._answered_at = 0  # the slot of the last ping that was answered in time, or from which on one was awaited
        self._forgets_at = 0  # the slot
        self._dropped = 0  # datagrams that had come, as of the last turn
        self._pings = Pings(self._settings.sender)
        self._wanted = _SCOPES[self._settings.scope]

    # What others see

    @property
    def enabled(self) -> bool:
        """True unless the configuration or an operator has turned pings off."""
        return self._settings.scope != "none" and self._machine.settings.get(SETTING) != OFF

    @property
    def state(self) -> str:
        """In words: on, off, or suspended and why."""
        if not self.enabled:
            return OFF
        return "suspended: local send failure" if self.running and self._suspended else "on"

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        if self.running and self._suspended:
            yield (
                "pings are suspended: this node's sends fail, so that phones behind NAT become unreachable; look at "
                "its routes and its firewall"
            )

    def counted(self) -> dict[str, int]:
        """The counters, by name."""
        return {f"pings_{name}": getattr(self.counters, name) for name in self.counters.__slots__}

    def last_answered(self, binding: Binding) -> int | None:
        """The cluster time in ms at which the last ping was sent that a binding answered within the timeout.

        None if that isn't known: it has answered none since this node began to ping, which only the leader does.
        """
        return self._schedule.last_answered(binding.aor, binding.contact_id) if self.running else None

    # Life

    def startService(self) -> None:
        """Go on where the leader before was last heard to be."""
        super().startService()
        self._failures, self._suspended = 0, False
        self._begin()
        if self._settings.scope != "none":
            self._call_after(0.0)

    def stopService(self) -> None:
        """Ping nobody any more."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._location is not None:
            self._location.bound = None
        self._answers.forget()
        self._pinged_until = self._schedule.until
        self._free(self._schedule.dismantle())

    def adopt(self, settings: KeepaliveSettings) -> None:
        """Ping by these from now on, in the phase that was reached."""
        if settings == self._settings:
            return
        running = self.running
        if running:
            self.stopService()
        self._settings = settings
        if running:
            self.startService()

    def _free(self, steps: Iterator[None]) -> None:
        if next(steps, self) is not self:
            self._reactor.callLater(0, self._free, steps)

    def _call_after(self, seconds: float) -> None:
        self._call = self._reactor.callLater(seconds, self._turn, self._reactor.seconds() + seconds)

    def _turn(self, due: float) -> None:
        """Do what this slot asks for."""
        now, transport, tokens = self._now(), self._transport(), self._tokens()
        slot = now // SLOT
        if self._reactor.seconds() > due + GAP:
            self._answers.forget()
        if self._machine.location is not self._location:
            self._index(self._machine.location)
        if self._indexing is not None:
            self._call_after(0.0)
            if next(self._indexing, self) is self:
                self._indexing = None
            return
        self._call_after(SLOT / 1000)
        if not self.enabled:
            self._answers.forget()
            self._spare()
            self._schedule.skip(now)
        elif transport is not None and tokens is not None:
            if (dropped := transport.dropped) != self._dropped:
                self._dropped = dropped
                self._answers.forget()  # answers may have been among what was dropped
            if slot - self._answered_at > self._schedule.slots + self._answers.patience:
                self._spare()  # nobody at all answers: that says more of us, or of the way, than of the phones
            if not self._counts_from:
                # Who became unreachable while nobody pinged may well register again within one interval.
                self._counts_from = slot + self._schedule.slots
                self._answered_at = slot
            self._count_lost(slot)
            for number, aors in self._schedule.due(now, PER_TURN):
                self._ping(aors, number, now, transport, tokens)

    def _now(self) -> int:
        return int(self._log.cluster_time() * 1000)

    # Whom to ping

    def _index(self, location: Location) -> None:
        """Look through all bindings, a few with each turn, while what changes meanwhile comes by itself."""
        self._location = location
        location.bound = self._bound

        def look() -> Iterator[None]:
            last = ""
            while aors := location.aors(last, PER_STEP):
                for aor in aors:
                    for binding in location.bindings(aor, 0):
                        self._bound(aor, binding.contact_id, binding.cflags)
                last = aors[-1]
                yield

        self._indexing = look()

    def _bound(self, aor: str, contact_id: int, cflags: int) -> None:
        """Take note of a binding of an AOR."""
        if not self._wanted or cflags & self._wanted:
            self._schedule.add(aor, contact_id)

    # Pinging

    def _ping(self, aors: Sequence[str], slot: int, now: int, transport: IPingTransport, tokens: Tokens) -> None:
        """Ping the bindings of some AORs that have this slot."""
        schedule, wanted, bindings_of = self._schedule, self._wanted, self._machine.location.bindings
        ping, asks = self._pings.ping, self._settings.method == "OPTIONS"
        remainder, sent = slot % schedule.slots, now // SLOT
        messages: list[tuple[bytes, Flow]] = []
        waiting: list[tuple[str, Awaited] | None] = []
        for aor in aors:
            found = False
            for binding in bindings_of(aor, 0):
                if (not wanted or binding.cflags & wanted) and schedule.remainder(aor, binding.contact_id) == remainder:
                    found = True  # if it ran out, too: an entry under way may refresh it yet, and nobody tells of that
                    if binding.expires_at <= now:
                        continue
                    path = path_of(binding, transport) if binding.path else ()
                    token = tokens.ping(binding.contact_id, sent) if asks else ""
                    message = ping(binding, path, token, transport)
                    if message is not None:
                        messages.append(message)
                        # The schedule's own text has its hash already, for when the answer comes.
                        awaited = (sent, remainder, aor, binding.contact_id, binding.version, bool(path))
                        waiting.append((token, Awaited(*awaited)) if asks else None)
            if not found:
                schedule.discard(aor, slot)
        self._send(messages, waiting, transport)

    def _send(
        self,
        messages: Sequence[tuple[bytes, Flow]],
        waiting: Sequence[tuple[str, Awaited] | None],
        transport: IPingTransport,
    ) -> None:
        """Send pings, each with the answer that it waits for."""
        for (_, flow), awaited, left in zip(messages, waiting, transport.offer_all(messages), strict=True):
            if not left:
                if self._transport() is not None and not flow.reliable:  # else we lead no more, or the peer has hung up
                    self._note_failure()
                continue
            self.counters.sent += 1
            if self._failures and not flow.reliable:
                self._failures = 0
                if self._suspended:
                    self._suspended = False
                    self._spare()
                    self.log.info("pings go out again")
            if awaited is not None:
                self._answers.await_(*awaited)

    def _note_failure(self) -> None:
        self.counters.unsent += 1
        now = self._reactor.seconds()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        if not self._suspended and self._failures >= SUSPENDED_AFTER and now >= self._failing_since + FAILING:
            self._suspended = True
            self.log.warn("pings are suspended: this node's sends fail")  # noqa: G010
            self._answers.forget()

    def _spare(self) -> None:
        """Hold nothing against any phone until an interval has passed."""
        self._answers.forgive()
        self._counts_from = 0

    # Answers

    def response_received(self, response: Response, _: Flow) -> bool:
        """Take a response, if it is to a ping of this node's or of an earlier leader's; False if not."""
        branch = response.via.branch or ""
        return branch.startswith(BRANCH) and self._answered(branch.removeprefix(BRANCH), response.status)

    def datagram_received(self, data: bytes, _: Flow) -> bool:
        """The same for a datagram as it came: in a large cluster most of what comes are answers to pings."""
        match = ANSWER.match(data)
        return match is not None and self._answered(match[2].decode("ascii", "replace"), int(match[1]))

    def _answered(self, token: str, status: int) -> bool:
        ping = self._answers.awaited(token)
        if ping is None:
            return self._answered_late(token, status)
        sent = ping.sent
        self._answered_at = max(self._answered_at, sent)
        # Whatever a phone says, it is there; what an edge says may be its own word.
        if not (ping.to_edge and _tells_nothing(status)):
            self.counters.answered += 1
            self._answers.came(token)
            self._schedule.answered(ping.aor, ping.remainder, sent)
        return True

    def _answered_late(self, token: str, status: int) -> bool:
        """The same for one that isn't awaited any more, a copy, or one to an earlier leader's ping."""
        tokens = self._tokens()
        ping = None if tokens is None else tokens.read_ping(token)
        if ping is None:
            return False
        # It may have come through an edge. One that is older than an interval proves nothing: it may be sent again.
        age = self._now() // SLOT - ping.slot & 0xFFFFFFFF
        if age < self._schedule.slots and not _tells_nothing(status):
            self._answers.answered(ping.contact_id)
        return True

    def _count_lost(self, slot: int) -> None:
        """See to the pings that have waited long enough."""
        if slot >= self._forgets_at:
            self._forgets_at = slot + self._schedule.slots * 3 // 2
            self._answers.forget_recovered()
        counts = self._settings.remove and self._machine.schema >= SCHEMA and self._well()
        for ping in self._answers.overdue(slot):
            self.counters.lost += 1
            if counts and ping.sent >= self._counts_from and self._answers.miss(ping) >= self._settings.max_lost:
                self._remove(ping)

    def _remove(self, ping: Awaited) -> None:
        """Have the log remove a binding, if it is still what was pinged."""

        def done(outcome: Outcome | Unavailable) -> None:
            if isinstance(outcome, Done) and outcome.count:
                self.log.info(
                    "a binding of {aor} is removed, reason ping-timeout: no answer to {lost} pings",
                    aor=ping.aor,
                    lost=self._settings.max_lost,
                )

        self._log.propose(RemoveUnreachable(ping.aor, ping.contact_id, ping.version), done)


def _tells_nothing(status: int) -> bool:
    """Return True for what an edge answers for a phone that it can't reach, or hasn't reached yet."""
    return status < 200 or status in _LOST_AT_EDGE
