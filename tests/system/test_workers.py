"""Workers as processes: they are killed, frozen and outlived, and phones lose nothing by it."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from sipha.sip.message import Request
from tests.system.conftest import wait_until
from tests.system.nodes import check, clear, freeze, quick, siphactl, started
from tests.system.registrations import Load
from tests.system.test_takeover import final
from tests.system.ua import Call, UserAgent, call

pytestmark = pytest.mark.system

PREFIX = "127.0.36"
USERS = tuple(f"user{number}" for number in range(20))
LEASE = 1.0
"""Seconds."""

T1 = 0.5
"""Seconds after which a phone sends its 200 again."""

CALLS = 8
"""At once, among which the kernel divides the workers."""

_seeds = count(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Three nodes with two workers each."""
    timing = f"heartbeat = 0.1\nelection_min = {LEASE}\nelection_max = {1.5 * LEASE}"
    sandbox = Sandbox(tmp_path_factory.mktemp("workers"), prefix=PREFIX, sip="workers = 2", cluster=timing)
    with started(sandbox, *USERS):
        yield sandbox


@pytest.fixture
def cluster(running: Sandbox) -> Sandbox:
    """The nodes without bindings, with all workers at work, and with a leader that stays.

    One that is unwell since the test before hands leadership on.
    """
    clear(running)
    wait_until(lambda: at_work(running.wait_for_leader()), "a leader that is well, whose workers read")
    return running


@pytest.fixture
def phones(cluster: Sandbox) -> Iterator[Load]:
    load = Load(USERS, f"{PREFIX}.200", (cluster.virtual_address, 5060), cluster.domain, seed=next(_seeds))
    load.start()
    yield load
    load.stop()


def reading(node: SandboxNode) -> int:
    workers = quick(node)["workers"]
    return workers["reading"] if workers else 0


def at_work(node: SandboxNode) -> bool:
    return reading(node) == 2 and not any("unwell" in alarm for alarm in quick(node)["alarms"])


def workers_of(node: SandboxNode) -> list[int]:
    """The processes that a node has started as its workers."""
    assert node.process is not None
    tasks = Path(f"/proc/{node.process.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"sipha.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def has_others(node: SandboxNode, before: set[int]) -> bool:
    return len(workers_of(node)) == len(before) and set(workers_of(node)) != before


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_killed_worker_is_started_again_and_no_binding_is_lost(cluster: Sandbox, phones: Load) -> None:
    leader = cluster.wait_for_leader()
    phones.wait_for(200)
    first = workers_of(leader)
    for victim in first:
        before = set(workers_of(leader))
        os.kill(victim, signal.SIGKILL)
        wait_until(partial(has_others, leader, before), "another worker")
        wait_until(lambda: reading(leader) == 2, "it to read")
        phones.wait_for(phones.acknowledged + 100)
    assert len(first) == 2
    assert set(workers_of(leader)).isdisjoint(first)
    assert quick(leader)["counters"]["workers_restarts"] == 2
    assert quick(leader)["counters"]["workers_registers"] > 0
    assert f"{leader.name}: 2 of 2 workers read UDP\n" in siphactl(leader, "status")
    assert len(re.findall("worker [12] has ended by signal 9", (leader.directory / "log").read_text())) == 2
    phones.stop()
    check(cluster, phones)


def test_leadership_that_is_handed_on_takes_its_workers_along(cluster: Sandbox, phones: Load) -> None:
    first = cluster.wait_for_leader()
    workers = workers_of(first)
    phones.wait_for(100)
    other = next(node for node in cluster.nodes if node is not first)
    siphactl(first, "transfer", other.name)
    wait_until(lambda: quick(other)["leading"] and reading(other) == 2, "the other's workers to read")
    assert all(map(gone, workers))
    assert quick(first)["workers"] is None
    phones.wait_for(phones.acknowledged + 100)
    phones.stop()
    check(cluster, phones)


def test_frozen_daemon_makes_its_workers_fall_silent_and_dead_they_end(cluster: Sandbox) -> None:
    leader = cluster.wait_for_leader()
    workers = workers_of(leader)
    with Lines(cluster.virtual_address) as lines:
        assert lines.answered() == len(lines.sockets)
        freeze(leader)
        assert lines.answered() > 0  # by workers alone, while the lease lasts
        time.sleep(LEASE)
        assert lines.answered() == 0
        cluster.kill(leader)
        wait_until(lambda: all(map(gone, workers)), "the workers to end with the daemon")
        wait_until(lambda: cluster.leader() is not None, "another leader")
        wait_until(lambda: lines.answered() == len(lines.sockets), "its workers to answer")


@pytest.fixture
def pairs(cluster: Sandbox) -> Iterator[list[tuple[UserAgent, UserAgent]]]:
    """Callers and those that they call, each with a user and an address of its own; who is called has registered."""
    server = cluster.virtual_address, 5060
    agents = [
        UserAgent(user, server, host=f"{PREFIX}.{150 + number}") for number, user in enumerate(USERS[: 2 * CALLS])
    ]
    for callee in agents[1::2]:
        callee.register()
    yield list(zip(agents[::2], agents[1::2], strict=True))
    for agent in agents:
        agent.close()
    counters = quick(cluster.wait_for_leader())["counters"]
    assert not counters.get("transport_mistake"), "see the log"


def answer(callee: UserAgent, invite: Request, caller: UserAgent) -> None:
    """Send the 200 until the caller has it, as a phone does until the ACK (RFC 3261 §13.3.1.4).

    What was handed to a worker that is about to die is lost with it.
    """

    def arrives() -> bool:
        callee.answer(invite, 200)
        return caller.hears(within=T1)

    wait_until(arrives, "the caller to hear of the answer")


def count_of(node: SandboxNode, name: str) -> int:
    return int(quick(node)["counters"].get(name, 0))


def test_workers_proxy_calls(cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]) -> None:
    leader = cluster.wait_for_leader()
    names = ("workers_questions", "proxy_requests", "transaction_server_transactions")
    before = [count_of(leader, name) for name in names]
    for caller, callee in pairs:
        established = call(caller, callee)
        for method in ("INFO", "INVITE"):
            established.exchange(method)
        established.exchange("BYE", by_callee=True)

    def counted() -> bool:
        after = [count_of(leader, name) for name in names]
        questions, requests, begun = [n - known for n, known in zip(after, before, strict=True)]
        # A call is two INVITEs, the second with credentials, and ACKs for both; INFO, INVITE, ACK, BYE. Requests are
        # also the OPTIONS by which the leader asks itself whether it answers.
        return questions == CALLS and requests >= 8 * CALLS and begun == 4 * CALLS

    wait_until(counted, "the workers to report")


