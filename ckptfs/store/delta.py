"""The delta payload: a chunk as what it differs in from bytes of its bases.

Owns the layout (docs/format.md, "Delta"). What the bases are, and that chains of them end, is the caller's business.
Pure; any number of threads may call.
"""

import struct
from typing import NamedTuple

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store.kernels import decode_difference, encode_difference

DELTA_CHAIN_MAX = 8
"""So many deltas, one resting on the other, are decoded at most to read a chunk."""

BASES_SIZE_MAX = 4 * MIB
"""All bytes of a delta's bases together: what a reader takes into memory for one of them."""

DELTA_HEAD = struct.Struct("<BBI")


class Alignment(NamedTuple):
    """How a chunk lies over its bases.

    The chunk is compared with as many bytes of the bases, taken as one behind the other, from `skip` on. Its elements
    have `width` bytes (1, 2, 4 or 8); the first whole one begins at `phase`, below `width`.
    """

    skip: int
    width: int
    phase: int


def encode_delta(data: bytes | memoryview, base: bytes | memoryview, alignment: Alignment) -> bytes:
    """Return the payload of a chunk; `base` is all bytes of its bases. ValueError when they do not cover the chunk."""
    compared = memoryview(base)[alignment.skip : alignment.skip + len(data)]
    head = DELTA_HEAD.pack(alignment.width, alignment.phase, alignment.skip)
    return head + encode_difference(data, compared, alignment.width, alignment.phase)


def decode_delta(payload: memoryview, base: bytes | memoryview, raw_size: int) -> bytes:
    """Undo `encode_delta`; DamagedError when the payload is no delta of `raw_size` bytes against such a base."""
    if len(payload) < DELTA_HEAD.size:
        raise DamagedError("delta payload that ends in its head")
    width, phase, skip = DELTA_HEAD.unpack_from(payload)
    if raw_size < 0 or skip + raw_size > len(base):
        raise DamagedError(f"delta of {raw_size} bytes, from {skip} on, against {len(base)} bytes of its bases")
    try:
        return decode_difference(payload[DELTA_HEAD.size :], memoryview(base)[skip : skip + raw_size], width, phase)
    except ValueError as error:
        raise DamagedError(f"delta that cannot be read: {error}") from error
