"""What an observer of the machine is told: all that the log changes, once, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface import implementer

from sipha.state.binding import Binding
from sipha.state.changes import (
    AccountDeleted,
    AccountPut,
    Added,
    Change,
    Changed,
    KeyAdded,
    MembersPut,
    Refreshed,
    Removed,
    SchemaRaised,
    SettingPut,
    TermBegun,
    added,
)
from sipha.state.entries import (
    SCHEMA,
    Barrier,
    Batch,
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
    RemoveUnreachable,
    encode,
)
from sipha.state.interfaces import IObserver
from sipha.state.machine import Machine
from tests.state.snapshots import loaded, taken
from tests.state.test_model import AORS, policies, registers, wildcards

AOR = "sip:alice@example.com"
HOME = "sip:alice@192.0.2.1:5060"
DESK = "sip:alice@192.0.2.2:5060"
SOFT = "sip:alice@192.0.2.3:5060"


@implementer(IObserver)
@dataclass
class Witness:
    """Takes down what it is told."""

    refreshes: bool = False
    told: list[tuple[int, int, list[Change]]] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)

    def applied(self, index: int, time: int, changes: Sequence[Change]) -> None:
        self.told.append((index, time, list(changes)))

    def adopted(self, index: int) -> None:
        self.tables.append(index)


class Log:
    """A machine that is observed, and entries of one record each."""

    def __init__(self, *, refreshes: bool = False, policy: Policy | None = None) -> None:
        self.machine = Machine()
        self.witness = Witness(refreshes=refreshes)
        self.machine.observer = self.witness
        self.policy = policy or Policy()
        self.now = 1_000_000

    def apply(self, *records: Record) -> list[Change]:
        """Apply an entry and return what it is said to have changed."""
        self.witness.told.clear()
        self.machine.apply(self.machine.index + 1, encode(Batch(SCHEMA, self.now, self.policy, records)))
        return [change for _, _, changes in self.witness.told for change in changes]

    def register(self, *contacts: Contact | str, cseq: int = 1, call_id: str = "one", received: str = "") -> Register:
        asked = tuple(Contact(contact) if isinstance(contact, str) else contact for contact in contacts)
        return Register(AOR, call_id, cseq, asked, received=received)

    @property
    def bindings(self) -> Sequence[Binding]:
        return self.machine.location.bindings(AOR, 0)


@pytest.fixture
def log() -> Log:
    return Log()


def removals(changes: Sequence[Change]) -> list[tuple[str, str]]:
    return [(change.binding.contact, change.reason) for change in changes if isinstance(change, Removed)]


def test_observer_hears_when_and_at_which_entry(log: Log) -> None:
    log.apply(log.register(HOME))
    assert log.witness.told == [(1, 1_000_000, [added(log.bindings[0])])]


def test_refresh_is_told_only_if_wanted(log: Log) -> None:
    log.apply(log.register(HOME, cseq=1))
    assert log.apply(log.register(HOME, cseq=2)) == []
    assert not log.witness.told, "an entry that tells nothing isn't told"
    log.witness.refreshes = True
    assert log.apply(log.register(HOME, cseq=3)) == [Refreshed(log.bindings[0])]


def test_refresh_from_elsewhere_is_a_change(log: Log) -> None:
    log.apply(log.register(HOME, cseq=1, received="sip:203.0.113.1:1024"))
    [before] = log.bindings
    assert log.apply(log.register(HOME, cseq=2, received="sip:203.0.113.1:1025")) == [Changed(before, log.bindings[0])]


@pytest.mark.parametrize(("call_id", "uri"), [("two", HOME), ("one", "sip:alice@192.0.2.1:5060;x=1")])
def test_refresh_by_another_dialog_or_contact_is_a_change(log: Log, call_id: str, uri: str) -> None:
    log.apply(log.register(HOME, cseq=1))
    [before] = log.bindings
    assert log.apply(log.register(uri, cseq=2, call_id=call_id)) == [Changed(before, log.bindings[0])]


def test_repeat_and_query_change_nothing(log: Log) -> None:
    log.witness.refreshes = True
    log.apply(log.register(HOME, DESK))
    assert log.apply(log.register(HOME, DESK), log.register(cseq=9)) == []


def test_phone_that_unregisters_is_named(log: Log) -> None:
    log.apply(log.register(HOME))
    [before] = log.bindings
    request = log.register(Contact(HOME, 0), cseq=2, received="sip:203.0.113.1:1024")
    assert log.apply(request) == [Removed(before, "unregistered", request)]


def test_wildcard_unregisters_all(log: Log) -> None:
    log.apply(log.register(HOME, DESK))
    changes = log.apply(Register(AOR, "one", 2, wildcard=True))
    assert removals(changes) == [(HOME, "unregistered"), (DESK, "unregistered")]


def test_device_replaces_its_former_binding(log: Log) -> None:
    log.apply(log.register(Contact(HOME, instance="<i>"), SOFT))
    request = log.register(Contact(DESK, instance="<i>"), call_id="two")
    removed, added = log.apply(request)
    assert isinstance(removed, Removed)
    assert isinstance(added, Added)
    assert (removed.binding.contact, removed.reason, removed.by) == (HOME, "replaced", request)
    assert added.binding.contact == DESK


def test_oldest_is_evicted_beyond_the_limit() -> None:
    log = Log(policy=Policy(max_contacts=2))
    log.apply(log.register(HOME))
    log.now += 1
    log.apply(log.register(DESK, call_id="two"))
    assert removals(log.apply(log.register(SOFT, call_id="three"))) == [(HOME, "evicted")]


def test_binding_expires_once(log: Log) -> None:
    log.apply(log.register(Contact(HOME, 60), Contact(DESK, 600)))
    expire = Expire(tuple((AOR, binding.contact_id, binding.version) for binding in log.bindings))
    assert log.apply(expire) == []
    log.now += 60_000
    assert removals(log.apply(expire)) == [(HOME, "expired")]
    assert log.apply(expire) == []


def test_binding_that_ran_out_expires_at_the_next_change_of_its_aor(log: Log) -> None:
    log.apply(log.register(Contact(HOME, 60), Contact(DESK, 600)))
    log.now += 60_000
    removed, added = log.apply(log.register(SOFT, cseq=2))
    assert removals([removed]) == [(HOME, "expired")]
    assert isinstance(added, Added)
    assert removals(log.apply(RemoveBindings(AOR))) == [(DESK, "admin"), (SOFT, "admin")]


def test_operator_removes_one(log: Log) -> None:
    log.apply(log.register(HOME, DESK))
    assert removals(log.apply(RemoveBindings(AOR, DESK))) == [(DESK, "admin")]
    assert log.apply(RemoveBindings(AOR, DESK)) == []


def test_phone_that_answers_no_pings_is_removed(log: Log) -> None:
    log.apply(log.register(HOME, DESK))
    lost = log.bindings[1]
    assert log.apply(RemoveUnreachable(AOR, lost.contact_id, lost.version - 1)) == []
    assert log.apply(RemoveUnreachable(AOR, lost.contact_id, lost.version)) == [Removed(lost, "ping-timeout")]


def test_refused_register_changes_nothing(log: Log) -> None:
    log.apply(log.register(HOME, cseq=5))
    assert log.apply(log.register(Contact(HOME, 0), cseq=4)) == []


def test_accounts_settings_keys_and_members_are_told(log: Log) -> None:
    account = PutAccount("bob", "x", "bob", "x", {"MD5": "0" * 32})
    member = Member("a", "127.0.0.1:7000", "voter")
    assert log.apply(Barrier(7, "n1"), account, account) == [
        TermBegun(7, "n1"),
        AccountPut("bob@x", created=True),
        AccountPut("bob@x", created=False),
    ]
    assert log.apply(PutSetting("pings", "off"), PutSetting("pings", "off"), PutKey(bytes(32))) == [
        SettingPut("pings", "off"),
        KeyAdded(),
    ]
    assert log.apply(PutMembers((member,)), PutMembers((member,)), RaiseSchema(SCHEMA), RaiseSchema(SCHEMA)) == [
        MembersPut((member,)),
        SchemaRaised(SCHEMA),
    ]
    assert log.apply(DeleteAccount("bob", "x"), DeleteAccount("bob", "x")) == [AccountDeleted("bob@x")]
    assert log.apply(PutAccount("bob", "x", "bob", "x", {"MD5": "0" * 32}, replace_only=True)) == []


def test_entry_that_was_applied_before_is_not_told_again(log: Log) -> None:
    entry = encode(Batch(SCHEMA, log.now, Policy(), (log.register(HOME),)))
    log.machine.apply(1, entry)
    log.machine.apply(1, entry)
    assert len(log.witness.told) == 1


def test_observer_hears_that_a_snapshot_was_adopted(log: Log) -> None:
    other = Log()
    other.apply(other.register(HOME))
    for _ in log.machine.adopt(loaded(taken(other.machine))):
        pass
    assert log.witness.tables == [1]
    log.apply(log.register(DESK, call_id="two"))
    assert [index for index, _, _ in log.witness.told] == [2]


others = st.one_of(
    st.builds(RemoveBindings, aor=st.sampled_from(AORS), contact=st.sampled_from(["", "sip:a@h1", "sip:a@h2"])),
    st.just("expire"),
)


@given(st.lists(st.tuples(registers | wildcards | others, st.integers(0, 50_000)), min_size=1, max_size=25), policies)
@settings(max_examples=300, deadline=None)
def test_who_follows_the_changes_has_the_table(history: list[tuple[Register | str, int]], policy: Policy) -> None:
    log = Log(refreshes=True, policy=policy)
    table: dict[int, Binding] = {}
    for what, elapsed in history:
        log.now += elapsed
        record: Record = Expire(log.machine.location.expired(log.now, 100).bindings) if isinstance(what, str) else what
        for change in log.apply(record):
            match change:
                case Added():
                    assert change.binding.contact_id not in table
                    assert (change, change.aor) == (added(change.binding), change.binding.aor)
                    table[change.binding.contact_id] = change.binding
                case Changed(before, binding):
                    assert table[binding.contact_id] == before
                    table[binding.contact_id] = binding
                case Refreshed(binding):
                    assert binding.contact_id in table
                    table[binding.contact_id] = binding
                case Removed(binding, reason, by):
                    assert table.pop(binding.contact_id) == binding
                    assert (by == record) == (reason in {"unregistered", "replaced", "evicted"})
                    assert (binding.expires_at <= log.now) == (reason == "expired")
    held = [binding for aor in AORS for binding in log.machine.location.bindings(aor, 0)]
    assert sorted(table.values(), key=repr) == sorted(held, key=repr)
