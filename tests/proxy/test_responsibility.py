from __future__ import annotations

import pytest

from sipha.auth.domain import Domain, Domains
from sipha.proxy.responsibility import Responsibility
from tests.proxy.ladder import VIP, Wires

FIRST = Domain("first.test", "first", aliases=frozenset(("203.0.113.1", "[2001:DB8:0::10]")))
SECOND = Domain("198.51.100.1", "second")
OURS = Responsibility(Domains((FIRST, SECOND), addresses=(VIP[0],)), Wires())


@pytest.mark.parametrize(
    ("uri", "aor"),
    [
        ("sip:alice@first.test", "sip:alice@first.test"),
        (f"sip:alice@{VIP[0]}", "sip:alice@first.test"),
        ("sip:alice@203.0.113.1", "sip:alice@first.test"),
        ("sip:alice@[2001:db8::10]", "sip:alice@first.test"),
        ("sip:alice@198.51.100.1", "sip:alice@198.51.100.1"),
        (f"sip:alice@{VIP[0]}:{VIP[1] + 1}", None),
        ("sip:alice@203.0.113.2", None),
        ("sip:alice@203.0.113.1;maddr=203.0.113.2", None),
    ],
)
def test_domains_called_by_an_address_are_ours(uri: str, aor: str | None) -> None:
    assert OURS.aor_of(uri) == aor
