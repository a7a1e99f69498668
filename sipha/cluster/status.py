"""What a node says of its part in the cluster."""

from __future__ import annotations

from typing import Literal

import msgspec


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer as this node sees it; `heard` is in seconds, None if it isn't connected.

    `match` is the entry up to which the leader knows it to have the log on disk, 0 elsewhere.
    """

    name: str
    address: str
    role: Literal["voter", "witness", "learner", "stranger"]
    connected: bool
    heard: float | None
    match: int


class ReplicaStatus(msgspec.Struct, frozen=True):
    """This node's part in the cluster.

    `leading` is what allows to answer: lease valid and barrier applied. `lease` is in seconds, None without end (a
    cluster of one); `time` is the cluster time in seconds; `hash` is over the state at `applied_index`. `durability`
    says what an acknowledged entry survives; `durable_index` is up to where this node has the log on disk. `memory` is
    `amnesiac` for a node that has lost what it held, and `blank` for one that was never in a cluster: neither votes.
    """

    node: str
    cluster_id: str
    role: Literal["leader", "follower", "learner", "failed"]
    memory: Literal["whole", "amnesiac", "blank"]
    leading: bool
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    durable_index: int
    first_index: int
    last_index: int
    snapshot_index: int
    hash: str
    schema: int
    time: float
    lease: float | None
    proposals: int
    durability: Literal["fsync", "os"]
    journal_bytes: int
    peers: tuple[PeerStatus, ...]
    alarms: tuple[str, ...]
    counters: dict[str, int]
