"""The planes payload: a chunk of floats or integers as its byte planes, each stored the way that suits it.

Owns the layout (docs/format.md, "Planes") and the choice for each plane. Pure; any number of threads may call.
"""

import struct
from enum import IntEnum

from ckptfs.errors import DamagedError
from ckptfs.store import frames
from ckptfs.store.kernels import decode_runs, encode_runs, join_planes, split_planes

WIDTHS = (2, 4, 8)

RATIO_WORTH = 0.97
"""A plane (or a chunk's payload) larger than this part of its raw size is stored raw: reading it then costs nothing."""

RATIO_HUFFMAN = 0.25
"""From 2 bits a byte on zstd's Huffman codes lose little, and are read 3 times as fast as runs."""

PLANES_HEAD = struct.Struct("<B")
PLANES_ENTRY = struct.Struct("<BI")


class PlaneKind(IntEnum):
    """How one plane is stored; the numbers are on the disk."""

    RAW = 0
    ZSTD = 1
    RUNS = 2


def encode_planes(view: memoryview, sample: bytes, plane_ratios: list[float]) -> bytes:
    """Return the payload of a chunk.

    `plane_ratios`, one for each byte of an element, is what entropy coding promises to make of each plane, and
    `sample`, whole elements of the chunk, says where matches do better.
    """
    width = len(plane_ratios)
    count = len(view) // width
    planes = memoryview(split_planes(view, width))
    sample_count = len(sample) // width
    sample_planes = memoryview(split_planes(sample, width))
    table = [PLANES_HEAD.pack(width)]
    bodies: list[bytes | memoryview] = []
    for index, ratio in enumerate(plane_ratios):
        kind, body = PlaneKind.RAW, planes[index * count : (index + 1) * count]
        if ratio < RATIO_WORTH:
            # Where matches do better on the sample than entropy coding ever can, the plane has a structure.
            sample_plane = sample_planes[index * sample_count : (index + 1) * sample_count]
            if len(frames.compress_matches(sample_plane)) < sample_count * ratio:
                smaller, smaller_kind = frames.compress_matches(body), PlaneKind.ZSTD
            elif ratio >= RATIO_HUFFMAN:
                smaller, smaller_kind = frames.compress_entropy(body), PlaneKind.ZSTD
            else:
                smaller, smaller_kind = encode_runs(body), PlaneKind.RUNS
            if len(smaller) <= count * RATIO_WORTH:
                kind, body = smaller_kind, memoryview(smaller)
        table.append(PLANES_ENTRY.pack(kind, len(body)))
        bodies.append(body)
    return b"".join([*table, *bodies, planes[count * width :]])


def decode_planes(payload: memoryview, raw_size: int) -> bytes:
    """Undo `encode_planes`; DamagedError when the payload is none of `raw_size` bytes."""
    if len(payload) < PLANES_HEAD.size or payload[0] not in WIDTHS:
        raise DamagedError("planes payload without a width")
    width = payload[0]
    body_start = PLANES_HEAD.size + width * PLANES_ENTRY.size
    if len(payload) < body_start:
        raise DamagedError("planes payload that ends in its table")
    entries = list(PLANES_ENTRY.iter_unpack(payload[PLANES_HEAD.size : body_start]))
    count, tail_size = divmod(raw_size, width)
    if len(payload) != body_start + sum(size for _, size in entries) + tail_size:
        raise DamagedError(f"planes payload of {len(payload)} bytes, which is not what its table says")
    planes: list[bytes | memoryview] = []
    for kind, size in entries:
        body = payload[body_start : body_start + size]
        body_start += size
        planes.append(_decode_plane(kind, body, count))
    planes.append(payload[body_start:])
    return join_planes(b"".join(planes), width)


def _decode_plane(kind: int, body: memoryview, count: int) -> bytes | memoryview:
    """Return the `count` bytes of one plane."""
    if kind == PlaneKind.RAW and len(body) == count:
        return body
    if kind == PlaneKind.ZSTD:
        return frames.decompress(body, count)
    if kind == PlaneKind.RUNS:
        try:
            return decode_runs(body, count)
        except ValueError as error:
            raise DamagedError(f"plane of {len(body)} bytes for {count} elements: {error}") from error
    raise DamagedError(f"plane of kind {kind} and {len(body)} bytes for {count} elements")
