"""What runs are about: which faults there are, how many nodes, and how unlike each other these are."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster_sim.network import FAST


@dataclass(frozen=True)
class Weather:
    """What a seed draws from; `faults` are names of methods of `Faults`, all of them if there are none."""

    faults: tuple[str, ...] = ()
    nodes: tuple[int, ...] = (3, 3, 3, 3, 5)
    elections: tuple[tuple[float, ...], ...] = ((0.25,), (0.25,), (0.4,), (0.25, 0.5, 0.8))
    """The `election_min` that nodes may have."""
    paces: tuple[float, ...] = (0.15, 0.4)
    """Seconds between two faults, on average."""
    repeats: tuple[float, ...] = (0.0, 0.0, 0.02, 0.2)
    strays: tuple[float, ...] = (0.0, 0.0, 0.02, 0.2)
    delays: tuple[tuple[float, float], ...] = (FAST,)
    """Seconds that messages take at first."""
    pauses: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Seconds that a client waits before it asks again, on average."""
    phones: int = 3
    """Those whose bindings run out."""


MIXED = Weather()

ELECTIONS = Weather(
    faults=(
        "kill",
        "kill_all",
        "kill_leader",
        "lose_power",
        "freeze_leader",
        "stall",
        "die_saying",
        "cut_leader_one_way",
        "isolate_leader",
        "lag",
        "lag_leader",
        "reset",
        "reset_leader",
        "slow_network",
        "transfer",
        "change_rate",
    ),
    nodes=(3, 5),
    elections=((0.25,), (0.25, 0.8), (0.25, 0.8)),
    paces=(0.1, 0.25),
    repeats=(0.0, 0.2),
    strays=(0.0, 0.2),
    delays=(FAST, FAST, (0.0002, 0.15), (0.0002, 0.4)),
    pauses=(0.1, 0.3, 2.0, 2.0),
    phones=1,
)
"""Votes, promises and last words that are late, repeated and forgotten, and logs that seldom stand in their way."""

DISKS = Weather(
    faults=(
        "kill",
        "kill_all",
        "kill_majority",
        "lose_power",
        "lose_power_everywhere",
        "die_in_disk",
        "wipe",
        "flip",
        "fill_disk",
        "fail_sync",
        "slow_disk",
        "lag",
        "reset",
    ),
    phones=4,
)
"""Disks that lose, fail and hang, and logs that must be mended after that."""

LOGS = Weather(
    faults=("maroon_leader", "isolate_leader", "split", "kill_leader", "lag", "slow_network", "congest", "transfer"),
    paces=(0.4, 0.8),
    pauses=(0.03, 0.1),
)
"""Leaders that go on alone, with much to do, and whose logs others must mend."""

MEMBERS = Weather(
    faults=(
        "change_members",
        "kill",
        "kill_leader",
        "isolate_leader",
        "lag_leader",
        "slow_network",
        "slow_disk",
        "transfer",
    ),
    nodes=(3, 5, 5),
    phones=4,
)
"""Nodes that come and go while others fail, and are slow to agree."""

WEATHERS = (MIXED, MIXED, MIXED, ELECTIONS, ELECTIONS, DISKS, LOGS, MEMBERS)
