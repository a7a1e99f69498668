"""The location rules against a naive model of RFC 3261 §10.3: lists, no shortcuts, no regard to speed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state import registration
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Record, Refresh, Register, encode
from sipha.state.machine import Machine, Outcome, Outdated, Registered, Rejected
from sipha.state.registration import After, Moment

AORS = ["sip:alice@x", "sip:bob@x"]
ALIKE = [{"sip:a@h1", "sip:a@H1"}]
ALIKE += [{plain, f"sip:a@h1;x={value}"} for plain in ("sip:a@h1", "sip:a@H1") for value in (1, 2)]
URIS = [*sorted(set().union(*ALIKE)), "sip:a@h2", "tel:1", "junk"]

contacts = st.builds(
    Contact,
    uri=st.sampled_from(URIS),
    expires=st.none() | st.sampled_from([0, 0, 1, 60, 100, 0xFFFFFFFF]),
    q=st.none() | st.sampled_from([0, 1000]),
    instance=st.sampled_from(["", "<i1>", "<i2>"]),
    reg_id=st.sampled_from([0, 1, 2]),
    jitter=st.integers(0, 50),
)
registers = st.builds(
    Register,
    aor=st.sampled_from(AORS),
    call_id=st.sampled_from(["c1", "c2"]),
    cseq=st.integers(0, 12),
    contacts=st.lists(contacts, min_size=1, max_size=3).map(tuple),
    outbound=st.booleans(),
)
wildcards = st.builds(
    Register,
    aor=st.sampled_from(AORS),
    call_id=st.sampled_from(["c1", "c2"]),
    cseq=st.integers(0, 12),
    wildcard=st.just(value=True),
)
policies = st.builds(
    Policy,
    max_contacts=st.sampled_from([0, 1, 2, 3]),
    full=st.sampled_from(["replace", "refuse"]),
    one_per_instance=st.booleans(),
    default_expires=st.sampled_from([0, 3600]),
    min_expires=st.sampled_from([0, 60]),
    max_expires=st.sampled_from([0, 120]),
)


class Refused(Exception):
    """The REGISTER fails, with a word that says why."""


@dataclass
class Bound:
    """One binding: what of it the rules look at."""

    number: int
    contact: str
    expires_at: int
    call_id: str
    cseq: int
    q: int | None
    instance: str
    reg_id: int
    modified: int


class Model:
    """The bindings and tombstones (Call-ID to CSeq and end) of one AOR."""

    def __init__(self) -> None:
        self.bindings: list[Bound] = []
        self.tombstones: dict[str, tuple[int, int]] = {}
        self.made = 0

    def register(self, request: Register, time: int, policy: Policy) -> str | list[Bound]:
        self.tombstones = {call_id: stone for call_id, stone in self.tombstones.items() if stone[1] > time}
        live = [bound for bound in self.bindings if bound.expires_at > time]
        removed = self.tombstones.get(request.call_id, (-1, 0))[0]
        wanted = [(c, policy.default_expires if c.expires is None else c.expires) for c in request.contacts]
        try:
            if request.wildcard:
                after = self.clear(request, live, removed)
            else:
                self.count(wanted, policy)
                mine, others = self.bind(request, live, removed, time, policy)
                after = self.limit(request, mine, others, len(live), policy) if mine else others
        except Refused as refused:
            return str(refused)
        after.sort(key=lambda bound: bound.number)
        if request.cseq > removed and (request.wildcard or any(not seconds for _, seconds in wanted)):
            self.bury(request.call_id, request.cseq, time)
        if after != live:
            for old in self.bindings:
                stays = any((old.number, old.call_id) == (new.number, new.call_id) for new in after)
                if not stays and time - old.modified < 64_000:
                    self.bury(old.call_id, old.cseq, time)
            self.bindings = after
        return after

    def clear(self, request: Register, live: list[Bound], removed: int) -> list[Bound]:
        if request.cseq == removed:
            return live
        if request.cseq < removed or any(stale(request, bound) for bound in live):
            raise Refused("stale")
        return []

    def count(self, wanted: list[tuple[Contact, int]], policy: Policy) -> None:
        if policy.max_contacts:
            bound = [contact for contact, seconds in wanted if seconds]
            if len(bound) > policy.max_contacts or len(wanted) > 2 * policy.max_contacts:
                raise Refused("full")

    def bind(
        self, request: Register, live: list[Bound], removed: int, time: int, policy: Policy
    ) -> tuple[list[Bound], list[Bound]]:
        mine: list[Bound] = []
        others = list(live)
        for contact in last_of_each(request):
            seconds = policy.default_expires if contact.expires is None else contact.expires
            if not seconds and request.cseq == removed:
                continue
            old = match(others, contact, flow(request, contact))
            granted = max(min(seconds, policy.max_expires or seconds), policy.min_expires)
            expires_at = time + 1000 * max(granted - contact.jitter, policy.min_expires, 1)
            asked = (contact.uri, expires_at, request.call_id, request.cseq, contact.q, contact.instance)
            if old is None:
                if seconds and request.cseq <= removed:
                    raise Refused("stale")
                if seconds:
                    self.made += 1
                    mine.append(Bound(self.made, *asked, flow(request, contact), time))
                continue
            others.remove(old)
            same = (old.contact, old.call_id, old.cseq, old.q, old.instance)
            if seconds and same == (contact.uri, request.call_id, request.cseq, contact.q, contact.instance):
                mine.append(old)
                continue
            if stale(request, old) or (old.call_id != request.call_id and request.cseq <= removed):
                raise Refused("stale")
            if seconds:
                mine.append(Bound(old.number, *asked, flow(request, contact), time))
        return mine, others

    def limit(
        self, request: Register, mine: list[Bound], others: list[Bound], before: int, policy: Policy
    ) -> list[Bound]:
        dropped: list[Bound] = []
        if policy.one_per_instance:
            dropped = [other for other in others if any(same_device(own, other) for own in mine)]
        rest = sorted((other for other in others if other not in dropped), key=lambda b: (b.modified, b.number))
        if policy.max_contacts and len(mine) + len(rest) > max(policy.max_contacts, before):
            if policy.full == "refuse":
                raise Refused("full")
            while len(mine) + len(rest) > policy.max_contacts:
                dropped.append(rest.pop(0))
        if any(stale(request, bound) for bound in dropped):
            raise Refused("stale")
        return mine + rest

    def bury(self, call_id: str, cseq: int, time: int) -> None:
        self.tombstones[call_id] = (max(cseq, self.tombstones.get(call_id, (-1, 0))[0]), time + 64_000)


def stale(request: Register, bound: Bound) -> bool:
    return bound.call_id == request.call_id and request.cseq <= bound.cseq


def flow(request: Register, contact: Contact) -> int:
    return contact.reg_id if request.outbound and contact.instance else 0


def equivalent(one: str, other: str) -> bool:
    return one == other or {one, other} in ALIKE


def same_device(own: Bound, other: Bound) -> bool:
    return own.instance == other.instance != "" and not (own.reg_id and other.reg_id)


def match(bindings: list[Bound], contact: Contact, reg_id: int) -> Bound | None:
    if reg_id:
        found = [b for b in bindings if (b.instance, b.reg_id) == (contact.instance, reg_id)]
    else:
        found = [b for b in bindings if b.contact == contact.uri]
        found += [b for b in bindings if equivalent(b.contact, contact.uri)]
    return found[0] if found else None


def last_of_each(request: Register) -> list[Contact]:
    def same(one: Contact, other: Contact) -> bool:
        if flow(request, one) or flow(request, other):
            return (flow(request, one), one.instance) == (flow(request, other), other.instance)
        return equivalent(one.uri, other.uri)

    kept: list[Contact] = []
    for contact in reversed(request.contacts):
        if not any(same(contact, later) for later in kept):
            kept.insert(0, contact)
    return kept


def said(outcome: Outcome) -> object:
    match outcome:
        case Registered():
            return [(b.contact, b.expires_at, b.call_id, b.cseq, b.q, b.instance, b.reg_id) for b in outcome.bindings]
        case Rejected():
            return {500: "stale", 403: "full"}[outcome.status]
        case _:
            return outcome


def expected(answer: str | list[Bound]) -> object:
    if isinstance(answer, str):
        return answer
    return [(b.contact, b.expires_at, b.call_id, b.cseq, b.q, b.instance, b.reg_id) for b in answer]


@given(st.lists(st.tuples(registers | wildcards, st.integers(0, 50_000)), min_size=1, max_size=25), policies)
@settings(max_examples=500, deadline=None)
def test_location_follows_the_model(history: list[tuple[Register, int]], policy: Policy) -> None:
    machine, models, time = Machine(), {aor: Model() for aor in AORS}, 0
    for index, (request, elapsed) in enumerate(history, 1):
        time += elapsed
        [outcome] = machine.apply(index, encode(Batch(SCHEMA, time, policy, (request,))))
        assert said(outcome) == expected(models[request.aor].register(request, time, policy))
    stones = {(stone.aor, stone.call_id): (stone.cseq, stone.until) for stone in machine.location.tombstones()}
    assert stones == {
        (aor, call_id): stone
        for aor, model in models.items()
        for call_id, stone in model.tombstones.items()
        if stone[1] > time
    }


phones = st.builds(
    Register,
    aor=st.sampled_from(AORS),
    call_id=st.sampled_from(["c1", "c1", "c1", "c2"]),
    cseq=st.integers(0, 12),
    contacts=st.builds(
        Contact,
        uri=st.sampled_from(["sip:a@h1", "sip:a@h1", "sip:a@h1", "sip:a@H1"]),
        expires=st.sampled_from([None, 0, 60, 100]),
        q=st.sampled_from([None, None, None, 1]),
        reg_id=st.sampled_from([0, 0, 0, 1]),
        instance=st.sampled_from(["", "", "<i1>"]),
        jitter=st.integers(0, 50),
    ).map(lambda contact: (contact,)),
    received=st.sampled_from(["", "", "", "sip:192.0.2.1:5060"]),
    outbound=st.booleans(),
)


@given(st.lists(st.tuples(phones, st.integers(0, 50_000), st.booleans()), min_size=1, max_size=25), policies)
@settings(max_examples=500, deadline=None)
def test_shortened_record_does_what_its_register_does_or_nothing(
    history: list[tuple[Register, int, bool]], policy: Policy
) -> None:
    """Two machines, of which one is given what the other's table lets REGISTERs be shortened to, now and then late."""
    whole, short, time = Machine(), Machine(), 0

    def apply(machine: Machine, *records: Record) -> list[Outcome]:
        return machine.apply(machine.index + 1, encode(Batch(SCHEMA, time, policy, records)))

    waiting: list[tuple[Record, Register]] = []
    for register, elapsed, waits in history:
        waiting.append((short.location.shortened(register), register))
        time += elapsed
        while waiting and not waits:
            record, request = waiting.pop(0)
            (outcome,) = apply(short, record)
            if isinstance(outcome, Outdated):
                assert isinstance(record, Refresh)
                apply(whole)  # an empty entry, whose time may let tombstones be forgotten
                assert short.hash() == whole.hash()
                (outcome,) = apply(short, request)
            assert apply(whole, request) == [outcome]
            assert (short.hash(), short.location.count) == (whole.hash(), whole.location.count)


