from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from sipha.sip.flow import Flow
from sipha.transport.hep import Capture, encode

FLOW = Flow("UDP", ("192.0.2.10", 5060), ("198.51.100.7", 40000))
MESSAGE = b"OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1\r\nCall-ID: c1@phone\r\n\r\nCall-ID: body"


def chunks(packet: bytes) -> dict[int, bytes]:
    """The chunks of a packet by their type, read as its document says."""
    assert packet[:4] == b"HEP3"
    (length,) = struct.unpack("!H", packet[4:6])
    assert length == len(packet)
    found, at = {}, 6
    while at < length:
        vendor, kind, size = struct.unpack("!HHH", packet[at : at + 6])
        assert vendor == 0
        found[kind] = packet[at + 6 : at + size]
        at += size
    return found


def test_copy_says_who_sent_what_to_whom_and_when() -> None:
    assert chunks(encode(MESSAGE, FLOW, 1289645282.25, sent=True, agent=7, key="secret")) == {
        1: bytes([socket.AF_INET]),
        2: bytes([socket.IPPROTO_UDP]),
        3: bytes([192, 0, 2, 10]),
        4: bytes([198, 51, 100, 7]),
        7: struct.pack("!H", 5060),
        8: struct.pack("!H", 40000),
        9: struct.pack("!I", 1289645282),
        10: struct.pack("!I", 250_000),
        11: b"\x01",
        12: struct.pack("!I", 7),
        14: b"secret",
        17: b"c1@phone",
        15: MESSAGE,
    }


def test_copy_of_what_was_received_has_the_ends_the_other_way_round() -> None:
    flow = Flow("TCP", ("2001:db8::10", 5060), ("2001:db8::7", 40000), 3)
    found = chunks(encode(MESSAGE, flow, 0.0, sent=False, agent=1))
    assert found[1] == bytes([socket.AF_INET6])
    assert found[2] == bytes([socket.IPPROTO_TCP])
    assert found[5] == socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    assert found[6] == socket.inet_pton(socket.AF_INET6, "2001:db8::10")
    assert (found[7], found[8]) == (struct.pack("!H", 40000), struct.pack("!H", 5060))
    assert 14 not in found


@pytest.mark.parametrize(
    ("data", "call_id"),
    [(b"A\r\ni: short\r\n\r\n", b"short"), (b"A\ncall-ID:x \n", b"x"), (b"A\r\n\r\nCall-ID: body", None)],
)
def test_call_id_is_found_in_the_head_alone(data: bytes, call_id: bytes | None) -> None:
    assert chunks(encode(data, FLOW, 0.0, sent=True, agent=1)).get(17) == call_id


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5.0)
        yield server


def test_capture_server_gets_each_message(server: socket.socket) -> None:
    capture = Capture(server.getsockname(), 7, "", lambda: 5.0)
    capture.passed(MESSAGE, FLOW, sent=True)
    assert server.recv(65535) == encode(MESSAGE, FLOW, 5.0, sent=True, agent=7)
    assert (capture.sent, capture.lost) == (1, 0)
    capture.passed(bytes(65500), FLOW, sent=True)
    assert (capture.sent, capture.lost) == (1, 1)
    capture.close()


def test_capture_server_that_is_away_costs_nothing_but_the_copies() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    capture = Capture(address, 7, "", lambda: 5.0)
    for _ in range(10):
        capture.passed(MESSAGE, FLOW, sent=True)
    assert capture.sent + capture.lost == 10
    capture.close()
