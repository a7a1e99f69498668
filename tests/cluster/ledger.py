"""A journal beside a list of what it was told: what it promised must be there after every life, nothing else may be."""

from __future__ import annotations

from random import Random

from twisted.internet.task import Clock

from sipha.cluster.journal import MEMBERSHIP, Journal
from sipha.cluster.wire import Entry
from tests.cluster_sim.disk import Crashed, Primitive, VirtualDisk


class Ledger:
    """`step` does something random; whenever that ends the life of the node, the next begins and is compared."""

    def __init__(self, random: Random, *, sync: bool = True, spoils: int = 0, dies_opening: int = 0) -> None:
        self.random = random
        self.disk = VirtualDisk(Random(random.randrange(1 << 16)))
        self.sync = sync
        self.spoils = spoils  # how often the disk fails
        self.dies_opening = dies_opening  # in which primitive of the next life
        self.clock = Clock()
        self.journal: Journal
        self.entries: list[Entry] = [(b"\1", 1, 0)]
        self.versions: list[list[Entry]] = []  # what the log was since the disk was last known to be up to date
        self.history: list[list[Entry]] = []  # what it ever was
        self.base: tuple[int, int] | None = None
        self.commit = 1
        self.saved_commit = 0
        self.durable = 0
        self.term = 0
        self.ballots: list[tuple[int, str | None]] = [(0, None)]  # what is kept is one of these
        self.failed: list[OSError] = []
        self.lives = 0
        self.count = 0
        self.guarded(self.open)

    # Lives

    def guarded(self, action: object) -> None:
        """Do something; if the node dies of it, boot it, as often as it takes."""
        try:
            assert callable(action)
            action()
        except Crashed:
            self.die()

    def die(self) -> None:
        """End the life, with power or without, and begin the next."""
        if self.sync and self.random.random() < 0.7:
            self.disk.lose_power()
        else:
            self.disk.kill()
        self.guarded(self.open)

    def lose_unsynced(self) -> None:
        """Lose the power with a journal that isn't synced: it may be any that there ever was, but no mixture."""
        self.disk.lose_power()
        self.durable = self.saved_commit = 0
        self.versions = self.history
        self.open()

    def open(self) -> None:
        """Open the journal from the disk and compare it."""
        self.clock = Clock()
        self.disk.failing.clear()
        self.disk.capacity = None
        self.disk.start(self.clock)
        if self.dies_opening:
            self.disk.crash_in(self.dies_opening)
            self.dies_opening = 0
        self.failed = []
        self.lives += 1
        journal = Journal.open(self.disk, self.base, sync=self.sync, commit=self.saved_commit)
        entries = [journal[position] for position in range(len(journal))]
        self.check_recovered(entries)
        ballot = journal.getCurrentTerm(), journal.getVotedForNodeId()
        assert ballot in self.ballots
        self.ballots = [ballot]
        self.term = ballot[0]
        assert journal.durable == journal.last_index
        assert self.saved_commit <= journal.getRaftCommitIndex() <= journal.last_index
        self.journal, self.entries, self.versions = journal, entries, [list(entries)]
        self.commit = max(min(self.commit, journal.last_index), self.first)
        self.durable = journal.durable
        journal.on_durable = self.note_durable
        journal.on_failed = self.failed.append
        self.check()

    def check_recovered(self, entries: list[Entry]) -> None:
        """All that was durable is there, and all that is there is what the log once was, since the disk knew."""
        first = entries[0][1]
        assert first == (self.base[0] if self.base else 1)
        if self.base:
            assert entries[0][1:] == self.base
        for index in range(first + 1, self.durable + 1):
            assert self.entry(index) in entries, f"{index} was durable"
        found = entries[1:]
        for version in self.versions:
            start = first - version[0][1]
            based = 0 <= start < len(version) and version[start][2] == entries[0][2]
            if based and found == version[start + 1 : start + 1 + len(found)]:
                return
        assert not found, "it is none of the logs that there were:\n" + "\n".join(map(brief, [entries, *self.versions]))

    # What there should be

    @property
    def first(self) -> int:
        return self.entries[0][1]

    @property
    def last(self) -> int:
        return self.entries[-1][1]

    def entry(self, index: int) -> Entry:
        return self.entries[index - self.first]

    def note_durable(self) -> None:
        assert not self.failed
        assert self.journal.durable > self.durable
        self.durable = self.journal.durable
        self.go_on()

    def go_on(self) -> None:
        """Who is told of something may add to the log before anybody else is told."""
        if self.sync and self.random.random() < 0.1:
            self.add()
            self.flush()

    def changed(self) -> None:
        self.versions.append(list(self.entries))
        self.history.append(self.versions[-1])

    def check(self) -> None:
        """Compare all that can be asked."""
        journal, entries, random = self.journal, self.entries, self.random
        assert (journal.first_index, journal.last_index, journal.last_term) == (self.first, self.last, entries[-1][2])
        assert len(journal) == len(entries)
        assert journal[0] == entries[0]
        assert journal[-1] == entries[-1]
        assert journal.durable == self.durable <= self.last
        members = [(index, command) for command, index, _ in entries if command[0] == MEMBERSHIP]
        assert journal.membership == (members[-1] if members else None)
        start = random.randrange(len(entries))
        stop = random.randrange(start, len(entries) + 2)
        assert journal[start] == entries[start]
        closed = journal[start:stop]
        assert closed == entries[start : min(start + len(closed), stop)]
        assert len(closed) >= min(1, stop - start)
        tail = journal[start:]
        assert list(tail) == entries[start:]
        assert tail[:3] == entries[start : start + 3]
        assert len(tail[1:]) == len(entries) - start - 1
        index = random.randrange(self.last + 3)
        known = self.first <= index <= self.last
        assert journal.term_at(index) == (self.entry(index)[2] if known else None)

    # What may happen

    def step(self) -> None:
        """Do one thing, die of it if that is due, and compare."""
        actions = {
            self.add: 30, self.flush: 12, self.wait: 12, self.sync_now: 4, self.cut: 8, self.learn_commit: 8,
            self.save_commit: 4, self.compact: 5, self.reset: 3, self.vote: 3, self.reopen: 2, self.die: 3,
            self.spoil: self.spoils,
        }  # fmt: skip
        (action,) = self.random.choices(list(actions), list(actions.values())) if self.term else (self.vote,)
        lives = self.lives
        self.guarded(action)
        if lives == self.lives:
            self.check()

    def add(self) -> None:
        for _ in range(self.random.randrange(1, 6)):
            self.count += 1
            command = self.random.choice((b"\0%d", b"\0%d", b"\1%d", b"\4%d")) % self.count
            command += bytes(self.random.choice((0, 0, 20, 90, 400)))
            self.entries.append((command, self.last + 1, self.term))
            self.changed()
            self.journal.add(*self.entries[-1])

    def flush(self) -> None:
        self.journal.flush()

    def wait(self) -> None:
        self.clock.advance(self.random.choice((0.0001, 0.001, 0.01)))

    def sync_now(self) -> None:
        self.journal.sync_now()
        if not self.failed:
            assert self.journal.durable == self.last
            self.versions = [list(self.entries)]

    def cut(self) -> None:
        floor = max(self.commit, self.first)
        if floor < self.last:
            last = self.random.randrange(floor, self.last)
            del self.entries[last + 1 - self.first :]
            self.changed()
            self.durable = min(self.durable, last)
            self.journal.deleteEntriesFrom(last + 1 - self.first)
            self.begin_term()

    def learn_commit(self) -> None:
        self.commit = self.random.randrange(self.commit, self.last + 1)
        self.journal.setRaftCommitIndex(self.commit)

    def save_commit(self) -> None:
        self.saved_commit = max(self.saved_commit, min(self.commit, self.journal.durable))

    def compact(self) -> None:
        index = self.random.randrange(self.first, self.commit + 1)
        self.base = self.entry(index)[1:]
        self.entries = self.entries[index - self.first :]
        self.journal.compact(index)

    def receive_snapshot(self) -> bool:
        """One is installed, durably; that the journal is reset to it is still to come."""
        index = self.random.randrange(self.commit, self.last + 20)
        if index == self.first:
            return False
        term = self.term if index > self.last else self.random.choice((self.entry(index)[2], self.term))
        self.base = (index, term)
        self.entries = [(b"\1", index, term)]
        self.changed()
        self.durable = 0
        self.commit = index
        return True

    def reset(self) -> None:
        if not self.receive_snapshot():
            return
        ends: list[OSError | None] = []

        def end(error: OSError | None) -> None:
            ends.append(error)
            if error is None:
                self.go_on()

        self.journal.reset(self.first, self.entries[0][2], end)
        if self.random.random() < 0.5:
            self.journal.sync_now()
            assert len(ends) == 1
            assert ends[0] is None or self.failed
        self.begin_term()

    def begin_term(self) -> None:
        """Where nothing is synced, only the terms tell what follows what; Raft never has two logs with the same."""
        if not self.sync:
            self.put_ballot(self.term + 1, None)

    def vote(self) -> None:
        self.put_ballot(self.term + self.random.randrange(2), self.random.choice((None, "a", "b")))

    def put_ballot(self, term: int, vote: str | None) -> None:
        self.ballots.append((term, vote))
        try:
            self.journal.setCurrentTerm(term, vote)
        except OSError:
            assert self.spoiled
        else:
            self.ballots = [(term, vote)]
            self.term = term

    @property
    def spoiled(self) -> bool:
        return bool(self.disk.failing) or self.disk.capacity is not None

    def spoil(self) -> None:
        """Let the disk fail, in a way that a reboot ends."""
        if self.random.random() < 0.3:
            self.disk.capacity = sum(map(len, self.disk.image().values())) + self.random.randrange(2000)
        else:
            kinds: tuple[Primitive, ...] = ("write", "sync", "sync of names", "rename", "truncate", "remove")
            self.disk.failing = {self.random.choice(kinds)}

    def reopen(self) -> None:
        self.journal.close()
        if not self.spoiled:
            self.versions = [list(self.entries)]
        self.disk.close()
        self.open()


def brief(entries: list[Entry]) -> str:
    return " ".join(f"{index}/{term}:{command.strip(bytes(1)).decode()}" for command, index, term in entries)
