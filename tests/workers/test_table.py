"""What workers find in the table that the daemon fills, whatever the log does and however they read it."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import location
from sipha.state.entries import (
    SCHEMA,
    Batch,
    Contact,
    Expire,
    ImportBinding,
    Policy,
    Record,
    Refresh,
    Register,
    RemoveBindings,
    RemoveUnreachable,
    encode,
)
from sipha.state.machine import Machine
from sipha.state.snapshot import Loader
from sipha.workers.table import SLOT, SLOTS, Table, Unknown, View, _key, _number, _place
from tests.kernels import kernel
from tests.state.test_model import AORS, URIS, policies, registers, wildcards

ALICE, BOB = "sip:alice@sipha.test", "sip:bob@sipha.test"


class Rig:
    """A table of the state that entries make, and a view of it that knows the same accounts."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.table = Table()
        self.machine.location.observer = self.table
        self.version = 0
        self.time = 0
        self.view = View(self.table.file, lambda: self.version, lambda: self.time / 1000)

    def apply(self, *records: Record, seconds: int = 0, policy: Policy | None = None) -> None:
        self.time += seconds * 1000
        entry = encode(Batch(SCHEMA, self.time, policy or Policy(), records))
        self.machine.apply(self.machine.index + 1, entry)

    def ask(self, aor: str) -> None:
        """What the daemon does when a worker has asked for an AOR."""
        self.table.put(aor, self.machine.location.packed(aor))

    def finds(self, aor: str) -> list[str] | None:
        try:
            return [binding.contact for binding in self.view.lookup(aor)]
        except Unknown:
            return None

    def end(self) -> None:
        self.table.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.end()


def bound(aor: str = ALICE, cseq: int = 1, expires: int = 60, uri: str = "sip:a@192.0.2.1", **more: object) -> Register:
    return Register(aor, "c", cseq, (Contact(uri, expires),), **more)  # type: ignore[arg-type]


def test_nothing_is_known_before_it_was_asked(rig: Rig) -> None:
    rig.apply(bound())
    assert rig.finds(ALICE) is None
    rig.ask(ALICE)
    assert rig.finds(ALICE) == ["sip:a@192.0.2.1"]
    assert rig.finds(BOB) is None


def test_that_nobody_is_there_is_known_as_well(rig: Rig) -> None:
    rig.ask(ALICE)
    assert rig.finds(ALICE) == []
    rig.apply(bound())
    assert rig.finds(ALICE) is None


def test_binding_that_has_run_out_is_asked_for_since_it_may_have_been_refreshed(rig: Rig) -> None:
    rig.apply(bound())
    rig.ask(ALICE)
    binding = rig.machine.location.bindings(ALICE, rig.time)[0]
    rig.apply(Refresh(ALICE, binding.version, 2, 60, 0), seconds=50)
    assert rig.finds(ALICE) == ["sip:a@192.0.2.1"]  # nobody had to be told
    rig.time += 11_000
    assert rig.finds(ALICE) is None
    rig.ask(ALICE)
    assert rig.finds(ALICE) == ["sip:a@192.0.2.1"]


@pytest.mark.parametrize("in_c", [False, True])
@pytest.mark.interpreted
def test_refresh_that_makes_a_binding_live_less_long_is_heard_of(rig: Rig, *, in_c: bool) -> None:
    rig.apply(bound(expires=600))
    rig.ask(ALICE)
    binding = rig.machine.location.bindings(ALICE, rig.time)[0]
    refresh = kernel("sipha.state._row").refresh if in_c else None
    with patch.object(location, "refresh_plain", refresh):
        rig.apply(Refresh(ALICE, binding.version, 2, 60, 0))
    assert rig.finds(ALICE) == ["sip:a@192.0.2.1"]
    rig.time += 61_000
    assert rig.machine.location.lookup(ALICE, rig.time) == ()
    assert rig.finds(ALICE) is None


def test_who_knows_other_accounts_is_told_nothing(rig: Rig) -> None:
    rig.ask(ALICE)
    rig.table.begin_version(1)
    assert rig.finds(ALICE) is None
    rig.version = 1
    assert rig.finds(ALICE) == []


def test_what_has_no_room_is_not_there(rig: Rig) -> None:
    rig.apply(bound(user_agent="x" * SLOT))
    rig.ask(ALICE)
    assert rig.finds(ALICE) is None


