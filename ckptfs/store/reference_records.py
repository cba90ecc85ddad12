"""The definition of records around chunks, in plain Python: built for many chunks at once, and taken apart again.

Owns what raw_records.c and stored_chunks.c have to return bit for bit, which tests/unit/test_kernels.py holds;
docs/format.md has the layouts. It is also what runs, slowly, where the C extension was not built. Pure functions
without state: any thread may call them.
"""

import struct
from contextlib import suppress

import xxhash

from ckptfs.store.reference import Buffer, join_planes
from ckptfs.store.reference_coders import decode_bytes

ID_SIZE = 16
SPAN = struct.Struct("<QQ")
PLACE = struct.Struct("<QQQ")
ALIGNMENT = 8
HEADER = struct.Struct("<4sBBHIIQ16s4s")
HEADER_SIZE = HEADER.size + 4
CHUNK = 2
RAW, PLANES, WAITING = 0, 2, 4
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
    if len(record) < HEADER_SIZE or _check(record[: HEADER.size]) != record[HEADER.size : HEADER_SIZE]:
        return None
    magic, kind, encoding, base_count, raw_size, stored_size, its_number, chunk_id, _ = HEADER.unpack_from(record)
    payload = record[HEADER_SIZE : HEADER_SIZE + stored_size]
    if (magic, kind, base_count, raw_size, its_number) != (b"ckR1", CHUNK, 0, size, number):
        return None
    raw = None
    if len(payload) == stored_size:
        if encoding == PLANES:
            raw = _joined(payload, size)
        elif encoding in (RAW, WAITING) and stored_size == size:
            raw = payload
    return raw if raw is not None and xxhash.xxh3_128_digest(raw, seed) == chunk_id else None


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
