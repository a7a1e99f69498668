"""What we rely on in PySyncObj 0.3.17; where one of these fails, read the new version before changing it."""

from __future__ import annotations

import ast
import hashlib
import re
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pysyncobj
import pytest
from pysyncobj import SERIALIZER_STATE, SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.serializer import Serializer
from pysyncobj.transport import Transport
from twisted.internet.task import Clock

import sipha.cluster
from sipha.cluster import raft
from sipha.cluster.guards import MAX_COMMAND
from sipha.cluster.journal import Journal
from sipha.cluster.raft import Raft, Timing
from sipha.cluster.wire import AppendEntries
from tests.cluster.ballot import Ballot, Convene
from tests.cluster_sim.disk import VirtualDisk

PINNED = "0.3.17"
HELP = f"; sipha knows the insides of PySyncObj {PINNED}: read what has changed there before you change this test"
LIBRARY = Path(pysyncobj.__file__).parent
SOURCES = {
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "serializer.py": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
}
JOURNAL = {
    "add", "clear", "deleteEntriesFrom", "deleteEntriesTo", "getCurrentTerm", "getRaftCommitIndex",
    "getVotedForNodeId", "onOneSecondTimer", "setCurrentTerm", "setRaftCommitIndex", "_destroy",
}  # fmt: skip
SERIALIZER = {
    "cancelTransmisstion", "checkSerializing", "deserialize", "getTransmissionData", "serialize", "setTransmissionData",
}  # fmt: skip
MESSAGES = {
    "append_entries", "apply_command", "apply_command_response", "next_node_idx", "request_vote", "response_vote",
    "timeout_now",
}  # fmt: skip


@pytest.fixture(scope="module")
def source() -> ast.Module:
    return ast.parse((LIBRARY / "syncobj.py").read_text(encoding="utf-8"))


@pytest.fixture
def plain() -> Iterator[SyncObj]:
    """The library's node as it is, of which ours knows more than is public."""
    node = SyncObj(Node("a"), [Node("b")], SyncObjConf(autoTick=False), transport=Transport(None, None, ()))
    yield node
    node.destroy()


def private_names() -> set[str]:
    return set(re.findall(r"\b_SyncObj__\w+", Path(raft.__file__).read_text(encoding="utf-8")))


def used(source: ast.Module, attribute: str) -> set[str]:
    """What the library calls of one of its own attributes."""
    return {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == attribute
    }


def test_library_is_the_pinned_version() -> None:
    assert version("pysyncobj") == PINNED, "this is another version" + HELP


@pytest.mark.parametrize("name", SOURCES)
def test_library_source_is_the_one_that_was_read(name: str) -> None:
    digest = hashlib.sha256((LIBRARY / name).read_bytes()).hexdigest()
    assert digest == SOURCES[name], f"{name} is not what was read" + HELP


def test_private_names_are_the_librarys(plain: SyncObj) -> None:
    """What we would only set on it ourselves, it would never look at."""
    names = private_names()
    assert len(names) > 20
    missing = [name for name in sorted(names) if not hasattr(plain, name)]
    assert not missing, f"{missing} are gone" + HELP


@pytest.mark.parametrize(
    "name",
    [
        "_SyncObj__connectedNodes",
        "_SyncObj__otherNodes",
        "_SyncObj__readonlyNodes",
        "_SyncObj__raftNextIndex",
        "_SyncObj__raftMatchIndex",
        "_SyncObj__lastResponseTime",
    ],
)
def test_tables_of_nodes_are_sets_and_dicts(plain: SyncObj, name: str) -> None:
    assert name in private_names()
    kind = set if name.endswith("Nodes") else dict
    assert type(getattr(plain, name)) is kind, f"{name} is no {kind.__name__}" + HELP


def test_methods_that_we_call_or_override_are_the_librarys() -> None:
    overridden = {name for name in vars(Raft) if name.startswith("_SyncObj__")}
    called = {
        "_applyCommand",
        "_checkCommandsToApply",
        "_SyncObj__applyLogEntries",
        "_SyncObj__sendAppendEntries",
        "doTick",
    }
    assert overridden == {"_SyncObj__doApplyCommand", "_SyncObj__onBecomeLeader"}
    for name in overridden | called:
        assert callable(vars(SyncObj).get(name)), f"{name} is gone" + HELP


def test_private_names_stand_in_one_module() -> None:
    others = [path for path in Path(sipha.cluster.__file__).parent.glob("*.py") if path.name != "raft.py"]
    assert len(others) > 5
    assert not [
        path.name
        for path in others
        if re.search(r"_SyncObj__|_FileJournal__|import pysyncobj|from pysyncobj", path.read_text("utf-8"))
    ]


