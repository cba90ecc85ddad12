"""Reading: decoded chunks, a byte-bounded cache of them, and the plan of one read.

A plan is made by the owner of the file (so that it sees one state of it) and may be carried out in any thread. A file
may have any number of extents in few bytes, each in a large chunk: what a plan takes into memory is bounded, and so is
what it decodes.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from threading import Condition
from typing import NamedTuple

from ckptfs.config import KIB, MIB
from ckptfs.errors import DamagedError
from ckptfs.store import Budget, ChunkStore, Decoded, Room
from ckptfs.tree.extents import Extents

CACHE_SIZE = 64 * MIB
SLICES_MAX = 4096
"""Pieces of chunks that are in memory at once; a read of 8 MiB has some hundred."""
PIECE_COST = 4 * KIB
"""What a piece counts in the budget of a read, even if its chunk is in memory."""

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
        return self.read_first([number])[0].view()

    def read_first(self, numbers: Sequence[int], budget: Budget | None = None) -> list[Decoded]:
        """Return the bytes of the first of some chunks, as many as may be in memory at once; DamagedError as `read`."""
        found = self._find(numbers)
        while missing := [number for number in numbers if number not in found]:
            mine = self._claim(missing)
            if mine:
                try:
                    found.update(zip(mine, self._store.read_first(mine, None, budget), strict=False))
                finally:
                    self._release(mine, found)
                if mine[-1] not in found and numbers[0] in found:
                    break
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._under_way.isdisjoint(missing))
            found.update(self._find(missing))
        return [found[number] for number in takewhile(found.__contains__, numbers)]

    def read_into(self, numbers: Sequence[int], room: Room, budget: Budget) -> list[Decoded]:
        """Return what `read_first` does, mostly in `room`, and keep none of it in memory."""
        return self._store.read_first(numbers, room, budget)

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
    """What one read needs: extents of a file below, and copies of bytes not yet in chunks over them.

    The reply begins `lead` bytes behind the beginning of the first extent.
    """

    size: int
    extents: Extents = field(default_factory=Extents)
    lead: int = 0
    patches: list[tuple[int, bytes]] = field(default_factory=list)

    def cover(self, extents: Extents, offset: int) -> None:
        """Take from the chunks of a file what they have of the `size` bytes, which are some, at `offset` of it."""
        self.extents, self.lead = extents.part(offset, offset + self.size)

    def patch(self, offset: int, ranges: Iterable[tuple[int, Bytes]]) -> None:
        """Lay copies of (offset, bytes) over the reply, which begins at `offset`."""
        self.patches += [(start - offset, bytes(data)) for start, data in ranges]

    @property
    def has_chunks(self) -> bool:
        """Whether there is anything but holes."""
        return any(self.extents.numbers)

    def in_memory(self, reader: ChunkReader) -> bool:
        """Whether the read touches no disk, and is soon done."""
        numbers = self.extents.numbers
        return len(numbers) <= SLICES_MAX and all(not number or reader.cached(number) for number in numbers)

    def run(self, reader: ChunkReader, room: Room | None = None) -> Bytes:
        """Return the `size` bytes, in `room` where one is given and they fit; what nothing covers is zero.

        DamagedError passes, and is also said of what would take far more bytes of chunks than are read.
        """
        slices = self._slices()
        batch = list(islice(slices, SLICES_MAX))
        budget = Budget(self.size)
        chunks = _read(reader, batch, room, budget)
        if len(chunks) == len(batch) and not self.patches and (whole := self._joined(batch, chunks)) is not None:
            return whole
        reply = bytearray(self.size)
        while batch:
            for piece, chunk in zip(batch, chunks, strict=False):
                reply[piece.position : piece.position + piece.length] = _cut(piece, chunk).view()
            budget.take(PIECE_COST * len(chunks))
            batch = batch[len(chunks) :] + list(islice(slices, len(chunks)))
            chunks = _read(reader, batch, room, budget)
        for position, patch in self.patches:
            reply[position : position + len(patch)] = patch
        return reply

    def _slices(self) -> Iterator[ChunkSlice]:
        """Yield what the chunks have of the reply, in order."""
        for offset, number, length in self.extents.between(self.lead, self.lead + self.size):
            if number:
                low, high = max(offset, self.lead), min(offset + length, self.lead + self.size)
                yield ChunkSlice(number, low - offset, high - low, low - self.lead)

    def _joined(self, slices: Sequence[ChunkSlice], chunks: Sequence[Decoded]) -> Bytes | None:
        """Return the reply where it is what the chunks have, one behind the other, copied as little as can be."""
        runs: list[Decoded] = []
        before, run_start, run_stop = None, 0, 0
        for piece, chunk in zip(slices, chunks, strict=True):
            buffer, start, stop = _cut(piece, chunk)
            if buffer is not before or start != run_stop:
                if before is not None:
                    runs.append(Decoded(before, run_start, run_stop))
                before, run_start = buffer, start
            run_stop = stop
        if before is not None:
            runs.append(Decoded(before, run_start, run_stop))
        if sum(run.size for run in runs) != self.size:  # there is a hole, or there are more slices
            return None
        return runs[0].view() if len(runs) == 1 else b"".join(run.view() for run in runs)


def _read(reader: ChunkReader, slices: Sequence[ChunkSlice], room: Room | None, budget: Budget) -> list[Decoded]:
    """Return the first of the chunks that the slices lie in, in `room` where one is given."""
    if not slices:
        return []
    numbers = [piece.number for piece in slices]
    return reader.read_first(numbers, budget) if room is None else reader.read_into(numbers, room, budget)


def _cut(piece: ChunkSlice, chunk: Decoded) -> Decoded:
    """Return the bytes that a slice is of its chunk."""
    buffer, start, stop = chunk
    if piece.start + piece.length > stop - start:
        raise DamagedError(f"chunk {piece.number} has {stop - start} bytes, a file uses more of it")
    return Decoded(buffer, start + piece.start, start + piece.start + piece.length)
