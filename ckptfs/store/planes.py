"""The planes payload: a chunk of floats or integers as its byte planes, each stored the way that suits it.

Owns the layout (docs/format.md, "Planes") and the choice for each plane. Pure; any number of threads may call.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import frames
from ckptfs.store.kernels import decode_bytes, encode_bytes, join_planes, split_planes

WIDTHS = (2, 4, 8)

RATIO_WORTH = 0.97
"""A plane (or a chunk's payload) larger than this part of its raw size is stored raw: reading it then costs nothing."""

_WIDTH_MASK = 0x0F
_PHASE_SHIFT, _PHASE_MASK = 4, 0x07
_TURNED_SHIFT = 7
PLANES_HEAD = struct.Struct("<B")
PLANES_ENTRY = struct.Struct("<BI")


class PlaneKind(IntEnum):
    """How one plane is stored; the numbers are on the disk."""

    RAW = 0
    ZSTD = 1
    CODED = 2


class Shape(NamedTuple):
    """What the elements of a chunk are taken for.

    They have `width` bytes, and the first whole one begins at `phase`, below `width`. `turned` ones are rotated left by
    a bit before they are split, which brings the exponent of a float into one byte; the phase counts only for these.
    """

    width: int
    phase: int = 0
    turned: bool = False


def encode_planes(view: memoryview, sample: bytes, shape: Shape, plane_ratios: list[float]) -> bytes:
    """Return the payload of a chunk.

    `plane_ratios`, one for each byte of an element, is what entropy coding promises to make of each plane, and
    `sample`, some of the chunk's bytes from the phase of an element on, says where matches do better.
    """
    width, phase, turned = shape
    count = (len(view) - phase) // width
    planes = memoryview(split_planes(view[phase:], width, turned))
    sample_count = len(sample) // width
    sample_planes = memoryview(split_planes(sample, width, turned))
    table = [PLANES_HEAD.pack(width | phase << _PHASE_SHIFT | turned << _TURNED_SHIFT)]
    bodies: list[bytes | memoryview] = []
    for index, ratio in enumerate(plane_ratios):
        kind, body = PlaneKind.RAW, planes[index * count : (index + 1) * count]
        if ratio < RATIO_WORTH:
            # Where matches do better on the sample than entropy coding ever can, the plane has a structure.
            sample_plane = sample_planes[index * sample_count : (index + 1) * sample_count]
            if len(frames.compress_matches(sample_plane)) < sample_count * ratio:
                smaller, smaller_kind = frames.compress_matches(body), PlaneKind.ZSTD
            else:
                smaller, smaller_kind = encode_bytes(body), PlaneKind.CODED
            if len(smaller) <= count * RATIO_WORTH:
                kind, body = smaller_kind, memoryview(smaller)
        table.append(PLANES_ENTRY.pack(kind, len(body)))
        bodies.append(body)
    return b"".join([*table, *bodies, planes[count * width :], view[:phase]])


def decode_planes(payload: memoryview, raw_size: int) -> bytes:
    """Undo `encode_planes`; DamagedError when the payload is none of `raw_size` bytes."""
    shape = _shape(payload[0]) if len(payload) >= PLANES_HEAD.size else None
    if shape is None or raw_size < shape.phase:
        raise DamagedError(f"planes payload without the shape of elements in {raw_size} bytes")
    width, phase, turned = shape
    body_start = PLANES_HEAD.size + width * PLANES_ENTRY.size
    if len(payload) < body_start:
        raise DamagedError("planes payload that ends in its table")
    entries = list(PLANES_ENTRY.iter_unpack(payload[PLANES_HEAD.size : body_start]))
    count, tail_size = divmod(raw_size - phase, width)
    if len(payload) != body_start + sum(size for _, size in entries) + tail_size + phase:
        raise DamagedError(f"planes payload of {len(payload)} bytes, which is not what its table says")
    planes: list[bytes | memoryview] = []
    for kind, size in entries:
        body = payload[body_start : body_start + size]
        body_start += size
        planes.append(_decode_plane(kind, body, count))
    planes.append(payload[body_start : body_start + tail_size])
    joined = join_planes(b"".join(planes), width, turned)
    return bytes(payload[body_start + tail_size :]) + joined if phase else joined


def has_zstd(payload: memoryview) -> bool:
    """Tell whether one of the planes of a payload is compressed with zstd."""
    entries = payload[PLANES_HEAD.size : PLANES_HEAD.size + (payload[0] & _WIDTH_MASK) * PLANES_ENTRY.size]
    return PlaneKind.ZSTD in entries[:: PLANES_ENTRY.size] if payload else False


def _shape(packed: int) -> Shape | None:
    """Return the shape that the first byte of a payload says, None where there is no such one."""
    width, phase = packed & _WIDTH_MASK, packed >> _PHASE_SHIFT & _PHASE_MASK
    return Shape(width, phase, bool(packed >> _TURNED_SHIFT)) if width in WIDTHS and phase < width else None


def _decode_plane(kind: int, body: memoryview, count: int) -> bytes | memoryview:
    """Return the `count` bytes of one plane."""
    if kind == PlaneKind.RAW and len(body) == count:
        return body
    if kind == PlaneKind.ZSTD:
        return frames.decompress(body, count)
    if kind == PlaneKind.CODED:
        try:
            return decode_bytes(body, count)
        except ValueError as error:
            raise DamagedError(f"plane of {len(body)} bytes for {count} elements: {error}") from error
    raise DamagedError(f"plane of kind {kind} and {len(body)} bytes for {count} elements")
