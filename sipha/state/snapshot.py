"""The whole state as a stream of bytes, made and read a little at a time.

    chunk: length of the body, its CRC-32, the body (msgpack, an array that begins with its class's tag)
    stream: Header, Parts by kind and within a kind in order, Footer

The bytes are the same on every node that has applied as much. Each record is hashed again when it is written and when
it is read, and the sum must be the machine's hash: no snapshot is made of damaged memory, and no damaged one is loaded.
The form goes with the active schema, as that of the entries does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from struct import Struct as Layout
from typing import Annotated, Literal, NamedTuple, get_args
from zlib import crc32

import msgspec
from msgspec import Meta

from sipha.errors import SiphaError
from sipha.state.entries import UNDECODABLE, Policy, check_schema
from sipha.state.multiset import MASK
from sipha.state.table import DamagedMemory, Digested
from sipha.state.tables import Tables, schema_digest

CHUNK = 64 * 1024
"""Bytes of records in one chunk; a single record may be longer."""

_LONGEST = 1 << 26
_HASH_SIZE = 16

_lead = Layout("<II")

_Kind = Literal["row", "tombstone", "account", "key", "setting", "member"]
_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]

_KINDS: Sequence[_Kind] = get_args(_Kind)


class DamagedSnapshot(SiphaError):
    """The bytes are not a snapshot, or not the whole of one; nothing was changed by them."""


class _Version(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="sipha snapshot"):
    """What the header of every schema begins with."""

    schema: int


class Header(_Version, frozen=True, gc=False, array_like=True, tag="sipha snapshot"):
    """What a snapshot is of: the state at entry `index`, which has `term`, at cluster time `time` in ms.

    `hash` is the machine's, in 16 bytes, big endian.
    """

    index: _Count
    term: _Count
    time: _Count
    policy: Policy
    cluster_id: str
    hash: Annotated[bytes, Meta(min_length=_HASH_SIZE, max_length=_HASH_SIZE)]


class _Part(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="part"):
    kind: _Kind
    records: list[bytes]


class _Footer(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="end"):
    """The checksum of the checksums of all chunks before: none is missing, or in another's place."""

    checksum: int


_encode = msgspec.msgpack.Encoder().encode
_decode_version = msgspec.msgpack.Decoder(_Version).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode: msgspec.msgpack.Decoder[_Part | _Footer] = msgspec.msgpack.Decoder(_Part | _Footer)


class Frozen:
    """The state as it was when it was frozen: an iterator of the chunks of its snapshot, made as they are asked for.

    The machine may go on applying; what it changes is kept until the iterator has passed it, so `close` it when done.
    Raises DamagedMemory.
    """

    def __init__(self, tables: Tables, term: int, cluster_id: str) -> None:
        location, accounts = tables.location, tables.accounts
        self.header = Header(
            tables.schema,
            tables.index,
            term,
            tables.time,
            tables.policy,
            cluster_id,
            tables.hash().to_bytes(_HASH_SIZE, "big"),
        )
        self._rows, self._tombstones = location.freeze(), location.freeze_tombstones()
        self._accounts = accounts.freeze()
        parts: Sequence[Iterable[Digested]] = (
            self._rows,
            self._tombstones,
            self._accounts,
            tables.keys.freeze(),
            tables.settings.freeze(),
            tables.freeze_members(),
        )
        self._chunks = self._make(parts)

    def __iter__(self) -> Iterator[bytes]:
        """The chunks that have not been made yet."""
        return self

    def __next__(self) -> bytes:
        """The next chunk."""
        return next(self._chunks)

    def close(self) -> Iterator[None]:
        """Let the state change freely; what was kept is freed a little with each step of what this returns."""
        self._chunks.close()
        return chain.from_iterable([self._rows.close(), self._tombstones.close(), self._accounts.close()])

    def _make(self, parts: Sequence[Iterable[Digested]]) -> Generator[bytes, None, None]:
        lead, body = _chunk(self.header)
        checksum = crc32(lead)
        yield lead + body
        total = schema_digest(self.header.schema)
        for kind, part in zip(_KINDS, parts, strict=True):
            for records, summands in _packed(part):
                total += summands
                lead, body = _chunk(_Part(kind, records))
                checksum = crc32(lead, checksum)
                yield lead + body
        if (total & MASK).to_bytes(_HASH_SIZE, "big") != self.header.hash:
            raise DamagedMemory("the hash of the table is not that of its records")
        lead, body = _chunk(_Footer(checksum))
        yield lead + body


