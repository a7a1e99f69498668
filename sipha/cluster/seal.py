"""Small values in files: a line of JSON that an operator can read, and its checksum.

{"term":7,"vote":"a"} 1f0c93d2
"""

from __future__ import annotations

from typing import TypeVar
from zlib import crc32

import msgspec

T = TypeVar("T")


def seal(value: msgspec.Struct) -> bytes:
    """The line that keeps a value."""
    body = msgspec.json.encode(value)
    return b"%b %08x\n" % (body, crc32(body))


def unseal(line: bytes, kind: type[T]) -> T:
    """The value that a line keeps; raises ValueError if it isn't as `seal` made it."""
    body, _, checksum = line.rpartition(b" ")
    if checksum != b"%08x\n" % crc32(body):
        raise ValueError("the checksum is wrong")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
