"""The accounts of the log."""

from __future__ import annotations

import pytest

from sipha.state.accounts import Account, Accounts
from sipha.state.entries import DeleteAccount, PutAccount
from sipha.state.outcomes import Conflict, Done, NotFound

HA1 = {"MD5": "0" * 32, "SHA-256": "1" * 64}


def put(name: str, *, login: str | None = None, create_only: bool = False, replace_only: bool = False) -> PutAccount:
    return PutAccount(name, "example.com", login or name, "realm", HA1, create_only, replace_only)


@pytest.fixture
def accounts() -> Accounts:
    accounts = Accounts()
    accounts.put(put("alice", login="a1"))
    return accounts


def test_account_is_found_by_login_identity_and_aor(accounts: Accounts) -> None:
    account = Account("alice", "example.com", "a1", "realm", HA1)
    assert accounts.credential("a1", "realm") == account
    assert accounts.get("alice", "example.com") == account
    assert accounts.known("sip:alice@example.com")
    assert account.aor == "sip:alice@example.com"


def test_login_of_another_realm_and_other_aors_are_unknown(accounts: Accounts) -> None:
    assert accounts.credential("a1", "other") is None
    assert accounts.credential("alice", "realm") is None
    assert accounts.get("alice", "example.org") is None
    assert not accounts.known("sip:a1@example.com")
    assert not accounts.known("alice@example.com")
    assert not accounts.known("tel:alice@example.com")


def test_put_replaces_an_account_and_frees_its_login(accounts: Accounts) -> None:
    assert accounts.put(put("alice", login="a2")) == Done(1)
    assert accounts.credential("a1", "realm") is None
    assert accounts.credential("a2", "realm") is not None
    assert len(accounts) == 1
    assert accounts.hash == sum(summand for _, summand in accounts.freeze())


def test_put_creates_only_or_replaces_only_where_it_says_so(accounts: Accounts) -> None:
    before = accounts.hash
    assert isinstance(accounts.put(put("alice", login="a2", create_only=True)), Conflict)
    assert isinstance(accounts.put(put("bob", replace_only=True)), NotFound)
    assert accounts.hash == before
    assert accounts.put(put("bob", create_only=True)) == Done(1)
    assert accounts.put(put("alice", login="a1", replace_only=True)) == Done(1)


def test_login_belongs_to_one_account(accounts: Accounts) -> None:
    before = accounts.hash
    assert isinstance(accounts.put(put("bob", login="a1")), Conflict)
    assert accounts.hash == before
    assert not accounts.known("sip:bob@example.com")


def test_delete_removes_an_account_and_frees_its_login(accounts: Accounts) -> None:
    assert accounts.delete(DeleteAccount("alice", "example.com")) == Done(1)
    assert isinstance(accounts.delete(DeleteAccount("alice", "example.com")), NotFound)
    assert accounts.credential("a1", "realm") is None
    assert accounts.hash == 0
    assert accounts.put(put("bob", login="a1")) == Done(1)


def test_page_lists_accounts_by_identity(accounts: Accounts) -> None:
    for name in ("dave", "bob", "carol"):
        accounts.put(put(name))
    assert [account.username for account in accounts.page(limit=3)] == ["alice", "bob", "carol"]
    assert [account.username for account in accounts.page("carol@example.com", 3)] == ["dave"]


def test_order_of_hashes_in_an_account_does_not_matter() -> None:
    one, other = Accounts(), Accounts()
    one.put(PutAccount("a", "x", "a", "x", HA1))
    other.put(PutAccount("a", "x", "a", "x", dict(reversed(HA1.items()))))
    assert one.hash == other.hash


def test_observer_is_told_of_what_is_changed_and_of_nothing_else(accounts: Accounts) -> None:
    told: list[str] = []
    accounts.observer = told.append
    accounts.put(put("bob"))
    accounts.put(put("bob", login="b2"))
    accounts.put(put("carol", login="b2"))  # a conflict
    accounts.delete(DeleteAccount("alice", "example.com"))
    accounts.delete(DeleteAccount("alice", "example.com"))
    assert told == ["bob@example.com", "bob@example.com", "alice@example.com"]
