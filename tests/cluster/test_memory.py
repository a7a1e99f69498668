"""What a node has when it starts: also from the files of every format that a release has written."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from twisted.internet.task import Clock

from sipha.cluster.disk import FileDisk
from sipha.cluster.lease import MARGIN, Promise
from sipha.cluster.memory import Memory
from tests.cluster.fixtures.make import Known, replay

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("version", [1])
def test_files_of_an_earlier_format_are_read(tmp_path: Path, version: int) -> None:
    known = msgspec.json.decode((FIXTURES / f"data-{version}.json").read_bytes(), type=Known)
    shutil.copytree(FIXTURES / f"data-{version}", tmp_path / "data")
    disk = FileDisk(tmp_path / "data", Clock())
    memory = Memory(Clock(), "a", disk, lambda: 105.0, "a boot", sync=True)
    storage, journal, machine = memory.storage, memory.journal, memory.machine
    assert storage.identity is not None
    assert (storage.identity.cluster_id, storage.identity.amnesiac) == (known.cluster_id, False)
    assert (machine.index, journal.first_index, journal.last_index) == (
        known.snapshot,
        known.snapshot,
        known.last_index,
    )
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (known.term, known.vote)
    assert journal.getRaftCommitIndex() == known.commit
    assert memory.time.now(105.0) == known.time + 5000
    assert Promise(disk, 0.0).until == known.promised * MARGIN
    assert not storage.alarms
    replay(storage, machine)
    assert (machine.hash_hex(), machine.location.count) == (known.hash, known.bindings)
    memory.close()