def test_phones_that_have_gone_are_not_called_by_workers_that_knew_them(
    cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]
) -> None:
    leader = cluster.wait_for_leader()
    asked = count_of(leader, "workers_questions")
    for _ in range(3):
        for caller, callee in pairs:
            call(caller, callee).exchange("BYE")
            callee.register(expires=0)
            for _ in range(2):  # the second time it is known that nobody is there
                caller.invite(callee.aor)
                final(caller, 480)
            assert callee.silent
            callee.register()
    # Once for each registration, once for each that has ended; whoever was told, all know it.
    wait_until(lambda: count_of(leader, "workers_questions") == asked + 3 * 2 * CALLS, "the workers to have asked")


def test_caller_whose_account_is_deleted_calls_nobody(
    cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]
) -> None:
    leader = cluster.wait_for_leader()
    for caller, callee in pairs:
        call(caller, callee).exchange("BYE")
        caller.request("INVITE", callee.aor)
        caller.expect(407)
        cluster.request(leader, "DELETE", f"/v1/accounts/{caller.user}@{cluster.domain}")
        try:
            caller.authorize()
            caller.expect(407)
            assert callee.silent
        finally:
            cluster.add_accounts({caller.user: f"{caller.user}-secret"})


def ring(pairs: list[tuple[UserAgent, UserAgent]]) -> list[Request]:
    """Have all callees' phones ring; the INVITEs that they got."""
    invites = []
    for caller, callee in pairs:
        caller.invite(callee.aor)
        invites.append(callee.expect("INVITE"))
        callee.answer(invites[-1], 180)
        caller.expect(180)
    return invites


def test_calls_that_ring_go_on_when_one_worker_is_killed(
    cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]
) -> None:
    leader = cluster.wait_for_leader()
    invites = ring(pairs)
    os.kill(workers_of(leader)[0], signal.SIGKILL)
    for (caller, callee), invite in zip(pairs, invites, strict=True):
        answer(callee, invite, caller)
        Call(caller, callee, invite, final(caller, 200)).acknowledge().exchange("BYE", by_callee=True)


def test_calls_that_ring_go_on_when_all_workers_are_killed(
    cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]
) -> None:
    leader = cluster.wait_for_leader()
    invites = ring(pairs)
    before = set(workers_of(leader))
    resumed = count_of(leader, "takeover_resumed")
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    for number, ((caller, callee), invite) in enumerate(zip(pairs, invites, strict=True)):
        if number == CALLS // 2:
            wait_until(lambda: set(workers_of(leader)).isdisjoint(before), "other workers")
            wait_until(lambda: reading(leader) == 2, "them to read")
        answer(callee, invite, caller)
        Call(caller, callee, invite, final(caller, 200)).acknowledge().exchange("BYE", by_callee=True)
    assert count_of(leader, "takeover_resumed") == resumed + CALLS


def test_calls_go_on_when_leadership_is_handed_on(cluster: Sandbox, pairs: list[tuple[UserAgent, UserAgent]]) -> None:
    first = cluster.wait_for_leader()
    other = next(node for node in cluster.nodes if node is not first)
    invites = ring(pairs)
    siphactl(first, "transfer", other.name)
    wait_until(lambda: quick(other)["leading"] and reading(other) == 2, "the other's workers to read")
    for (caller, callee), invite in zip(pairs, invites, strict=True):
        callee.answer(invite, 200)
        Call(caller, callee, invite, final(caller, 200)).acknowledge().exchange("BYE", by_callee=True)


class Lines:
    """Phones without a password, each at a port of its own: a REGISTER of each is answered by a worker alone."""

    _REGISTER = (
        "REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK{number}\r\n"
        "Max-Forwards: 70\r\nFrom: <sip:user0@sipha.test>;tag=t\r\nTo: <sip:user0@sipha.test>\r\n"
        "Call-ID: {number}\r\nCSeq: 1 REGISTER\r\nContact: <sip:user0@192.0.2.1:5060>\r\nContent-Length: 0\r\n\r\n"
    )

    def __init__(self, server: str) -> None:
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
        for each in self.sockets:
            each.bind((f"{PREFIX}.201", 0))
            each.settimeout(0.1)
        self._server = (server, 5060)
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets:
            each.close()

    def answered(self) -> int:
        """How many are challenged now."""
        self._asked += 1
        for each in self.sockets:
            each.sendto(self._REGISTER.format(number=self._asked).encode(), self._server)
        end = time.monotonic() + 0.5
        return sum(self._is_challenged(each, end) for each in self.sockets)

    def _is_challenged(self, line: socket.socket, end: float) -> bool:
        while time.monotonic() < end:
            try:
                data = line.recv(65535)
            except OSError:
                continue
            if data.startswith(b"SIP/2.0 401 ") and f"Call-ID: {self._asked}\r\n".encode() in data:
                return True
        return False
