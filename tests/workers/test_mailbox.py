from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sipha.sip.flow import Flow
from sipha.workers.mailbox import LETTERS_PER_WAKE, Letter, Mailbox, Post
from sipha.workers.mark import make_mark, read_mark, seat_of
from tests.cluster.world import World

FLOW = Flow("UDP", ("192.0.2.10", 5060), ("198.51.100.1", 5070))
IPV6 = Flow("UDP", ("2001:db8::10", 5060), ("fe80::1%eth0", 5060))


class Rig:
    """A mailbox, and what has come by it; two posts lead there."""

    def __init__(self) -> None:
        self.world = World()
        reading, self.writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.received: list[Letter] = []
        self.mailbox = Mailbox(self.world.reactor, reading, self.received.append)
        self.posts = [Post({1: self.writing}), Post({1: self.writing})]

    def end(self) -> None:
        self.mailbox.close()
        self.writing.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.end()


def test_letters_arrive_with_the_flows_of_what_is_in_them(rig: Rig) -> None:
    one, other = rig.posts
    assert one.put(1, b"SIP/2.0 200 OK\xff", FLOW)
    assert one.put(1, b"", IPV6)
    assert other.put(1, b"SIP/2.0 180", FLOW)
    assert one.send() == other.send() == []
    assert one.send() == []
    rig.mailbox.read()
    rig.world.until(lambda: rig.received)
    assert rig.received == [[(b"SIP/2.0 200 OK\xff", FLOW), (b"", IPV6), (b"SIP/2.0 180", FLOW)]]


def test_seat_that_is_not_there_gets_nothing(rig: Rig) -> None:
    assert not rig.posts[0].put(2, b"SIP/2.0 200 OK", FLOW)
    assert rig.posts[0].send() == []


def test_what_a_mailbox_has_no_room_for_comes_back(rig: Rig) -> None:
    post, sent = rig.posts[0], 0
    returned: Letter = []
    while not returned:
        post.put(1, b"%d" % sent, FLOW)
        returned = post.send()
        sent += not returned
    assert returned == [(b"%d" % sent, FLOW)]
    rig.mailbox.read()
    rig.world.until(lambda: sum(map(len, rig.received)) == sent)
    assert max(map(len, rig.received)) <= LETTERS_PER_WAKE
    for number in range(8):
        post.put(1, b"x" * 60000, FLOW._replace(remote=("198.51.100.1", number)))
    assert len(post.send()) == 8  # more than a datagram takes


@pytest.mark.parametrize("wrong", [b"", b"\xc1", b"\x91\x93\xc4\x01x\x92\xa1\xff\x01\x92\xa1a\x01"])
def test_letter_that_is_none_keeps_no_other_from_being_read(rig: Rig, wrong: bytes) -> None:
    rig.mailbox.read()
    rig.writing.send(wrong)
    rig.posts[0].put(1, b"SIP/2.0 200 OK", FLOW)
    rig.posts[0].send()
    rig.world.until(lambda: rig.received)
    assert rig.received == [[(b"SIP/2.0 200 OK", FLOW)]]


def test_mailbox_that_rests_keeps_its_letters(rig: Rig) -> None:
    rig.mailbox.read()
    rig.mailbox.rest()
    rig.posts[0].put(1, b"SIP/2.0 200 OK", FLOW)
    rig.posts[0].send()
    rig.world.turn(0.02)
    assert rig.received == []
    rig.mailbox.read()
    rig.world.until(lambda: rig.received)


def test_mark_says_which_life_at_which_seat() -> None:
    mark = make_mark(0x1F, 12, 3)
    via = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.10:5060;w=%s;branch=z9hG4bK-1\r\n\r\n" % mark.encode()
    assert read_mark(via) == mark == "1f-12-3"
    assert seat_of(mark) == 3


@pytest.mark.parametrize("mark", ["", "-", "1f-12-", "1f-12-x", "1f-12-\u0663", "1f-12-" + "9" * 5000])
def test_mark_that_is_none_has_no_seat(mark: str) -> None:
    assert seat_of(mark) == -1
