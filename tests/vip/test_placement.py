import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.vip.placement import Placement


@pytest.mark.parametrize(
    ("text", "placement", "canonical"),
    [
        ("192.0.2.10", ("192.0.2.10", "", 32), "192.0.2.10"),
        ("192.0.2.10%eth0", ("192.0.2.10", "eth0", 32), "192.0.2.10%eth0"),
        ("192.0.2.10%eth0/24", ("192.0.2.10", "eth0", 24), "192.0.2.10%eth0/24"),
        ("192.0.2.10%eth0/32", ("192.0.2.10", "eth0", 32), "192.0.2.10%eth0"),
        ("2001:DB8:0:0::10%bond0.7", ("2001:db8::10", "bond0.7", 128), "2001:db8::10%bond0.7"),
    ],
)
def test_placement_is_read_and_written(text: str, placement: tuple[str, str, int], canonical: str) -> None:
    assert Placement.parse(text) == placement
    assert str(Placement.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not an IP address"),
        ("sipha%eth0", "is not an IP address"),
        ("192.0.2.10%", "has no name of an interface"),
        ("192.0.2.10%eth 0", "has no name of an interface"),
        ('192.0.2.10%"; drop', "has no name of an interface"),
        ("192.0.2.10%.", "has no name of an interface"),
        ("192.0.2.10%abcdefghijklmnop", "has no name of an interface"),
        ("192.0.2.10/24", "has no interface and prefix length"),
        ("192.0.2.10%eth0/0", "has no interface and prefix length"),
        ("192.0.2.10%eth0/33", "has no interface and prefix length"),
        ("2001:db8::10%eth0/129", "has no interface and prefix length"),
        ("192.0.2.10%eth0/x", "has no interface and prefix length"),
        ("0.0.0.0", "can't be the address of a host"),
        ("255.255.255.255", "can't be the address of a host"),
        ("ff02::1%eth0", "can't be the address of a host"),
        ("fe80::1%eth0", "is a link-local address"),
    ],
)
def test_placement_that_makes_no_sense_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Placement.parse(text)


@given(st.ip_addresses(), st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True), st.integers(1, 128))
def test_placement_survives_being_written(address: object, interface: str, prefix: int) -> None:
    try:
        placement = Placement.parse(f"{address}%{interface}/{prefix}")
    except ValueError:
        return
    assert Placement.parse(str(placement)) == placement
    assert placement.family in {socket.AF_INET, socket.AF_INET6}
