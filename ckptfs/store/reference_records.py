"""The definition of records around chunks, in plain Python: built for many chunks at once, and taken apart again.

Owns what raw_records.c and stored_chunks.c have to return bit for bit, which tests/unit/test_kernels.py holds;
docs/format.md has the layouts. It is also what runs, slowly, where the C extension was not built. Pure functions
without state: any thread may call them.
"""

import struct
from contextlib import suppress
from functools import cache
from mmap import mmap
from typing import NamedTuple

import xxhash

from ckptfs.config import BASES_MAX
from ckptfs.store.reference import Buffer, join_planes
from ckptfs.store.reference_coders import decode_bytes
from ckptfs.store.reference_differences import decode_difference

ID_SIZE = 16
SPAN = struct.Struct("<QQ")
PLACE = struct.Struct("<QQQ")
LINK = struct.Struct("<QQQIIBBH")
BASE = struct.Struct("<Q")
LOCATION = struct.Struct("<IQIIHBB")
NO_PLACE = (1 << 64) - 1
ALIGNMENT = 8
HEADER = struct.Struct("<4sBBHIIQ16s4s")
HEADER_SIZE = HEADER.size + 4
CHUNK = 2
RAW, PLANES, DELTA, WAITING = 0, 2, 3, 4
DELTA_HEAD = struct.Struct("<BBI")
PLANE_RAW, PLANE_CODED = 0, 2
PLANE_ENTRY = struct.Struct("<BI")


def _check(data: bytes) -> bytes:
    """Return the low 32 bits of XXH3-64, as they lie on the disk."""
    return xxhash.xxh3_64_digest(data)[:-5:-1]


def raw_records(out: memoryview, encoding: int, data: Buffer, spans: Buffer, ids: Buffer, number: int) -> None:
    """Build the records of chunks that are stored as they are; see `kernels.raw_records`."""
    flat, packed_ids = bytes(data), bytes(ids)
    chunks = [*SPAN.iter_unpack(spans)] if len(spans) % SPAN.size == 0 else []
    fits = len(spans) == SPAN.size * len(chunks) and len(packed_ids) == ID_SIZE * len(chunks)
    built = b""
    for index, (start, size) in enumerate(chunks):
        fits = fits and start + size <= len(flat) and not size >> 32
        if not fits:
            break
        payload = flat[start : start + size]
        chunk_id = packed_ids[ID_SIZE * index : ID_SIZE * (index + 1)]
        header = HEADER.pack(b"ckR1", CHUNK, encoding, 0, size, size, number + index, chunk_id, _check(payload))
        record = header + _check(header) + payload
        built += record + bytes(-len(record) % ALIGNMENT)
    if not fits or len(built) != len(out):
        raise ValueError("need chunks inside the data, an id for each, and room for just their records")
    out[:] = built


def take_chunks(data: Buffer, places: Buffer, out: bytearray | memoryview, seed: int) -> bytes:
    """Take chunks out of their records; see `kernels.take_chunks`."""
    wanted = [*PLACE.iter_unpack(places)] if len(places) % PLACE.size == 0 else []
    sizes = [size for _, _, size in wanted]
    if len(places) != PLACE.size * len(wanted) or sum(sizes) != len(out) or max(sizes, default=0) >> 32:
        raise ValueError("need places, and room for just their chunks")
    flat, taken, at = memoryview(data).cast("B"), bytearray(), 0
    for start, number, size in wanted:
        raw = _chunk(bytes(flat[start:]), number, size, seed)
        if raw is not None:
            out[at : at + size] = raw
        taken.append(raw is not None)
        at += size
    return bytes(taken)


def _chunk(record: bytes, number: int, size: int, seed: int) -> bytes | None:
    """Return a chunk if its record holds it, raw or in planes that are raw or coded, and it has its id."""
    chunk_id = _id_in(record[:HEADER_SIZE], number, size)
    if chunk_id is None:
        return None
    _, _, encoding, base_count, _, stored_size, _, _, _ = HEADER.unpack_from(record)
    payload = record[HEADER_SIZE : HEADER_SIZE + stored_size]
    raw = _decoded(encoding, payload, size) if not base_count and len(payload) == stored_size else None
    return raw if raw is not None and xxhash.xxh3_128_digest(raw, seed) == chunk_id else None


def scan_chunks(
    data: Buffer, size_most: int, pack: int, offset: int
) -> tuple[int, list[int], list[bytes], list[bytes]]:
    """Take the run of records of chunks at the start of `data` apart; see `kernels.scan_chunks`."""
    flat = bytes(data)
    numbers: list[int] = []
    ids: list[bytes] = []
    locations: list[bytes] = []
    at = 0
    while _is_whole(header := flat[at : at + HEADER_SIZE]):
        magic, kind, encoding, base_count, raw_size, stored_size, number, chunk_id, check = HEADER.unpack_from(header)
        body_size = BASE.size * base_count + stored_size
        end = at + HEADER_SIZE + body_size + -body_size % ALIGNMENT
        body = flat[at + HEADER_SIZE : at + HEADER_SIZE + body_size]
        is_chunk = (magic, kind) == (b"ckR1", CHUNK) and max(raw_size, stored_size) <= size_most
        is_chunk = is_chunk and base_count <= BASES_MAX
        if not is_chunk or end > len(flat) or _check(body) != check:
            break
        numbers.append(number)
        ids.append(chunk_id)
        fixed = LOCATION.pack(pack, offset + at, stored_size, raw_size, base_count, encoding, 0)
        locations.append(fixed + body[: BASE.size * base_count])
        at = end
    return at, numbers, ids, locations


