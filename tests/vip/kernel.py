"""A kernel that exists in name only: its gate, addresses and links, on a clock that a test moves."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator

from twisted.internet.task import Clock

from sipha.vip.addresses import Addresses
from sipha.vip.gate import GateError
from sipha.vip.link import Link
from sipha.vip.neighbours import Sighting
from sipha.vip.placement import Placement

_COMMAND = re.compile(r"(add|delete) element (\w+) sipha (\w+) \{ (\S+)(?: timeout (\d+)ms)? \}")
_LEASES = ("lease", "lease6")
_GONE = "Error: Could not process rule: No such file or directory"


class FakeKernel:
    """`done` is what was done to it, in order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.done: list[str] = []
        self.opened: list[float] = []  # until when each element that was ever added would have lived
        self.stalls: list[tuple[str, float]] = []
        self.gate: dict[tuple[str, str, str], float] | None = None  # until when each element lives
        self.addresses = FakeAddresses(self)
        self.links: list[FakeLink] = []
        self._times: list[tuple[float, str]] = []

    def now(self) -> float:
        return float(self.clock.seconds())

    def stall(self, step: str, seconds: float) -> None:
        """Have the next such step take so long: whoever takes it is stopped after he has begun."""
        self.stalls.append((step, seconds))

    def do(self, step: str) -> None:
        """Take a step, after what it stalls for."""
        for stall in tuple(self.stalls):
            if step.startswith(stall[0]):
                self.stalls.remove(stall)
                self.clock.advance(stall[1])
                break
        self.done.append(step)
        self._times.append((self.now(), step))

    def when(self, step: str) -> list[float]:
        """Return when such a step was taken."""
        return [time for time, done in self._times if done == step]

    def nft(self, commands: str) -> None:
        """Do what libnftables would, all of it or nothing."""
        first = commands.split(maxsplit=2)
        self.do("install" if first[1] == "table" else "shut" if first[0] == "flush" else "elements")
        if first[1] == "table":
            self.gate = {}
        elif self.gate is None:
            raise GateError("Error: No such file or directory")
        elif first[0] == "flush":
            self.gate = {}
        else:
            gate = {element: until for element, until in self.gate.items() if until > self.now()}
            for verb, family, name, address, timeout in _COMMAND.findall(commands):
                if verb == "add":
                    gate.setdefault((family, name, address), self.now() + int(timeout) / 1000)
                elif gate.pop((family, name, address), None) is None:
                    raise GateError(_GONE)
            self.gate = gate
            self.opened.extend(until for (_, name, _), until in gate.items() if name in _LEASES)

    def passes(self, address: str) -> bool:
        """Return True if what comes from the address leaves the machine."""
        if self.gate is None:
            return True
        elements = [until for (_, name, each), until in self.gate.items() if name in _LEASES and each == address]
        return bool(elements) and min(elements) > self.now()

    def open_link(self, interface: str) -> FakeLink:
        self.links.append(FakeLink(self, interface))
        return self.links[-1]


class FakeAddresses(Addresses):
    """`here` are those that an interface has; what is `stuck` can't be removed, what is `stubborn` comes back."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.here: set[Placement] = set()
        self.stuck = False
        self.stubborn = False
        self._kernel = kernel

    def add(self, placement: Placement) -> None:
        self._kernel.do(f"add {placement}")
        self.here.add(placement)

    def refresh(self, placement: Placement) -> None:
        self._kernel.do(f"refresh {placement}")
        self.here.add(placement)

    def remove(self, placement: Placement) -> None:
        if placement in self.here:
            self._kernel.do(f"remove {placement}")
            if self.stuck:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            if not self.stubborn:
                self.here.discard(placement)

    def missing(self, placements: Iterable[Placement]) -> list[Placement]:
        return [placement for placement in placements if placement not in self.here]


class FakeLink(Link):
    """`heard` is what others will have claimed."""

    def __init__(self, kernel: FakeKernel, interface: str) -> None:
        self.interface = interface
        self.sockets = ()
        self.heard: list[Sighting] = []
        self.down = False
        self._kernel = kernel

    def close(self) -> None:
        self._kernel.do(f"close {self.interface}")

    def probe(self, placement: Placement) -> None:
        self._kernel.do(f"probe {placement}")

    def announce(self, placement: Placement) -> None:
        if self.down:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        self._kernel.do(f"announce {placement}")

    def sightings(self) -> Iterator[Sighting]:
        heard, self.heard = self.heard, []
        return iter(heard)
