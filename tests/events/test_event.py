from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.events.event import (
    KINDS,
    MAX_TEXT,
    AnyEvent,
    BindingAdded,
    BindingChanged,
    BindingRefreshed,
    BindingRemoved,
    Event,
    LeaderElected,
    MembersChanged,
    Moment,
    Origin,
    Position,
    SettingChanged,
    decode,
    encode,
    event_of,
    kind_of,
    own_position,
    refreshes_of,
)
from sipha.state.binding import BEHIND_NAT, Binding
from sipha.state.changes import Change, Changed, MembersPut, Refreshed, Removed, SettingPut, TermBegun, added
from sipha.state.entries import Contact, Member, Register

MOMENT = Moment(7, 61_500, 1_764_380_000.25, "n2")


def binding(**fields: object) -> Binding:
    given = {
        "aor": "sip:alice@x", "contact": "sip:alice@h", "contact_id": 0xABC, "version": 7, "expires_at": 661_500,
        "call_id": "c1", "cseq": 3, "q": None, "instance": "", "reg_id": 0, "params": "", "received": "sip:192.0.2.1:5",
        "socket": "", "flow": "", "path": (), "user_agent": "phone/1", "methods": "", "flags": 0, "cflags": BEHIND_NAT,
        "attr": "", "last_modified": 61_500,
    } | fields  # fmt: skip
    return Binding(**given)  # type: ignore[arg-type]


def told(*made: Change) -> list[Event]:
    return [event_of(MOMENT, number, change) for number, change in enumerate(made)]


def test_event_says_all_that_is_known_of_a_binding() -> None:
    assert told(added(binding())) == [
        BindingAdded(
            id="7.0",
            index=7,
            time=61.5,
            at="2025-11-29T01:33:20.250Z",
            node="n2",
            aor="sip:alice@x",
            contact="sip:alice@h",
            received="sip:192.0.2.1:5",
            user_agent="phone/1",
            call_id="c1",
            cseq=3,
            behind_nat=True,
            expires=600.0,
            contact_id="0000000000000abc",
        )
    ]


def test_event_of_a_change_and_of_a_removal_says_who_was_there_before_and_who_did_it() -> None:
    changed, removed, all_gone, expired = told(
        Changed(binding(received="sip:192.0.2.9:9"), binding()),
        Removed(binding(), "replaced", Register("sip:alice@x", "c2", 1, (Contact("sip:new@h"),), user_agent="phone/2")),
        Removed(binding(), "unregistered", Register("sip:alice@x", "c2", 1, wildcard=True)),
        Removed(binding(), "expired"),
    )
    assert isinstance(changed, BindingChanged)
    assert changed.before == Origin("sip:alice@h", "sip:192.0.2.9:9", "phone/1", "c1")
    assert isinstance(removed, BindingRemoved)
    assert (removed.reason, removed.by) == ("replaced", Origin("sip:new@h", "", "phone/2", "c2"))
    assert isinstance(all_gone, BindingRemoved)
    assert all_gone.by == Origin("*", "", "", "c2")
    assert isinstance(expired, BindingRemoved)
    assert expired.by is None


def test_refresh_takes_no_number() -> None:
    made = Refreshed(binding()), added(binding()), Refreshed(binding()), added(binding())
    refreshed = list(refreshes_of(MOMENT, made))
    assert [(position, event.id) for position, event in refreshed] == [((7, 0), "6"), ((7, 1), "7.0")]
    assert all(isinstance(event, BindingRefreshed) for _, event in refreshed)


def test_term_is_of_who_begins_it() -> None:
    (event,) = told(TermBegun(4, "n3"))
    assert isinstance(event, LeaderElected)
    assert (event.term, event.node, event.index) == (4, "n3", 7)


def test_what_a_phone_writes_is_cut() -> None:
    made, setting = told(added(binding(user_agent="x" * 60_000, contact="sip:" + "é" * 5000)), SettingPut("a", "b"))
    assert isinstance(made, BindingAdded)
    assert len(made.user_agent) == len(made.contact) == MAX_TEXT
    assert made.user_agent.endswith("x…")
    assert isinstance(setting, SettingChanged)
    assert (setting.name, setting.value) == ("a", "b")


def test_event_is_read_back_from_json() -> None:
    for event in told(
        added(binding()), Changed(binding(), binding()), MembersPut((Member("a", "h:1", "voter"),)), TermBegun(1, "a")
    ):
        assert decode(encode(event)) == event
        assert f'"kind":"{kind_of(event)}"' in encode(event).decode()
    assert b'{"name":"a","address":"h:1","role":"voter"}' in encode(told(MembersPut((Member("a", "h:1", "voter"),)))[0])


def test_each_kind_has_a_name_of_its_own() -> None:
    assert len(set(KINDS)) == len(KINDS) == len(get_args(AnyEvent))
    assert MembersChanged in get_args(AnyEvent)


@given(st.integers(0, 10**17), st.integers(0, 999_999))
def test_position_is_read_from_the_id_of_an_event(entry: int, number: int) -> None:
    assert Position.parse(Position(entry, number).id) == (entry, number)
    assert Position.parse(own_position(entry).id) == own_position(entry) > (entry, number)
    assert Position.parse(f"{entry}.n1-0a0b0c.{number}") == own_position(entry) < (entry + 1, 0)


@pytest.mark.parametrize("text", ["", "x", "1.", "-1", "1.2.3", "1.0000000", "9" * 19, "1.n1", "٣", "1\n"])
def test_what_is_no_id_has_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="is not the id of an event, nor an index of the log"):
        Position.parse(text)
