"""The registrars that sipha is measured beside: Kamailio in memory, replicated, and with a database, and OpenSIPS.

Each asks for credentials as sipha does; their passwords stand in the configuration, which is quicker than any table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cluster import LEADER_CORE, OTHER_CORE
from bench.daemon import Daemon
from bench.kamailio import Kamailio
from bench.load import BenchError
from bench.opensips import OpenSips, find
from bench.postgresql import STANDBYS, Database
from bench.tree import Tree

NODES = 3
WORKERS = 8
"""With so many a database that waits for disks does best (on two cores; 16 are no better)."""

CEILING = "Kamailio in memory"
NEAREST = "Kamailio, PostgreSQL"
"""The one whose 200 OK means nearly as much as sipha's."""

_BOTH = f"{LEADER_CORE},{OTHER_CORE}"


@dataclass
class Peer:
    """A registrar of one or several instances, the first of which has the load, and perhaps a database."""

    name: str
    guarantee: str
    directory: Path
    load_host: str
    instances: dict[str, Daemon] = field(default_factory=dict)
    database: Database | None = None
    window: int = 64
    told_later: frozenset[str] = frozenset()

    def start(self) -> None:
        """Start all of it."""
        if self.database is not None:
            self.database.start()
        for instance in self.instances.values():
            instance.start()

    def stop(self) -> None:
        """End all of it."""
        for instance in self.instances.values():
            instance.stop()
        if self.database is not None:
            self.database.stop()

    @property
    def target(self) -> str:
        """See Server."""
        return next(iter(self.instances.values())).host

    def add_users(self, number: int) -> None:
        """See Server: whoever knows the password is a user."""

    def trees(self) -> Mapping[str, Tree]:
        """See Server."""
        processes = {name: instance.process for name, instance in self.instances.items()}
        if self.database is not None:
            processes |= self.database.processes
            if not self.database.is_synchronous():
                raise BenchError(f"{self.name}: the database doesn't wait for a standby")
        trees = {}
        for name, process in processes.items():
            if process is None or process.poll() is not None:
                raise BenchError(f"{self.name}: {name} has ended; the logs are in {self.directory}")
            trees[name] = Tree(process.pid)
        return trees

    def cseqs(self, users: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """See Server."""
        found = {name: {user: instance.cseq(user) for user in users} for name, instance in self.instances.items()}
        if self.database is not None:
            names = ", ".join(f"'{user}'" for user in users)
            statement = f"SELECT username, max(cseq) FROM location WHERE username IN ({names}) GROUP BY 1"
            for name in ("primary", *STANDBYS):
                rows = (row.split("|") for row in self.database.ask(name, statement))
                found[name] = {user: int(cseq) for user, cseq in rows}
        return found

    def logs(self) -> Sequence[Path]:
        """See Server."""
        return sorted(self.directory.rglob("*log"))


def in_memory(directory: Path, prefix: str) -> Peer:
    """One Kamailio, which keeps its table in memory alone: the ceiling."""
    kamailio = Kamailio(
        directory / "kamailio",
        f"{prefix}.11",
        workers=1,
        defines={"WITH_AUTH": ""},
        launcher=("taskset", "-c", str(LEADER_CORE)),
    )
    return Peer(
        CEILING,
        "none: one process has it",
        directory,
        f"{prefix}.200",
        {"kamailio": kamailio},
    )


def replicated(directory: Path, prefix: str) -> Peer:
    """Three Kamailios, each of which tells the others of what it has acknowledged."""
    hosts = [f"{prefix}.{11 + number}" for number in range(NODES)]
    instances: dict[str, Daemon] = {}
    for number, host in enumerate(hosts, 1):
        other = hosts[0] if number > 1 else hosts[1]
        instances[f"node {number}"] = Kamailio(
            directory / f"node-{number}",
            host,
            workers=1,
            defines={"WITH_AUTH": "", "DMQADDR": f'"sip:{host}:5060"', "DMQPEER": f'"sip:{other}:5060"'},
            launcher=("taskset", "-c", str(LEADER_CORE if number == 1 else OTHER_CORE)),
        )
    guarantee = "none: one process has it, two more will be told"
    told_later = frozenset(list(instances)[1:])
    return Peer("Kamailio, dmq, three nodes", guarantee, directory, f"{prefix}.200", instances, told_later=told_later)


def written_through(directory: Path, prefix: str) -> Peer:
    """Kamailio which writes to a database with two standbys, as often as not the way to a table that is never lost."""
    anywhere = ("taskset", "-c", _BOTH)
    database = Database(directory / "postgresql", prefix, launcher=anywhere)
    kamailio = Kamailio(
        directory / "kamailio",
        f"{prefix}.11",
        workers=WORKERS,
        defines={"WITH_AUTH": "", "DATABASE": f'"{database.url}"'},
        launcher=anywhere,
    )
    return Peer(
        NEAREST,
        "on the disks of the primary and one standby of two (fsync)",
        directory,
        f"{prefix}.200",
        {"kamailio": kamailio},
        database,
    )


def opensips_in_memory(directory: Path, prefix: str) -> Peer:
    """One OpenSIPS, which keeps its table in memory alone."""
    opensips = OpenSips(directory, f"{prefix}.11", workers=1, launcher=("taskset", "-c", str(LEADER_CORE)))
    guarantee = "none: one process has it"
    return Peer("OpenSIPS in memory", guarantee, directory, f"{prefix}.200", {"opensips": opensips})


PEERS: tuple[Callable[[Path, str], Peer], ...] = (
    in_memory,
    replicated,
    written_through,
    *((opensips_in_memory,) if find() else ()),
)
