from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.logger import LogEvent

from sipha.cluster import catchup, journal
from sipha.cluster.catchup import INSTALLATION, PATIENCE, REPRIEVE, _Received
from sipha.cluster.guards import NO_OP
from sipha.cluster.replica import Replica
from sipha.cluster.wire import AppendReply, Checkpoint, ProtocolError, RaftMessage, SnapshotChunk, SnapshotReply
from sipha.state.entries import PutSetting
from tests.cluster.assembly import Assemble, Assembly, register

SEGMENT = 4096
LIMIT = 16384
PIECE = 1024
WINDOW = 4 * PIECE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let little data be as much to do as much is."""
    monkeypatch.setattr(journal, "SEGMENT", SEGMENT)
    monkeypatch.setattr(catchup, "MAX_CHUNK", PIECE)
    monkeypatch.setattr(catchup, "WINDOW", WINDOW)


def aors(count: int, first: int = 0) -> list[str]:
    return [f"sip:{number}@example.com" for number in range(first, first + count)]


@pytest.fixture
def lagging(assemble: Assemble) -> Assembly:
    """C is down, and a and b, of whom a leads, have forgotten the entries that c lacks."""
    assembly = assemble()
    assembly.start("abc", log_limit=LIMIT)
    assembly.elect("a")
    assembly.register("a", ["sip:first@example.com"])
    assembly.run(0.2)
    assembly.crash("c")
    assembly.register("a", aors(300))
    assembly.until(lambda: all(assembly.replica(name)._raft.first_index > 20 for name in "ab"))
    assembly.run(2.0)
    return assembly


def caught_up(assembly: Assembly, name: str = "c") -> Callable[[], bool]:
    """A condition: a node has all that the leader has, and counts."""

    def condition() -> bool:
        leader, replica = assembly.replica("a"), assembly.replica(name)
        return replica.machine.hash() == leader.machine.hash() and leader._raft.match(name) == leader._raft.last_index

    return condition


def lose(assembly: Assembly, which: Callable[[RaftMessage], bool]) -> None:
    assembly.loses = lambda _sender, _receiver, message: which(message)


def spoil(replica: Replica) -> None:
    """Let a node's table differ from the others'."""
    replica.machine.settings.put(PutSetting("odd", "yes"))


# Snapshots are taken so that the log stays short


def test_log_stays_short_however_much_is_written(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("abc", log_limit=LIMIT)
    assembly.elect("a")
    longest = 0
    for _ in range(20):
        assembly.register("a", aors(50))  # the same ones: the snapshot doesn't grow
        assembly.until(assembly.agree)
        longest = max(longest, *(replica.status().journal_bytes for replica in assembly.running))
    assert longest < 4 * LIMIT
    for replica in assembly.running:
        status, names = replica.status(), replica._memory._disk.names()
        older, newest = [int(name.removeprefix("snapshot-")) for name in names if name.startswith("snapshot-")]
        assert status.snapshot_index == newest > 800
        assert status.first_index == older > 600
        assert len([name for name in names if name.startswith("log-")]) <= 4 * LIMIT / SEGMENT


def test_snapshot_is_taken_where_all_nodes_remember_their_hash(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("abc", log_limit=LIMIT)
    assembly.elect("a")
    for number in range(12):
        assembly.register("a", aors(50, 50 * number))
        for replica in assembly.running:
            assert replica._catchup.snapshot_index % 64 == 0
    assert all(replica._catchup.snapshot_index for replica in assembly.running)


def test_snapshot_waits_no_longer_than_its_patience_for_that(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("abc", log_limit=2000)
    assembly.elect("a")
    assembly.register("a", aors(20))
    index = assembly.replica("a")._raft.last_index
    assert index < 64
    assert assembly.until(lambda: assembly.replica("a")._catchup.snapshot_index, limit=3.0) < PATIENCE + 0.2
    assert assembly.replica("a")._catchup.snapshot_index == index


def test_no_snapshot_is_taken_of_a_short_log(assembly: Assembly) -> None:
    assembly.register("a", aors(300))
    assembly.run(3.0)
    assert [replica._catchup.snapshot_index for replica in assembly.running] == [0, 0, 0]
    assert [replica._raft.first_index for replica in assembly.running] == [1, 1, 1]


def test_nodes_restart_from_snapshot_and_log(lagging: Assembly) -> None:
    before = {name: lagging.replica(name).machine.hash() for name in "ab"}
    for name in "ab":
        lagging.crash(name, power_lost=True)
    for name in "ab":
        lagging.start(name)
        assert lagging.replica(name)._raft.first_index == lagging.replica(name)._catchup.snapshot_index > 0
    lagging.until(lagging.leader)
    lagging.run(0.2)
    assert {name: lagging.replica(name).machine.hash() for name in "ab"} == before
    assert not any(lagging.replica(name).status().alarms for name in "ab")


def test_failing_disk_makes_the_node_leave(assemble: Assemble) -> None:
    assembly = assemble()
    assembly.start("abc", log_limit=LIMIT)
    assembly.elect("a")
    disk = assembly.seats["c"].disk
    append = disk.append

    def fail(name: str, data: bytes) -> None:
        if name.startswith("snapshot"):
            raise OSError(28, "the disk is full")
        append(name, data)

    vars(disk)["append"] = fail
    assembly.register("a", aors(150))
    assembly.until(lambda: assembly.failed)
    ((name, reason),) = assembly.failed
    assert name == "c"
    assert "the disk is full" in reason
    assert assembly.leader() == "a"


# Who lags behind the log is sent one


def test_node_that_lags_is_sent_a_snapshot_in_pieces(lagging: Assembly) -> None:
    lagging.sent.clear()
    lagging.start("c")
    lagging.until(caught_up(lagging))
    pieces = lagging.said(SnapshotChunk, "a", "c")
    size = pieces[0].size
    assert size > 20 * PIECE
    assert max(len(piece.data) for piece in pieces) <= PIECE
    assert [piece.offset for piece in pieces] == list(range(0, size, PIECE)), "each is sent once"
    assert not lagging.said(SnapshotChunk, "b")
    lagging.run(0.1)
    assert not lagging.replica("a")._catchup._sending
    replica = lagging.replica("c")
    assert replica._raft.first_index == replica._catchup.snapshot_index == pieces[0].index
    assert replica.lookup("sip:299@example.com")
    lagging.register("a", ["sip:next@example.com"])
    lagging.until(lagging.agree)


def test_no_more_is_under_way_than_the_window(lagging: Assembly) -> None:
    lagging.sent.clear()
    lagging.start("c")
    lagging.until(caught_up(lagging))
    sent = acknowledged = most = 0
    for sender, _, message in lagging.sent:
        if sender == "a" and isinstance(message, SnapshotChunk):
            sent = message.offset + len(message.data)
        elif sender == "c" and isinstance(message, SnapshotReply):
            acknowledged = max(acknowledged, message.offset)
        most = max(most, sent - acknowledged)
    assert WINDOW / 2 < most < WINDOW + PIECE + WINDOW  # what was acknowledged may be on its way yet


def test_window_is_kept_while_nothing_is_acknowledged(lagging: Assembly) -> None:
    lose(lagging, lambda message: isinstance(message, SnapshotReply))
    lagging.sent.clear()
    lagging.start("c")
    lagging.run(PATIENCE * 0.9)
    pieces = lagging.said(SnapshotChunk)
    assert sum(len(piece.data) for piece in pieces) == WINDOW


def test_node_that_is_sent_a_snapshot_survives_a_power_cut(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    lagging.crash("c", power_lost=True)
    lagging.start("c")
    replica = lagging.replica("c")
    assert replica.machine.index == replica._catchup.snapshot_index > 20
    assert not replica.status().alarms
    lagging.until(caught_up(lagging))


def test_entries_are_kept_from_the_snapshot_on_that_is_being_sent(lagging: Assembly) -> None:
    """Whoever installs it would lack them, and be sent another, for ever."""
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset > 5 * PIECE)
    lagging.start("c")
    lagging.until(lambda: "c" in lagging.replica("a")._catchup._sending)
    index = lagging.replica("a")._catchup.snapshot_index
    lagging.register("a", aors(400))
    lagging.until(lambda: lagging.replica("b")._raft.first_index > index)
    assert lagging.replica("a")._raft.first_index == index
    lagging.crash("c")
    lagging.register("a", aors(400))
    lagging.until(lambda: lagging.replica("a")._raft.first_index > index)


def test_lost_pieces_are_sent_again(lagging: Assembly) -> None:
    lost: list[int] = []

    def unlucky(message: RaftMessage) -> bool:
        if isinstance(message, SnapshotChunk) and message.offset % (7 * PIECE) == 0 and message.offset not in lost:
            lost.append(message.offset)
            return True
        return False

    lose(lagging, unlucky)
    lagging.start("c")
    lagging.until(caught_up(lagging), limit=60.0)
    assert len(lost) > 3


def test_lost_answers_do_no_harm(lagging: Assembly) -> None:
    answers: list[RaftMessage] = []

    def unlucky(message: RaftMessage) -> bool:
        if isinstance(message, SnapshotReply):
            answers.append(message)
        return isinstance(message, SnapshotReply) and len(answers) % 3 != 0

    lose(lagging, unlucky)
    lagging.start("c")
    lagging.until(caught_up(lagging), limit=60.0)


def test_pieces_wait_for_a_peer_that_has_no_room(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(lambda: lagging.said(SnapshotChunk))
    line = lagging.seats["a"].line
    line.full.add("c")
    lagging.run(2.5)
    assert lagging.replica("c").machine.index < 20
    line.full.clear()
    assert line.user is not None
    line.user.connected("c")
    lagging.until(caught_up(lagging))


def test_transfer_that_is_interrupted_begins_again(lagging: Assembly) -> None:
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    lagging.start("c")
    lagging.until(lambda: any(reply.offset == 10 * PIECE for reply in lagging.said(SnapshotReply)))
    assert "snapshot.incoming" in lagging.seats["c"].disk.names()
    lagging.sever("c")
    assert not lagging.replica("a")._catchup._sending
    assert lagging.replica("c")._catchup._staging is None
    lagging.run(0.2)
    assert "snapshot.incoming" not in lagging.seats["c"].disk.names()
    lose(lagging, lambda _message: False)
    lagging.sent.clear()
    lagging.join()
    lagging.until(caught_up(lagging))
    assert [piece.offset for piece in lagging.said(SnapshotChunk)][:3] == [0, PIECE, 2 * PIECE]


def test_transfer_that_another_leader_goes_on_with_is_not_slowed_down(lagging: Assembly) -> None:
    """The deposed one is still connected, and the snapshots of both are of the same entry."""
    indices = {lagging.replica(name)._catchup.snapshot_index for name in "ab"}
    assert len(indices) == 1
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    lagging.start("c")
    lagging.until(lambda: any(reply.offset == 10 * PIECE for reply in lagging.said(SnapshotReply)))
    lagging.replica("a").transfer("b")
    lagging.until(lagging.replica("b").leading)
    lose(lagging, lambda _message: False)
    assert lagging.until(lagging.agree, limit=60.0) < 3.0


def test_leader_that_is_deposed_while_it_sends_forgets_it(lagging: Assembly) -> None:
    """Else the entries would be kept for a peer that another looks after, for ever."""
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    lagging.start("c")
    lagging.until(lambda: lagging.replica("a")._catchup._sending)
    lagging.replica("a").transfer("b")
    lagging.until(lagging.replica("b").leading)
    lagging.run(0.1)
    first = lagging.replica("a")._raft.first_index
    lose(lagging, lambda _message: False)
    lagging.register("b", aors(400))
    lagging.until(lambda: lagging.replica("a")._raft.first_index > first)


def test_forgetful_node_is_sent_a_snapshot_and_counts_in_the_end(lagging: Assembly) -> None:
    lagging.seats["c"].disk.wipe()
    lagging.start("c")
    lagging.until(lambda: lagging.replica("c").status().memory == "amnesiac")
    lagging.until(caught_up(lagging))
    assert lagging.replica("c").status().memory == "whole"
    lagging.crash("b")
    lagging.register("a", ["sip:next@example.com"])


def test_snapshot_that_has_gone_is_replaced_by_a_newer_one(lagging: Assembly) -> None:
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    lagging.start("c")
    lagging.until(lambda: lagging.replica("a")._catchup._sending)
    name = lagging.replica("a")._catchup._sending["c"].file.name
    lagging.register("a", aors(600))
    lagging.until(lambda: name not in lagging.seats["a"].disk.names())
    lose(lagging, lambda _message: False)
    lagging.until(caught_up(lagging))


def test_snapshot_that_cant_be_read_any_more_is_replaced(lagging: Assembly) -> None:
    """One rotten sector must not keep a node from catching up, nor end the leader."""
    file, disk = lagging.replica("a")._catchup._newest, lagging.seats["a"].disk
    assert file is not None
    read = disk.read

    def fail(name: str, offset: int = 0, size: int | None = None) -> bytes:
        if name == file.name:
            raise OSError(5, "the sector is rotten")
        return read(name, offset, size)

    vars(disk)["read"] = fail
    lagging.start("c")
    lagging.until(caught_up(lagging))
    assert lagging.leader() == "a"
    assert not lagging.failed


# It is installed


def installation(assembly: Assembly) -> float:
    """Seconds from when c has the whole snapshot until it is in place."""
    assembly.start("c")
    replica = assembly.replica("c")
    assembly.until(lambda: any(reply.offset > 0 for reply in assembly.said(SnapshotReply, "c")))
    size = assembly.said(SnapshotChunk)[0].size
    assembly.until(lambda: any(reply.offset == size for reply in assembly.said(SnapshotReply, "c")))
    return assembly.until(lambda: replica.machine.index > 20)


def test_snapshot_is_installed_as_soon_as_another_node_has_the_same(lagging: Assembly) -> None:
    lagging.sent.clear()
    assert installation(lagging) < PATIENCE / 2
    assert lagging.said(Checkpoint, "b", "c")


def test_snapshot_of_any_index_is_announced_when_it_is_taken(assemble: Assemble) -> None:
    """So that the others know their hash there later."""
    assembly = assemble()
    assembly.start("ab", log_limit=2000)
    assembly.elect("a")
    for _ in range(2):
        assembly.register("a", aors(15))
        assembly.run(PATIENCE + 0.2)
    assert all(replica._raft.first_index > 10 for replica in assembly.running)
    assert assembly.replica("a")._catchup.snapshot_index % 64
    assembly.register("a", aors(3))
    assembly.run(0.2)
    assert installation(assembly) < PATIENCE / 2


def test_snapshot_that_nobody_else_knows_is_installed_after_some_patience(lagging: Assembly) -> None:
    """Two of three are up: the sender's word must do."""
    lose(lagging, lambda message: isinstance(message, Checkpoint))
    lagging.sent.clear()
    assert PATIENCE <= installation(lagging) < PATIENCE + 0.2


