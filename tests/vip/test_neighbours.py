"""Frames against captures that are spelt out, and what is read of others' frames."""

from hypothesis import given
from hypothesis import strategies as st

from sipha.vip.neighbours import (
    Sighting,
    advertisement,
    arp_announcements,
    arp_probe,
    checksum,
    read_advertisement,
    read_arp,
    solicitation,
)

OURS = bytes.fromhex("020000000001")
IPV4, IPV6 = "192.0.2.10", "2001:db8::12:3410"


def test_arp_probe_asks_without_an_address() -> None:
    assert arp_probe(OURS, IPV4) == bytes.fromhex("0001 0800 06 04 0001020000000001 00000000000000000000 c000020a")


def test_arp_announcements_have_both_forms() -> None:
    request, reply = arp_announcements(OURS, IPV4)
    assert request == bytes.fromhex("0001080006040001020000000001 c000020a000000000000 c000020a")
    assert reply == bytes.fromhex("0001080006040002020000000001 c000020a020000000001 c000020a")


def test_solicitation_goes_to_the_group_of_the_address() -> None:
    destination, packet = solicitation(IPV6)
    assert destination == bytes.fromhex("3333ff123410")
    assert packet[:8] == bytes.fromhex("60000000 0018 3a ff")
    assert packet[8:24] == bytes(16)
    assert packet[24:40] == bytes.fromhex("ff0200000000000000000001ff123410")
    assert packet[40] == 135
    assert packet[48:] == bytes.fromhex("20010db8000000000000000000123410")
    pseudo = packet[8:40] + bytes.fromhex("00000018 0000003a")
    assert checksum(pseudo + packet[40:]) == b"\0\0"


def test_advertisement_overrides() -> None:
    message = advertisement(OURS, IPV6)
    assert message[0] == 136
    assert message[4:8] == bytes.fromhex("20000000")
    assert message[24:] == bytes.fromhex("0201020000000001")
    assert read_advertisement(message) == Sighting(IPV6, OURS)
    assert read_advertisement(message[:24]) == Sighting(IPV6, b"")
    assert str(Sighting(IPV6, b"")) == "someone"


def test_whoever_claims_an_address_is_read_and_who_only_asks_is_not() -> None:
    for frame in arp_announcements(OURS, IPV4):
        assert read_arp(frame) == Sighting(IPV4, OURS)
    assert read_arp(arp_probe(OURS, IPV4)) is None


@given(st.binary(max_size=64))
def test_what_is_not_ours_is_read_without_harm(data: bytes) -> None:
    read_arp(data)
    read_advertisement(data)


def test_checksum_is_that_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == bytes.fromhex("220d")
    assert checksum(b"\1") == bytes.fromhex("feff")
