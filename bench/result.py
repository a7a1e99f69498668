"""What `make bench` measured, as it is kept in JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.load import Sample

FIRST = "first REGISTER with its 401"
MOST = "REGISTER, as fast as it goes"
STEADY = "REGISTER at 1,000/s"
HIGH = "REGISTER at 80 % of the maximum"
CALL = "calls, as fast as they go"
CALLS = "calls at 100/s"
OVERLOAD = "REGISTER, offered twice as fast as it goes"
STORM = "all phones at once, after all nodes were killed"


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, seconds of a load, users.

    `users` have the loads that go on, `fresh` more register for the first time in each round, `callers` call each
    other, `phones` come all at once; `bindings` are in the table that is loaded.
    """

    rounds: int = 5
    seconds: float = 5.0
    users: int = 10_000
    fresh: int = 5_000
    callers: int = 1_000
    phones: int = 100_000
    bindings: int = 1_000_000


QUICK = Plan(rounds=2, seconds=0.6, users=2_000, fresh=1_000, callers=500, phones=10_000, bindings=50_000)


@dataclass
class Result:
    """The figures of each round, in their order.

    `servers` has each server's guarantee, in the order of the table; `samples` go by server and load; `idle` is each
    server's part of a core while nothing comes. `parts` has figures of a server's parts, by their names in the table
    of goals; `noise` are the host's, by theirs, in seconds, and `shares` the parts of a core that a busy process got.
    """

    machine: str
    plan: Plan
    servers: dict[str, str] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    parts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    noise: dict[str, list[float]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)

    def add(self, server: str, load: str, sample: Sample) -> None:
        """Take what a round gave."""
        self.samples.setdefault(server, {}).setdefault(load, []).append(sample)

    def of(self, server: str, load: str) -> list[Sample]:
        """What the rounds gave; nothing if that wasn't measured."""
        return self.samples.get(server, {}).get(load, [])

    def write(self, file: Path) -> None:
        """Keep it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read(file: Path) -> Result:
    """Read what was kept; raises msgspec.ValidationError."""
    return msgspec.json.decode(file.read_bytes(), type=Result)


def describe_machine() -> str:
    """Processor, cores and interpreter."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
            break
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}"
