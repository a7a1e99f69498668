"""The rules by which a REGISTER changes the location table (RFC 3261 §10.3 steps 6 and 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from sipha.state import registration
from sipha.state.entries import (
    SCHEMA,
    Batch,
    Contact,
    Expire,
    ImportBinding,
    Policy,
    Record,
    Register,
    RemoveBindings,
    RemoveUnreachable,
    encode,
)
from sipha.state.location import Binding, Location, listed
from sipha.state.machine import Conflict, Done, Invalid, Machine, NotFound, Outcome, Registered, Rejected
from sipha.state.outcomes import registered
from sipha.state.tombstones import CAPACITY, LIFETIME

AOR = "sip:alice@example.com"
HOME = "sip:alice@192.0.2.1:5060"
DESK = "sip:alice@192.0.2.2:5060"
SOFT = "sip:alice@192.0.2.3:5060"
STALE = Rejected(500, "Invalid CSeq number")
TOO_MANY = Rejected(403, "Too many registered contacts")


@dataclass
class Log:
    """A machine, and the entries that it is given at a time that the test sets."""

    policy: Policy = field(default_factory=Policy)
    now: int = 1_000_000
    machine: Machine = field(default_factory=Machine)
    indices: Iterator[int] = field(default_factory=lambda: count(1))

    def apply(self, record: Record) -> Outcome:
        [outcome] = self.machine.apply(next(self.indices), encode(Batch(SCHEMA, self.now, self.policy, (record,))))
        return outcome

    def register(
        self, *contacts: Contact | str, cseq: int, call_id: str = "one", wildcard: bool = False, outbound: bool = False
    ) -> Outcome:
        asked = tuple(Contact(contact) if isinstance(contact, str) else contact for contact in contacts)
        return self.apply(Register(AOR, call_id, cseq, asked, wildcard=wildcard, outbound=outbound))

    @property
    def location(self) -> Location:
        return self.machine.location

    @property
    def bindings(self) -> list[Binding]:
        return list(self.location.bindings(AOR, self.now))

    @property
    def contacts(self) -> list[str]:
        return [binding.contact for binding in self.bindings]


@pytest.fixture
def log() -> Log:
    return Log()


def gone(contact: str) -> Contact:
    return Contact(contact, expires=0)


def test_register_stores_all_that_the_registrar_learned(log: Log) -> None:
    contact = Contact(HOME, 600, 700, "<urn:uuid:1>", 2, ";+sip.x", 7)
    log.apply(
        Register(
            AOR,
            "one",
            8,
            (contact,),
            received="sip:198.51.100.1:1024",
            socket="udp:192.0.2.10:5060",
            flow="3",
            path=("<sip:edge;lr>",),
            user_agent="Phone",
            methods="INVITE,ACK",
            outbound=True,
            flags=1,
            cflags=2,
            attr="a",
            kv_store='{"k": 1}',
        )
    )
    assert log.bindings == [
        Binding(
            aor=AOR,
            contact=HOME,
            contact_id=1 << 20,
            version=1,
            expires_at=log.now + 593_000,
            call_id="one",
            cseq=8,
            q=700,
            instance="<urn:uuid:1>",
            reg_id=2,
            params=";+sip.x",
            received="sip:198.51.100.1:1024",
            socket="udp:192.0.2.10:5060",
            flow="3",
            path=("<sip:edge;lr>",),
            user_agent="Phone",
            methods="INVITE,ACK",
            flags=1,
            cflags=2,
            attr="a",
            kv_store='{"k": 1}',
            last_modified=log.now,
        )
    ]


def test_register_answers_with_all_bindings_of_the_aor(log: Log) -> None:
    log.register(HOME, cseq=1)
    outcome = log.register(DESK, cseq=1, call_id="two")
    assert isinstance(outcome, Registered)
    assert outcome.time == log.now
    assert [binding.contact for binding in outcome.bindings] == [HOME, DESK]


def test_refresh_keeps_the_id_and_raises_the_version(log: Log) -> None:
    log.register(HOME, cseq=1)
    [first] = log.bindings
    log.now += 1000
    log.register(HOME, cseq=2)
    [second] = log.bindings
    assert second.contact_id == first.contact_id
    assert second.version > first.version
    assert second.expires_at == first.expires_at + 1000


def test_query_changes_nothing(log: Log) -> None:
    log.register(HOME, cseq=1)
    before = log.machine.hash()
    outcome = log.register(cseq=0)
    assert isinstance(outcome, Registered)
    assert [binding.contact for binding in outcome.bindings] == [HOME]
    assert log.machine.hash() == before


# CSeq order


@pytest.mark.parametrize("cseq", [4, 5])
def test_stale_cseq_is_rejected(log: Log, cseq: int) -> None:
    log.register(HOME, cseq=5)
    before = log.machine.hash()
    assert log.register(Contact(HOME, q=1), cseq=cseq) == STALE
    assert log.register(gone(HOME), cseq=cseq) == STALE
    assert log.machine.hash() == before


def test_another_call_id_may_have_any_cseq(log: Log) -> None:
    log.register(HOME, cseq=5)
    assert isinstance(log.register(HOME, cseq=1, call_id="rebooted"), Registered)
    assert [(binding.call_id, binding.cseq) for binding in log.bindings] == [("rebooted", 1)]


def test_cseq_orders_only_the_bindings_that_a_register_touches(log: Log) -> None:
    log.register(HOME, cseq=5)
    assert isinstance(log.register(DESK, cseq=4), Registered)
    assert log.contacts == [HOME, DESK]


def test_removal_of_another_contact_does_not_hold_up_a_refresh(log: Log) -> None:
    log.register(HOME, DESK, cseq=5)
    log.register(gone(DESK), cseq=7)
    assert isinstance(log.register(HOME, cseq=6), Registered)


def test_repeat_is_registered_and_changes_nothing(log: Log) -> None:
    log.register(HOME, cseq=5)
    before = log.machine.hash()
    log.now += 500
    outcome = log.register(HOME, cseq=5)
    assert isinstance(outcome, Registered)
    assert [binding.contact for binding in outcome.bindings] == [HOME]
    assert log.machine.hash() == before


@pytest.mark.parametrize(
    "other",
    [
        Contact(HOME, q=5, instance="<urn:uuid:1>", params=";+x"),
        Contact(HOME, instance="<urn:uuid:2>", params=";+x"),
        Contact(HOME, instance="<urn:uuid:1>"),
        Contact("SIP:alice@192.0.2.1:5060", instance="<urn:uuid:1>", params=";+x"),
        Contact(HOME, expires=0, instance="<urn:uuid:1>", params=";+x"),
    ],
    ids=repr,
)
def test_same_cseq_that_asks_for_something_else_is_stale(log: Log, other: Contact) -> None:
    log.register(Contact(HOME, instance="<urn:uuid:1>", params=";+x"), cseq=5)
    before = log.machine.hash()
    assert log.register(other, cseq=5) == STALE
    assert log.machine.hash() == before


def test_repeat_of_a_mixed_register_changes_nothing(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(gone(HOME), DESK, gone(SOFT), cseq=2)
    before = log.machine.hash()
    assert isinstance(log.register(gone(HOME), DESK, gone(SOFT), cseq=2), Registered)
    assert log.contacts == [DESK]
    assert log.machine.hash() == before


def test_delayed_register_does_not_undo_an_unregister(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(gone(HOME), cseq=2)
    log.now += LIFETIME - 1
    assert log.register(HOME, cseq=1) == STALE
    assert log.contacts == []


def test_register_that_was_overtaken_by_its_unregister_is_rejected(log: Log) -> None:
    log.register(gone(HOME), cseq=2)
    assert log.register(HOME, cseq=1) == STALE
    assert log.contacts == []


def test_delayed_register_does_not_take_back_what_another_call_id_took_over(log: Log) -> None:
    log.register(HOME, cseq=5)
    log.register(HOME, cseq=1, call_id="rebooted")
    assert log.register(HOME, cseq=5) == STALE
    assert [binding.call_id for binding in log.bindings] == ["rebooted"]


def test_repeated_unregister_spares_what_another_call_id_registered_since(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(gone(HOME), cseq=2)
    log.register(HOME, cseq=1, call_id="two")
    assert isinstance(log.register(gone(HOME), cseq=2), Registered)
    assert log.contacts == [HOME]


def test_device_may_register_again_with_a_higher_cseq(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(gone(HOME), cseq=2)
    assert isinstance(log.register(HOME, cseq=3), Registered)
    assert log.contacts == [HOME]


def test_tombstone_ends(log: Log) -> None:
    empty = log.machine.hash()
    log.register(HOME, cseq=1)
    log.register(gone(HOME), cseq=2)
    assert log.machine.hash() != empty
    log.now += LIFETIME
    assert isinstance(log.register(HOME, cseq=1), Registered)


def test_each_tombstone_ends_in_its_time(log: Log) -> None:
    start = log.now
    for number, contact in enumerate((HOME, DESK, SOFT)):
        log.now = start + 1000 * number
        log.register(contact, cseq=1, call_id=contact)
        log.register(gone(contact), cseq=2, call_id=contact)
    for number, rest in enumerate(([HOME, DESK, SOFT], [DESK, SOFT], [SOFT], [])):
        log.now = start + LIFETIME + 1000 * number - 1
        log.register(cseq=9, call_id="query")
        assert [tombstone.call_id for tombstone in log.location.tombstones()] == rest


def test_tombstones_are_pruned_by_any_entry(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(gone(HOME), cseq=2)
    log.now += LIFETIME
    log.register(cseq=9, call_id="query")
    assert list(log.location.tombstones()) == []
    assert log.machine.hash() == Machine().hash()


def test_tombstones_have_a_bound(log: Log) -> None:
    location = log.location
    location.begin(1, 0, Policy(), SCHEMA)
    for number in range(CAPACITY + 1):
        location.register(Register(AOR, f"{number}", 1, (gone(HOME),)))
    call_ids = [tombstone.call_id for tombstone in location.tombstones()]
    assert len(call_ids) == CAPACITY
    assert call_ids[0] == "1"
    assert list(log.machine.scrub())


# Atomicity


def test_register_happens_wholly_or_not_at_all(log: Log) -> None:
    log.register(DESK, cseq=5)
    before = log.machine.hash()
    assert log.register(HOME, gone(SOFT), Contact(DESK, q=1), cseq=5) == STALE
    assert log.contacts == [DESK]
    assert log.machine.hash() == before


def test_one_register_adds_updates_and_removes(log: Log) -> None:
    log.register(HOME, DESK, cseq=1)
    log.register(gone(HOME), Contact(DESK, q=500), SOFT, cseq=2)
    assert [(binding.contact, binding.q) for binding in log.bindings] == [(DESK, 500), (SOFT, None)]


def test_contact_named_twice_counts_as_it_stands_last(log: Log) -> None:
    assert isinstance(log.register(Contact(HOME, q=1), Contact(HOME, q=2), cseq=1), Registered)
    assert [binding.q for binding in log.bindings] == [2]


# Wildcard


def test_wildcard_removes_the_bindings_of_every_call_id(log: Log) -> None:
    log.register(HOME, cseq=1)
    log.register(DESK, cseq=9, call_id="two")
    assert log.register(cseq=2, wildcard=True) == registered((), log.now)
    assert log.contacts == []
    assert len(log.location) == 0
    assert log.location.count == 0


@pytest.mark.parametrize("cseq", [1, 2])
def test_wildcard_fails_unless_it_is_newer_than_its_own_bindings(log: Log, cseq: int) -> None:
    log.register(DESK, cseq=1, call_id="two")
    log.register(HOME, cseq=2)
    assert log.register(cseq=cseq, wildcard=True) == STALE
    assert log.contacts == [DESK, HOME]


def test_wildcard_overtakes_what_was_sent_before_it(log: Log) -> None:
    log.register(cseq=2, wildcard=True)
    assert log.register(HOME, cseq=1) == STALE
    log.register(DESK, cseq=9, call_id="two")
    assert isinstance(log.register(cseq=2, wildcard=True), Registered)
    assert log.contacts == [DESK], "a repeated wildcard removes nothing that came after it"
    assert log.register(cseq=1, wildcard=True) == STALE


def test_wildcard_stands_alone(log: Log) -> None:
    assert isinstance(log.register(HOME, cseq=1, wildcard=True), Invalid)
    assert log.contacts == []
    log.register(HOME, cseq=1)
    assert isinstance(log.register(HOME, cseq=2, wildcard=True), Invalid)
    assert [binding.cseq for binding in log.bindings] == [1]


# Matching


@pytest.mark.parametrize(
    "spelling", ["sip:alice@192.0.2.1:5060", "SIP:alice@192.0.2.1:5060", "sip:%61lice@192.0.2.1:5060"]
)
def test_equivalent_contact_is_the_same_binding(log: Log, spelling: str) -> None:
    log.register(HOME, cseq=1)
    log.register(spelling, cseq=2)
    assert log.contacts == [spelling]


@pytest.mark.parametrize("contact", ["sip:alice@192.0.2.1", "sips:alice@192.0.2.1:5060", "sip:Alice@192.0.2.1:5060"])
def test_contact_that_is_not_equivalent_is_another_binding(log: Log, contact: str) -> None:
    log.register(HOME, cseq=1)
    log.register(contact, cseq=2)
    assert log.contacts == [HOME, contact]


def test_contact_spelt_the_same_goes_before_an_equivalent_one(log: Log) -> None:
    # Equivalence is not transitive: the first two differ, and the third equals both (RFC 3261 §19.1.4).
    log.register("sip:a@h;x=1", cseq=1)
    log.register("sip:a@h;x=2", cseq=2)
    log.register(Contact("sip:a@h;x=2", q=9), cseq=3)
    assert [(binding.contact, binding.q) for binding in log.bindings] == [("sip:a@h;x=1", None), ("sip:a@h;x=2", 9)]
    log.register("sip:a@h", cseq=4)
    assert log.contacts == ["sip:a@h", "sip:a@h;x=2"]


def test_register_parses_each_contact_once(log: Log) -> None:
    log.register(*(f"sip:h?{number}" for number in range(12)), cseq=1)
    parsed = registration._parsed.cache_info().misses
    log.register(*(f"sip:h?1{number}" for number in range(10, 22)), cseq=2)
    assert registration._parsed.cache_info().misses == parsed + 12


def test_contact_longer_than_a_phone_may_send_is_compared_and_not_remembered(log: Log) -> None:
    parsed = registration._parsed.cache_info().misses
    for cseq, scheme in enumerate(("sip", "SIP"), 1):
        log.register(f"{scheme}:a@h?{'x' * 600}", cseq=cseq)
    assert log.contacts == ["SIP:a@h?" + "x" * 600]
    assert registration._parsed.cache_info().misses == parsed


def test_contact_that_is_no_uri_is_compared_as_text(log: Log) -> None:
    log.register("not a uri", cseq=1)
    log.register("not a uri", cseq=2)
    log.register("neither", cseq=3)
    assert log.contacts == ["not a uri", "neither"]


def test_outbound_matches_by_instance_and_reg_id_alone(log: Log) -> None:
    def flow(uri: str, reg_id: int) -> Contact:
        return Contact(uri, instance="<urn:uuid:1>", reg_id=reg_id)

    log.register(flow(HOME, 1), cseq=1, outbound=True)
    log.register(flow(HOME, 2), cseq=2, outbound=True)
    assert [(binding.contact, binding.reg_id) for binding in log.bindings] == [(HOME, 1), (HOME, 2)]
    log.register(flow(DESK, 1), cseq=3, outbound=True)
    assert [(binding.contact, binding.reg_id) for binding in log.bindings] == [(DESK, 1), (HOME, 2)]


def test_reg_id_without_outbound_is_ignored(log: Log) -> None:
    log.register(Contact(HOME, instance="<urn:uuid:1>", reg_id=1), cseq=1)
    assert [binding.reg_id for binding in log.bindings] == [0]


# Policy


def test_one_per_instance_replaces_the_old_contact_of_a_device(log: Log) -> None:
    log.register(Contact(HOME, instance="<urn:uuid:1>"), cseq=1)
    log.register(Contact(SOFT, instance="<urn:uuid:2>"), cseq=1, call_id="two")
    log.register(Contact(DESK, instance="<urn:uuid:1>"), cseq=2)
    assert log.contacts == [SOFT, DESK]


def test_one_per_instance_keeps_what_one_register_names(log: Log) -> None:
    device = [Contact(HOME, instance="<urn:uuid:1>"), Contact(DESK, instance="<urn:uuid:1>")]
    log.register(*device, cseq=1)
    log.register(*device, cseq=2)
    assert log.contacts == [HOME, DESK]


def test_one_per_instance_can_be_off() -> None:
    log = Log(Policy(one_per_instance=False))
    log.register(Contact(HOME, instance="<urn:uuid:1>"), cseq=1)
    log.register(Contact(DESK, instance="<urn:uuid:1>"), cseq=2)
    assert log.contacts == [HOME, DESK]


def test_delayed_register_does_not_replace_the_newer_contact_of_its_device(log: Log) -> None:
    log.register(Contact(DESK, instance="<urn:uuid:1>"), cseq=2)
    assert log.register(Contact(HOME, instance="<urn:uuid:1>"), cseq=1) == STALE
    assert log.contacts == [DESK]


def test_device_that_takes_up_outbound_replaces_its_plain_contact(log: Log) -> None:
    log.register(Contact(HOME, instance="<urn:uuid:1>"), cseq=1)
    log.register(Contact(HOME, instance="<urn:uuid:1>", reg_id=1), cseq=2, outbound=True)
    assert [binding.reg_id for binding in log.bindings] == [1]


def test_device_that_gives_up_outbound_replaces_its_flows(log: Log) -> None:
    for reg_id in (1, 2):
        log.register(Contact(HOME, instance="<urn:uuid:1>", reg_id=reg_id), cseq=reg_id, outbound=True)
    log.register(Contact(DESK, instance="<urn:uuid:1>"), cseq=3)
    assert [(binding.contact, binding.reg_id) for binding in log.bindings] == [(DESK, 0)]


def test_full_aor_loses_its_oldest_binding() -> None:
    log = Log(Policy(max_contacts=2))
    for number, contact in enumerate((HOME, DESK)):
        log.now += 1000
        log.register(contact, cseq=1, call_id=f"{number}")
    log.now += 1000
    log.register(HOME, cseq=2, call_id="0")
    log.register(SOFT, cseq=1, call_id="3")
    assert log.contacts == [HOME, SOFT]


def test_full_aor_refuses_where_the_policy_says_so() -> None:
    log = Log(Policy(max_contacts=2, full="refuse"))
    log.register(HOME, DESK, cseq=1)
    before = log.machine.hash()
    assert log.register(SOFT, cseq=1, call_id="two") == TOO_MANY
    assert log.machine.hash() == before
    assert isinstance(log.register(HOME, cseq=2), Registered), "a refresh is never refused"
    assert isinstance(log.register(gone(HOME), SOFT, cseq=3), Registered), "nor what makes room for itself"


def test_refresh_evicts_nothing_where_the_limit_was_lowered() -> None:
    log = Log()
    log.register(HOME, DESK, SOFT, cseq=1)
    log.policy = Policy(max_contacts=2)
    log.register(HOME, cseq=2)
    assert log.contacts == [HOME, DESK, SOFT]


@pytest.mark.parametrize(
    "policy", [Policy(max_contacts=2, full="replace"), Policy(max_contacts=2, full="refuse")], ids=lambda p: p.full
)
def test_register_with_more_contacts_than_allowed_is_rejected(policy: Policy) -> None:
    log = Log(policy)
    before = log.machine.hash()
    assert log.register(HOME, DESK, SOFT, cseq=1) == TOO_MANY
    assert log.machine.hash() == before


def test_register_may_bind_as_many_as_it_removes() -> None:
    log = Log(Policy(max_contacts=1))
    log.register(HOME, cseq=1)
    assert isinstance(log.register(gone(HOME), DESK, cseq=2), Registered)
    assert log.contacts == [DESK]


def test_register_with_very_many_contacts_is_rejected_unseen() -> None:
    log = Log(Policy(max_contacts=0))
    assert log.register(*(f"sip:a@h{number}" for number in range(65)), cseq=1) == TOO_MANY
    assert log.register(*(gone(f"sip:a@h{number}") for number in range(129)), cseq=1) == TOO_MANY


def test_delayed_register_evicts_nothing_newer_of_its_call_id() -> None:
    log = Log(Policy(max_contacts=1))
    log.register(DESK, cseq=2)
    assert log.register(HOME, cseq=1) == STALE
    assert log.contacts == [DESK]


@pytest.mark.parametrize(
    ("asked", "jitter", "granted"),
    [
        (None, 0, 3600),
        (600, 0, 600),
        (10, 0, 60),
        (100_000, 0, 7200),
        (600, 50, 550),
        (90, 50, 60),
        (60, 50, 60),
        (1, 4_000_000_000, 60),
    ],
)
def test_granted_expiry_is_within_the_bounds(log: Log, asked: int | None, jitter: int, granted: int) -> None:
    log.register(Contact(HOME, asked, jitter=jitter), cseq=1)
    [binding] = log.bindings
    assert binding.expires_at == log.now + granted * 1000
    assert binding.remaining(log.now) == granted


def test_no_bound_on_expiry_where_the_policy_has_none() -> None:
    log = Log(Policy(min_expires=0, max_expires=0))
    log.register(Contact(HOME, 0xFFFFFFFF), Contact(DESK, 5, jitter=5), cseq=1)
    assert [binding.remaining(log.now) for binding in log.bindings] == [0xFFFFFFFF, 1]


# Expiry


def test_reads_hide_bindings_that_ran_out(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    log.register(Contact(DESK, 600), cseq=2)
    log.now += 59_999
    assert log.contacts == [HOME, DESK]
    log.now += 1
    assert log.contacts == [DESK]
    assert [binding.contact for binding in log.location.lookup(AOR, log.now)] == [DESK]
    assert log.location.count == 2


def test_next_register_of_the_aor_sweeps_out_what_ran_out(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    log.now += 60_000
    outcome = log.register(DESK, cseq=1, call_id="two")
    assert isinstance(outcome, Registered)
    assert [binding.contact for binding in outcome.bindings] == [DESK]
    assert log.location.count == 1


def test_refresh_sweeps_out_what_ran_out_beside_it(log: Log) -> None:
    log.register(Contact(HOME, 60), DESK, cseq=1)
    log.now += 60_000
    log.register(DESK, cseq=2)
    assert log.contacts == [DESK]
    assert log.location.count == 1


def test_bindings_that_ran_out_don_t_count_against_the_limit() -> None:
    log = Log(Policy(max_contacts=1, full="refuse"))
    log.register(Contact(HOME, 60), cseq=1)
    log.now += 60_000
    assert isinstance(log.register(DESK, cseq=1, call_id="two"), Registered)


def test_expire_removes_what_ran_out(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    log.now += 61_000
    found = log.location.expired(log.now, 10).bindings
    assert [aor for aor, _, _ in found] == [AOR]
    assert log.apply(Expire(found)) == Done(1)
    assert len(log.location) == 0
    assert log.location.expired(log.now + 100_000, 10).bindings == ()


def test_expire_spares_a_binding_refreshed_since(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    found = log.location.expired(log.now + 61_000, 10).bindings
    log.now += 59_000
    log.register(Contact(HOME, 60), cseq=2)
    log.now += 61_000
    assert log.apply(Expire(found)) == Done(0)
    assert len(log.location) == 1


def test_expire_spares_a_binding_that_has_time_left(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    [binding] = log.bindings
    assert log.apply(Expire(((AOR, binding.contact_id, binding.version), ("sip:nobody@x", 1, 1)))) == Done(0)
    assert log.contacts == [HOME]


def test_expire_spares_what_has_time_left_beside_what_ran_out(log: Log) -> None:
    log.register(Contact(HOME, 60), DESK, cseq=1)
    named = tuple((AOR, binding.contact_id, binding.version) for binding in reversed(log.bindings))
    log.now += 60_000
    assert log.apply(Expire(named)) == Done(1)
    assert log.contacts == [DESK]
    assert log.location.count == 1


def test_remove_unreachable_removes_the_version_that_it_names(log: Log) -> None:
    log.register(HOME, DESK, cseq=1)
    binding = log.bindings[0]
    record = RemoveUnreachable(AOR, binding.contact_id, binding.version)
    assert log.apply(record) == Done(1)
    assert log.contacts == [DESK]
    assert log.location.count == 1
    assert log.apply(record) == Done(0)
    assert log.register(HOME, cseq=1) == STALE  # a copy that was delayed doesn't bring it back


def test_remove_unreachable_spares_a_binding_refreshed_since(log: Log) -> None:
    log.register(HOME, cseq=1)
    [binding] = log.bindings
    log.register(HOME, cseq=2)
    assert log.apply(RemoveUnreachable(AOR, binding.contact_id, binding.version)) == Done(0)
    assert log.apply(RemoveUnreachable("sip:nobody@x", 1, 1)) == Done(0)
    assert log.contacts == [HOME]


def brought(contact: Contact, cseq: int = 1, call_id: str = "one") -> ImportBinding:
    return ImportBinding(Register(AOR, call_id, cseq, (contact,), outbound=bool(contact.reg_id)))


def test_import_binding_grants_what_was_left_elsewhere_whatever_the_policy(log: Log) -> None:
    log.policy = Policy(min_expires=60, max_expires=3600)
    assert log.apply(brought(Contact(HOME, 7, q=500))) == Done(1)
    assert log.apply(brought(Contact(DESK, 86400))) == Done(1)
    assert [(b.contact, b.expires_at - log.now, b.q) for b in log.bindings] == [
        (HOME, 7_000, 500),
        (DESK, 86_400_000, None),
    ]
    assert log.location.count == 2


def test_import_binding_leaves_alone_what_its_phone_has_told_here(log: Log) -> None:
    log.register(Contact(HOME, 600), cseq=9, call_id="new")
    before = log.bindings
    assert log.apply(brought(Contact(HOME, 3000), cseq=99)) == Done(0)
    assert log.bindings == before


def test_import_binding_brings_nothing_back_that_its_phone_has_removed_here(log: Log) -> None:
    log.register(HOME, cseq=5)
    log.register(Contact(HOME, 0), cseq=6)
    assert log.apply(brought(Contact(HOME, 60), cseq=5)) == Done(0)
    assert log.bindings == []


def test_import_binding_gives_no_second_binding_to_a_device_that_has_moved(log: Log) -> None:
    log.register(Contact(HOME, instance="<urn:uuid:1>"), cseq=1, call_id="new")
    assert log.apply(brought(Contact(DESK, 60, instance="<urn:uuid:1>"))) == Done(0)
    assert log.contacts == [HOME]
    assert log.apply(brought(Contact(DESK, 60, instance="<urn:uuid:2>"))) == Done(1)


def test_import_binding_evicts_nobody(log: Log) -> None:
    log.policy = Policy(max_contacts=1, full="replace")
    log.register(HOME, cseq=1)
    assert log.apply(brought(Contact(DESK, 60))) == Conflict(f"{AOR} has 1 bindings, and may have no more")
    assert log.contacts == [HOME]


def test_import_binding_is_refreshed_by_its_phone(log: Log) -> None:
    log.apply(brought(Contact(HOME, 60), cseq=5))
    assert log.register(HOME, cseq=5) != STALE  # the very REGISTER that made it there
    assert log.register(HOME, cseq=4) == STALE
    assert isinstance(log.register(Contact(HOME, 600), cseq=6), Registered)
    assert [b.expires_at - log.now for b in log.bindings] == [600_000]


@pytest.mark.parametrize("contacts", [(), (Contact(HOME),), (Contact(HOME, 0),), (Contact(HOME, 1), Contact(DESK, 1))])
def test_import_binding_is_one_contact_with_an_expiry(log: Log, contacts: tuple[Contact, ...]) -> None:
    assert isinstance(log.apply(ImportBinding(Register(AOR, "one", 1, contacts))), Invalid)
    assert log.bindings == []


def test_location_tells_of_each_binding_that_is_made_or_refreshed(log: Log) -> None:
    told: list[tuple[str, int, int]] = []
    log.location.bound = lambda *binding: told.append(binding)
    log.apply(Register(AOR, "one", 1, (Contact(HOME),), cflags=1))
    log.register(HOME, cseq=2)
    log.register(DESK, cseq=3)
    log.register(DESK, cseq=3)  # a repeat
    log.register(cseq=4)  # a query
    home, desk = (binding.contact_id for binding in log.bindings)
    assert told == [(AOR, home, 1), (AOR, home, 0), (AOR, home, 0), (AOR, desk, 0)]


def test_expired_reports_again_what_was_not_removed(log: Log) -> None:
    log.register(Contact(HOME, 60), cseq=1)
    late = log.now + 61_000
    first = log.location.expired(late, 10).bindings
    assert len(first) == 1
    assert log.location.expired(late, 10).bindings == ()
    assert log.location.expired(late + 10_000, 10).bindings == first


def test_expired_reports_at_most_the_limit_and_then_the_rest(log: Log) -> None:
    for number in range(10):
        log.apply(Register(f"sip:{number}@x", "c", 1, (Contact(HOME, 60),)))
    log.now += 61_000
    seen = [log.location.expired(log.now, 4).bindings for _ in range(4)]
    assert [len(found) for found in seen] == [4, 4, 2, 0]
    assert len({aor for found in seen for aor, _, _ in found}) == 10


def test_binding_with_a_shorter_expiry_is_found_in_time(log: Log) -> None:
    log.register(Contact(HOME, 3600), cseq=1)
    log.register(Contact(HOME, 60), cseq=2)
    assert len(log.location.expired(log.now + 61_000, 10).bindings) == 1


def test_buckets_don_t_grow_under_refreshes(log: Log) -> None:
    for cseq in range(1, 500):
        log.now += 1000
        log.register(Contact(HOME, 60 if cseq % 2 else 3600), cseq=cseq)
        assert len(log.location._buckets) == 1
    log.register(gone(HOME), cseq=1000)
    assert len(log.location._buckets) == 0


# Reading


def test_lookup_orders_by_q_then_by_the_latest_refresh(log: Log) -> None:
    contacts = [Contact("sip:a@1", q=500), Contact("sip:a@2", q=900), Contact("sip:a@3"), Contact("sip:a@4", q=500)]
    for number, contact in enumerate(contacts):
        log.now += 1
        log.register(contact, cseq=1, call_id=f"{number}")
    found = [binding.contact for binding in log.location.lookup(AOR, log.now)]
    assert found == ["sip:a@3", "sip:a@2", "sip:a@4", "sip:a@1"]


def test_aors_are_listed_in_order_and_by_pages(log: Log) -> None:
    for name in ("carol", "alice", "dave", "bob"):
        log.apply(Register(f"sip:{name}@x", "c", 1, (Contact(HOME),)))
    log.apply(RemoveBindings("sip:bob@x"))
    assert log.location.aors(limit=2) == ["sip:alice@x", "sip:carol@x"]
    assert log.location.aors("sip:carol@x", 2) == ["sip:dave@x"]
    assert log.location.aors("sip:dave@x", 2) == []


# Removal by an operator


def test_operator_removes_all_bindings(log: Log) -> None:
    log.register(HOME, DESK, cseq=1)
    assert log.apply(RemoveBindings(AOR)) == Done(2)
    assert log.contacts == []
    assert log.register(HOME, cseq=1) == STALE, "what the phone sent before does not bring it back"


def test_operator_removes_one_binding(log: Log) -> None:
    log.register(HOME, DESK, cseq=1)
    assert log.apply(RemoveBindings(AOR, "SIP:alice@192.0.2.1:5060")) == Done(1)
    assert log.contacts == [DESK]


def test_operator_is_told_that_there_is_nothing_to_remove(log: Log) -> None:
    assert isinstance(log.apply(RemoveBindings(AOR)), NotFound)
    log.register(Contact(HOME, 60), cseq=1)
    assert isinstance(log.apply(RemoveBindings(AOR, DESK)), NotFound)
    log.now += 60_000
    assert isinstance(log.apply(RemoveBindings(AOR)), NotFound)


def test_listing_is_of_one_moment_and_hides_what_ran_out() -> None:
    log = Log()
    log.register(Contact(HOME, expires=600), Contact(DESK, expires=100), cseq=1)
    frozen = log.machine.freeze_bindings()
    log.register(SOFT, cseq=2)
    listing = [[binding.contact for binding in found] for found in listed(frozen, log.now + 200_000)]
    assert listing == [[HOME]]
    for _ in frozen.close():
        pass