def test_first_refresh_is_shortened_and_what_says_more_is_not() -> None:
    machine, contact = Machine(), Contact("sip:a@h1", 60, params=";x")
    first = Register(AORS[0], "c1", 1, (contact,), received="sip:192.0.2.1:5060", user_agent="p", outbound=True)
    machine.apply(7, encode(Batch(SCHEMA, 0, Policy(), (first,))))
    again = msgspec.structs.replace(first, cseq=2)
    assert machine.location.shortened(again) == Refresh(AORS[0], 7, 2, 60)
    texts = ("call_id", "received", "socket", "flow", "user_agent", "methods", "attr", "kv_store")
    others: dict[str, object] = dict.fromkeys(texts, "other")
    others |= {
        "aor": AORS[1],
        "cseq": 1,
        "path": ("<sip:p;lr>",),
        "flags": 1,
        "cflags": 1,
        "wildcard": True,
        "contacts": (),
    }
    more = [msgspec.structs.replace(again, **{name: value}) for name, value in others.items()]
    others = {"uri": "sip:a@h2", "expires": 0, "q": 1, "instance": "<i>", "reg_id": 1, "params": ""}
    more += [
        msgspec.structs.replace(again, contacts=(msgspec.structs.replace(contact, **{name: value}),))
        for name, value in others.items()
    ]
    more += [msgspec.structs.replace(again, contacts=(contact, contact))]
    assert [machine.location.shortened(request) for request in more] == more


@given(registers, contacts, policies, st.integers(-1, 12), st.integers(0, 2))
def test_shortcuts_end_where_the_rules_end(
    request: Register, contact: Contact, policy: Policy, removed: int, later: int
) -> None:
    def moment(version: int) -> Moment:
        return Moment(version, version * 1000, policy, SCHEMA, count(version << 20))

    request = msgspec.structs.replace(request, contacts=(contact,))
    made = registration.first(request, removed, moment(1))
    by_rules = registration.register(request, (), removed, moment(1))
    if made is None:
        assert by_rules in (registration.STALE, After([]))
        return
    assert by_rules == After([made])
    again = msgspec.structs.replace(request, cseq=request.cseq + later)
    refreshed = registration.refresh(again, made, moment(2))
    if refreshed is not None:
        assert registration.register(again, [made], removed, moment(2)) == After([refreshed])