def test_library_takes_its_journal_from_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """`createJournal` is a global of its module, which `__init__` calls with what the configuration says."""
    asked: list[object] = []
    create = pysyncobj.syncobj.createJournal
    assert create is raft._give_journal, "the hook isn't ours" + HELP

    def spy(journal: Any) -> Any:
        asked.append(journal)
        return create(journal)

    monkeypatch.setattr(pysyncobj.syncobj, "createJournal", spy)
    disk = VirtualDisk(Random(1))
    disk.start(Clock())
    journal = Journal.open(disk, None, sync=True, commit=0)
    node = Raft("a", journal, 0, Timing(), Silence(), lambda _index, _entry: None)
    assert asked == [journal], "__init__ asks for its journal in another way" + HELP
    assert node._SyncObj__raftLog is journal


def test_journal_has_what_the_library_calls(source: ast.Module) -> None:
    called = used(source, "__raftLog")
    assert called == JOURNAL, "the library asks other things of its journal" + HELP
    for name in called - {"clear", "deleteEntriesTo"}:  # those are for its own dumps
        assert callable(getattr(Journal, name))


def test_serializer_has_what_the_library_calls(source: ast.Module) -> None:
    called = used(source, "__serializer")
    assert called == SERIALIZER, "the library asks other things of its serializer" + HELP
    assert all(callable(getattr(Serializer, name, None)) for name in called)
    for name in called - {"serialize", "deserialize"}:  # those are for its own dumps
        assert callable(getattr(raft._NoDump, name))
    assert raft._NoDump().checkSerializing()[0] == SERIALIZER_STATE.NOT_SERIALIZING


def test_poller_has_what_the_library_calls(source: ast.Module) -> None:
    assert used(source, "_poller") == {"poll"}, "the library asks other things of its poller" + HELP
    assert callable(raft._NoSockets.poll)


def test_library_never_takes_a_dump_of_its_own(ballot: Ballot) -> None:
    """Neither because the log is long nor because time has passed."""
    ballot.elect("a")
    ballot.append("a", *[b"x"] * 300)
    ballot.settle()
    for voter in ballot.voters.values():
        ballot.now += 1e7
        voter.tick()
        assert voter.raft.first_index == 1
        assert voter.raft.last_index > 300


def test_library_says_what_we_know(source: ast.Module) -> None:
    sent = {
        value.value
        for node in ast.walk(source)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "type" and isinstance(value, ast.Constant)
    }
    assert sent == MESSAGES, "the library sends other messages" + HELP


def test_library_leaves_the_sockets_of_others_alone() -> None:
    """Its win_inet_pton replaces a function of the standard library, on every system."""
    assert socket.inet_ntop(socket.AF_INET, bytes((192, 0, 2, 10))) == "192.0.2.10"


def test_library_reads_our_clock(ballot: Ballot) -> None:
    voter = ballot.elect("a")
    ballot.now += 1
    assert voter.raft.election_due(ballot.now) is False
    ballot.voters["b"].raft.put_election(ballot.now - 1)
    assert ballot.voters["b"].raft.election_due(ballot.now)


def test_election_timeouts_are_drawn_between_the_bounds(ballot: Ballot) -> None:
    drawn = [ballot.voters["a"].raft.election_timeout() for _ in range(200)]
    assert ballot.timing.election_min <= min(drawn) < max(drawn) <= ballot.timing.election_max
    assert max(drawn) - min(drawn) > 0.5 * (ballot.timing.election_max - ballot.timing.election_min)


def test_leader_leads_no_longer_than_a_majority_answers(ballot: Ballot) -> None:
    """`__lastResponseTime` is what it looks at, and `touch` what keeps it leading."""
    leader = ballot.elect("a")
    for _ in range(100):
        ballot.now += 0.1
        leader.raft.touch("b")
        leader.raft.touch("nobody")
        leader.tick()
        assert leader.raft.leads
    ballot.now += ballot.timing.election_max + 0.01
    leader.tick()
    assert not leader.raft.leads


def test_role_is_told_before_anything_is_sent_in_it(ballot: Ballot) -> None:
    """Else its first heartbeat would be of an earlier claim."""
    candidate = ballot.voters["a"]
    candidate.stand(b"")
    ballot.deliver("a", "b")
    ballot.deliver("b", "a")
    assert candidate.raft.leads
    (first,) = ballot.under_way("a", "b", AppendEntries)
    assert (first.claim, bool(first.commitment)) == (1, True)


def test_nothing_is_unpickled_when_entries_are_applied(ballot: Ballot, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_data: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pysyncobj.syncobj.pickle, "loads", loads)
    ballot.elect("a")
    ballot.append("a", b"cos\nsystem\n(S'true'\ntR.")
    ballot.settle()
    assert ballot.tables["a"] == [b"cos\nsystem\n(S'true'\ntR."]


