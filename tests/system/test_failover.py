"""Three real nodes lose their leader, their quorum or all of them: nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Self

import pytest

from sipha.sandbox import Sandbox
from tests.system.conftest import agree, wait_until
from tests.system.nodes import (
    caught_up,
    check,
    clear,
    freeze,
    is_bound,
    quick,
    quick_status,
    restore,
    siphactl,
    started,
    steady,
    table,
    thaw,
)
from tests.system.registrations import Load, Questioner
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

PREFIX = "127.0.23"
GAP = 3.0
"""Within how many seconds a REGISTER and a call must work again."""

USERS = tuple(f"user{number}" for number in range(90))
_seeds = count(1)  # each load has Call-IDs and contacts of its own

MakeLoad = Callable[..., Load]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    cluster = Sandbox(tmp_path_factory.mktemp("failover"), prefix=PREFIX, tls=True)
    with started(cluster, "alice", "bob", *USERS):
        yield cluster


@pytest.fixture
def cluster(running: Sandbox) -> Sandbox:
    """Three nodes that agree, one of which leads, without bindings."""
    for node in running.nodes:
        thaw(node)
    clear(running)
    return running


@pytest.fixture
def load(cluster: Sandbox) -> Iterator[MakeLoad]:
    """Start phones; what they saw must be faultless in the end."""
    started: list[Load] = []

    def start(**options: Any) -> Load:
        server = (cluster.virtual_address, 5060)
        started.append(Load(USERS, f"{PREFIX}.200", server, cluster.domain, seed=next(_seeds), **options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def agents(cluster: Sandbox) -> Iterator[Callable[[str], UserAgent]]:
    """Make user agents over UDP."""
    made: list[UserAgent] = []

    def make(user: str) -> UserAgent:
        made.append(UserAgent(user, (cluster.virtual_address, 5060), host=f"{PREFIX}.201"))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


Agents = Callable[[str], UserAgent]


# -- the leader is killed -------------------------------------------------------------------------------------------


def test_leader_is_killed_under_load(cluster: Sandbox, load: MakeLoad, agents: Agents) -> None:
    phones = load()
    bob = agents("bob").register()
    phones.wait_for(500)
    killed = cluster.wait_for_leader()
    start = time.monotonic()
    cluster.kill(killed)
    registered = seconds_to_register(agents, start)
    called = seconds_to_call(agents, bob, start)
    print(f"after kill -9 a REGISTER works in {registered:.2f} s, a call in {called:.2f} s")
    phones.wait_for(1500)
    phones.stop()
    check(cluster, phones)
    assert registered <= GAP
    assert called <= GAP


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nodes_are_killed_again_and_again_under_load(cluster: Sandbox, load: MakeLoad, agents: Agents) -> None:
    phones = load(pause=0.1)
    gaps = []
    for number in range(5):
        phones.wait_for(2000 * number + 1000)
        leader = cluster.wait_for_leader()
        killed = leader if number % 2 == 0 else next(node for node in cluster.nodes if node is not leader)
        start = time.monotonic()
        cluster.kill(killed)
        gaps.append(seconds_to_register(agents, start))
        phones.wait_for(2000 * number + 2000)
        cluster.start_node(killed)
        wait_until(lambda: caught_up(cluster), "the killed node to catch up")
    phones.wait_for(10_000)
    phones.stop()
    print("after kill -9 of leader, follower, …, a REGISTER works in " + ", ".join(f"{gap:.2f} s" for gap in gaps))
    check(cluster, phones)
    assert max(gaps) <= GAP


@pytest.mark.parametrize("acknowledged", [400, pytest.param(4000, marks=pytest.mark.long)])
def test_all_nodes_are_killed_at_once_under_load(cluster: Sandbox, load: MakeLoad, acknowledged: int) -> None:
    phones = load()
    phones.wait_for(acknowledged)
    start = time.monotonic()
    for node in cluster.nodes:
        assert node.process is not None
        node.process.kill()
    for node in cluster.nodes:
        cluster.kill(node)
        cluster.start_node(node)
    cluster.wait_for_leader()
    print(f"after kill -9 of all, and their restart, one leads in {time.monotonic() - start:.2f} s")
    phones.wait_for(acknowledged + 200)
    phones.stop()
    check(cluster, phones, stood=time.monotonic() - start)


def test_new_leader_waits_for_an_address_in_use_and_says_that_it_doesnt_have_it(
    cluster: Sandbox, agents: Agents
) -> None:
    killed = cluster.wait_for_leader()
    cluster.kill(killed)
    others = [node for node in cluster.nodes if node is not killed]
    with socket.create_server((cluster.virtual_address, 5060)):
        wait_until(lambda: any(quick(node)["role"] == "leader" for node in others), "another leader")
        phone = agents("alice")
        phone.request("REGISTER", f"sip:{phone.domain}", to=f"<{phone.aor}>")
        with pytest.raises(AssertionError):
            phone.expect(401, within=1.0)
        assert not any(quick(node)["leading"] or quick(node)["holds_virtual_addresses"] for node in others)
    assert seconds_to_register(agents, time.monotonic()) < GAP
    assert cluster.wait_for_leader() in others


# -- the leader goes, or all of them, in order ----------------------------------------------------------------------


def test_leader_is_stopped_under_load(cluster: Sandbox, load: MakeLoad, agents: Agents) -> None:
    phones = load()
    phones.wait_for(200)
    leader = cluster.wait_for_leader()
    assert leader.process is not None
    start = time.monotonic()
    leader.process.terminate()
    gap = seconds_to_register(agents, start)
    print(f"after SIGTERM a REGISTER works in {gap:.2f} s")
    assert leader.process.wait(10) == -signal.SIGTERM  # as twistd ends
    phones.wait_for(phones.acknowledged + 100)
    phones.stop()
    check(cluster, phones)
    assert gap <= GAP


def test_cluster_keeps_accounts_and_bindings_when_it_is_restarted(cluster: Sandbox, load: MakeLoad) -> None:
    phones = load()
    phones.wait_for(300)
    phones.stop()
    accounts = cluster.request(cluster.nodes[0], "GET", "/v1/accounts?limit=1000")
    before = steady(cluster, cluster.wait_for_leader())
    start = time.monotonic()
    cluster.stop()
    assert [node.process.returncode for node in cluster.nodes if node.process] == [-signal.SIGTERM] * 3
    restore(cluster)
    for node in cluster.nodes:
        assert cluster.request(node, "GET", "/v1/accounts?limit=1000") == accounts
        assert steady(cluster, node) == before
    check(cluster, phones, stood=time.monotonic() - start)


def test_operator_writes_through_any_node_after_the_leader_is_killed(cluster: Sandbox, agents: Agents) -> None:
    agents("bob").register()
    killed = cluster.wait_for_leader()
    cluster.kill(killed)
    leader = cluster.wait_for_leader()
    left = [node for node in cluster.nodes if node is not killed]
    for number, node in enumerate(left):
        cluster.request(
            node, "POST", "/v1/accounts", {"username": f"new{number}", "domain": cluster.domain, "password": "secret"}
        )
    follower = next(node for node in left if node is not leader)
    siphactl(follower, "user", "add", f"new@{cluster.domain}", "--password-stdin", text="new-secret\n")
    siphactl(follower, "rm", f"bob@{cluster.domain}")
    restore(cluster)
    for node in cluster.nodes:
        accounts = cluster.request(node, "GET", "/v1/accounts?limit=1000")["accounts"]
        assert {"new", "new0", "new1"} <= {account["username"] for account in accounts}
        assert not table(cluster, node)
    agents("new").register()
    for name in ("new", "new0", "new1"):
        siphactl(cluster.nodes[0], "user", "rm", f"{name}@{cluster.domain}")


# -- no quorum ------------------------------------------------------------------------------------------------------


def test_leader_without_quorum_refuses_and_then_leaves_its_address(cluster: Sandbox, agents: Agents) -> None:
    leader = cluster.wait_for_leader()
    followers = [node for node in cluster.nodes if node is not leader]
    with Questioner("alice", f"{PREFIX}.202", (cluster.virtual_address, 5060), cluster.domain) as questioner:
        start = time.monotonic()
        for node in followers:
            freeze(node)
        while is_bound(cluster.virtual_address):
            questioner.ask()
            assert time.monotonic() < start + GAP, "the address was not released"
        released = time.monotonic()
        while time.monotonic() < released + 1.0:
            questioner.ask()
        refused = [answer for answer in questioner.answers if answer.status == 503]
        print(f"no quorum: {len(refused)} REGISTERs refused, the address is released in {released - start:.2f} s")
        assert refused
        assert all("retry-after" in answer.fields for answer in refused)
        assert {answer.status for answer in questioner.answers} <= {200, 503}
        assert questioner.last_answer < released + 0.05
        status = quick_status(leader)
        assert status is not None
        assert (status["leading"], status["holds_virtual_addresses"], status["lease"]) == (False, False, 0)
        questioner.answers = []
        for node in followers:
            thaw(node)
        gap = seconds_to_register(agents, time.monotonic())
        print(f"no quorum: a REGISTER works in {gap:.2f} s after the followers are back")
        questioner.listen(1.0)
        assert not questioner.answers, "what was asked before is answered now"
    assert gap <= GAP
    wait_until(lambda: agree(cluster), "the nodes to agree")


def test_cluster_returns_when_its_killed_followers_do(cluster: Sandbox, load: MakeLoad, agents: Agents) -> None:
    phones = load()
    phones.wait_for(200)
    leader = cluster.wait_for_leader()
    for node in cluster.nodes:
        if node is not leader:
            cluster.kill(node)
    wait_until(lambda: not is_bound(cluster.virtual_address), "the address to be released")
    acknowledged = phones.acknowledged
    time.sleep(1.0)
    assert phones.acknowledged == acknowledged
    for node in cluster.nodes:
        if not node.running:
            cluster.start_node(node)
    phones.wait_for(acknowledged + 200)
    phones.stop()
    check(cluster, phones)


# -- the leader freezes ---------------------------------------------------------------------------------------------


def test_leader_that_was_frozen_steps_down_without_an_answer(cluster: Sandbox, load: MakeLoad, agents: Agents) -> None:
    """In the loopback mode its socket keeps the address: the new leader waits for it, and phones for both."""
    phones = load()
    phones.wait_for(300)
    frozen = cluster.wait_for_leader()
    others = [node for node in cluster.nodes if node is not frozen]
    with Questioner("alice", f"{PREFIX}.202", (cluster.virtual_address, 5060), cluster.domain) as questioner:
        freeze(frozen)
        start = time.monotonic()
        questioner.listen(0.05)
        questioner.answers = []
        while time.monotonic() < start + 3.0:
            questioner.ask()
        assert not questioner.answers
        elected = [node for node in others if (status := quick_status(node)) and status["role"] == "leader"]
        assert len(elected) == 1
        assert not quick(elected[0])["holds_virtual_addresses"]
        with Observer(cluster) as observer:
            thawed = time.monotonic()
            thaw(frozen)
            gap = seconds_to_register(agents, thawed)
            status = quick(frozen)
            questioner.listen(1.0)
        print(f"after SIGSTOP of 3 s and SIGCONT a REGISTER works in {gap:.2f} s")
        assert not questioner.answers, "a frozen leader has answered what it was asked"
        assert not status["leading"]
        assert observer.most == 1
    assert gap <= GAP
    assert cluster.wait_for_leader() in others
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(cluster, phones)


def test_phones_are_served_again_after_the_leader_froze_for_a_moment(cluster: Sandbox, load: MakeLoad) -> None:
    """Shorter than an election, longer than the lease: whoever leads then, nothing is lost."""
    phones = load()
    for _ in range(5):
        phones.wait_for(phones.acknowledged + 100)
        leader = cluster.wait_for_leader()
        freeze(leader)
        time.sleep(0.25)
        thaw(leader)
    phones.wait_for(phones.acknowledged + 200)
    phones.stop()
    check(cluster, phones)


# -- what the tests ask and do --------------------------------------------------------------------------------------


class Observer:
    """Asks all nodes again and again who leads; `most` is how many said so at once."""

    def __init__(self, cluster: Sandbox) -> None:
        self.most = 0
        self._nodes = cluster.nodes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            statuses = [quick_status(node) for node in self._nodes]
            self.most = max(self.most, sum(status["leading"] for status in statuses if status))


def seconds_to_register(agents: Agents, since: float) -> float:
    """Send new REGISTERs until one is answered with 200; return when, in seconds after `since`."""
    while True:
        assert time.monotonic() < since + 30, "no REGISTER works"
        with contextlib.suppress(AssertionError):
            phone = agents("alice")
            phone.request("REGISTER", f"sip:{phone.domain}", to=f"<{phone.aor}>", headers=["Expires: 600"])
            phone.expect(401, within=0.05)
            phone.authorize()
            phone.expect(200, within=0.5)
            return time.monotonic() - since


def seconds_to_call(agents: Agents, callee: UserAgent, since: float) -> float:
    """Call until the proxy asks for credentials; the call must succeed then. Return when, in seconds after `since`."""
    while True:
        assert time.monotonic() < since + 30, "no call works"
        caller = agents("alice")
        caller.request("INVITE", callee.aor)
        with contextlib.suppress(AssertionError):
            caller.expect(407, within=0.05)
            break
    invite = caller.authorize()
    caller.expect(100)
    callee.answer(callee.expect("INVITE"), 200)
    answer = caller.expect(200)
    assert answer.call_id == invite.call_id
    return time.monotonic() - since
