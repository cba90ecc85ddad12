"""One pack: the name of its file, its descriptor, and its records read from front to back.

PackWindow tells intact records from everything else; what they mean, and what follows from a gap, is for others. Writes
nothing. A PackFile may be used from any thread, a PackWindow from one.
"""

import mmap
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self

from ckptfs.config import BASES_MAX, CHUNK_SIZE_MAX, KIB, MIB
from ckptfs.disk import NOT_DIRECT, Disk
from ckptfs.store import kernels, records
from ckptfs.store.location import Chunk, Location, build_location, parse_location
from ckptfs.store.records import Header, Place, Position, Record, RecordType

DIRECT_SIZE_MIN = 256 * KIB
"""What is smaller is read through the page cache, whose readahead then helps."""
READ_MARGIN = 2 * mmap.PAGESIZE
"""Room for what lies around a run of bytes in its first and its last page."""
_SCAN_WINDOW = 4 * MIB
_HEADERS_WINDOW = 16 * KIB
_SUFFIX = ".pack"
_PACK_NAME = re.compile(r"(?!0+\.)(0\d{7}|[1-9]\d{7,9})\.pack", re.ASCII)


def pack_name(pack: int) -> str:
    """Return the name of the file of a pack."""
    return f"{pack:08d}{_SUFFIX}"


