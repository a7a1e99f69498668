"""Snapshots at one go, for tests that are about something else."""

from __future__ import annotations

from sipha.state.machine import Machine
from sipha.state.snapshot import Loaded, Loader

TERM = 3
CLUSTER_ID = "0123456789abcdef" * 2


def taken(machine: Machine) -> bytes:
    frozen = machine.freeze(TERM, CLUSTER_ID)
    data = b"".join(frozen)
    frozen.close()
    return data


def loaded(data: bytes, piece: int = 1 << 20) -> Loaded:
    loader = Loader()
    for start in range(0, len(data), piece):
        loader.feed(data[start : start + piece])
    return loader.finish()


def copied(machine: Machine) -> Machine:
    copy = Machine()
    copy.adopt(loaded(taken(machine)))
    return copy
