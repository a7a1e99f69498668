"""The ring of shared secrets."""

from __future__ import annotations

from sipha.state.entries import PutKey
from sipha.state.keys import RING_SIZE, Keys


def secret(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_empty_ring_has_no_current_key() -> None:
    assert Keys().current is None
    assert Keys().ring == {}


def test_latest_key_is_the_current_one_and_the_oldest_are_dropped() -> None:
    keys = Keys()
    for number in range(1, RING_SIZE + 3):
        keys.put(PutKey(secret(number)))
        assert keys.current == number
        assert keys.ring[number] == secret(number)
    assert list(keys.ring) == list(range(3, RING_SIZE + 3))
    assert keys.hash == sum(summand for _, summand in keys.freeze()) != 0


def test_ids_wrap_from_255_to_1() -> None:
    keys = Keys()
    for number in range(257):
        keys.put(PutKey(secret(number)))
    assert keys.current == 2
    assert list(keys.ring) == [250, 251, 252, 253, 254, 255, 1, 2]
    copy = Keys()
    copy.load([record for record, _ in keys.freeze()])
    assert (copy.ring, copy.current, copy.hash) == (keys.ring, 2, keys.hash)