def test_snapshot_is_refused_when_another_node_contradicts_it(lagging: Assembly, failures: list[LogEvent]) -> None:
    assembly = lagging
    leader = assembly.replica("a")
    spoil(leader)
    assembly.register("a", aors(300, 300))
    index = leader._catchup.snapshot_index
    assembly.start("c")
    replica = assembly.replica("c")
    assembly.until(lambda: replica.status().counters.get("snapshots refused"))
    assert replica.machine.index < 20
    assert replica._raft.first_index == 1
    assembly.run(0.2)
    assert not [name for name in assembly.seats["c"].disk.names() if name.startswith("snapshot")]
    assert index % 64 == 0
    failures.clear()


def test_snapshot_is_not_loaded_at_a_start_before_it_is_confirmed(lagging: Assembly) -> None:
    """Its sender may be odd, and the node dies while it waits for another's word (pitfalls-log-vip 16)."""
    lose(lagging, lambda message: isinstance(message, Checkpoint))
    lagging.start("c")
    lagging.until(lambda: lagging.replica("c")._catchup._received)
    lagging.crash("c")
    lagging.start("c")
    replica = lagging.replica("c")
    assert replica._catchup.snapshot_index == 0
    assert replica.machine.index < 20
    lagging.until(caught_up(lagging))
    assert replica._catchup.snapshot_index > 20


