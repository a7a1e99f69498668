from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sipha.workers.link import Link
from sipha.workers.messages import Datagrams, Keys, decode_order, decode_word
from tests.cluster.world import World


class Pair:
    """The daemon's end and the worker's, and what came to each."""

    def __init__(self) -> None:
        self.world = World()
        self.at_worker: list[object] = []
        self.at_daemon: list[object] = []
        self.gone: list[str] = []
        self.drained = 0
        ours, theirs = socket.socketpair()
        self.daemon = Link(
            self.world.reactor,
            ours,
            lambda body: self.at_daemon.append(decode_word(body)),
            lambda why: self.gone.append(f"worker {why}".strip()),
        )
        self.worker = Link(
            self.world.reactor,
            theirs,
            lambda body: self.at_worker.append(decode_order(body)),
            lambda why: self.gone.append(f"daemon {why}".strip()),
            self.note_drained,
        )

    def note_drained(self) -> None:
        self.drained += 1


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.daemon.close()
    made.worker.close()


def test_messages_of_a_turn_arrive_in_order(pair: Pair) -> None:
    orders = [Keys({number: bytes(32)}) for number in range(1, 200)]
    for order in orders:
        pair.daemon.send(order)
    pair.world.until(lambda: len(pair.at_worker) == len(orders))
    assert pair.at_worker == orders


def test_more_than_the_kernel_holds_waits_and_arrives(pair: Pair) -> None:
    words = [Datagrams([(bytes(60_000), number, "192.0.2.1", 5060)]) for number in range(30)]
    for word in words:
        pair.worker.send(word)
    pair.worker.flush()
    assert pair.worker.waiting
    assert not pair.drained
    pair.world.until(lambda: pair.drained)
    pair.world.until(lambda: len(pair.at_daemon) == len(words))
    assert pair.at_daemon == words
    assert not pair.worker.waiting


def test_all_that_has_come_can_be_taken_at_once(pair: Pair) -> None:
    words = [Datagrams([(bytes(60_000), number, "192.0.2.1", 5060)]) for number in range(3)]
    for word in words:
        pair.worker.send(word)
    pair.worker.flush()
    pair.daemon.catch_up()
    assert pair.at_daemon == words


def test_what_was_sent_before_the_end_arrives_and_nothing_after(pair: Pair) -> None:
    pair.daemon.send(Keys({1: bytes(32)}))
    pair.daemon.finish()
    pair.daemon.send(Keys({2: bytes(32)}))
    pair.world.until(lambda: pair.gone)
    assert pair.at_worker == [Keys({1: bytes(32)})]
    pair.world.until(lambda: len(pair.gone) == 2)
    assert pair.gone == ["daemon", "worker"]


def test_end_that_is_closed_is_noticed_once(pair: Pair) -> None:
    pair.worker.close()
    pair.daemon.send(Keys({}))
    pair.world.until(lambda: pair.gone)
    pair.daemon.send(Keys({}))
    pair.world.turn(0.05)
    assert len(pair.gone) == 1


def test_nonsense_ends_the_link(pair: Pair) -> None:
    pair.worker.send(Keys({}))  # an order, from where only words may come
    pair.world.until(lambda: len(pair.gone) == 2)
    assert pair.gone[0].startswith("worker Invalid value 'keys'")
