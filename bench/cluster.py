"""Nodes of sipha under load, and the variants of it that are measured."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import log_data
from bench.load import PASSWORD, BenchError
from bench.tree import Tree
from sipha.cluster import founding
from sipha.cluster.storage import Storage
from sipha.sandbox import Sandbox, SandboxError, SandboxNode

PATIENT = "election_min = 3.0\nelection_max = 6.0"
"""What else this machine does must not end the leader's lease in the midst of a measurement."""

LEADER_CORE, OTHER_CORE = 0, 1

_ACCOUNTS_AT_ONCE = 1000
_AGREEMENT = 10.0
_LOADING = 300.0
"""Seconds in which all nodes on one machine have read a large table."""


@dataclass(frozen=True)
class Variant:
    """A way to run sipha: what a 200 OK means there, how many nodes, and how they are configured.

    `launcher` are the words before a node's command: ("env", "PYTHONPATH=TREE") runs another tree, and with an
    interpreter at its end another build; whether it is `compiled` is seen from what the nodes say. `cluster` and `sip`
    are TOML for the tables of these names.
    """

    name: str
    guarantee: str
    size: int = 3
    durability: str = "fsync"
    tls: bool = True
    launcher: tuple[str, ...] = ()
    compiled: bool = False
    cluster: str = PATIENT
    sip: str = ""


REPLICATED = Variant("sipha", "applied in one order, and on the disks of two nodes of three (fsync)")
ALONE = Variant(
    "sipha, one node in memory", "none: one kernel has it, nothing is synced", size=1, durability="os", tls=False
)
UNSYNCED = Variant('sipha, durability = "os"', "applied in one order, and in two kernels of three", durability="os")
BUILT = Path(__file__).parents[1] / "build" / "compiled"
"""Where `make compiled` puts sipha, as the Debian package has it."""
COMPILED, COMPILED_ALONE = (
    replace(variant, name=name, launcher=("env", f"PYTHONPATH={BUILT}"), compiled=True)
    for variant, name in ((REPLICATED, "sipha, compiled"), (ALONE, "sipha, compiled, one node in memory"))
)
VARIANTS = (REPLICATED, COMPILED, ALONE, COMPILED_ALONE)
"""What `make bench` measures beside the peers; another build or configuration is one more."""


class Cluster:
    """Nodes of a variant, on PREFIX.11 and up, whose leader serves PREFIX.10 from a core of its own."""

    window = 512
    told_later: frozenset[str] = frozenset()
    calls = True

    def __init__(self, variant: Variant, directory: Path, prefix: str) -> None:
        self.name = variant.name
        self.guarantee = variant.guarantee
        self._compiled = variant.compiled
        self.sandbox = Sandbox(
            directory,
            prefix=prefix,
            size=variant.size,
            tls=variant.tls,
            cluster=f'durability = "{variant.durability}"\n{variant.cluster}',
            sip=variant.sip,
            launcher=variant.launcher,
        )
        self.target = self.sandbox.virtual_address
        self.load_host = f"{prefix}.200"

    def preload(self, bindings: int, *, phones: bool = False) -> None:
        """Let the nodes begin with a snapshot of so many bindings: those of the load's users if `phones`."""
        self.sandbox.directory.mkdir(parents=True, exist_ok=True)
        self.sandbox.found()
        first, *_ = nodes = self.sandbox.nodes
        with founding.taken(first.data) as disk:
            storage = Storage.open(disk, first.name, sync=True, snapshot=None)
            assert storage.identity is not None
            cluster_id = storage.identity.cluster_id
            storage.journal.close()
        file, voters = self.sandbox.directory / "snapshot", {node.name: node.address for node in nodes}
        whose = (self.load_host, self.target) if phones else None
        index = log_data.make_snapshot(file, cluster_id, bindings, voters, whose)
        for node in nodes:
            log_data.add_snapshot(node.data, node.name, file, index)

    def start(self) -> None:
        """Start the nodes, and wait until one leads."""
        self.sandbox.directory.mkdir(parents=True, exist_ok=True)
        self.sandbox.found()
        for node in self.sandbox.nodes:
            if not node.running:
                self.sandbox.start_node(node)
        self._lead()

    def stop(self) -> None:
        """End the nodes."""
        self.sandbox.stop()

    def restart(self) -> None:
        """Kill all nodes, and start them again."""
        for node in self.sandbox.nodes:
            self.sandbox.kill(node)
        self.start()

    def add_users(self, number: int) -> None:
        """See Server."""
        create_accounts(self.sandbox, self.leader, number)

    def trees(self) -> dict[str, Tree]:
        """See Server: a leader that lost the lead while others were measured is no part of what is measured now."""
        if self.sandbox.leader() is not self.leader:
            self._lead()
        trees = {"leader": _tree(self.leader)}
        return trees | {f"follower {number}": _tree(node) for number, node in enumerate(self.followers, 1)}

    def cseqs(self, users: Sequence[str]) -> dict[str, dict[str, int]]:
        """See Server."""
        return {node.name: {user: self._cseq(node, user) for user in users} for node in self.sandbox.nodes}

    def agreed(self) -> bool:
        """True once all nodes have applied as much and have the same hash."""
        deadline = time.monotonic() + _AGREEMENT
        while time.monotonic() < deadline:
            seen = [self.sandbox.status(node) for node in self.sandbox.nodes]
            if len({(status["applied_index"], status["hash"]) if status else None for status in seen}) == 1:
                return None not in seen
            time.sleep(0.2)
        return False

    def logs(self) -> Sequence[Path]:
        """See Server."""
        return [node.directory / "log" for node in self.sandbox.nodes]

    def _lead(self) -> None:
        """Find out who leads, and give the cores accordingly."""
        self.leader = self.sandbox.wait_for_leader(_LOADING)
        version = self.sandbox.request(self.leader, "GET", "/v1/status")["version"]
        if version.endswith("+compiled") is not self._compiled:
            raise BenchError(f"{self.name} is to be {'' if self._compiled else 'not '}compiled, and is sipha {version}")
        self.followers = [node for node in self.sandbox.nodes if node is not self.leader]
        _tree(self.leader).pin(LEADER_CORE)
        for node in self.followers:
            _tree(node).pin(OTHER_CORE)

    def _cseq(self, node: SandboxNode, user: str) -> int:
        try:
            found = self.sandbox.request(node, "GET", f"/v1/bindings/sip:{user}@{self.sandbox.domain}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return 0
            raise
        return max((binding["cseq"] for binding in found["bindings"]), default=0)


def create_accounts(sandbox: Sandbox, leader: SandboxNode, number: int) -> None:
    """Create the accounts u00000000 and up, as far as they don't exist."""
    for first in range(0, number, _ACCOUNTS_AT_ONCE):
        accounts = [
            {"username": f"u{each:08}", "domain": sandbox.domain, "password": PASSWORD}
            for each in range(first, min(first + _ACCOUNTS_AT_ONCE, number))
        ]
        while accounts:  # 503: the machine was held up, and the leader could not be sure of a majority
            results = sandbox.request(leader, "POST", "/v1/accounts", accounts)["results"]
            accounts = [one for one, result in zip(accounts, results, strict=True) if result["status"] == 503]
            if any(result["status"] not in {201, 409, 503} for result in results):
                raise SandboxError(f"accounts can't be created: {results}")


def _tree(node: SandboxNode) -> Tree:
    assert node.process is not None
    return Tree(node.process.pid)
