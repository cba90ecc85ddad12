"""Extents and manifests: which chunks, and which holes, make up a file.

An extent is the first `length` bytes of a chunk, or a hole of `length` zero bytes that costs no chunk. A manifest
is the stored list of a file version's extents, in parts keyed by the offset where each part begins.
"""

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import gt, sub
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import Table, Tables
from ckptfs.tree.rows import id_prefix

HOLE_BIT = 1 << 63
PART_EXTENTS = 1360
"""Extents per manifest part: 12 bytes each fill four LMDB pages."""

_PART_KEY = struct.Struct(">QQ")


class Extent(NamedTuple):
    """`length` bytes at `offset` of the file: the start of the chunk `number`, or a hole where `number` is 0."""

    offset: int
    number: int
    length: int


class Extents:
    """The extents of one file, in order and without gaps from 0 to `size`; positions are found by bisection."""

    __slots__ = ("_ends", "_numbers")

    def __init__(self) -> None:
        self._ends = array("Q")
        self._numbers = array("Q")

    @property
    def size(self) -> int:
        """The number of bytes that the extents cover."""
        return self._ends[-1] if self._ends else 0

    @property
    def allocated(self) -> int:
        """The number of bytes that are not holes."""
        if 0 not in self._numbers:
            return self.size
        return sum(self[index].length for index, number in enumerate(self._numbers) if number)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Extent:
        offset = self._ends[index - 1] if index else 0
        return Extent(offset, self._numbers[index], self._ends[index] - offset)

    @property
    def numbers(self) -> Sequence[int]:
        """The chunk numbers in order; 0 for a hole."""
        return self._numbers

    @property
    def packed_numbers(self) -> bytes:
        """The chunk numbers as little-endian u64; 0 for a hole."""
        return _little_endian(self._numbers).tobytes()

    def append(self, number: int, length: int) -> None:
        """Add the first `length` bytes of a chunk (0: a hole, which joins a hole before it)."""
        if number == 0 and self._numbers and self._numbers[-1] == 0:
            self._ends[-1] += length
        elif length:
            self._ends.append(self.size + length)
            self._numbers.append(number)

    def extend(self, other: "Extents", start: int, stop: int) -> None:
        """Add the extents `start` to `stop` (not included) of another list."""
        if start >= stop:
            return
        shift = self.size - other[start].offset
        ends = other._ends[start:stop]
        self._ends.extend(ends if shift == 0 else array("Q", [end + shift for end in ends]))
        self._numbers.extend(other._numbers[start:stop])

    def pop(self) -> Extent:
        """Remove and return the last extent."""
        last = self[len(self) - 1]
        self._ends.pop()
        self._numbers.pop()
        return last

    def truncate(self, size: int) -> None:
        """Drop what lies behind `size`; an extent that crosses it keeps its first bytes."""
        if size >= self.size:
            return
        index = self.index_at(size)
        keep = size - (self._ends[index - 1] if index else 0)
        number = self._numbers[index]
        del self._ends[index:], self._numbers[index:]
        if keep:
            self.append(number, keep)

    def index_at(self, offset: int) -> int:
        """Return the index of the extent that holds `offset`, or the count where it lies behind them all."""
        return bisect_right(self._ends, offset)

    def between(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the extents that overlap [start, stop), whole."""
        for index in range(self.index_at(start), len(self)):
            extent = self[index]
            if extent.offset >= stop:
                return
            yield extent

    def count_between(self, start: int, stop: int) -> int:
        """Return how many extents overlap [start, stop), which is not empty."""
        return min(self.index_at(stop - 1) + 1, len(self)) - self.index_at(start)

    def part(self, start: int, stop: int) -> tuple["Extents", int]:
        """Return a copy of the extents that overlap [start, stop), and how far behind its beginning `start` is."""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop) + 1
        begin = self._ends[first - 1] if first else 0
        part = Extents()
        part._ends.extend([end - begin for end in self._ends[first:last]])
        part._numbers = self._numbers[first:last]
        return part, start - begin

    def overruns(self, raw_sizes: Sequence[int]) -> Iterator[Extent]:
        """Yield the extents that are longer than their chunk; `raw_sizes` has each chunk's size by its number."""
        lengths = map(sub, self._ends, chain((0,), self._ends))
        try:
            if not any(map(gt, lengths, map(raw_sizes.__getitem__, self._numbers))):
                return  # the usual case, at the speed of C
        except IndexError:
            pass
        for extent in self.between(0, self.size):
            if extent.number and (extent.number >= len(raw_sizes) or extent.length > raw_sizes[extent.number]):
                yield extent

    def using(self, numbers: Container[int]) -> Iterator[Extent]:
        """Yield the extents that lie in some chunks."""
        for index, number in enumerate(self._numbers):
            if number in numbers:
                yield self[index]

    def encode_part(self, start: int, stop: int) -> bytes:
        """Return the extents `start` to `stop` (not included) as bytes: their numbers, then their lengths."""
        ends = self._ends[start:stop]
        starts = [self[start].offset, *ends[:-1]]
        lengths = [end - offset for offset, end in zip(starts, ends, strict=True)]
        numbers = self._numbers[start:stop]
        if 0 in numbers:
            pairs = [
                (number, length) if number else (HOLE_BIT | length, 0)
                for number, length in zip(numbers, lengths, strict=True)
            ]
            numbers, lengths = array("Q", [number for number, _ in pairs]), [length for _, length in pairs]
        return _little_endian(numbers).tobytes() + _little_endian(array("I", lengths)).tobytes()

    def append_part(self, value: bytes) -> None:
        """Add the extents of a part that `encode_part` made."""
        count = len(value) // 12
        numbers, lengths = array("Q"), array("I")
        numbers.frombytes(value[: 8 * count])
        lengths.frombytes(value[8 * count :])
        numbers, lengths = _little_endian(numbers), _little_endian(lengths)
        if max(numbers) < HOLE_BIT:
            ends = accumulate(lengths, initial=self.size)
            next(ends)
            self._ends.extend(ends)
            self._numbers.extend(numbers)
            return
        for number, length in zip(numbers, lengths, strict=True):
            if number & HOLE_BIT:
                self.append(0, number ^ HOLE_BIT)
            else:
                self.append(number, length)


def store_manifest(tables: Tables, manifest: int, extents: Extents) -> None:
    """Write the parts of a manifest."""
    for start in range(0, len(extents), PART_EXTENTS):
        key = _PART_KEY.pack(manifest, extents[start].offset)
        tables.put(Table.MANIFESTS, key, extents.encode_part(start, min(start + PART_EXTENTS, len(extents))))


def load_manifest(tables: Tables, manifest: int, size: int) -> Extents:
    """Return the extents of a stored manifest; DamagedError where its parts do not add up to `size` bytes."""
    parts = tables.scan(Table.MANIFESTS, id_prefix(manifest), id_prefix(manifest + 1)) if manifest else ()
    extents = join_parts(manifest, parts)
    if extents.size != size:
        raise DamagedError(f"manifest {manifest} covers {extents.size} of {size} bytes")
    return extents


def has_manifest(tables: Tables, manifest: int) -> bool:
    """Tell whether a manifest is stored."""
    return any(True for _ in tables.scan(Table.MANIFESTS, id_prefix(manifest), id_prefix(manifest + 1)))


def part_numbers(value: bytes) -> memoryview:
    """Return the chunk numbers of a manifest part as little-endian u64; a hole has a number that no chunk has."""
    return memoryview(value)[: len(value) // 12 * 8]


def join_parts(manifest: int, parts: Iterable[tuple[bytes, bytes]]) -> Extents:
    """Return the extents in the rows of a manifest; DamagedError where one is malformed or missing."""
    extents = Extents()
    for key, value in parts:
        if not value or len(value) % 12 or len(key) != _PART_KEY.size or _PART_KEY.unpack(key)[1] != extents.size:
            raise DamagedError(f"manifest {manifest} has a malformed part behind offset {extents.size}")
        try:
            extents.append_part(value)
        except OverflowError as error:
            raise DamagedError(f"manifest {manifest} is longer than any file") from error
    return extents


def _little_endian(values: "array[int]") -> "array[int]":
    """Return the values in the byte order of the disk."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values