class Loaded(NamedTuple):
    """What a snapshot holds, whole and checked."""

    header: Header
    tables: Tables


class Loader:
    """Reads a snapshot in pieces of any size; `header` is None until it has been read.

    Raises DamagedSnapshot, or UnknownSchema, after which there is no more to do than to dismantle it.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self._tables = Tables()
        self._buffer = bytearray()
        self._kind = 0
        self._hash = 0
        self._checksum = 0
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _lead.size:
                lead = bytes(buffer[position : position + _lead.size])
                size, checksum = _lead.unpack(lead)
                if self._ended or size > _LONGEST:
                    raise DamagedSnapshot("the snapshot has no end where it should")
                end = position + _lead.size + size
                if len(buffer) < end:
                    break
                body = bytes(buffer[position + _lead.size : end])
                position = end
                if crc32(body) != checksum:
                    raise DamagedSnapshot("a checksum in the snapshot is wrong")
                self._take(body)
                self._checksum = crc32(lead, self._checksum)
        finally:
            del buffer[:position]

    def finish(self) -> Loaded:
        """What the snapshot holds, now that all of it was fed."""
        if not self._ended or self._buffer or self.header is None:
            raise DamagedSnapshot("the snapshot is cut short, or something follows it")
        return Loaded(self.header, self._tables)

    def dismantle(self) -> Iterator[None]:
        """Free what was read, a little with each step."""
        return self._tables.dismantle()

    def _take(self, body: bytes) -> None:
        try:
            if self.header is None:
                check_schema(_decode_version(body).schema)
                self._begin(_decode_header(body))
                return
            chunk = _decode.decode(body)
            if isinstance(chunk, _Footer):
                self._end(self.header, chunk)
            else:
                self._load(chunk)
        except (*UNDECODABLE, ValueError) as error:
            raise DamagedSnapshot(f"not a snapshot: {error}") from error

    def _begin(self, header: Header) -> None:
        tables = self._tables
        self.header = header
        tables.index, tables.time, tables.policy, tables.schema = (
            header.index,
            header.time,
            header.policy,
            header.schema,
        )

    def _load(self, part: _Part) -> None:
        tables, records = self._tables, part.records
        kind = _KINDS.index(part.kind)
        if kind < self._kind:
            raise ValueError(f"{part.kind} out of order")
        self._kind = kind
        match part.kind:
            case "row":
                tables.location.load(records)
            case "tombstone":
                tables.location.load_tombstones(records)
            case "account":
                tables.accounts.load(records)
            case "key":
                tables.keys.load(records)
            case "setting":
                tables.settings.load(records)
            case "member":
                tables.load_members(records)

    def _end(self, header: Header, footer: _Footer) -> None:
        if footer.checksum != self._checksum:
            raise ValueError("a chunk is missing, or in the place of another")
        tables = self._tables
        if tables.hash().to_bytes(_HASH_SIZE, "big") != header.hash:
            raise ValueError(f"its records have the hash {tables.hash_hex()}, not {header.hash.hex()}")
        self._ended = True


def _packed(part: Iterable[Digested]) -> Iterator[tuple[list[bytes], int]]:
    """The records of a part in chunks, each with the sum of their digests."""
    records: list[bytes] = []
    size = total = 0
    for data, summand in part:
        if size + len(data) > CHUNK and records:
            yield records, total
            records, size, total = [], 0, 0
        records.append(data)
        size += len(data)
        total += summand
    if records:
        yield records, total


def _chunk(content: msgspec.Struct) -> tuple[bytes, bytes]:
    body = _encode(content)
    return _lead.pack(len(body), crc32(body)), body