def test_two_users_with_the_same_slot_are_kept_apart(rig: Rig) -> None:
    slot = crc32(b"sip:0@x\0") % SLOTS
    other = next(aor for n in range(1, 1 << 20) if crc32((aor := f"sip:{n}@x").encode() + b"\0") % SLOTS == slot)
    rig.apply(bound("sip:0@x"), bound(other, uri="sip:other@192.0.2.2"))
    rig.ask("sip:0@x")
    assert (rig.finds("sip:0@x"), rig.finds(other)) == (["sip:a@192.0.2.1"], None)
    rig.ask(other)
    assert (rig.finds("sip:0@x"), rig.finds(other)) == (None, ["sip:other@192.0.2.2"])
    rig.table.refreshed("sip:0@x", 1, b"")  # this isn't about who has the slot
    assert rig.finds(other) == ["sip:other@192.0.2.2"]


def test_snapshot_in_the_place_of_the_table_clears_it_and_is_followed(rig: Rig) -> None:
    loader = Loader()
    for chunk in Machine().freeze(1, "cluster"):
        loader.feed(chunk)
    rig.apply(bound())
    rig.ask(ALICE)
    for _ in rig.machine.adopt(loader.finish()):
        pass
    assert rig.finds(ALICE) is None
    rig.ask(ALICE)
    assert rig.finds(ALICE) == []
    rig.apply(bound())
    assert rig.finds(ALICE) is None


@given(
    contacts=st.lists(st.sampled_from(["sip:a@192.0.2.1", "sip:bb@192.0.2.2", "sip:ccc@192.0.2.3"]), max_size=2),
    others=st.lists(st.sampled_from(["sip:a@192.0.2.1", "sip:bb@192.0.2.2", "sip:ccc@192.0.2.3"]), max_size=2),
    cuts=st.lists(st.integers(0, SLOT), max_size=4).map(sorted),
)
def test_slot_that_is_read_while_it_is_written_is_as_before_or_after_or_unknown(
    contacts: list[str], others: list[str], cuts: list[int]
) -> None:
    rig = Rig()
    begin = _place(_number(_key(ALICE)))
    place = slice(begin, begin + SLOT)
    sides, known = [], []
    for number, uris in enumerate((contacts, others)):
        bound = [Register(ALICE, "c", 10 * number + n, (Contact(uri, 60),)) for n, uri in enumerate(uris)]
        rig.apply(RemoveBindings(ALICE), *bound)
        rig.ask(ALICE)
        sides.append(rig.table._memory[place])
        known.append(rig.finds(ALICE))
    edges = zip([0, *cuts], [*cuts, SLOT], strict=True)
    rig.table._memory[place] = b"".join(sides[number % 2][one:other] for number, (one, other) in enumerate(edges))
    assert rig.finds(ALICE) in (*known, None)
    rig.end()


refreshes = st.builds(
    Refresh,
    aor=st.sampled_from(AORS),
    version=st.integers(0, 20),
    cseq=st.integers(0, 12),
    expires=st.sampled_from([1, 60, 100]),
    jitter=st.integers(0, 50),
)
removals = st.builds(RemoveBindings, aor=st.sampled_from(AORS), contact=st.sampled_from(["", *URIS]))
imports = st.builds(ImportBinding, register=registers)


def reports(machine: Machine, time: int) -> list[Record]:
    """What a leader would propose of itself: that bindings have run out, and that phones aren't reached."""
    expired = machine.location.expired(time, 100).bindings
    lost = [binding for aor in AORS for binding in machine.location.bindings(aor, time)]
    return [Expire(expired), *[RemoveUnreachable(each.aor, each.contact_id, each.version) for each in lost[:1]]]


@pytest.mark.interpreted
@settings(max_examples=150)
@given(
    entries=st.lists(
        st.tuples(
            st.lists(registers | refreshes | wildcards | removals | imports, min_size=1, max_size=3),
            st.sampled_from([0, 0, 1, 30, 70]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=15,
    ),
    policy=policies,
    in_c=st.booleans(),
)
def test_what_is_found_is_what_the_daemon_would_say_whatever_the_log_does(
    entries: list[tuple[list[Record], int, bool, bool]], policy: Policy, in_c: bool
) -> None:
    rig = Rig()
    refresh, first = kernel("sipha.state._row").refresh, kernel("sipha.state._first").first
    with (
        patch.object(location, "refresh_plain", refresh if in_c else None),
        patch.object(location, "first_plain", first if in_c else None),
    ):
        for records, seconds, reported, asked in entries:
            shortened = [rig.machine.location.shortened(r) if isinstance(r, Register) else r for r in records]
            rig.apply(*(reports(rig.machine, rig.time) if reported else ()), *shortened, seconds=seconds, policy=policy)
            for aor in AORS:
                found = rig.finds(aor)
                said = [binding.contact for binding in rig.machine.location.lookup(aor, rig.time)]
                assert found in (None, said)
                if asked:
                    rig.ask(aor)
    rig.end()
