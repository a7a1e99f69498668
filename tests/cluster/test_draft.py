from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sipha.cluster.draft import Draft
from tests.cluster_sim.disk import VirtualDisk

NAMES = st.sampled_from("xyz")
CHANGES = st.one_of(
    st.tuples(st.just("append"), NAMES, st.binary(max_size=5)),
    st.tuples(st.just("truncate"), NAMES, st.integers(0, 5)),
    st.tuples(st.just("replace"), NAMES, st.binary(max_size=5)),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("remove"), NAMES),
)


def disk() -> VirtualDisk:
    made = VirtualDisk(Random("draft"))
    made.start(Clock())
    made.append("x", b"first")
    made.append("y", b"second")
    return made


def answers(target: Any, name: str, *args: Any) -> Any:
    """What a disk answers, or which error it raises."""
    try:
        return getattr(target, name)(*args)
    except OSError as error:
        return type(error)


@given(st.lists(CHANGES, max_size=20))
def test_draft_reads_as_the_disk_would_and_leaves_it_as_it_is(changes: list[tuple[Any, ...]]) -> None:
    real, other = disk(), disk()
    draft = Draft(other)
    for change in changes:
        assert answers(draft, *change) == answers(real, *change)
        assert draft.names() == real.names()
        for name in "xyz":
            for question in (("size", name), ("read", name), ("read", name, 2), ("read", name, 1, 2)):
                assert answers(draft, *question) == answers(real, *question)
    assert other.image() == disk().image()


@pytest.mark.parametrize("lane", ["run", "run_bulk"])
def test_draft_does_jobs_at_once(lane: str) -> None:
    draft, told = Draft(disk()), list[Any]()
    getattr(draft, lane)(lambda: draft.read("x"), told.append)
    getattr(draft, lane)(lambda: draft.read("z"), told.append)
    assert told[0] == b"first"
    assert isinstance(told[1], FileNotFoundError)
