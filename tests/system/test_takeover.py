"""Calls that are being set up when the leader is killed: real nodes go on with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from sipha.sandbox import Sandbox, SandboxNode
from sipha.sip.message import Request, Response
from tests.system.conftest import wait_until
from tests.system.nodes import restore, started, table
from tests.system.ua import Call, UserAgent

pytestmark = pytest.mark.system

PREFIX = "127.0.24"
SILENCED = 5.0
"""Within how many seconds a CANCEL must have silenced every phone."""

BOB = "sip:bob@sipha.test"

Agents = Callable[[str], UserAgent]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    cluster = Sandbox(tmp_path_factory.mktemp("takeover"), prefix=PREFIX, tls=True)
    with started(cluster, "alice", "bob"):
        yield cluster


@pytest.fixture
def cluster(running: Sandbox) -> Sandbox:
    """Three nodes that agree, one of which leads, without bindings."""
    restore(running)
    for aor in {binding["aor"] for binding in table(running, running.wait_for_leader())}:
        running.request(running.wait_for_leader(), "DELETE", f"/v1/bindings/{aor.removeprefix('sip:')}")
    wait_until(lambda: shares(running), "the leader to be connected with the others")
    return running


@pytest.fixture
def agents(cluster: Sandbox) -> Iterator[Agents]:
    """Make user agents over UDP, each with an address of its own."""
    made: list[UserAgent] = []

    def make(user: str) -> UserAgent:
        made.append(UserAgent(user, (cluster.virtual_address, 5060), host=f"{PREFIX}.{150 + len(made)}"))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
    for node in cluster.nodes:
        if node.running and (status := cluster.status(node)):
            assert not status["counters"].get("transport_mistake"), f"see the log in {node.directory}"


def shares(cluster: Sandbox) -> bool:
    status = cluster.status(cluster.wait_for_leader())
    return status is not None and all(peer["connected"] for peer in status["peers"])


def kill_leader(cluster: Sandbox) -> SandboxNode:
    """Kill the leader, and wait until another has the address."""
    killed = cluster.wait_for_leader()
    cluster.kill(killed)
    begin = time.monotonic()
    leader = cluster.wait_for_leader()
    print(f"another leads after {time.monotonic() - begin:.2f} s")
    return leader


def final(caller: UserAgent, status: int) -> Response:
    """The final response to the caller's INVITE, after whatever 1xx come before it."""
    while True:
        response = caller.take(within=10)
        assert isinstance(response, Response), response
        if response.status >= 200:
            assert response.status == status, response
            return response


def answered(caller: UserAgent, callee: UserAgent, invite: Request) -> None:
    """A call that has been answered is one: ACK, re-INVITE and BYE pass."""
    call = Call(caller, callee, invite, final(caller, 200)).acknowledge()
    call.exchange("INVITE")
    call.exchange("BYE", by_callee=True)


@pytest.fixture(params=[1, 3], ids=["one target", "three targets"])
def phones(request: pytest.FixtureRequest, agents: Agents) -> list[UserAgent]:
    return [agents("bob").register() for _ in range(request.param)]


def ring(alice: UserAgent, phones: list[UserAgent]) -> list[tuple[UserAgent, Request]]:
    """Alice calls, and all phones ring."""
    alice.invite(BOB)
    forks = [(phone, phone.expect("INVITE")) for phone in phones]
    for phone, invite in forks:
        phone.answer(invite, 180)
        alice.expect(180)
    return forks


def end(forks: list[tuple[UserAgent, Request]]) -> None:
    """All forks are cancelled and end."""
    for phone, invite in forks:
        cancel = phone.expect("CANCEL", within=SILENCED)
        assert (cancel.uri, cancel.via.branch) == (invite.uri, invite.via.branch)
        phone.answer(cancel, 200)
        phone.answer(invite, 487)
        assert phone.expect("ACK").via.branch == invite.via.branch


def cancel(alice: UserAgent, forks: list[tuple[UserAgent, Request]]) -> None:
    """Alice gives up, all phones fall silent, and she hears of that."""
    assert alice.last is not None
    alice.cancel(alice.last)
    end(forks)
    while (response := alice.take()) and isinstance(response, Response):
        if response.cseq.method == "INVITE" and response.status >= 200:
            assert response.status == 487
            return


def test_call_goes_on_that_was_ringing(cluster: Sandbox, agents: Agents, phones: list[UserAgent]) -> None:
    alice = agents("alice")
    (first, invite), *others = ring(alice, phones)
    kill_leader(cluster)
    first.answer(invite, 200)
    final_of = Call(alice, first, invite, final(alice, 200)).acknowledge()
    end(others)
    final_of.exchange("INVITE")
    final_of.exchange("BYE", by_callee=True)


