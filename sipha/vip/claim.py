"""A claim to the virtual addresses, as the guard keeps it: probe, take, announce, hold, end.

Nothing is done after the deadline but to take it all away: the clock is looked at before and after each step, and what
the kernel has shut by itself is never opened again. The end is the same for all: gate shut, addresses removed, verified
gone, and only then anybody told.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from sipha.sip.flow import Address
from sipha.vip.addresses import REFRESH, Addresses
from sipha.vip.gate import Gate, GateError, Lapsed
from sipha.vip.link import Link
from sipha.vip.neighbours import Sighting
from sipha.vip.placement import Placement
from sipha.vip.tickle import PACE, Tickles

PROBE = 0.03
"""Seconds within which whoever has an address must answer a probe."""

SILENCE_DEADLINE = 2.0
"""Seconds to wait until nobody answers any more."""

ANNOUNCEMENTS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds from the claim to each announcement."""

AFTERWARDS = 60.0
"""Seconds between the later ones; for as long an alarm names who else has claimed an address."""

CONTRADICTION = 0.1
"""Seconds between two announcements that contradict someone."""

AGAIN = 0.05
"""Seconds after which a removal that failed is tried again."""

LAPSED = "it was not renewed in time"

_NEVER = float("inf")


class State(enum.Enum):
    """Where a claim is on its way; it never goes back."""

    PROBING = enum.auto()
    HELD = enum.auto()
    ENDING = enum.auto()
    ENDED = enum.auto()


