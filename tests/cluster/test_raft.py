"""What we rely on in PySyncObj 0.3.17; where one of these fails, read the new version before changing it."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pysyncobj
import pytest

import sipha.cluster
from sipha.cluster import raft
from sipha.errors import ConfigError
from tests.cluster.ballot import Ballot

LIBRARY = Path(pysyncobj.__file__).parent
SOURCES = {
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
}


def test_library_is_the_pinned_version() -> None:
    assert version("pysyncobj") == "0.3.17"


@pytest.mark.parametrize("name", SOURCES)
def test_library_source_is_the_one_that_was_read(name: str) -> None:
    assert hashlib.sha256((LIBRARY / name).read_bytes()).hexdigest() == SOURCES[name]


def test_private_names_exist(ballot: Ballot) -> None:
    source = Path(raft.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\b_SyncObj__\w+", source))
    assert len(names) > 10
    assert not [name for name in names if not hasattr(ballot.voters["a"].raft, name)]
    assert ballot.voters["a"].raft.journal_bytes > 0


def test_private_names_stand_in_one_module() -> None:
    others = [path for path in Path(sipha.cluster.__file__).parent.glob("*.py") if path.name != "raft.py"]
    assert len(others) > 5
    assert not [
        path.name
        for path in others
        if re.search(r"_SyncObj__|_FileJournal__|import pysyncobj|from pysyncobj", path.read_text("utf-8"))
    ]


def test_library_reads_our_clock(ballot: Ballot) -> None:
    voter = ballot.elect("a")
    ballot.now += 1
    assert voter.raft.election_due(ballot.now) is False
    ballot.voters["b"].raft.put_election(ballot.now - 1)
    assert ballot.voters["b"].raft.election_due(ballot.now)


def test_nothing_is_unpickled_when_entries_are_applied(ballot: Ballot, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_data: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pysyncobj.syncobj.pickle, "loads", loads)
    ballot.elect("a")
    ballot.append("a", b"cos\nsystem\n(S'true'\ntR.")
    ballot.settle()
    assert ballot.tables["a"] == [b"cos\nsystem\n(S'true'\ntR."]


def test_log_terms_and_votes_survive_a_restart(ballot: Ballot) -> None:
    ballot.elect("a")
    ballot.append("a", b"one")
    ballot.settle()
    before = [(voter.raft.term, voter.raft.last_index) for voter in ballot.voters.values()]
    for name in "abc":
        ballot.crash(name)
        ballot.boot(name)
    assert [(voter.raft.term, voter.raft.last_index) for voter in ballot.voters.values()] == before


def _write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda journal: journal.write_bytes(b""),
        lambda journal: journal.write_bytes(journal.read_bytes()[:100]),
        lambda journal: journal.write_bytes(bytes(range(256)) * 8),
        lambda journal: _write(journal, 36, b"\xf0\xff\xff\xff"),
        lambda journal: _write(journal, 120, bytes(100)),
        lambda journal: _write(journal, 44, struct.pack("<Q", 1 << 60)),
        lambda journal: journal.with_suffix(".meta").write_bytes(b""),
        lambda journal: journal.with_suffix(".meta").write_bytes(b"random"),
        lambda journal: journal.with_suffix(".meta").unlink(),
    ],
)
def test_damaged_log_is_refused(ballot: Ballot, damage: Callable[[Path], object]) -> None:
    """Else the node would vote in terms that it voted in, fail with a riddle, or never come to an end."""
    ballot.elect("a")
    ballot.append("a", *[b"x" * 50] * 10)
    ballot.settle()
    ballot.crash("b")
    damage(ballot.directory / "b" / "journal")
    with pytest.raises(ConfigError, match="is damaged"):
        ballot.boot("b")


def test_vote_that_cant_be_read_is_not_given_again(ballot: Ballot) -> None:
    """The log alone says nothing of it: it has no entry of that term yet."""
    ballot.voters["b"].raft.receive_vote_request("a", 1, 1, 0)
    ballot.crash("b")
    (ballot.directory / "b" / "journal.meta").write_bytes(b"")
    with pytest.raises(ConfigError, match="is damaged"):
        ballot.boot("b")


def test_log_that_cant_be_opened_is_refused(ballot: Ballot) -> None:
    ballot.crash("b")
    journal = ballot.directory / "b" / "journal"
    journal.unlink()
    journal.mkdir()
    with pytest.raises(ConfigError, match="can't use the log in"):
        ballot.boot("b")


def test_commit_index_beyond_the_journal_is_cut(ballot: Ballot) -> None:
    voter = ballot.voters["a"]
    voter.raft._SyncObj__raftLog.setRaftCommitIndex(77)
    voter.raft._SyncObj__raftLog.setCurrentTerm(1, None)
    ballot.crash("a")
    assert ballot.boot("a").raft.commit_index == 1
