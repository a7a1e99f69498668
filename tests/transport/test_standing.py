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
    with standing.bind(kind, (host, 5060))[0] as taken:
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
    standing.bind(DATAGRAMS, taken)[0].close()
    with pytest.raises(KeyError):
        standing.bind(DATAGRAMS, address)


@pytest.mark.parametrize("kind", [DATAGRAMS, STREAMS])
def test_socket_can_be_taken_again_after_it_was_closed(
    standing: StandingSockets, address: Address, kind: socket.SocketKind
) -> None:
    for _ in range(3):
        standing.bind(kind, address)[0].close()


def test_datagrams_that_come_while_nobody_has_the_socket_wait(standing: StandingSockets, address: Address) -> None:
    """For whoever takes it to drop them: UdpSocket does."""
    with socket.socket(socket.AF_INET, DATAGRAMS) as phone, standing.bind(DATAGRAMS, address)[0] as first:
        first.close()
        phone.sendto(b"stale", address)
        with standing.bind(DATAGRAMS, address)[0] as second:
            second.settimeout(5)
            assert second.recv(100) == b"stale"


def test_connection_is_refused_while_nobody_has_the_socket(standing: StandingSockets, address: Address) -> None:
    with standing.bind(STREAMS, address)[0] as taken:
        taken.listen()
        socket.create_connection(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_shares_stand_together_and_nobody_joins_them(address: Address) -> None:
    standing = StandingSockets([(DATAGRAMS, address), (STREAMS, address)], shares=3)
    taken = standing.bind(DATAGRAMS, address)
    assert [each.getsockname() for each in taken] == [address] * 3
    with pytest.raises(OSError, match="in use"):
        StandingSockets([(DATAGRAMS, address)], shares=3)
    standing.close()
    with pytest.raises(OSError, match="in use"):
        StandingSockets([(DATAGRAMS, address)], shares=3)  # who has taken them has them still
    for each in taken:
        each.close()
    StandingSockets([(DATAGRAMS, address)]).close()


def test_source_has_the_same_share_whoever_reads(address: Address) -> None:
    standing = StandingSockets([(DATAGRAMS, address)], shares=3)
    phones = [socket.socket(socket.AF_INET, DATAGRAMS) for _ in range(40)]
    placed: list[dict[Address, int]] = []
    for _ in range(2):
        taken = standing.bind(DATAGRAMS, address)
        places: dict[Address, int] = {}
        for phone in phones:
            phone.sendto(b"x", address)
        for number, share in enumerate(taken):
            while True:
                try:
                    places[share.recvfrom(10)[1]] = number
                except BlockingIOError:
                    break
            share.close()
        placed.append(places)
    assert len(placed[0]) == len(phones)
    assert set(placed[0].values()) == {0, 1, 2}
    assert placed[1] == placed[0]
    standing.close()
    for phone in phones:
        phone.close()
