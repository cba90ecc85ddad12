"""Chunks by number, read from the packs and verified.

Fetcher follows a chunk to where it is, also when it is stored anew meanwhile and its old place is punched. Whatever it
returns has the length and the id that were stored. It caches nothing. Any thread may call.
"""

import threading
from collections.abc import Iterator, Sequence

import xxhash

from ckptfs.config import KIB, MIB
from ckptfs.errors import DamagedError
from ckptfs.store import codec
from ckptfs.store.index import ChunkIndex, Location
from ckptfs.store.packs import Packs
from ckptfs.store.records import Record

SPAN_SIZE_MAX = 4 * MIB
"""Records that lie close together are read in one call of up to this many bytes."""
SPAN_GAP_MAX = 64 * KIB
"""Bytes between two records that are read and thrown away rather than making two calls."""


class Fetcher:
    """Reads the chunks of one store."""

    def __init__(self, index: ChunkIndex, packs: Packs, seed: int) -> None:
        self._index = index
        self._packs = packs
        self._seed = seed
        self._local = threading.local()

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk; DamagedError names the place when they are not what was written."""
        return self.read_with_id(number)[0]

    def read_many(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the bytes of several chunks, with few reads where they lie one behind the other; as `read`."""
        located = [(number, location) for number in numbers if (location := self._index.locate(number)) is not None]
        found: dict[int, bytes] = {}
        for span in _spans(located):
            first, last = span[0][1], span[-1][1]
            size = last.position.offset + last.read_size - first.position.offset
            data = self._packs.read_span(first.position, self._buffer(size))
            for number, location in span:
                start = location.position.offset - first.position.offset
                try:
                    record = self._packs.parse_record(
                        location.position,
                        data[start : start + location.read_size],
                        location.stored_size,
                        location.base_count,
                    )
                    found[number] = self._verified(number, location, record)
                except DamagedError:
                    found[number] = self.read(number)  # it says what is wrong, unless the chunk has only moved
        return [found[number] if number in found else self.read(number) for number in numbers]

    def _buffer(self, size: int) -> memoryview:
        """Return memory of this thread's that is used again: memory touched for the first time costs more."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(max(size, SPAN_SIZE_MAX))
        return memoryview(buffer)[:size]

    def read_with_id(self, number: int) -> tuple[bytes, bytes]:
        """Return the bytes of a chunk and its id."""
        location = self._index.locate(number)
        while location is not None:
            try:
                return self._read_at(number, location)
            except DamagedError:
                # It may have been stored anew since the look-up, and the old place punched: look again.
                before, location = location, self._index.locate(number)
                if location == before:
                    raise
        raise DamagedError(f"chunk {number} is not in the index")

    def _read_at(self, number: int, location: Location) -> tuple[bytes, bytes]:
        record = self._packs.read_record(location.position, location.stored_size, location.base_count)
        return self._verified(number, location, record), record.header.id

    def _verified(self, number: int, location: Location, record: Record) -> bytes:
        """Return the bytes of a chunk's record if they are what was written."""
        header = record.header
        try:
            raw = codec.decode(header.encoding, record.payload, header.raw_size)
        except DamagedError as error:
            raise DamagedError(f"{self._packs.place(location.position)}: chunk {number}: {error}") from error
        if (
            header.number != number
            or len(raw) != location.raw_size
            or xxhash.xxh3_128_digest(raw, self._seed) != header.id
        ):
            raise DamagedError(f"{self._packs.place(location.position)}: chunk {number} is not what was written")
        return raw


def _spans(located: Sequence[tuple[int, Location]]) -> Iterator[list[tuple[int, Location]]]:
    """Yield runs of chunks whose records lie close behind one another in one pack."""
    span: list[tuple[int, Location]] = []
    for number, location in located:
        if span:
            begin, last = span[0][1].position, span[-1][1]
            gap = location.position.offset - (last.position.offset + last.read_size)
            size = location.position.offset + location.read_size - begin.offset
            if location.position.pack != begin.pack or not 0 <= gap <= SPAN_GAP_MAX or size > SPAN_SIZE_MAX:
                yield span
                span = []
        span.append((number, location))
    if span:
        yield span
