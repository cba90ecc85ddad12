"""The vocabulary of every parser: a tensor's place in a file, and the walk that finds it.

A parser is a *walk*: a generator that asks for bytes of the file by yielding requests, and yields tensors as it
finds them. It never reads by itself, so the same walk serves a finished file (`parse`) and one that is just being
written (`TensorCuts`). It knows nothing of the file's size: who drives it checks what comes out.
"""

import math
import zlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ckptfs.config import MIB

HEADER_SIZE_MAX = 8 * MIB
"""The longest header (JSON, pickle, one message) that is looked at, and so what a walk holds in memory at most."""
RANK_MAX = 64
LENGTH_MAX = 1 << 62
_NUMBER_SIZES = (1, 2, 4, 8)

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1,
    "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2, "uint32": 4,
    "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one item, by dtype: the names that every parser uses, whatever its format calls them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `size` bytes from `offset` of the file on.

    `element_width` is the size in bytes of one number (of a part, for complex ones), 0 where that is not known or not
    whole. `dtype` is a key of ITEM_SIZES (little-endian), a quantised GGUF type, or "" for any other.
    """

    name: str
    offset: int
    size: int
    element_width: int
    shape: tuple[int, ...]
    dtype: str


def add_fingerprint(fingerprint: int, tensor: Tensor) -> int:
    """Return the fingerprint (u32) of some tensors and one more; that of none is 0.

    Files of one fingerprint have tensors of the same names, shapes and types, in any order and anywhere in the file:
    probably so, and on purpose in a file made to deceive.
    """
    described = f"{tensor.name}\0{'x'.join(map(str, tensor.shape))}\0{tensor.element_width}\0{tensor.dtype}"
    return (fingerprint + zlib.crc32(described.encode("utf-8", "surrogatepass"))) & 0xFFFFFFFF


class MalformedError(Exception):
    """The file does not go on as its format says. Ends a walk; never leaves this package."""


class Request(NamedTuple):
    """Bytes that a walk asks for. The answer is shorter only where the file ends."""

    offset: int
    size: int


Walk = Generator[Request | Tensor, bytes, None]
"""A parser at work. One that can follow a file being written asks for nothing before the offset it asked for last."""


class Cursor:
    """A place in a file, moved by a walk that reads a header in order; asks for more at once than it needs."""

    READ_SIZE = 1 << 14

    def __init__(self, offset: int, stop: int) -> None:
        self.offset = offset
        self._stop = stop
        self._ahead = b""
        self._ahead_offset = offset

    def take(self, size: int) -> Generator[Request, bytes, bytes]:
        """Return the next `size` bytes; MalformedError behind `stop` and behind the end of the file."""
        start = self.offset - self._ahead_offset
        if start + size > len(self._ahead):
            if self.offset + size > self._stop:
                raise MalformedError("the header is too long")
            self._ahead = yield Request(self.offset, max(size, self.READ_SIZE))
            self._ahead_offset, start = self.offset, 0
            if size > len(self._ahead):
                raise MalformedError("the file ends within its header")
        self.offset += size
        return self._ahead[start : start + size]

    def integer(self, size: int) -> Generator[Request, bytes, int]:
        """Return the next unsigned little-endian integer of `size` bytes."""
        return int.from_bytes((yield from self.take(size)), "little")


def within(walk: Walk, offset: int, size: int) -> Walk:
    """Yield what a walk finds in a file that lies in another one, `size` bytes from `offset` on."""
    try:
        step = next(walk)
        while True:
            if isinstance(step, Tensor):
                yield replace(step, offset=offset + step.offset)
                step = next(walk)
            else:
                start = min(step.offset, size)
                step = walk.send((yield Request(offset + start, min(step.size, size - start))))
    except StopIteration:
        return


def take(offset: int, size: int) -> Generator[Request, bytes, bytes]:
    """Return exactly `size` bytes at `offset`; MalformedError where the file ends before."""
    if size > HEADER_SIZE_MAX:
        raise MalformedError("the header is too long")
    data = yield Request(offset, size)
    if len(data) < size:
        raise MalformedError("the file ends within its header")
    return data


def checked_shape(shape: object) -> tuple[int, ...]:
    """Return a shape as a tuple; MalformedError when no tensor has it."""
    if not isinstance(shape, list | tuple) or len(shape) > RANK_MAX:
        raise MalformedError("no shape")
    if not all(type(length) is int and 0 <= length < LENGTH_MAX for length in shape):
        raise MalformedError("no shape")
    return tuple(shape)


def dense(name: str, offset: int, shape: tuple[int, ...], dtype: str, item_size: int = 0) -> Tensor:
    """Return the tensor whose items lie one behind the other; `item_size` where the dtype does not tell it."""
    item_size = item_size or ITEM_SIZES[dtype]
    width = item_size // 2 if dtype.startswith("complex") else item_size
    return Tensor(name, offset, math.prod(shape) * item_size, width if width in _NUMBER_SIZES else 0, shape, dtype)
