from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from sipha.config.texts import FilePath
from sipha.errors import ConfigError, SiphaError, UnknownOutcome
from sipha.service.view import DEADLINE, View
from sipha.state.entries import Contact, PutAccount, Register, RemoveBindings
from sipha.state.snapshot import Loader
from tests.service.alone import Alone


def outcome(alone: Alone, deferred: Deferred[Any]) -> object:
    """What it fires with."""
    results: list[object] = []
    deferred.addBoth(results.append)
    alone.world.until(lambda: results)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_view_shows_the_node(alone: Alone) -> None:
    status = alone.node.view.status()
    assert (status.node, status.role, status.memory, status.leader) == ("n1", "leader", "whole", "n1")
    assert (status.durability, status.lease, status.peers, status.alarms) == ("fsync", None, (), ())
    assert status.holds_virtual_addresses
    assert len(status.cluster_id) == 32
    assert 0 < status.commit_index <= status.durable_index == status.last_index
    assert status.journal_bytes > 0


def test_view_adds_shows_and_removes_a_node(alone: Alone) -> None:
    view = alone.node.view
    outcome(alone, view.add_node("n2", "127.0.0.52:7000"))
    n1, n2 = view.nodes()
    assert (n1.name, n1.address, n1.role, n1.leads, n1.connected, n1.behind) == (
        "n1", "127.0.0.51:7000", "voter", True, True, 0,
    )  # fmt: skip
    assert (n2.name, n2.address, n2.role, n2.leads, n2.connected) == ("n2", "127.0.0.52:7000", "learner", False, False)
    assert n2.behind == view.status().commit_index
    outcome(alone, view.remove_node("n2"))
    assert [node.name for node in view.nodes()] == ["n1"]


@pytest.mark.parametrize(
    ("name", "address", "problem"),
    [
        ("N2", "127.0.0.52:7000", "'N2' is not a name"),
        ("n2", "127.0.0.52", "'127.0.0.52' is not an IP address and port"),
        ("n2", "n2.sipha.test:7000", "is not an IP address and port"),
        ("n2", "192.0.2.2:7000", "is not a loopback address, and the nodes of this cluster talk unencrypted"),
    ],
)
def test_view_refuses_what_no_node_can_be(alone: Alone, name: str, address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        alone.node.view.add_node(name, address)
    assert len(alone.node.view.nodes()) == 1


def test_view_says_what_the_cluster_refuses(alone: Alone) -> None:
    view = alone.node.view
    with pytest.raises(SiphaError, match="n1 is a member already"):
        view.add_node("n1", "127.0.0.52:7000")
    with pytest.raises(SiphaError, match="n2 is no member"):
        view.remove_node("n2")
    with pytest.raises(SiphaError, match="no other voter"):
        outcome(alone, view.transfer(None))


def test_node_that_was_not_asked_to_talk_in_the_clear_adds_none(alone: Alone) -> None:
    settings = alone.config
    quiet = msgspec.structs.replace(settings, cluster=msgspec.structs.replace(settings.cluster, plaintext=False))
    view = View(alone.world.reactor, quiet, alone.node.parts, alone.life)
    with pytest.raises(ConfigError, match="n1 has no certificates to talk to other nodes with"):
        view.add_node("n2", "127.0.0.52:7000")


def test_node_with_certificates_adds_one_elsewhere(alone: Alone) -> None:
    settings, files = alone.config, dict.fromkeys(("ca", "certificate", "key"), FilePath("/x.pem"))
    cluster = msgspec.structs.replace(settings.cluster, plaintext=False, **files)
    view = View(alone.world.reactor, msgspec.structs.replace(settings, cluster=cluster), alone.node.parts, alone.life)
    with pytest.raises(SiphaError, match="n1 is a member already"):
        view.add_node("n1", "192.0.2.2:7000")


def test_change_that_no_majority_answers_is_given_up(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    view = View(clock, alone.config, alone.node.parts, alone.life)
    dones = []
    monkeypatch.setattr(alone.node.replication.replica.membership, "remove", lambda _, done: dones.append(done))
    failures: list[Failure] = []
    view.remove_node("n2").addErrback(failures.append)
    clock.advance(DEADLINE - 0.1)
    assert not failures
    clock.advance(0.1)
    assert failures[0].check(UnknownOutcome)
    dones[0](UnknownOutcome("too late"))


def test_node_that_leads_already_needs_no_transfer(alone: Alone) -> None:
    assert outcome(alone, alone.node.view.transfer("n1")) == "n1"
    with pytest.raises(SiphaError, match="n2 is no voter"):
        outcome(alone, alone.node.view.transfer("n2"))


def test_view_backs_the_table_up(alone: Alone) -> None:
    applied: list[object] = []
    alone.node.view.propose(PutAccount("a", "sipha.test", "a", "sipha.test", {"MD5": "0" * 32}), applied.append)
    alone.world.until(lambda: applied)
    frozen, loader = alone.node.view.backup(), Loader()
    for chunk in frozen:
        loader.feed(chunk)
    alone.node.view.free(frozen)
    loaded = loader.finish()
    assert loaded.header.cluster_id == alone.node.view.status().cluster_id
    assert len(loaded.tables.accounts) == 1


def test_view_says_how_far_its_table_is(alone: Alone) -> None:
    position = alone.node.view.position()
    assert (position.node, position.leads, position.heard) == ("n1", True, None)
    assert position.index == alone.node.view.status().applied_index > 0
    assert position.time > 0


def test_view_shows_the_log(alone: Alone) -> None:
    view = alone.node.view
    account: Deferred[Any] = Deferred()
    view.propose(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}), account.callback)
    outcome(alone, account)
    log = view.log()
    assert (log.leader, log.snapshot, log.last_index) == ("n1", None, view.status().last_index)
    entries = view.entries(log.last_index + 1, 100)
    assert [entry.index for entry in entries] == list(range(log.last_index, log.readable_after, -1))
    assert {entry.kind for entry in entries} == {"records", "members", "empty"}
    assert all(entry.committed for entry in entries)
    assert "put-account" in {record.kind for entry in entries for record in entry.records}