class Claim:
    """A claim to these addresses until `deadline`, by `clock`, both CLOCK_BOOTTIME.

    Call `heard`, `renew`, `wake` when `due`, and `end`; none of them raises. `claimed` is called when the addresses are
    here, and `ended` when they are verified gone, with the reason and whether the last word may be spoken; then `links`
    are to be closed. `alarms` are what an operator must know, by what they are about.
    """

    def __init__(  # noqa: PLR0917  what, until when, with what, whom to tell
        self,
        placements: Sequence[Placement],
        deadline: float,
        gate: Gate,
        addresses: Addresses,
        open_link: Callable[[str], Link],
        clock: Callable[[], float],
        claimed: Callable[[], None],
        ended: Callable[[str, bool], None],
    ) -> None:
        self.state = State.PROBING
        self.deadline = deadline
        self.links: list[Link] = []
        self.alarms: dict[str, str] = {}
        self._placements = {placement.address: placement for placement in placements}
        self._gate = gate
        self._addresses = addresses
        self._open_link = open_link
        self._clock = clock
        self._claimed = claimed
        self._ended = ended
        self._begun = clock()
        self._answered: dict[str, str] = {}
        self._tickles = Tickles()
        # When each of them is due.
        self._probed = _NEVER
        self._announcement = _NEVER
        self._refresh = _NEVER
        self._slice = _NEVER
        self._removal = _NEVER
        self._announced = 0  # how many of ANNOUNCEMENTS
        self._contradicted = 0.0
        self._reason = ""
        self._may_speak = False

    @property
    def due(self) -> float:
        """When to call `wake`."""
        if self.state in {State.ENDING, State.ENDED}:
            return self._removal
        return min(self.deadline, self._probed, self._announcement, self._refresh, self._slice)

    def begin(self) -> None:
        """Ask whether someone has the addresses."""
        self._attempt(self._begin)

    def wake(self) -> None:
        """Do what is due."""
        self._attempt(self._step)

    def renew(self, deadline: float) -> None:
        """Hold the addresses until the deadline, if that isn't sooner than before."""
        if self.state in {State.PROBING, State.HELD}:
            self._attempt(partial(self._renew, deadline))

    def heard(self, link: Link) -> None:
        """Someone may have claimed an address of ours."""
        self._attempt(partial(self._hear, link))

    def changed(self) -> None:
        """The machine's addresses have changed: if ours aren't here any more, the claim ends."""
        if self.state is State.HELD:
            self._attempt(self._look)

    def tickle(self, flows: Iterable[tuple[Address, Address]]) -> None:
        """Tickle the clients of these connections, little by little."""
        if self.state is State.HELD:
            self._tickles.add((ours, theirs) for ours, theirs in flows if ours[0] in self._placements)
            self._slice = min(self._slice, self._clock()) if self._tickles else _NEVER

    def end(self, reason: str, *, may_speak: bool = False) -> None:
        """Take everything away; what a claim ends for first is what counts."""
        if self.state in {State.PROBING, State.HELD}:
            self.state = State.ENDING
            self._reason = reason
            self._may_speak = may_speak
            self._remove()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do something that ends the claim if it fails."""
        try:
            step()
        except Lapsed:
            self.end(LAPSED, may_speak=True)
        except GateError as error:
            self.end(f"the kernel's gate: {error}")
        except OSError as error:
            self.end(f"{error.filename or 'the network'}: {error.strerror}")

    def _in_time(self) -> float:
        now = self._clock()
        if now >= self.deadline:
            raise Lapsed
        return now

    def _begin(self) -> None:
        for interface in dict.fromkeys(placement.interface for placement in self._placements.values()):
            self.links.append(self._open_link(interface))
        self._probe()

    def _step(self) -> None:
        if self.state is State.ENDING:
            self._remove()
            return
        now = self._in_time()
        if now >= self._probed:
            self._silence(now)
        if now >= self._announcement:
            self._announce(now)
        if now >= self._refresh:
            for placement in self._placements.values():
                self._addresses.refresh(placement)
                self._in_time()
            self._refresh = now + REFRESH
        if now >= self._slice:
            self._tickles.send_slice()
            self._slice = now + PACE if self._tickles else _NEVER

    def _probe(self) -> None:
        self._answered.clear()
        now = self._in_time()
        for link, placement in self._sites():
            link.probe(placement)
        self._probed = now + PROBE

    def _silence(self, now: float) -> None:
        """Take the addresses unless someone has answered for one."""
        if not self._answered:
            self._probed = _NEVER
            self._take()
            return
        texts = [f"{address} is in use: {who} answers for it" for address, who in self._answered.items()]
        if now >= self._begun + SILENCE_DEADLINE:
            self.end("; ".join(texts))
            return
        self.alarms |= dict(zip(self._answered, texts, strict=True))
        self._probe()

    def _take(self) -> None:
        self.alarms.clear()
        self._gate.install()
        for placement in self._placements.values():
            self._addresses.remove(placement)
            self._in_time()
            self._addresses.add(placement)
            self._in_time()
        self._gate.open(self._placements, self.deadline)
        self.state = State.HELD
        now = self._in_time()
        self._begun = now
        self._refresh = now + REFRESH
        self._announce(now)
        self._claimed()

    def _announce(self, now: float) -> None:
        """Say that the addresses are here, and when to say it next."""
        for link, placement in self._sites():
            self._in_time()
            try:
                link.announce(placement)
            except OSError as error:
                self.alarms[link.interface] = f"{placement} can't be announced: {error.strerror}"
            else:
                self.alarms.pop(link.interface, None)
        while self._announced < len(ANNOUNCEMENTS) and self._begun + ANNOUNCEMENTS[self._announced] <= now:
            self._announced += 1
        if self._announced < len(ANNOUNCEMENTS):
            self._announcement = self._begun + ANNOUNCEMENTS[self._announced]
        else:
            self._announcement = now + AFTERWARDS
            if now >= self._contradicted + AFTERWARDS:
                for address in self._placements:
                    self.alarms.pop(address, None)

    def _hear(self, link: Link) -> None:
        for sighting in link.sightings():
            if sighting.address in self._placements:
                self._contradict(sighting, link.interface)

    def _contradict(self, sighting: Sighting, interface: str) -> None:
        """Someone says that an address is his: before the claim that decides, now he is wrong."""
        who = f"{sighting} on {interface}"
        if self.state is State.PROBING:
            self._answered[sighting.address] = who
        elif self.state is State.HELD:
            now = self._in_time()
            self.alarms[sighting.address] = f"{sighting.address} is in use twice: {who} has it, too"
            if now >= self._contradicted + CONTRADICTION:
                self._contradicted = now
                self._announce(now)

    def _renew(self, deadline: float) -> None:
        self._in_time()
        if deadline <= self.deadline:
            return
        if self.state is State.HELD:
            try:
                self._gate.renew(self._placements, deadline)
            except GateError as error:
                # An nftables that was loaded anew has swept it away.
                self._gate.install()
                self._gate.open(self._placements, deadline)
                self.alarms["gate"] = f"someone had removed the kernel's gate ({error}); it is there again"
        self.deadline = deadline

    def _look(self) -> None:
        missing = self._addresses.missing(self._placements.values())
        if missing:
            self.end(f"someone has removed {', '.join(map(str, missing))}")

    def _remove(self) -> None:
        """Shut the gate, remove the addresses, and tell when that is done; else try again later."""
        faults: list[str] = []
        try:
            self._gate.shut()
        except GateError as error:
            faults.append(f"the kernel's gate can't be shut: {error}")
        placements = self._placements.values()
        for placement in placements:
            try:
                self._addresses.remove(placement)
            except OSError as error:
                faults.append(f"{placement} can't be removed: {error.strerror}")
        try:
            missing = self._addresses.missing(placements)
            faults += [f"{placement} is still here" for placement in placements if placement not in missing]
        except OSError as error:
            faults.append(f"the addresses can't be listed: {error.strerror}")
        if faults:
            self.alarms["removal"] = "; ".join(faults)
            self._removal = self._clock() + AGAIN
            return
        self._removal = _NEVER
        self.state = State.ENDED
        self.alarms.clear()
        self._ended(self._reason, self._may_speak)

    def _sites(self) -> Iterable[tuple[Link, Placement]]:
        for link in self.links:
            for placement in self._placements.values():
                if placement.interface == link.interface:
                    yield link, placement
