"""PySyncObj's flaws F2, F4 and F5, each with what closes it and without. F1 and F3 stand in test_guards.py."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random

import pytest
from pysyncobj import SyncObj
from twisted.internet.task import Clock

from sipha.cluster.journal import Journal
from sipha.cluster.raft import Raft
from tests.cluster.ballot import Ballot
from tests.cluster_sim.cluster import Cluster
from tests.cluster_sim.disk import VirtualDisk
from tests.cluster_sim.mutations import Mutation
from tests.cluster_sim.world import seeded

OFF = [False, pytest.param(True, marks=pytest.mark.interpreted)]


def without(mutation: Mutation, *, off: bool) -> AbstractContextManager[None]:
    return mutation.applied() if off else nullcontext()


@pytest.mark.parametrize("off", OFF)
def test_entries_behind_a_snapshot_outlive_a_death_right_after_it(*, off: bool) -> None:
    """F2: started with a snapshot of which the journal doesn't know yet, the library clears the journal."""
    clearing = Mutation(
        "the log goes on behind a snapshot",
        "cluster.journal:Journal._load",
        "if not firsts or self._last[1] < index or self._term(index) != term:",
        "if True:",
    )
    disk = VirtualDisk(Random(1))
    disk.start(Clock())
    journal = Journal.open(disk, None, sync=True, commit=0)
    journal.setCurrentTerm(1, None)
    for index in range(2, 302):
        journal.add(b"\0%d" % index, index, 1)
    journal.sync_now()
    disk.kill()  # the snapshot at entry 150 has its name, and the entries that it covers are not yet forgotten
    disk.start(Clock())
    with without(clearing, off=off):
        journal = Journal.open(disk, (150, 1), sync=True, commit=150)  # as noted a second ago
    assert (journal.last_index < 301) is off


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("off", [False, True])
def test_entry_is_never_unpickled(
    ballot: Ballot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, off: bool
) -> None:
    """F4: whoever gets an entry into the library's log runs what he likes on all nodes."""
    if off:
        monkeypatch.setattr(Raft, "_SyncObj__doApplyCommand", SyncObj._SyncObj__doApplyCommand)
    ballot.elect("a")
    ballot.append("a", pickle.dumps(Bomb(tmp_path / "crater")))
    try:
        ballot.settle()
    except (KeyError, OSError):
        assert off  # what the bomb leaves is no command of the library's
    assert (tmp_path / "crater").exists() is off


@pytest.mark.parametrize("off", OFF)
def test_follower_that_cant_hear_the_leader_does_not_depose_it(*, off: bool) -> None:
    """F5: the library's follower stands as soon as it hears nothing, and the leader goes for its later term."""
    standing = Mutation(
        "nobody stands without having asked",
        "cluster.voter:Voter._ask_for_pre_votes",
        "self._asked_term = self.raft.term + 1",
        "self.raft.stand()\n    return",
    )
    with seeded(7), without(standing, off=off):
        cluster = Cluster(7)
        first = cluster.elect()
        term = cluster.replica(first).term
        cluster.net.cut(first, next(name for name in "abc" if name != first))
        cluster.advance(5.0)
        cluster.net.heal()
        cluster.advance(3.0)
        deposed = not cluster.leading(first) or cluster.replica(first).term != term
        cluster.close()
    assert deposed is off