def test_view_lists_bindings_while_they_change(alone: Alone) -> None:
    view = alone.node.view
    registered: Deferred[Any] = Deferred()
    record = Register("sip:alice@sipha.test", "call", 1, (Contact("sip:alice@192.0.2.1", expires=600),))
    view.propose(record, registered.callback)
    outcome(alone, registered)
    listing = view.listing()
    removed: Deferred[Any] = Deferred()
    view.propose(RemoveBindings("sip:alice@sipha.test"), removed.callback)
    outcome(alone, removed)
    assert [[binding.contact for binding in found] for found in listing.bindings] == [["sip:alice@192.0.2.1"]]
    listing.close()


def test_view_puts_its_node_in_standby_and_brings_it_back(alone: Alone) -> None:
    view = alone.node.view
    with pytest.raises(SiphaError, match="without n1 no node could lead: it is the only node; --force does it"):
        view.put_in_standby("n1", force=False)
    assert outcome(alone, view.put_in_standby("n1", force=True)) == "n1"
    alone.world.until(lambda: not view.leading())
    status = view.status()
    assert (status.standby, status.leading, view.leads_log()) == (True, False, True)
    assert status.alarms == (
        "no node may serve phones: n1 is in standby; siphactl online brings one back from standby",
    )
    outcome(alone, view.bring_online("n1"))
    alone.world.until(lambda: view.status().leading)
    assert not view.status().alarms


def test_view_shows_who_is_preferred_and_who_could_lead(alone: Alone) -> None:
    view = alone.node.view
    outcome(alone, view.prefer("n1"))
    (n1,) = view.nodes()
    assert (n1.preferred, n1.standby, n1.obstacle) == (True, False, "")
    outcome(alone, view.add_node("n2", "127.0.0.52:7000"))
    assert view.nodes()[1].obstacle == "doesn't vote yet"
    assert view.successor() is None
    outcome(alone, view.prefer(None))
    assert not view.nodes()[0].preferred
