from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sipha.sip.flow import Address
from sipha.transport.standing import StandingSockets

DATAGRAMS, STREAMS = socket.SOCK_DGRAM, socket.SOCK_STREAM


@pytest.fixture
def address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    return host, port


@pytest.fixture
def standing(address: Address) -> Iterator[StandingSockets]:
    made = StandingSockets([(DATAGRAMS, address), (STREAMS, address)])
    yield made
    made.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("kind", [DATAGRAMS, STREAMS])
def test_sockets_stand_at_an_address_that_no_interface_has(host: str, kind: socket.SocketKind) -> None:
    standing = StandingSockets([(kind, (host, 5060))])
    with standing.bind(kind, (host, 5060)) as taken:
        assert taken.getsockname()[:2] == (host, 5060)
    standing.close()


def test_address_in_use_is_refused_and_nothing_stays_bound(address: Address) -> None:
    with socket.create_server(address), pytest.raises(OSError, match="in use"):
        StandingSockets([(DATAGRAMS, address), (STREAMS, address)])
    StandingSockets([(DATAGRAMS, address), (STREAMS, address)]).close()


def test_address_in_use_is_refused_and_what_stood_before_stays(standing: StandingSockets, address: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()
        with pytest.raises(OSError, match="in use"):
            standing.stand([(DATAGRAMS, taken), (STREAMS, taken)])
    standing.stand([(DATAGRAMS, taken), (STREAMS, taken)])
    standing.retire([(DATAGRAMS, taken)])
    standing.bind(DATAGRAMS, taken).close()
    with pytest.raises(KeyError):
        standing.bind(DATAGRAMS, address)


@pytest.mark.parametrize("kind", [DATAGRAMS, STREAMS])
def test_socket_can_be_taken_again_after_it_was_closed(
    standing: StandingSockets, address: Address, kind: socket.SocketKind
) -> None:
    for _ in range(3):
        standing.bind(kind, address).close()


def test_datagrams_that_come_while_nobody_has_the_socket_wait(standing: StandingSockets, address: Address) -> None:
    """For whoever takes it to drop them: UdpSocket does."""
    with socket.socket(socket.AF_INET, DATAGRAMS) as phone, standing.bind(DATAGRAMS, address) as first:
        first.close()
        phone.sendto(b"stale", address)
        with standing.bind(DATAGRAMS, address) as second:
            second.settimeout(5)
            assert second.recv(100) == b"stale"


def test_connection_is_refused_while_nobody_has_the_socket(standing: StandingSockets, address: Address) -> None:
    with standing.bind(STREAMS, address) as taken:
        taken.listen()
        socket.create_connection(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
