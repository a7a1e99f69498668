"""Whether this node is fit to serve phones, by what it sees of itself.

What is wrong goes to the other nodes, so that leadership is handed on to one that is well, and none is handed to this
one. A fault counts until nothing was seen of it for RECOVERY seconds, so that leadership doesn't flap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from sipha.histogram import Histogram

TICK = 0.25
"""Seconds between two looks."""

STALL = 1.0
"""Seconds by which a look may be late, or those of a lease if that lasts longer: who is held up longer has lost it."""

RECOVERY = 10.0
"""Seconds without a fault after which the node is well again."""

LONGEST_REST = 3600.0
"""Seconds for which a fault that only a leader can notice may count: if all nodes have it, leadership moves rarely."""

_LINKS = Path("/sys/class/net")


class Health(Service):
    """The faults of this node; `report` is told in a few words of the first one, or with nothing that all is well.

    `interfaces` are those of the virtual addresses, whose links must be up; `clock` must not jump. `lease` is how many
    seconds one lasts, `stalls` are those by which each look was late.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        report: Callable[[str], None],
        interfaces: Sequence[str] = (),
        links: Path = _LINKS,
        *,
        lease: float,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._report = report
        self._stall = max(STALL, lease)
        self._links = [links / interface / "carrier" for interface in interfaces]
        self._faults: dict[str, tuple[str, float]] = {}  # by kind: what is wrong, and until when it counts
        self._rests: dict[str, float] = {}  # by kind: for how long it counts, of those that grow
        self._reported = ""
        self.stalls = Histogram()
        self._log = Logger(namespace="sipha.service")
        self._due = 0.0
        self._looking: IDelayedCall | None = None

    def well(self) -> bool:
        """True if nothing was wrong lately."""
        return not self._faults

    def startService(self) -> None:
        """Look from now on."""
        super().startService()
        self._looking = self._reactor.callLater(0, self._look_later)  # a start may take long

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._looking is not None and self._looking.active():
            self._looking.cancel()

    def fault(self, kind: str, problem: str, lasts: float = RECOVERY, longest: float = 0.0) -> None:
        """Something of this kind is wrong; it counts for as long as it `lasts`, seen again or not.

        Each time that it comes back and hasn't passed meanwhile, it counts twice as long, up to `longest`.
        """
        rest = self._rests.get(kind, lasts)
        if kind not in self._faults and kind in self._rests:
            rest = min(2 * rest, longest)
        if lasts < longest:
            self._rests[kind] = rest
        self._faults[kind] = (problem, self._clock() + rest)
        self._tell()

    def passed(self, kind: str) -> None:
        """Nothing of this kind is wrong now: once that has been so for RECOVERY seconds, it counts no more."""
        self._rests.pop(kind, None)
        if kind in self._faults:
            problem, until = self._faults[kind]
            self._faults[kind] = (problem, min(until, self._clock() + RECOVERY))

    def over(self, kind: str) -> None:
        """Nothing of this kind is wrong any more, for certain: it counts no longer."""
        if self._faults.pop(kind, None) is not None:
            self._tell()

    def _look_later(self) -> None:
        self._due = self._clock() + TICK
        self._looking = self._reactor.callLater(TICK, self._look)

    def _look(self) -> None:
        now = self._clock()
        self.stalls.observe(max(now - self._due, 0.0))
        if now - self._due > self._stall:
            self.fault("stall", f"the process was held up for {now - self._due:.1f} s")
        for link in self._links:
            if not _has_carrier(link):
                self.fault(f"link of {link.parent.name}", f"the link of {link.parent.name} is down")
        self._faults = {kind: fault for kind, fault in self._faults.items() if now < fault[1]}
        self._tell()
        self._look_later()

    def _tell(self) -> None:
        trouble = next((problem for problem, _ in self._faults.values()), "")
        if trouble == self._reported:
            return
        if trouble:
            self._log.warn("this node is unwell: {trouble}", trouble=trouble)
        else:
            self._log.info("this node is well again")
        self._reported = trouble
        self._report(trouble)


def _has_carrier(file: Path) -> bool:
    """Read the kernel's word; it has none of an interface that is gone or switched off."""
    try:
        return file.read_text("ascii").strip() == "1"
    except OSError:
        return False
