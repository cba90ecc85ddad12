"""The records of a pack: how they lie on the disk, byte by byte.

This module turns records and metadata rows into bytes and back. It does no input or output and knows neither packs
nor tables by more than their numbers. Parsing is bounded: no length is believed before its header's checksum held,
and no payload is decoded to more than its header says. docs/format.md has the byte tables.
Everything here is pure and may be called from any thread.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import chain
from typing import NamedTuple, Protocol

import xxhash
import zstandard

from ckptfs.errors import DamagedError
from ckptfs.store import kernels
from ckptfs.store.codec import Encoding

MAGIC = b"ckR1"
ALIGNMENT = 8
HEADER = struct.Struct("<4sBBHIIQ16sI")
HEADER_CHECK = struct.Struct("<I")
HEADER_SIZE = HEADER.size + HEADER_CHECK.size
_WHOLE_HEADER = struct.Struct(HEADER.format + HEADER_CHECK.format.removeprefix("<"))
PACK_PAYLOAD = struct.Struct("<IIQ")
PACK_HEADER_SIZE = HEADER_SIZE + PACK_PAYLOAD.size
"""The size of the first record of a pack."""
METADATA_PREFIX = struct.Struct("<IIQ")
ROW = struct.Struct("<BBHI")

_CHECK_MASK = 0xFFFFFFFF
_PREVIOUS_SIZE_MAX = 0xFFFFFFFF
_ROW_DELETED = 1
_METADATA_RAW_MAX = 1024
"""Metadata up to this size is stored raw: a frame of zstd would save nothing."""
_PADDING = [bytes(count) for count in range(ALIGNMENT)]


class RecordType(IntEnum):
    """What a record holds."""

    PACK = 1
    CHUNK = 2
    METADATA = 3


class Position(NamedTuple):
    """A place in the packs; positions order as records were appended. Offset 0 of a pack is its header record."""

    pack: int
    offset: int


class Place(NamedTuple):
    """A run of records in one pack, `size` bytes from `offset` on; `number` is the highest chunk number in it."""

    pack: int
    offset: int
    size: int
    number: int

    @property
    def position(self) -> Position:
        """Where it begins."""
        return Position(self.pack, self.offset)

    @property
    def end(self) -> Position:
        """The position behind it."""
        return Position(self.pack, self.offset + self.size)


class Header(NamedTuple):
    """The fixed part of a record; sizes in bytes, `number` is the chunk number, journal sequence or pack number."""

    type: int
    encoding: int
    base_count: int
    raw_size: int
    stored_size: int
    number: int
    id: bytes
    payload_check: int

    @property
    def size(self) -> int:
        """The size of the whole record, padding included."""
        return record_size(self.stored_size, self.base_count)


class Record(NamedTuple):
    """A record whose header holds; the payload is still encoded."""

    header: Header
    bases: tuple[int, ...]
    payload: memoryview


class RecordBytes(NamedTuple):
    """A record ready to be appended: buffers one behind the other, `size` bytes together."""

    buffers: tuple[bytes | memoryview, ...]
    size: int

    def fill(self, out: memoryview) -> None:
        """Copy the record to `out`, which has its size."""
        start = 0
        for buffer in self.buffers:
            out[start : start + len(buffer)] = buffer
            start += len(buffer)


class WaitingRecords(NamedTuple):
    """The records of chunks of `data`, by offset and size, that wait for an encoding; numbered from `number` on."""

    data: memoryview
    spans: Sequence[tuple[int, int]]
    ids: Sequence[bytes]
    number: int

    @property
    def size(self) -> int:
        """The size of all the records."""
        return sum(record_size(size) for _, size in self.spans)

    def fill(self, out: memoryview) -> None:
        """Build the records in `out`, which has their size."""
        packed = struct.pack(f"<{2 * len(self.spans)}Q", *chain.from_iterable(self.spans))
        kernels.raw_records(out, Encoding.WAITING, self.data, packed, b"".join(self.ids), self.number)


class Appendable(Protocol):
    """What takes `size` bytes of a pack and can fill them."""

    @property
    def size(self) -> int:
        """How many bytes."""

    def fill(self, out: memoryview) -> None:
        """Put them into `out`, which has this size."""


class EncodedChunk(NamedTuple):
    """A chunk that is ready to be appended, but for its number."""

    id: bytes
    raw_size: int
    encoding: int
    payload: bytes | memoryview
    check: int
    bases: tuple[int, ...] = ()


class Row(NamedTuple):
    """A row of a table in the journal; a value of None deletes the key."""

    table: int
    key: bytes
    value: bytes | None


class Journal(NamedTuple):
    """The content of a metadata record: rows, and how far the packs were known to be durable before it."""

    synced: Position
    rows: list[Row]


def record_size(stored_size: int, base_count: int = 0) -> int:
    """Return the size of a record on the disk, header, bases, payload and padding together."""
    size = HEADER_SIZE + 8 * base_count + stored_size
    return size + -size % ALIGNMENT


def payload_check(payload: bytes | memoryview, bases: bytes = b"") -> int:
    """Return the checksum over bases and payload: the low 32 bits of their XXH3-64."""
    if not bases:
        return xxhash.xxh3_64_intdigest(payload) & _CHECK_MASK
    digest = xxhash.xxh3_64(bases)
    digest.update(payload)
    return digest.intdigest() & _CHECK_MASK


def pack_bases(bases: Sequence[int]) -> bytes:
    """Return the chunk numbers of the bases as they lie between header and payload."""
    return struct.pack(f"<{len(bases)}Q", *bases)


def build(
    kind: RecordType,
    number: int,
    chunk_id: bytes,
    raw_size: int,
    encoding: int,
    payload: bytes | memoryview,
    *,
    check: int | None = None,
    bases: bytes = b"",
) -> RecordBytes:
    """Build a record around an encoded payload, which is not copied; `check` may be computed ahead of time."""
    if check is None:
        check = payload_check(payload, bases)
    stored_size = len(payload)
    head = HEADER.pack(MAGIC, kind, encoding, len(bases) // 8, raw_size, stored_size, number, chunk_id, check)
    head += HEADER_CHECK.pack(xxhash.xxh3_64_intdigest(head) & _CHECK_MASK) + bases
    size = len(head) + stored_size
    padding = -size % ALIGNMENT
    if padding:
        return RecordBytes((head, payload, _PADDING[padding]), size + padding)
    return RecordBytes((head, payload), size)


def parse_header(data: bytes | memoryview) -> Header | None:
    """Return the header at the start of `data`, or None when none is there or its checksum does not hold."""
    if len(data) < HEADER_SIZE:
        return None
    fields = _WHOLE_HEADER.unpack_from(data)
    if fields[0] != MAGIC or xxhash.xxh3_64_intdigest(data[: HEADER.size]) & _CHECK_MASK != fields[-1]:
        return None
    return Header._make(fields[1:-1])


def parse_body(header: Header, body: memoryview) -> Record:
    """Split what follows a header into bases and payload; `body` holds at least both of them."""
    bases_size = 8 * header.base_count
    bases = struct.unpack_from(f"<{header.base_count}Q", body)
    return Record(header, bases, body[bases_size : bases_size + header.stored_size])


def is_intact(record: Record) -> bool:
    """Tell whether bases and payload are what the header's checksum says."""
    return payload_check(record.payload, pack_bases(record.bases)) == record.header.payload_check


