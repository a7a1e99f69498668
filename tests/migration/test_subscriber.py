from __future__ import annotations

import pytest

from sipha.admin.imports import DomainView
from sipha.migration.rows import Unusable
from sipha.migration.subscriber import Subscribers, by_name
from sipha.sip.digest import ha1

DOMAINS = by_name(
    (
        DomainView("sipha.test", "sipha.test", ("alias.test",), ("MD5",)),
        DomainView("other.test", "Other", (), ("MD5",)),
    )
)
ALL = ("MD5", "SHA-256", "SHA-512-256")
STORED = dict(
    zip(
        ("ha1", "ha1_sha256", "ha1_sha512t256"),
        (ha1(name, "alice", "sipha.test", "wonder") for name in ALL),
        strict=True,
    )
)
ALICE = {"username": "alice", "domain": "sipha.test"}


def test_all_three_kinds_of_hashes_are_taken() -> None:
    account = Subscribers(DOMAINS).account({**ALICE, "password": "", **STORED, "ha1": STORED["ha1"].upper()})
    assert (account.username, account.domain, account.auth_name) == ("alice", "sipha.test", "alice")
    assert account.ha1 == dict(zip(ALL, STORED.values(), strict=True))
    assert account.password == ""


@pytest.mark.parametrize("more", [{}, {"ha1": ""}, {"ha1": None, "ha1_sha256": ""}, {"ha1": STORED["ha1"]}])
def test_a_plain_password_is_hashed_in_all_kinds(more: dict[str, str | None]) -> None:
    account = Subscribers(DOMAINS).account({**ALICE, "password": "wonder", **more})
    assert account.ha1 == dict(zip(ALL, STORED.values(), strict=True))
    assert account.password == ""


def test_hashes_count_where_the_password_is_another() -> None:
    account = Subscribers(DOMAINS).account({**ALICE, "password": "changed-long-ago", "ha1": STORED["ha1"]})
    assert account.ha1 == {"MD5": STORED["ha1"]}


def test_a_phone_that_authenticates_with_its_domain_has_ha1b() -> None:
    digits = ha1("MD5", "alice@sipha.test", "sipha.test", "wonder")
    account = Subscribers(DOMAINS, auth_name="user@domain").account({**ALICE, **STORED, "ha1b": digits})
    assert (account.auth_name, account.ha1) == ("alice@sipha.test", {"MD5": digits})


def test_a_row_without_a_domain_is_of_the_one_that_is_named() -> None:
    row = {"username": "alice", "domain": "", **STORED}
    assert Subscribers(DOMAINS, "sipha.test").account(row).domain == "sipha.test"
    with pytest.raises(Unusable, match="names no domain; say which with --domain"):
        Subscribers(DOMAINS).account(row)


def test_hashes_of_another_realm_are_refused_and_a_password_is_not() -> None:
    row = {"username": "alice", "domain": "alias.test", "ha1": STORED["ha1"]}
    with pytest.raises(Unusable, match=r"its hashes are of realm 'alias\.test'.*--realm"):
        Subscribers(DOMAINS).account(row)
    assert Subscribers(DOMAINS, realm="sipha.test").account(row).domain == "sipha.test"
    hashed = Subscribers(DOMAINS).account({"username": "alice", "domain": "other.test", "password": "wonder"})
    assert hashed.ha1["MD5"] == ha1("MD5", "alice", "Other", "wonder")


def test_a_username_is_escaped_as_in_a_uri() -> None:
    account = Subscribers(DOMAINS).account({"username": "a b#c", "domain": "sipha.test", "password": "x"})
    assert (account.username, account.auth_name) == ("a%20b%23c", "a b#c")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"domain": "sipha.test", "password": "x"}, "no username"),
        ({"username": "a\n", "domain": "sipha.test", "password": "x"}, "not printable"),
        ({"username": "alice", "domain": "elsewhere.test", "password": "x"}, "not a domain of the cluster"),
        ({**ALICE, "password": "", "ha1": ""}, "neither a password nor ha1"),
        ({**ALICE, "ha1": "abc"}, "its ha1 is no hash of 32 hexadecimal digits"),
        ({"username": "a:b", "domain": "sipha.test", "password": "x"}, "without a colon"),
    ],
)
def test_a_row_that_is_no_account_says_why(row: dict[str, str | None], why: str) -> None:
    with pytest.raises(Unusable, match=why):
        Subscribers(DOMAINS).account(row)