def test_snapshot_that_is_overtaken_while_it_is_kept_is_dropped(lagging: Assembly) -> None:
    lagging.start("c")
    replica = lagging.replica("c")
    lagging.until(lambda: replica._catchup._received)
    lagging.seats["c"].disk.delay = (0.5, 0.5)
    lagging.until(lambda: replica._catchup._received and replica._catchup._received.kept)
    vars(replica._catchup)["_is_overtaken"] = lambda _header: True
    lagging.run(1.5)
    assert replica._catchup._received is None
    assert replica._catchup.snapshot_index == 0
    assert not [name for name in lagging.seats["c"].disk.names() if name.startswith("snapshot")]


def test_node_whose_memory_is_found_damaged_while_a_snapshot_is_taken_leaves(lagging: Assembly) -> None:
    replica = lagging.replica("b")
    location = replica.machine.location
    aor = location.aors()[-1]
    row = location._rows.get(aor)
    assert row is not None
    location._rows.replace(aor, row, row.replace(b"sip:", b"sap:"))
    lagging.register("a", aors(3))
    replica._catchup.want()
    lagging.until(lambda: lagging.failed)
    ((name, reason),) = lagging.failed
    assert name == "b"
    assert "have changed by themselves" in reason
    assert replica.status().role == "failed"
    names = lagging.seats["b"].disk.names()
    assert max(name for name in names if name.startswith("snapshot-")) < f"snapshot-{replica.machine.index:020d}"