def build_pack_header(number: int, version: int, fingerprint: int, seed: int, previous_size: int) -> RecordBytes:
    """Build the first record of a pack; `previous_size` is that of the pack before it when this one was begun."""
    payload = PACK_PAYLOAD.pack(version, min(previous_size, _PREVIOUS_SIZE_MAX), fingerprint)
    return build(RecordType.PACK, number, xxhash.xxh3_128_digest(payload, seed), len(payload), Encoding.RAW, payload)


def is_pack_header(record: Record, number: int, fingerprint: int) -> bool:
    """Tell whether a record is the header of this pack of this store."""
    if record.header.type != RecordType.PACK or record.header.number != number:
        return False
    return len(record.payload) == PACK_PAYLOAD.size and PACK_PAYLOAD.unpack(record.payload)[2] == fingerprint


def previous_size(pack_header: Record) -> int:
    """Return how many bytes the pack before has at least, as a pack header says; 0 when it does not say."""
    return int(PACK_PAYLOAD.unpack(pack_header.payload)[1])


def build_metadata(sequence: int, synced: Position, rows: Iterable[Row], seed: int) -> RecordBytes:
    """Build a metadata record: the rows of one step of the journal, in the order in which they apply."""
    parts = [METADATA_PREFIX.pack(synced.pack, 0, synced.offset)]
    for table, key, value in rows:
        if value is None:
            parts += (ROW.pack(table, _ROW_DELETED, len(key), 0), key)
        else:
            parts += (ROW.pack(table, 0, len(key), len(value)), key, value)
    raw = b"".join(parts)
    encoding, payload = Encoding.RAW, raw
    if len(raw) > _METADATA_RAW_MAX:
        encoding, payload = Encoding.ZSTD, zstandard.ZstdCompressor(level=1).compress(raw)
    return build(RecordType.METADATA, sequence, xxhash.xxh3_128_digest(raw, seed), len(raw), encoding, payload)


def parse_metadata(record: Record, seed: int) -> Journal:
    """Return the content of a metadata record; DamagedError says what does not hold."""
    raw = _metadata_raw(record)
    if xxhash.xxh3_128_digest(raw, seed) != record.header.id:
        raise DamagedError("the metadata is not what was written")
    try:
        pack, _reserved, offset = METADATA_PREFIX.unpack_from(raw)
        rows = []
        at = METADATA_PREFIX.size
        while at < len(raw):
            table, flags, key_size, value_size = ROW.unpack_from(raw, at)
            at += ROW.size
            value_at = at + key_size
            end = value_at + value_size
            if end > len(raw):
                raise DamagedError("a metadata row ends behind its record")
            rows.append(Row(table, raw[at:value_at], None if flags & _ROW_DELETED else raw[value_at:end]))
            at = end
    except struct.error as error:
        raise DamagedError("a metadata row ends behind its record") from error
    return Journal(Position(pack, offset), rows)


def _metadata_raw(record: Record) -> bytes:
    """Decode the payload of a metadata record to exactly the size that its header says."""
    header, payload = record.header, record.payload
    if header.encoding == Encoding.RAW:
        raw = bytes(payload)
    elif header.encoding == Encoding.ZSTD:
        try:
            if zstandard.frame_content_size(payload) != header.raw_size:
                raise DamagedError("the metadata has another size than its header says")
            raw = zstandard.ZstdDecompressor().decompress(payload, max_output_size=header.raw_size)
        except zstandard.ZstdError as error:
            raise DamagedError(f"the metadata cannot be decompressed: {error}") from error
    else:
        raise DamagedError(f"metadata in the encoding {header.encoding}, which it cannot have")
    if len(raw) != header.raw_size:
        raise DamagedError("the metadata has another size than its header says")
    return raw