def test_longest_entries_are_sent_whole(ballot: Ballot) -> None:
    """The library would send one of its batch size in pieces, pickled."""
    ballot.elect("a")
    ballot.append("a", *[bytes([number]) * (MAX_COMMAND - 1) for number in range(5)])
    ballot.voters["a"].tick()
    sent = [message for message in ballot.queues["a", "b"] if isinstance(message, AppendEntries)]
    assert sum(len(message.entries) for message in sent) == 5
    assert MAX_COMMAND < raft._MAX_APPEND
    ballot.settle(rounds=20)
    ballot.heartbeat("a")
    ballot.settle(rounds=20)
    assert ballot.tables["b"] == ballot.tables["a"]
    assert len(ballot.tables["b"]) == 5


# Ours


class Silence:
    """An outbox that nobody empties."""

    def append_entries(self, *_message: object) -> bool:
        return False

    def request_vote(self, *_message: object) -> None:
        pass

    def grant_vote(self, *_message: object) -> None:
        pass

    def role_changed(self, *, leading: bool) -> None:
        pass


def test_log_terms_and_votes_survive_a_restart(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()

    def known() -> list[Any]:
        return [(voter.raft.term, voter.raft.last_index, voter.raft.last_term) for voter in ballot.voters.values()]

    before = known()
    for name in "abc":
        ballot.crash(name, power_lost=True)
    for name in "abc":
        ballot.boot(name)
    assert known() == before
    assert {ballot.journals[name].getVotedForNodeId() for name in "abc"} == {"a"}


def test_commit_index_beyond_the_journal_is_cut() -> None:
    """With durability = os the end of the log may be lost in a power cut, and the commit index not."""
    disk = VirtualDisk(Random(1))
    disk.start(Clock())
    Journal.open(disk, None, sync=True, commit=0).close()
    journal = Journal.open(disk, None, sync=False, commit=77)
    assert Raft("a", journal, 0, Timing(), Silence(), lambda _index, _entry: None).commit_index == 1


def test_node_goes_on_behind_what_was_applied(ballot: Ballot) -> None:
    applied: list[int] = []
    ballot.elect("a")
    ballot.append("a", b"one", b"two", b"three")
    ballot.settle()
    ballot.now += 0.1
    ballot.settle()
    journal = ballot.journals["b"]
    journal.setRaftCommitIndex(journal.last_index)
    again = Raft("b", journal, journal.last_index - 1, Timing(), Silence(), lambda index, _entry: applied.append(index))
    assert (again.applied_index, again.commit_index) == (journal.last_index - 1, journal.last_index)
    again.tick()
    assert applied == [journal.last_index]


def test_snapshots_index_is_gone_on_from(ballot: Ballot) -> None:
    """What follows it in the log is applied again."""
    ballot.elect("a")
    ballot.append("a", b"one", b"two", b"three")
    ballot.settle()
    leader = ballot.voters["a"].raft
    leader.install(leader.applied_index - 2)
    leader.tick()
    assert ballot.tables["a"] == [b"one", b"two", b"three", b"two", b"three"]


def test_snapshot_commits_no_more_than_the_log_has(ballot: Ballot) -> None:
    follower = ballot.voters["b"].raft
    follower.commit(99)
    assert follower.commit_index == follower.last_index == 1


def test_proposer_hears_if_anothers_entry_took_its_place(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", b"never committed")
    ballot.voters["a"].tick()
    ballot.queues.clear()
    ballot.voters["a"].raft.disconnected("b")
    ballot.voters["a"].raft.disconnected("c")
    ballot.elect("b", "bc")
    ballot.append("b", b"another")
    ballot.settle()
    ballot.heartbeat("b")
    ballot.settle()
    assert ballot.tables["a"] == [b"another"]
    applied = ballot.voters["b"].raft.applied_index
    assert sorted(ballot.answers, key=bool) == [None, (applied, b"another")]


def test_proposer_hears_what_apply_returned(ballot: Ballot) -> None:
    leader = ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    assert ballot.answers == [(leader.raft.applied_index, b"one")]


def test_node_that_was_removed_and_added_again_counts_from_zero(convene: Convene) -> None:
    ballot = convene("abc")
    leader = ballot.elect("a")
    assert leader.raft.match("c") == leader.raft.last_index
    leader.set_members("ab", "")
    assert leader.raft.match("c") == 0
    leader.set_members("ab", "c")
    assert leader.raft.match("c") == 0
    ballot.append("a", b"one")
    ballot.heartbeat("a")
    ballot.settle()
    assert leader.raft.match("c") == leader.raft.last_index


def test_member_whose_role_changes_keeps_what_it_acknowledged(convene: Convene) -> None:
    ballot = convene("abc", learners="d")
    leader = ballot.elect("a")
    assert leader.raft.match("d") == leader.raft.last_index
    leader.set_members("abcd", "")
    assert leader.raft.match("d") == leader.raft.last_index


def test_peers_order_is_the_same_in_every_process(ballot: Ballot) -> None:
    """The library iterates over sets of them; a string's hash differs from process to process."""
    assert hash(ballot.voters["a"].raft._node("b")) == crc32(b"b")