@pytest.mark.interpreted
def test_refused_snapshot_is_sent_again_later(lagging: Assembly) -> None:
    """Meanwhile it may be another; nobody must wait for it for ever."""
    lagging.start("c")
    replica = lagging.replica("c")
    confirms, refused = replica._checkpoints.confirms, list[int]()

    def refuse(index: int, table_hash: int, sender: str) -> bool | None:
        if not refused:
            refused.append(index)
            return False
        return confirms(index, table_hash, sender)

    vars(replica._checkpoints)["confirms"] = refuse
    lagging.until(lambda: refused)
    assert lagging.until(caught_up(lagging), limit=3 * INSTALLATION) > INSTALLATION / 2


def test_damaged_snapshot_is_refused(lagging: Assembly) -> None:
    """The sender's disk has rotted."""
    file = lagging.replica("a")._catchup._newest
    assert file is not None
    lagging.seats["a"].disk.flip(file.name, 8 * (file.size // 2))
    lagging.start("c")
    replica = lagging.replica("c")
    lagging.until(lambda: replica.status().counters.get("snapshots refused"))
    assert replica.machine.index < 20
    lagging.run(0.2)
    assert not [name for name in lagging.seats["c"].disk.names() if name.startswith("snapshot")]


def test_snapshot_that_the_log_covers_is_only_acknowledged(lagging: Assembly) -> None:
    """Installed, it would take away what follows it in the log, which may be acknowledged."""
    leader, replica = lagging.replica("a"), lagging.replica("b")
    raft = replica._raft
    last, table = raft.last_index, replica.machine.hash()
    index = leader._catchup.snapshot_index
    assert index < last
    lagging.sent.clear()
    replica.inbox.received("a", SnapshotChunk(raft.term, index, leader._raft.term_at(index) or 0, 100_000, 0, b"piece"))
    (reply,) = lagging.said(AppendReply, "b", "a")
    assert (reply.success, reply.next_index) == (True, last + 1)
    assert not lagging.said(SnapshotReply, "b")
    assert replica._catchup._staging is None
    lagging.run(0.5)
    assert (raft.last_index, replica.machine.hash()) == (last, table)


def test_snapshot_that_the_log_covers_commits_it(assembly: Assembly) -> None:
    """The follower has the entries, and has not heard yet that they are committed."""
    outcomes, raft = assembly.propose("a", register("sip:alice@example.com")), assembly.replica("b")._raft
    assembly.until(lambda: outcomes)
    last, term = raft.last_index, raft.term
    assert raft.commit_index == last - 1
    assembly.replica("b").inbox.received("a", SnapshotChunk(term, last, raft.term_at(last) or 0, 100_000, 0, b"piece"))
    assert raft.commit_index == last


def test_snapshot_takes_the_place_of_what_never_was_committed(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    lagging.run(0.5)
    replica = lagging.replica("c")
    lagging.replica("a").transfer("c")
    lagging.until(replica.leading)
    lagging.silent = {"c"}
    for number in range(10):
        lagging.propose("c", PutSetting("lost", str(number)))
        lagging.run(0.01)
    tail = replica._raft.last_index
    lagging.sever("c")
    leader = lagging.wait_for_leader("ab")
    lagging.register(leader, aors(400))
    lagging.until(lambda: lagging.replica(leader)._raft.first_index > tail)
    lagging.join()
    lagging.until(lagging.agree)
    assert replica.machine.settings.get("lost") == ""
    assert replica._raft.first_index > tail


@pytest.mark.parametrize("steps", range(1, 40, 3))
def test_power_cut_at_any_step_of_an_installation_is_survived(lagging: Assembly, steps: int) -> None:
    lagging.start("c")
    lagging.until(lambda: lagging.said(SnapshotChunk))
    lagging.seats["c"].disk.crash_in(steps + 30)
    lagging.until(lambda: lagging.seats["c"].up is None or caught_up(lagging)())
    if lagging.seats["c"].up is None:
        lagging.start("c")
        assert lagging.replica("c").status().memory == "whole"
    lagging.until(caught_up(lagging))
    lagging.register("a", ["sip:next@example.com"])
    lagging.until(lagging.agree)


# A table that differs is fetched again


def found_out(assembly: Assembly, name: str) -> None:
    """Let a node's table differ, and entries come until it knows."""
    replica = assembly.replica(name)
    spoil(replica)
    for _ in range(20):
        leader = assembly.leader()
        if leader is not None and not replica._checkpoints.diverged:
            assembly.register(leader, aors(10))
            assembly.run(0.1)
    assert replica._checkpoints.diverged


def test_follower_whose_table_is_odd_fetches_the_leaders(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    replica = lagging.replica("b")
    found_out(lagging, "b")
    lagging.sent.clear()
    assert any("the table of this node differs" in alarm for alarm in replica.status().alarms)
    lagging.until(lagging.agree, limit=30.0)
    lagging.register("a", aors(10))
    lagging.run(15.0)
    assert lagging.agree()
    assert [piece.offset for piece in lagging.said(SnapshotChunk)].count(0) <= 1, "once is enough"
    assert not replica._checkpoints.diverged
    assert not replica.status().alarms


def test_odd_follower_asks_again_when_the_rest_never_comes(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    found_out(lagging, "b")
    lagging.until(lambda: lagging.replica("b")._catchup._staging)
    lagging.run(0.5)
    lagging.replica("a")._catchup._sending.clear()  # as a leader does that is deposed and elected again
    lose(lagging, lambda _message: False)
    lagging.until(lagging.agree, limit=3 * INSTALLATION)


def test_odd_follower_takes_no_snapshot_from_before_its_log(lagging: Assembly) -> None:
    replica = lagging.replica("b")
    replica._catchup._refetching = True
    index, term = replica._raft.first_index, replica.term
    replica.inbox.received("a", SnapshotChunk(term, index - 1, term, 100_000, 0, b"piece"))
    assert replica._catchup._staging is None
    replica.inbox.received("a", SnapshotChunk(term, index, term, 100_000, 0, b"piece"))
    assert replica._catchup._staging is not None


def test_odd_follower_loses_nothing_of_its_log(lagging: Assembly) -> None:
    """Its own snapshot may be newer than the leader's; what it has acknowledged must stay."""
    lagging.start("c")
    lagging.until(caught_up(lagging))
    replica, leader = lagging.replica("b"), lagging.replica("a")
    for _ in range(2):
        lagging.register("a", aors(10))
        replica._catchup.want()
        lagging.run(PATIENCE + 0.2)
    assert replica._raft.first_index > leader._catchup.snapshot_index
    found_out(lagging, "b")
    last, kept = replica._journal.durable, list[bool]()

    def look() -> bool:
        kept.append(replica._journal.durable >= last and replica._raft.last_index >= last)
        return lagging.agree()

    lagging.until(look, limit=30.0)
    assert all(kept)


def test_leader_whose_table_is_odd_hands_leadership_on_and_fetches_anothers(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    replica = lagging.replica("a")
    found_out(lagging, "a")
    assert lagging.until(lambda: lagging.leader() in {"b", "c"}) < 1.0
    lagging.until(lagging.agree, limit=30.0)
    lagging.register(lagging.wait_for_leader(), aors(10))
    lagging.run(5.0)
    assert not replica._checkpoints.diverged


def test_table_that_was_just_fetched_is_compared_before_it_is_fetched_again(lagging: Assembly) -> None:
    catchup_of_b, now = lagging.replica("b")._catchup, lagging.clock.seconds()
    catchup_of_b._refetched = now
    catchup_of_b.refetch(now + REPRIEVE)
    assert not catchup_of_b._refetching
    catchup_of_b.refetch(now + REPRIEVE + 0.1)
    assert catchup_of_b._refetching


@pytest.mark.parametrize(
    ("name", "refetching", "newest"), [("b", False, True), ("b", False, False), ("b", True, False), ("a", True, True)]
)
def test_snapshot_that_was_overtaken_while_it_waited_is_dropped(
    lagging: Assembly, name: str, *, refetching: bool, newest: bool
) -> None:
    """Entries that are acknowledged have come meanwhile, or we lead; nothing of the log may be lost."""
    replica = lagging.replica(name)
    raft, snapshots, waiting = replica._raft, replica._snapshots, replica._catchup
    file = snapshots._file(waiting.snapshot_index if newest else snapshots._indices()[0])
    assert file is not None
    before = (raft.first_index, raft.last_index, replica.machine.hash(), waiting.snapshot_index)
    waiting._refetching = refetching
    waiting._received = overtaken = _Received("a", snapshots.load(file), file, 0.0)
    lagging.until(lambda: waiting._received is not overtaken, limit=0.1)
    assert waiting._refetched < 0
    assert (raft.first_index, raft.last_index, replica.machine.hash(), waiting.snapshot_index) == before


# What nobody should say


@pytest.fixture
def sending(lagging: Assembly) -> Assembly:
    """A sends c a snapshot, of which the rest is lost."""
    lose(lagging, lambda message: isinstance(message, SnapshotChunk) and message.offset >= 10 * PIECE)
    lagging.start("c")
    lagging.until(lambda: any(reply.offset == 10 * PIECE for reply in lagging.said(SnapshotReply)))
    return lagging


def test_answer_that_is_beyond_the_snapshot_ends_the_connection(sending: Assembly) -> None:
    catchup_of_a = sending.replica("a")._catchup
    file, term = catchup_of_a._sending["c"].file, sending.replica("a").term
    with pytest.raises(ProtocolError, match="not our log"):
        sending.replica("a").inbox.received("c", SnapshotReply(term, file.header.index, file.size + 1))


@pytest.mark.parametrize("change", [{"term": -1}, {"term": 1}, {"index": 1}])
def test_answer_to_something_else_changes_nothing(sending: Assembly, change: dict[str, int]) -> None:
    catchup_of_a = sending.replica("a")._catchup
    state = catchup_of_a._sending["c"]
    before = state.acknowledged
    term, index = sending.replica("a").term, state.file.header.index
    sending.replica("a").inbox.received(
        "c", SnapshotReply(term + change.get("term", 0), index + change.get("index", 0), before + PIECE)
    )
    assert state.acknowledged == before
    sending.replica("a").inbox.received("c", SnapshotReply(term, index, before + PIECE))
    assert state.acknowledged == before + PIECE


@pytest.mark.parametrize(("peer", "later"), [("b", 0), ("a", 1), ("a", -1)])
def test_piece_that_isnt_the_leaders_is_not_taken(sending: Assembly, peer: str, later: int) -> None:
    replica = sending.replica("c")
    staging = replica._catchup._staging
    assert staging is not None
    offset = staging[1].offset
    replica.inbox.received(
        peer,
        SnapshotChunk(replica.term + later, staging[1].index, staging[1].term, staging[1].size, offset, bytes(10)),
    )
    assert staging[1].offset == offset
    assert replica._catchup._staging is staging


def test_base_is_no_entry_that_is_applied(lagging: Assembly) -> None:
    lagging.start("c")
    lagging.until(caught_up(lagging))
    command, index, _ = lagging.replica("c")._journal[0]
    assert command[0] == NO_OP
    assert index == lagging.replica("c")._catchup.snapshot_index
