"""Reading: decoded chunks, a byte-bounded cache of them, and the plan of one read.

A plan is made by the owner of the file (so that it sees one state of it) and may be carried out in any thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import NamedTuple

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Decoded, Room
from ckptfs.tree.extents import Extents

CACHE_SIZE = 64 * MIB

Bytes = bytes | bytearray | memoryview


class ChunkReader:
    """Decoded chunks of a store, the recently used ones from memory. Thread-safe; no chunk is decoded twice at once.

    Chunks that were read together share a buffer, and it is buffers that are kept and let go.
    """

    def __init__(self, store: ChunkStore, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._chunks: dict[int, Decoded] = {}
        self._buffers: OrderedDict[int, list[int]] = OrderedDict()
        """Identity of a buffer -> the chunks in it, the buffer used last at the end."""
        self._cached_size = 0
        self._cache_size = cache_size
        self._changed = Condition()
        self._under_way: set[int] = set()

    def cached(self, number: int) -> bool:
        """Whether a read of this chunk touches no disk."""
        return number in self._chunks

    def read(self, number: int) -> memoryview:
        """Return the bytes of a chunk; DamagedError where the store cannot vouch for them."""
        return self.read_many([number])[0].view()

    def read_many(self, numbers: Sequence[int]) -> list[Decoded]:
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

    def read_into(self, numbers: Sequence[int], room: Room) -> list[Decoded]:
        """Return the bytes of several chunks, mostly in `room`, and keep none in memory; DamagedError as `read`."""
        return self._store.read_many(numbers, room)

    def _find(self, numbers: Iterable[int]) -> dict[int, Decoded]:
        """Return those of the chunks that are in memory, and mark them as used."""
        with self._changed:
            found = {number: chunk for number in numbers if (chunk := self._chunks.get(number)) is not None}
            for buffer in {id(chunk.buffer) for chunk in found.values()}:
                self._buffers.move_to_end(buffer)
        return found

    def _claim(self, numbers: Iterable[int]) -> list[int]:
        """Take on the decoding of those chunks that no other thread is at."""
        with self._changed:
            mine = [number for number in dict.fromkeys(numbers) if number not in self._under_way]
            self._under_way.update(mine)
            return mine

    def _release(self, mine: Iterable[int], found: dict[int, Decoded]) -> None:
        """Put what was decoded into memory, and let those go on who wait for it."""
        with self._changed:
            self._under_way.difference_update(mine)
            for number in mine:
                if number in found and number not in self._chunks:
                    chunk = self._chunks[number] = found[number]
                    together = self._buffers.get(id(chunk.buffer))
                    if together is None:
                        together = self._buffers[id(chunk.buffer)] = []
                        self._cached_size += len(chunk.buffer)
                    together.append(number)
            while self._cached_size > self._cache_size:
                together = self._buffers.popitem(last=False)[1]
                self._cached_size -= len(self._chunks[together[0]].buffer)
                for number in together:
                    del self._chunks[number]
            self._changed.notify_all()


class ChunkSlice(NamedTuple):
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

    def cover(self, extents: Extents, offset: int) -> None:
        """Take from the chunks of a file what they have of the `size` bytes at `offset` of it."""
        stop = offset + self.size
        for extent in extents.between(offset, stop):
            low, high = max(offset, extent.offset), min(stop, extent.offset + extent.length)
            if extent.number and low < high:
                self.slices.append(ChunkSlice(extent.number, low - extent.offset, high - low, low - offset))

    def patch(self, offset: int, ranges: Iterable[tuple[int, Bytes]]) -> None:
        """Lay copies of (offset, bytes) over the reply, which begins at `offset`."""
        self.patches += [(start - offset, bytes(data)) for start, data in ranges]

    def in_memory(self, reader: ChunkReader) -> bool:
        """Whether the read touches no disk."""
        return all(reader.cached(piece.number) for piece in self.slices)

    def run(self, reader: ChunkReader, room: Room | None = None) -> Bytes:
        """Return the `size` bytes, in `room` where one is given and they fit; what nothing covers is zero.

        DamagedError passes.
        """
        numbers = [piece.number for piece in self.slices]
        chunks = reader.read_many(numbers) if room is None else reader.read_into(numbers, room)
        runs: list[Decoded] = []
        before, run_start, run_stop = None, 0, 0
        for (number, offset, length, _), (buffer, chunk_start, chunk_stop) in zip(self.slices, chunks, strict=True):
            start = chunk_start + offset
            if start + length > chunk_stop:
                raise DamagedError(f"chunk {number} has {chunk_stop - chunk_start} bytes, a file uses more of it")
            if buffer is not before or start != run_stop:
                if before is not None:
                    runs.append(Decoded(before, run_start, run_stop))
                before, run_start = buffer, start
            run_stop = start + length
        if before is not None:
            runs.append(Decoded(before, run_start, run_stop))
        if not self.patches and sum(run.size for run in runs) == self.size:  # no hole either
            return runs[0].view() if len(runs) == 1 else b"".join(run.view() for run in runs)
        reply = bytearray(self.size)
        for piece, chunk in zip(self.slices, chunks, strict=True):
            view = chunk.view()[piece.start : piece.start + piece.length]
            reply[piece.position : piece.position + piece.length] = view
        for position, patch in self.patches:
            reply[position : position + len(patch)] = patch
        return reply
