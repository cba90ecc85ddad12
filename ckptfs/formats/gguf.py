"""The layout of a GGUF file: metadata, a table of tensors, then their bytes, aligned.

Source: docs/gguf.md of ggml, versions 2 and 3, little-endian. Metadata is skipped but for the alignment.
"""

import math
from collections.abc import Generator
from dataclasses import replace

from ckptfs.config import MIB
from ckptfs.formats.layout import Cursor, MalformedError, Request, Tensor, Walk, checked_shape, dense

MAGIC = b"GGUF"
_HEADER_SIZE_MAX = 32 * MIB
"""Vocabularies are in the header; they are passed and not held."""
_COUNT_MAX = 1 << 17
_NAME_SIZE_MAX = 1 << 16
_DIMENSIONS_MAX = 8
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = b"general.alignment"

_STRING, _ARRAY, _UINT32 = 8, 9, 4
_VALUE_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

_NUMBERS = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
_QUANTISED = {
    2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
}  # fmt: skip
"""Of the types that pack several numbers together: the name, how many, and into how many bytes."""


def walk_gguf() -> Walk:
    """Yield the tensors in the order of their offsets."""
    cursor = Cursor(len(MAGIC), _HEADER_SIZE_MAX)
    if (yield from cursor.integer(4)) not in (2, 3):
        raise MalformedError("another version of GGUF")
    tensor_count = yield from cursor.integer(8)
    value_count = yield from cursor.integer(8)
    if tensor_count > _COUNT_MAX or value_count > _COUNT_MAX:
        raise MalformedError("too many of something")
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(value_count):
        key = yield from _string(cursor)
        kind = yield from cursor.integer(4)
        if key == _ALIGNMENT_KEY and kind == _UINT32:
            alignment = yield from cursor.integer(4)
        else:
            yield from _skip_value(cursor, kind)
    if alignment == 0:
        raise MalformedError("no alignment")
    tensors = []
    for _ in range(tensor_count):
        tensors.append((yield from _tensor(cursor)))
    data_offset = -(-cursor.offset // alignment) * alignment
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        yield replace(tensor, offset=data_offset + tensor.offset)


def _string(cursor: Cursor) -> Generator[Request, bytes, bytes]:
    size = yield from cursor.integer(8)
    if size > _NAME_SIZE_MAX:
        raise MalformedError("a name is too long")
    return (yield from cursor.take(size))


def _skip_value(cursor: Cursor, kind: int) -> Generator[Request, bytes, None]:
    count = 1
    if kind == _ARRAY:
        kind = yield from cursor.integer(4)
        count = yield from cursor.integer(8)
    if kind == _STRING:
        for _ in range(count):
            size = yield from cursor.integer(8)
            cursor.offset += size
    elif kind in _VALUE_SIZES:
        cursor.offset += count * _VALUE_SIZES[kind]
    else:
        raise MalformedError("a value of no known type")


def _tensor(cursor: Cursor) -> Generator[Request, bytes, Tensor]:
    """Return the next entry of the table; its offset counts from where the tensors' bytes begin."""
    name = (yield from _string(cursor)).decode("utf-8", "replace")
    dimension_count = yield from cursor.integer(4)
    if dimension_count > _DIMENSIONS_MAX:
        raise MalformedError("too many dimensions")
    lengths = []
    for _ in range(dimension_count):
        lengths.append((yield from cursor.integer(8)))
    shape = checked_shape(lengths[::-1])  # written with the fastest dimension first
    kind = yield from cursor.integer(4)
    offset = yield from cursor.integer(8)
    if kind in _NUMBERS:
        return dense(name, offset, shape, _NUMBERS[kind])
    if kind not in _QUANTISED:
        raise MalformedError("a tensor of no known type")
    dtype, group_count, group_size = _QUANTISED[kind]
    return Tensor(name, offset, math.prod(shape) // group_count * group_size, 0, shape, dtype)
