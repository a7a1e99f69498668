"""The capture sees what nodes send, and the oracle finds what it must find: with addresses moved by hand."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.system.capture import Capture, Frame, Kind, parse, question
from tests.system.network import OUTSIDE, Network
from tests.system.oracle import Tenure, check_one_holder, overlaps, tenures, uses_between

pytestmark = pytest.mark.system

VIP, VIP6 = "10.77.0.10", "fd77::10"
VIRTUAL = (VIP, VIP6)
ASKED = [when / 100 + 0.005 for when in range(200)]
"""When questions are asked in frames that are made up: each 10 ms."""

LEAST = 0.3
"""How long an address stays where it is put, in seconds."""

IP_FREEBIND, IPV6_FREEBIND = 15, 78


def used(node: str, *times: float) -> list[Frame]:
    return [Frame(when, node, Kind.ARP_REPLY, VIP, "10.77.0.250") for when in times]


# -- the oracle, of frames that are made up -------------------------------------------------------------------------


def test_oracle_finds_no_fault_in_a_takeover() -> None:
    found = tenures([*used("n1", 0.00, 0.01, 0.02), *used("n2", 0.03, 0.04)], VIRTUAL, ASKED)
    assert found == [Tenure("n1", 0.00, 0.02, 3), Tenure("n2", 0.03, 0.04, 2)]
    assert not overlaps(found)


def test_oracle_lets_an_address_come_back() -> None:
    frames = [*used("n1", 0.0, 0.01), *used("n2", 0.2, 0.21), *used("n1", 0.4, 0.41)]
    assert [tenure.node for tenure in tenures(frames, VIRTUAL, ASKED)] == ["n1", "n2", "n1"]
    assert not overlaps(tenures(frames, VIRTUAL, ASKED))


def test_oracle_finds_a_single_late_packet() -> None:
    frames = [*used("n1", 0.0, 0.01), *used("n2", 1.0, 1.04, 1.08)]
    for late in (1.02, 1.04):
        packet = Frame(late, "n1", Kind.UDP, VIP6, "fd77::100")
        assert overlaps(tenures([*frames, packet], VIRTUAL, ASKED)), late


def test_oracle_finds_two_that_answer_in_turns() -> None:
    frames = [*used("n1", 0.0, 0.02, 0.04), *used("n2", 0.03, 0.05)]
    assert len(overlaps(tenures(frames, VIRTUAL, ASKED))) == 1


def test_oracle_takes_two_addresses_for_one() -> None:
    frames = [*used("n1", 0.0, 0.04), Frame(0.02, "n2", Kind.ADVERTISEMENT, "fe80::2", VIP6)]
    assert overlaps(tenures(frames, VIRTUAL, ASKED))


def test_oracle_passes_over_what_speaks_of_an_address_but_does_not_use_it() -> None:
    frames = [
        *used("n1", 0.0, 0.04),
        Frame(0.01, "n2", Kind.ARP_REQUEST, "0.0.0.0", VIP),
        Frame(0.02, "n2", Kind.SOLICITATION, "::", VIP6),
        Frame(0.03, "n2", Kind.UDP, "10.77.0.12", VIP),
    ]
    assert [tenure.node for tenure in tenures(frames, VIRTUAL, ASKED)] == ["n1"]


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.integers(0, 100))))
def test_oracle_finds_an_overlap_if_a_node_uses_the_address_between_two_near_uses_of_another(
    uses: list[tuple[str, int]],
) -> None:
    frames = [frame for node, when in uses for frame in used(node, when / 100)]
    expected = any(
        one.node == other.node != between.node
        and one.time <= between.time <= other.time
        and other.time - one.time < 0.055
        for one in frames
        for other in frames
        for between in frames
    )
    assert bool(overlaps(tenures(frames, VIRTUAL, ASKED))) == expected


def test_oracle_tells_who_sends_between_two_times() -> None:
    capture = Capture(Network(), VIRTUAL)
    capture.frames = [*used("n1", 0.0, 1.0, 2.0, 3.0), *used("n2", 2.0)]
    assert uses_between(capture, "n1", 1.0, 3.0) == used("n1", 2.0)


def test_a_blind_capture_proves_nothing() -> None:
    capture = Capture(Network(), VIRTUAL)
    capture.frames = used("n1", 0.0)
    assert check_one_holder(capture)
    for name, value in (("asked", [0.0, 2.0]), ("dropped", 1)):
        blind = Capture(Network(), VIRTUAL)
        blind.frames = used("n1", 0.0)
        setattr(blind, name, value)
        with pytest.raises(AssertionError, match="the capture"):
            check_one_holder(blind)


# -- frames ---------------------------------------------------------------------------------------------------------


def test_questions_are_parsed_as_what_they_are() -> None:
    assert parse(question(VIP), 1.0, "n1") == Frame(1.0, "n1", Kind.ARP_REQUEST, "10.77.0.250", VIP)
    assert parse(question(VIP6), 1.0, "n1") == Frame(1.0, "n1", Kind.SOLICITATION, "fd77::250", VIP6)


@given(st.binary(min_size=14, max_size=128), st.sampled_from([0x0800, 0x0806, 0x86DD]))
def test_parser_takes_any_frame(data: bytes, ethertype: int) -> None:
    assert parse(data[:12] + ethertype.to_bytes(2, "big") + data[14:], 1.0, "n1").node == "n1"


# -- the capture, on real nodes -------------------------------------------------------------------------------------


def add(network: Network, node: str) -> None:
    network.run(node, "ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    network.run(node, "ip", "address", "add", f"{VIP6}/128", "dev", "eth0", "nodad")


def remove(network: Network, node: str) -> None:
    network.run(node, "ip", "address", "delete", f"{VIP6}/128", "dev", "eth0")
    network.run(node, "ip", "address", "delete", f"{VIP}/32", "dev", "eth0")


@pytest.fixture
def put(network: Network) -> Iterator[Callable[[str], None]]:
    """Give the addresses to a node, which loses them after the test."""
    with ExitStack() as stack:

        def put(node: str) -> None:
            add(network, node)
            stack.callback(remove, network, node)

        yield put


Put = Callable[[str], None]


def test_capture_tells_who_has_the_addresses_when(network: Network) -> None:
    with Capture(network, VIRTUAL) as capture:
        for node in ("n1", "n2"):
            add(network, node)
            began = time.time()
            time.sleep(LEAST)
            ended = time.time()
            remove(network, node)
    first, tenure = check_one_holder(capture)
    assert (first.node, tenure.node) == ("n1", "n2")
    assert min(first.uses, tenure.uses) > 2 * LEAST / 0.02
    assert tenure.begin - 0.1 < began < ended < tenure.end + 0.1
    assert {frame.kind for frame in capture.frames if frame.uses(VIRTUAL)} == {Kind.ARP_REPLY, Kind.ADVERTISEMENT}


def test_capture_sees_two_nodes_that_have_the_addresses_at_once(network: Network, put: Put) -> None:
    put("n1")
    with Capture(network, VIRTUAL) as capture:
        put("n3")
        time.sleep(LEAST)
    with pytest.raises(AssertionError, match="at once"):
        check_one_holder(capture)


def test_capture_sees_a_node_that_is_cut_off(network: Network, put: Put) -> None:
    network.partition({"n1"}, {"n2", "n3"})
    put("n1")
    with Capture(network, VIRTUAL) as capture:
        put("n2")
        time.sleep(LEAST)
    with pytest.raises(AssertionError, match="at once"):
        check_one_holder(capture)


def test_capture_sees_a_packet_from_an_address_that_is_not_there(network: Network, put: Put) -> None:
    put("n1")
    with network.inside("n2"):
        absent = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with absent, Capture(network, VIRTUAL) as capture:
        absent.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        absent.bind((VIP6, 5060))
        time.sleep(LEAST)
        absent.sendto(b"x", (network.host6(OUTSIDE), 5060))
        time.sleep(LEAST)
    with pytest.raises(AssertionError, match="at once"):
        check_one_holder(capture)


def test_capture_tells_an_announcement(network: Network, put: Put) -> None:
    put("n1")
    mac = bytes(6)
    with network.inside("n1"):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire, Capture(network, VIRTUAL) as capture:
        wire.bind(("eth0", 0))
        address = socket.inet_aton(VIP)
        wire.send(b"\xff" * 6 + mac + bytes.fromhex("0806 0001 0800 0604 0001") + mac + address + mac + address)
        time.sleep(LEAST)
    assert [frame.kind for frame in capture.frames].count(Kind.GRATUITOUS_ARP) == 1


def test_minority_that_goes_on_is_found(network: Network, put: Put) -> None:
    put("n1")
    with Capture(network, VIRTUAL) as capture:
        time.sleep(LEAST)
        network.partition({"n1"}, {"n2", "n3"})
        cut = time.time()
        time.sleep(LEAST)
    assert uses_between(capture, "n1", cut + LEAST / 2, time.time())
