"""Reading: decoded chunks, a byte-bounded cache of them, and the plan of one read.

A plan is made by the owner of the file (so that it sees one state of it) and may be carried out in any thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Condition

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore

CACHE_SIZE = 64 * MIB

Bytes = bytes | bytearray | memoryview


class ChunkReader:
    """Decoded chunks of a store, the recently used ones from memory. Thread-safe; no chunk is decoded twice at once."""

    def __init__(self, store: ChunkStore, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_size = 0
        self._cache_size = cache_size
        self._changed = Condition()
        self._under_way: set[int] = set()

    def cached(self, number: int) -> bool:
        """Whether a read of this chunk touches no disk."""
        return number in self._cache

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk; DamagedError where the store cannot vouch for them."""
        return self.read_many([number])[0]

    def read_many(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the bytes of several chunks; DamagedError as `read`."""
        found = self._find(numbers)
        while missing := [number for number in numbers if number not in found]:
            mine = self._claim(missing)
            if mine:
                try:
                    found.update(zip(mine, self._store.read_many(mine), strict=True))
                finally:
                    self._release(mine, found)
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._under_way.isdisjoint(missing))
            found.update(self._find(missing))
        return [found[number] for number in numbers]

    def _find(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return those of the chunks that are in memory, and mark them as used."""
        found = {}
        with self._changed:
            for number in numbers:
                if (data := self._cache.get(number)) is not None:
                    self._cache.move_to_end(number)
                    found[number] = data
        return found

    def _claim(self, numbers: Iterable[int]) -> list[int]:
        """Take on the decoding of those chunks that no other thread is at."""
        with self._changed:
            mine = [number for number in dict.fromkeys(numbers) if number not in self._under_way]
            self._under_way.update(mine)
            return mine

    def _release(self, mine: Iterable[int], found: dict[int, bytes]) -> None:
        """Put what was decoded into memory, and let those go on who wait for it."""
        with self._changed:
            self._under_way.difference_update(mine)
            for number in mine:
                if number in found and number not in self._cache:
                    self._cache[number] = found[number]
                    self._cached_size += len(found[number])
            while self._cached_size > self._cache_size:
                self._cached_size -= len(self._cache.popitem(last=False)[1])
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class ChunkSlice:
    """`length` bytes of a chunk from `start` on, which belong at `position` of the reply."""

    number: int
    start: int
    length: int
    position: int


@dataclass(slots=True)
class ReadPlan:
    """What one read needs: slices of chunks below, and copies of bytes not yet in chunks over them."""

    size: int
    slices: list[ChunkSlice] = field(default_factory=list)
    patches: list[tuple[int, bytes]] = field(default_factory=list)

    def patch(self, offset: int, ranges: Iterable[tuple[int, Bytes]]) -> None:
        """Lay copies of (offset, bytes) over the reply, which begins at `offset`."""
        self.patches += [(start - offset, bytes(data)) for start, data in ranges]

    def in_memory(self, reader: ChunkReader) -> bool:
        """Whether the read touches no disk."""
        return all(reader.cached(piece.number) for piece in self.slices)

    def run(self, reader: ChunkReader) -> Bytes:
        """Return the `size` bytes; what nothing covers is zero. DamagedError passes."""
        chunks = reader.read_many([piece.number for piece in self.slices])
        for piece, data in zip(self.slices, chunks, strict=True):
            if len(data) < piece.start + piece.length:
                raise DamagedError(f"chunk {piece.number} has {len(data)} bytes, a file uses more of it")
        if len(chunks) == 1 and not self.patches and self.slices[0].length == self.size:
            piece = self.slices[0]
            return memoryview(chunks[0])[piece.start : piece.start + piece.length]
        reply = bytearray(self.size)
        for piece, data in zip(self.slices, chunks, strict=True):
            view = memoryview(data)[piece.start : piece.start + piece.length]
            reply[piece.position : piece.position + piece.length] = view
        for position, patch in self.patches:
            reply[position : position + len(patch)] = patch
        return reply