class _Link(NamedTuple):
    """A chunk of a chain, its fields as in LINK."""

    payload: int
    number: int
    place: int
    stored_size: int
    raw_size: int
    level: int
    encoding: int
    base_count: int


def take_chains(
    data: Buffer, links: Buffer, bases: Buffer, out: bytearray | mmap | memoryview, work: memoryview, seed: int
) -> bytes:
    """Take deltas out of their records, and what they rest on; see `kernels.take_chains`. Needs no `work`."""
    flat = bytes(data)
    chunks = [_Link(*each) for each in LINK.iter_unpack(links)] if len(links) % LINK.size == 0 else []
    indexes = [index for (index,) in BASE.iter_unpack(bytes(bases)[: len(bases) // BASE.size * BASE.size])]
    fits = len(links) == LINK.size * len(chunks) and max(indexes, default=-1) < len(chunks)
    bases_of: list[list[int]] = []
    for link in chunks:
        bases_of.append(indexes[: link.base_count])
        indexes = indexes[link.base_count :]
        fits = fits and len(bases_of[-1]) == link.base_count and link.payload + link.stored_size <= len(flat)
        fits = fits and (link.place == NO_PLACE or link.place + link.raw_size <= len(out))
    if not fits:
        raise ValueError("need links whose payloads, bases and places are there")

    @cache
    def decoded(index: int) -> bytes | None:
        link = chunks[index]
        payload = flat[link.payload : link.payload + link.stored_size]
        if not bases_of[index]:
            return _decoded(link.encoding, payload, link.raw_size)
        parts = [decoded(base) if chunks[base].level > link.level else None for base in bases_of[index]]
        known = [part for part in parts if part is not None]
        if link.encoding != DELTA or len(known) < len(parts) or len(payload) < DELTA_HEAD.size:
            return None
        width, phase, skip = DELTA_HEAD.unpack_from(payload)
        base = b"".join(known)[skip : skip + link.raw_size]
        if len(base) < link.raw_size:
            return None
        with suppress(ValueError):
            return decode_difference(payload[DELTA_HEAD.size :], base, width, phase)
        return None

    taken = bytearray(len(chunks))
    for index, link in enumerate(chunks):
        record_start = link.payload - BASE.size * link.base_count - HEADER_SIZE
        if link.place == NO_PLACE or record_start < 0 or (raw := decoded(index)) is None:
            continue
        header = flat[record_start : record_start + HEADER_SIZE]
        if _id_in(header, link.number, link.raw_size) == xxhash.xxh3_128_digest(raw, seed):
            out[link.place : link.place + link.raw_size] = raw
            taken[index] = 1
    return bytes(taken)


def _is_whole(header: bytes) -> bool:
    """Tell whether the bytes of a header are all there, and what its check says."""
    return len(header) == HEADER_SIZE and _check(header[: HEADER.size]) == header[HEADER.size :]


def _id_in(header: bytes, number: int, size: int) -> bytes | None:
    """Return the id that a header says, if it is whole and that of the chunk."""
    if not _is_whole(header):
        return None
    magic, kind, _, _, raw_size, _, its_number, chunk_id, _ = HEADER.unpack_from(header)
    return chunk_id if (magic, kind, raw_size, its_number) == (b"ckR1", CHUNK, size, number) else None


def _decoded(encoding: int, payload: bytes, size: int) -> bytes | None:
    """Return the bytes of a payload that is raw or in planes that are raw or coded."""
    if encoding == PLANES:
        return _joined(payload, size)
    return payload if encoding in (RAW, WAITING) and len(payload) == size else None


def _joined(payload: bytes, size: int) -> bytes | None:
    """Return the elements of planes that are raw or coded, and what lies around them."""
    width, phase, turned = (payload[0] & 15, payload[0] >> 4 & 7, bool(payload[0] >> 7)) if payload else (0, 0, False)
    at = 1 + PLANE_ENTRY.size * width
    if width not in (2, 4, 8) or phase >= width or phase > size or len(payload) < at:
        return None
    count, tail_size = divmod(size - phase, width)
    planes = []
    for kind, body_size in PLANE_ENTRY.iter_unpack(payload[1:at]):
        body, at = payload[at : at + body_size], at + body_size
        if kind == PLANE_CODED and count and len(body) == body_size:
            with suppress(ValueError):
                planes.append(decode_bytes(body, count))
        elif kind == PLANE_RAW and body_size == count == len(body):
            planes.append(body)
    if len(planes) != width or len(payload) != at + tail_size + phase:
        return None
    return payload[at + tail_size :] + join_planes(b"".join(planes), width, turned) + payload[at : at + tail_size]