def test_call_goes_on_that_no_phone_had_answered_yet(cluster: Sandbox, agents: Agents, phones: list[UserAgent]) -> None:
    alice = agents("alice")
    alice.invite(BOB)
    forks = [(phone, phone.expect("INVITE")) for phone in phones]
    kill_leader(cluster)
    for phone, invite in forks:
        phone.answer(invite, 180)
    (first, invite), *others = forks
    first.answer(invite, 200)
    answered_call = Call(alice, first, invite, final(alice, 200)).acknowledge()
    end(others)
    answered_call.exchange("BYE")


def test_invite_is_sent_again_before_the_100(cluster: Sandbox, agents: Agents, phones: list[UserAgent]) -> None:
    alice = agents("alice")
    alice.request("INVITE", BOB)
    alice.expect(407)
    cluster.kill(cluster.wait_for_leader())
    invite = alice.authorize()
    cluster.wait_for_leader()
    alice.send_request(invite)
    alice.expect(407)  # the dead leader's nonce is stale
    alice.authorize()
    alice.expect(100)
    forks = [(phone, phone.expect("INVITE")) for phone in phones]
    (first, at_first), *others = forks
    for phone, at_phone in others:
        phone.answer(at_phone, 180)
        alice.expect(180)
    first.answer(at_first, 200)
    Call(alice, first, at_first, final(alice, 200)).acknowledge().exchange("BYE")
    end(others)


def test_answer_that_came_while_nobody_led_arrives(cluster: Sandbox, agents: Agents, phones: list[UserAgent]) -> None:
    alice = agents("alice")
    (first, invite), *others = ring(alice, phones)
    cluster.kill(cluster.wait_for_leader())
    first.answer(invite, 200)  # is lost
    cluster.wait_for_leader()
    first.answer(invite, 200)
    answered_call = Call(alice, first, invite, final(alice, 200)).acknowledge()
    end(others)
    answered_call.exchange("BYE")


def test_cancel_silences_every_phone(cluster: Sandbox, agents: Agents, phones: list[UserAgent]) -> None:
    alice = agents("alice")
    forks = ring(alice, phones)
    kill_leader(cluster)
    cancel(alice, forks)


def test_busy_phone_does_not_end_the_call_of_the_others(cluster: Sandbox, agents: Agents) -> None:
    alice = agents("alice")
    forks = ring(alice, [agents("bob").register() for _ in range(3)])
    (busy, at_busy), (first, at_first), last = forks
    kill_leader(cluster)
    busy.answer(at_busy, 486)
    busy.expect("ACK")
    first.answer(at_first, 200)
    answered_call = Call(alice, first, at_first, final(alice, 200)).acknowledge()
    end([last])
    answered_call.exchange("BYE")


def test_next_group_is_tried_when_the_first_is_busy(cluster: Sandbox, agents: Agents) -> None:
    alice, first, second = agents("alice"), agents("bob").register(q="1.0"), agents("bob").register(q="0.5")
    ((_, at_first),) = ring(alice, [first])
    kill_leader(cluster)
    first.answer(at_first, 486)
    first.expect("ACK")
    at_second = second.expect("INVITE")
    second.answer(at_second, 200)
    answered(alice, second, at_second)


def test_established_call_goes_on(cluster: Sandbox, agents: Agents) -> None:
    alice, bob = agents("alice"), agents("bob").register()
    ((_, invite),) = ring(alice, [bob])
    bob.answer(invite, 200)
    call = Call(alice, bob, invite, final(alice, 200)).acknowledge()
    kill_leader(cluster)
    call.exchange("INVITE")
    call.exchange("INVITE", by_callee=True)
    call.exchange("BYE")


def test_planned_move_leaves_a_ringing_call_alone(cluster: Sandbox, agents: Agents) -> None:
    alice, bob = agents("alice"), agents("bob").register()
    ((_, invite),) = ring(alice, [bob])
    for _ in range(2):
        cluster.request(cluster.wait_for_leader(), "POST", "/v1/transfer", {})
        cluster.wait_for_leader()
    bob.answer(invite, 200)
    answered(alice, bob, invite)


def test_nodes_that_are_restarted_while_a_phone_rings_know_of_the_call(cluster: Sandbox, agents: Agents) -> None:
    alice = agents("alice")
    forks = ring(alice, [agents("bob").register() for _ in range(3)])
    leader = cluster.wait_for_leader()
    for node in cluster.nodes:
        if node is not leader:
            cluster.kill(node)
            cluster.start_node(node)
            wait_until(lambda: shares(cluster), "the node to be connected again")
    assert cluster.wait_for_leader() is leader
    time.sleep(0.5)
    kill_leader(cluster)
    cancel(alice, forks)
