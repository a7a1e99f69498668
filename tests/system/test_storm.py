"""Nodes are killed at the worst moments, again and again: what was acknowledged is on all of them afterwards."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest

from bench.load import build
from sipha.sandbox import Sandbox, SandboxNode
from tests.system.conftest import agree, wait_until
from tests.system.nodes import check, clear, restore, started, table, thaw
from tests.system.registrations import Load

pytestmark = pytest.mark.system

PREFIX = "127.0.27"
PHONES = tuple(f"user{number}" for number in range(60))
USERS = 1500
"""How many users of regload may register in a round, each once; it begins nothing more after the kill."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    cluster = Sandbox(tmp_path_factory.mktemp("storm"), prefix=PREFIX, tls=True)
    with started(cluster, *PHONES):
        yield cluster


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_every_acknowledged_user_survives_kill_9(cluster: Sandbox, tmp_path: Path, rounds: int) -> None:
    """Each round kills other nodes at the very moment of a 200 OK."""
    regload = build() / "regload"
    gaps, dice = [], random.Random(rounds)
    for number, whom in enumerate(islice(cycle(("leader", "all", "follower", "majority")), rounds)):
        restore(cluster)
        first = number * USERS + (100_000 if rounds > 2 else 0)
        add_users(cluster, first)
        killed = choose(cluster, whom)
        file, moment = tmp_path / f"acknowledged{number}", dice.randint(200, 1000)
        load = subprocess.Popen(
            [
                str(regload),
                *("-t", f"{cluster.virtual_address}:5060", "-b", f"{PREFIX}.200", "-d", cluster.domain),
                *("-s", str(first), "-n", str(USERS), "-N", str(USERS), "-w", "32", "-a", "secret", "-x"),
                *("-T", "30000", "-D", "60", "-o", str(file), "-k", str(moment)),
                *(word for node in killed for word in ("-K", str(pid(node)))),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until(partial(are_dead, killed), "the nodes to be killed")
        start = time.monotonic()
        for node in killed:
            cluster.kill(node)
            cluster.start_node(node)
        cluster.wait_for_leader()
        gaps.append(f"{whom} {time.monotonic() - start:.1f} s")
        output, _ = load.communicate(timeout=90)
        restore(cluster)
        acknowledged = {f"sip:u{int(line.split()[0]):08}@{cluster.domain}" for line in file.read_text().splitlines()}
        assert len(acknowledged) >= moment, output
        for node in cluster.nodes:
            missing = acknowledged - {binding["aor"] for binding in table(cluster, node)}
            assert not missing, (node.name, whom, len(missing), sorted(missing)[:5])
    print(f"after kill -9 of … one leads in: {', '.join(gaps)}")


@pytest.mark.parametrize("storms", [8, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_nothing_is_lost_in_a_storm_of_restarts(cluster: Sandbox, storms: int) -> None:
    """Nodes end and start at random, some before they were ready, and sometimes all at once."""
    clear(cluster)
    dice = random.Random(storms)
    server = (cluster.virtual_address, 5060)
    phones = Load(PHONES, f"{PREFIX}.201", server, cluster.domain, seed=storms)
    phones.start()
    try:
        phones.wait_for(200)
        for _ in range(storms):
            for node in dice.sample(cluster.nodes, dice.choice((1, 1, 1, 2, 3))):
                assert node.process is not None
                node.process.send_signal(dice.choice((9, 9, 15)))
                node.process.wait(10)
                cluster.start_node(node)
            time.sleep(dice.choice((0.0, 0.3, 1.0, 2.0)))
        phones.wait_for(phones.acknowledged + 200)
    finally:
        for node in cluster.nodes:
            thaw(node)
        phones.stop()
    # Nobody promises an answer while no majority stays up for long enough to elect a leader.
    phones.faults = [fault for fault in phones.faults if not fault.endswith("was not answered within 32 s")]
    check(cluster, phones)


def add_users(cluster: Sandbox, first: int) -> None:
    """Create the accounts of regload's users."""
    accounts = [
        {"username": f"u{number:08}", "domain": cluster.domain, "password": "secret"}
        for number in range(first, first + USERS)
    ]
    for start in range(0, USERS, 500):
        cluster.request(cluster.wait_for_leader(), "POST", "/v1/accounts", accounts[start : start + 500])
    wait_until(lambda: agree(cluster), "the nodes to agree")


def choose(cluster: Sandbox, whom: str) -> list[SandboxNode]:
    """The nodes that are to be killed."""
    leader = cluster.wait_for_leader()
    followers = [node for node in cluster.nodes if node is not leader]
    return {"leader": [leader], "follower": followers[:1], "majority": [leader, followers[1]], "all": cluster.nodes}[
        whom
    ]


def are_dead(nodes: list[SandboxNode]) -> bool:
    """Return True if the processes of all these have ended."""
    return not any(node.running for node in nodes)


def pid(node: SandboxNode) -> int:
    """The process of a node, which is the first of its group."""
    assert node.process is not None
    return node.process.pid
