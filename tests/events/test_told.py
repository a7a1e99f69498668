"""What is packed of an entry, and unpacked again: the events that would have been made of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.events.event import Moment, event_of
from sipha.events.history import _FORMAT
from sipha.events.told import events_in, told
from sipha.state.changes import Change, Refreshed
from sipha.state.entries import (
    Barrier,
    Contact,
    DeleteAccount,
    Expire,
    Member,
    Policy,
    PutAccount,
    PutKey,
    PutMembers,
    PutSetting,
    RaiseSchema,
    Record,
    Register,
    RemoveBindings,
)
from tests.state.test_changes import Log
from tests.state.test_model import AORS, policies, registers, wildcards

MOMENT = Moment(7, 61_500, 1_764_380_000.25, "n2")
HA1 = "0" * 32
OTHERS: list[Record] = [
    PutAccount("a", "x", "a", "x", {"MD5": HA1}),
    PutAccount("a", "x", "a", "x", {"MD5": "1" * 32}),
    DeleteAccount("a", "x"),
    PutKey(bytes(32)),
    PutSetting("pings", "off"),
    Barrier(3, "n3"),
    PutMembers((Member("n1", "h:1", "voter"), Member("n2", "h:2", "learner"))),
    RaiseSchema(5),
]


def assert_told(changes: list[Change], moment: Moment = MOMENT) -> None:
    expected = [(number, event_of(moment, number, change)) for number, change in enumerate(changes)]
    packed = told(moment, changes)
    assert list(events_in(packed.data)) == expected
    assert (packed.entry, packed.time, packed.aors) == (moment.entry, moment.time, tuple(c.aor for c in changes))
    assert packed.events == len([event for _, event in expected if hasattr(event, "aor")])
    for aor in {*packed.aors, "sip:nobody@x"} - {""}:
        assert list(events_in(packed.data, aor)) == [each for each in expected if getattr(each[1], "aor", "") == aor]


@given(
    st.lists(
        st.tuples(
            registers | wildcards | st.builds(RemoveBindings, st.sampled_from(AORS)) | st.just("expire"),
            st.integers(0, 50_000),
        ),
        max_size=20,
    ),
    policies,
)
@settings(max_examples=200, deadline=None)
def test_events_of_bindings_are_those_that_would_have_been_made_at_once(
    history: list[tuple[Register | RemoveBindings | str, int]], policy: Policy
) -> None:
    log, changes = Log(policy=policy), list[Change]()
    for what, elapsed in history:
        log.now += elapsed
        changes += log.apply(
            Expire(log.machine.location.expired(log.now, 100).bindings) if isinstance(what, str) else what
        )
    assert_told(changes)


def test_events_of_all_else_are_too() -> None:
    log = Log()
    changes = [change for record in OTHERS for change in log.apply(record)]
    assert len(changes) == len(OTHERS)
    assert_told(changes)
    assert_told(changes, MOMENT._replace(node=None))


def test_what_a_history_holds_is_as_its_form_says() -> None:
    """Who changes what is packed must raise the history's form, and have `written` here be kept for the new one."""
    log, contact = Log(), Contact("sip:a@192.0.2.1", 60, q=500, params=";x=y", instance="<urn:uuid:1>", reg_id=1)
    all_there_is = Register(
        *("sip:a@x", "call", 1, (contact,), False, "sip:a@192.0.2.9:5060", "udp:192.0.2.10:5060", "flow"),
        *(("<sip:edge@x;lr>",), "phone/1", "INVITE,ACK", True, 1, 2, "attr", "{}"),
    )
    records = [all_there_is, msgspec.structs.replace(all_there_is, cseq=2, received="sip:a@192.0.2.8:5060")]
    unregister = msgspec.structs.replace(all_there_is, cseq=3, contacts=(Contact("sip:a@192.0.2.1", 0),))
    changes = [change for record in [*records, unregister, *OTHERS] for change in log.apply(record)]
    assert {type(change) for change in changes} == {*get_args(Change)} - {Refreshed}
    written = told(MOMENT, changes).data
    assert (Path(__file__).parent / f"told-{_FORMAT}.msgpack").read_bytes() == written
