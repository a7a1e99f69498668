from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from sipha.state.accounts import Accounts as Table
from sipha.state.entries import DeleteAccount, PutAccount
from sipha.workers.messages import Accounts
from sipha.workers.roster import PAGE, Roster


def record(user: str, login: str = "") -> PutAccount:
    return PutAccount(user, "sipha.test", login or user, "sipha.test", {"MD5": "0" * 32})


class Rig:
    """A table, a roster that follows it, and what workers were told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.table = Table()
        self.told: list[Accounts] = []
        self.begun: list[int] = []
        self.roster = Roster(self.clock, self.table, self.told.append, self.begun.append)
        self.roster.start()

    def learned(self) -> Table:
        """What a worker makes of what it was told."""
        table = Table()
        for accounts in self.told:
            for identity in accounts.deleted:
                table.delete(DeleteAccount(*identity.split("@")))
            for each in accounts.put:
                table.put(each)
        return table


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_changes_of_one_turn_are_told_at_its_end(rig: Rig) -> None:
    rig.table.put(record("alice"))
    rig.table.put(record("bob"))
    rig.table.delete(DeleteAccount("alice", "sipha.test"))
    assert rig.told == []
    assert rig.begun == [1, 2, 3]
    rig.clock.advance(0)
    assert rig.told == [Accounts(["alice@sipha.test", "bob@sipha.test"], [record("bob")], 3)]


def test_logins_that_are_exchanged_arrive(rig: Rig) -> None:
    for each in (record("alice", "a"), record("bob", "b")):
        rig.table.put(each)
    rig.clock.advance(0)
    for each in (record("alice", "c"), record("bob", "a"), record("alice", "b")):
        rig.table.put(each)
    rig.clock.advance(0)
    assert rig.learned().hash == rig.table.hash


def test_pages_have_all_accounts_once(rig: Rig) -> None:
    users = [f"user{number:04}" for number in range(2 * PAGE + 7)]
    for user in users:
        rig.table.put(record(user))
    after, pages = "", []
    while True:
        page, after = rig.roster.page(after)
        pages.append([each.username for each in page.put])
        if not after:
            break
    assert [len(page) for page in pages] == [PAGE, PAGE, 7]
    assert [user for page in pages for user in page] == users


def test_account_that_is_told_while_pages_are_is_as_it_is_now(rig: Rig) -> None:
    for number in range(PAGE + 1):
        rig.table.put(record(f"user{number:04}"))
    rig.clock.advance(0)
    rig.told.clear()
    page, after = rig.roster.page("")
    rig.told.append(page)
    rig.table.put(record("user0000", "other"))
    rig.table.put(record("user0001", "user0000"))
    rig.table.delete(DeleteAccount(f"user{PAGE:04}", "sipha.test"))
    rig.clock.advance(0)
    rig.told.append(rig.roster.page(after)[0])
    assert rig.learned().hash == rig.table.hash


def test_page_does_not_pretend_to_what_is_yet_to_be_told(rig: Rig) -> None:
    rig.table.put(record("alice"))
    rig.clock.advance(0)
    rig.table.put(record("alice", "other"))
    page, _ = rig.roster.page("")
    assert rig.roster.changed_since("alice@sipha.test", page.version)
    rig.clock.advance(0)
    page, _ = rig.roster.page("")
    assert not rig.roster.changed_since("alice@sipha.test", page.version)


def test_only_the_account_that_has_changed_is_unknown(rig: Rig) -> None:
    for user in ("alice", "bob"):
        rig.table.put(record(user))
    version = rig.roster.version
    assert not rig.roster.changed_since("alice@sipha.test", version)
    rig.table.put(record("alice", "other"))
    assert rig.roster.changed_since("alice@sipha.test", version)
    assert not rig.roster.changed_since("bob@sipha.test", version)
    assert not rig.roster.changed_since("alice@sipha.test", rig.roster.version)


def test_change_is_remembered_until_all_workers_have_it(rig: Rig) -> None:
    rig.table.put(record("alice"))
    before = rig.roster.version
    rig.table.put(record("alice", "other"))
    rig.roster.known(before)
    assert rig.roster.changed_since("alice@sipha.test", before)
    rig.roster.known(rig.roster.version)
    rig.table.put(record("bob"))
    assert not rig.roster.changed_since("alice@sipha.test", before)


def test_roster_that_has_stopped_tells_nothing(rig: Rig) -> None:
    rig.roster.stop()
    rig.table.put(record("alice"))
    rig.clock.advance(1)
    assert (rig.told, rig.roster.version) == ([], 0)
