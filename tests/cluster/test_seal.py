from __future__ import annotations

import pytest
from msgspec import Struct

from sipha.cluster.seal import seal, unseal


class Value(Struct):
    name: str
    number: int = 0


def test_sealed_value_is_a_line_that_one_can_read() -> None:
    line = seal(Value("a\nb", 7))
    assert line.startswith(b'{"name":"a\\nb","number":7} ')
    assert line.count(b"\n") == 1
    assert unseal(line, Value) == Value("a\nb", 7)


def test_any_flipped_bit_and_any_lost_byte_is_noticed() -> None:
    line = seal(Value("a", 7))
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="checksum"):
            unseal(bytes(flipped), Value)
    for size in range(len(line)):
        with pytest.raises(ValueError, match="checksum"):
            unseal(line[:size], Value)


def test_other_value_is_refused() -> None:
    class Other(Struct):
        number: str

    with pytest.raises(ValueError, match="str"):
        unseal(seal(Value("a", 7)), Other)