def pack_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers of the packs among some names, ascending; others are left alone."""
    return sorted(int(name.removesuffix(_SUFFIX)) for name in names if _PACK_NAME.fullmatch(name))


PayloadWanted = Callable[[Position, Header], bool]
"""Tells of a header that holds whether its payload is to be read and verified."""


class Found(NamedTuple):
    """An intact record that a scan came by; `end` is the position behind it."""

    position: Position
    end: Position
    record: Record


class Run(NamedTuple):
    """Intact records of chunks, one behind the other from `position` to before `end`: what the index takes of each.

    A location is the row of the table `chunks`, as it is when nothing rests on the chunk yet.
    """

    position: Position
    end: Position
    numbers: list[int]
    ids: list[bytes]
    locations: list[bytes]

    @classmethod
    def of(cls, found: Found) -> Self:
        """Return the run of one record, that of a chunk."""
        header, bases, _ = found.record
        location = Location(*found.position, header.stored_size, header.raw_size, header.encoding, bases)
        return cls(found.position, found.end, [header.number], [header.id], [build_location(location)])

    def part(self, start: int, stop: int) -> Self:
        """Return the records from the index `start` to before `stop`, one at least."""
        if stop - start == len(self.numbers):
            return self
        first = parse_location(self.locations[start]).position
        end = parse_location(self.locations[stop]).position if stop < len(self.numbers) else self.end
        chosen = slice(start, stop)
        return type(self)(first, end, self.numbers[chosen], self.ids[chosen], self.locations[chosen])

    def count_until(self, position: Position) -> int:
        """Return how many of the records, which are the first ones, end at a position or before it."""
        if self.end <= position:
            return len(self.numbers)
        starts = bisect_right(self.locations, position, key=lambda packed: parse_location(packed).position)
        return max(starts - 1, 0)

    def chunk(self, index: int) -> Chunk:
        """Return the chunk of a record."""
        return Chunk(self.numbers[index], self.ids[index], parse_location(self.locations[index]))


class Gap(NamedTuple):
    """A place where a scan found no intact record, although the pack goes on or a later one exists.

    `header` is that of a record of which only the payload is damaged.
    """

    position: Position
    reason: str
    header: Header | None = None


class Skipped(NamedTuple):
    """A freed place that a scan went around from `position` on, because no intact record was there."""

    position: Position
    place: Place


class PackFile:
    """An open pack. Its last user closes it by letting go, so that a reader never meets a closed descriptor.

    `direct_fd` goes past the page cache: None where nobody asked for it, or where the disk below cannot.
    """

    __slots__ = ("_disk", "_owned", "direct_fd", "fd", "path")

    def __init__(self, disk: Disk, path: Path, fd: int, *, direct_mode: int | None = None) -> None:
        """Take over `fd`; `direct_mode` (O_RDONLY, O_WRONLY) asks for a `direct_fd`."""
        self._disk = disk
        self._owned = [fd]
        self.path = path
        self.fd = fd
        self.direct_fd = None if direct_mode is None else disk.open_direct(path, direct_mode)
        if self.direct_fd is not None:
            self._owned.append(self.direct_fd)

    def __del__(self) -> None:
        for fd in self._owned:
            self._disk.close(fd)

    def read(self, offset: int, size: int, buffer: memoryview) -> memoryview:
        """Return `size` bytes at `offset`, fewer at the end of the pack, as a part of `buffer`.

        That begins at a page and has READ_MARGIN bytes more. What is large is read past the page cache: it is copied
        on to where it is wanted, and whatever cache that has is enough.
        """
        if self.direct_fd is not None and size >= DIRECT_SIZE_MIN:
            before = offset % mmap.PAGESIZE
            pages = buffer[: before + size + -(before + size) % mmap.PAGESIZE]
            try:
                count = self._disk.pread_into(self.direct_fd, [pages], offset - before)
                return buffer[before : max(min(count, before + size), before)]
            except OSError as error:
                if error.errno not in NOT_DIRECT:
                    raise
                self.direct_fd = None
        return buffer[: self._disk.pread_into(self.fd, [buffer[:size]], offset)]


class PackWindow:
    """A pack read from front to back in large pieces, or in small ones where only some payloads are wanted."""

    def __init__(
        self,
        disk: Disk,
        file: PackFile,
        payload_wanted: PayloadWanted | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Read `file`; `on_read` is told of the bytes that are read, each time."""
        self.size = disk.size(file.fd)
        self._disk = disk
        self._file = file
        self._payload_wanted = payload_wanted
        self._on_read = on_read
        self._window = _SCAN_WINDOW if payload_wanted is None else _HEADERS_WINDOW
        self._data = memoryview(b"")
        self._start = 0

    def _at(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset`, fewer at the end of the pack."""
        if not (self._start <= offset and offset + size <= self._start + len(self._data)):
            wanted = min(max(size, self._window), self.size - offset)
            self._data = memoryview(self._disk.pread(self._file.fd, wanted, offset))
            self._start = offset
            if self._on_read is not None:
                self._on_read(len(self._data))
        return self._data[offset - self._start : offset - self._start + size]

    def header(self, offset: int) -> Header | None:
        """Return the header at an offset, or None where none is that holds."""
        return records.parse_header(self._at(offset, records.HEADER_SIZE)) if offset < self.size else None

    def record(self, position: Position) -> Record | Gap:
        """Return the record at a position of this pack, without a payload that is not wanted, or why there is none."""
        offset = position.offset
        header = records.parse_header(self._at(offset, records.HEADER_SIZE))
        if header is None:
            return Gap(position, "no record begins here")
        if offset + header.size > self.size:
            return Gap(position, "the record ends behind its pack", header)
        if header.type == RecordType.CHUNK:
            if max(header.stored_size, header.raw_size) > CHUNK_SIZE_MAX:
                return Gap(position, "a chunk larger than any can be")
            if header.base_count > BASES_MAX:
                return Gap(position, "a chunk that rests on more others than any does")
        if self._payload_wanted is not None and not self._payload_wanted(position, header):
            return Record(header, (), memoryview(b""))
        body_size = header.size - records.HEADER_SIZE
        record = records.parse_body(header, self._at(offset + records.HEADER_SIZE, body_size))
        return record if records.is_intact(record) else Gap(position, "the payload is not what was written", header)

    def run(self, position: Position) -> Run | None:
        """Return the records of chunks at a position, as far as they are at hand and intact; None where none is."""
        pack, offset = position
        self._at(offset, min(records.HEADER_SIZE, self.size - offset))
        at_hand = self._data[offset - self._start :]
        size, numbers, ids, locations = kernels.scan_chunks(at_hand, CHUNK_SIZE_MAX, pack, offset)
        return Run(position, Position(pack, offset + size), numbers, ids, locations) if size else None

    def next_magic(self, offset: int) -> int:
        """Return the next aligned offset whose header holds, or the size of the pack; holes are skipped."""
        while offset < self.size:
            data_at = self._disk.next_data(self._file.fd, offset)
            if data_at is None:
                break
            offset = max(offset, data_at - data_at % records.ALIGNMENT)
            piece = bytes(self._at(offset, min(_SCAN_WINDOW, self.size - offset)))
            found = piece.find(records.MAGIC)
            while found >= 0:
                at = offset + found
                if at % records.ALIGNMENT == 0 and records.parse_header(self._at(at, records.HEADER_SIZE)):
                    return at
                found = piece.find(records.MAGIC, found + 1)
            # The pieces begin aligned, and an aligned magic never straddles two of them.
            offset += len(piece) - len(piece) % records.ALIGNMENT or records.ALIGNMENT
        return self.size
