"""Cut again what changed in a file, and only its neighbourhood.

A pure function of the old extents, the bytes written over them and the store; runs in worker threads. Re-cutting
begins at the start of the extent that a written range touches and ends as soon as a new cut point falls on an old
one behind it: from there on the old chunks are what a full cut would give, because a cut depends only on the bytes
from its chunk's start. (A cut at a tensor that is not known any more is lost where the neighbourhood reaches over it.)
"""

from collections.abc import Sequence

from ckptfs.config import MIB
from ckptfs.formats import TensorCuts
from ckptfs.store import ChunkStore
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.reader import Bytes, ChunkReader

FEED_SIZE = 4 * MIB
"""Bytes handed to the chunk store at once: bounds the memory of a long written range."""


class _Feeder:
    """Bytes on their way into chunks that are appended to `extents`."""

    def __init__(self, store: ChunkStore, extents: Extents, tensor_cuts: TensorCuts) -> None:
        self._store = store
        self._extents = extents
        self._tensor_cuts = tensor_cuts
        self._pending = bytearray()

    @property
    def on_cut(self) -> bool:
        """Whether everything fed ends in a chunk that is complete."""
        return not self._pending

    def feed(self, data: Bytes, *, final: bool = False) -> None:
        """Take more bytes; `final` ends the last chunk at their end."""
        self._pending += data
        start = self._extents.size
        cuts = [cut - start for cut in self._tensor_cuts.between(start, start + len(self._pending))]
        with memoryview(self._pending) as view:
            numbers, lengths = self._store.ingest(view, final, encode=False, cuts=cuts)
        for number, length in zip(numbers, lengths, strict=True):
            self._extents.append(number, length)
        del self._pending[: sum(lengths)]


class _Recut:
    """One pass over the old extents and the written ranges, from the front to the end."""

    def __init__(
        self,
        store: ChunkStore,
        reader: ChunkReader,
        old: Extents,
        ranges: Sequence[tuple[int, Bytes]],
        tensor_cuts: TensorCuts,
    ) -> None:
        self.new = Extents()
        self._store = store
        self._reader = reader
        self._old = old
        self._ranges = ranges
        self._tensor_cuts = tensor_cuts
        self._next_range = 0

    def run(self) -> Extents:
        while self._next_range < len(self._ranges):
            offset = self._ranges[self._next_range][0]
            index = self._old.index_at(offset)
            in_chunk = index < len(self._old) and self._old[index].number != 0
            start = self._old[index].offset if in_chunk else offset
            self._keep_until(start)
            self._recut_from(start)
        self._keep_until(self._old.size)
        return self.new

    def _keep_until(self, offset: int) -> None:
        """Take over the old extents from where the new ones end up to `offset`; what no extent covers is a hole."""
        first = self._old.index_at(self.new.size)
        if first < len(self._old) and self._old[first].offset < self.new.size < offset:
            extent = self._old[first]  # only a hole can be left half way
            self.new.append(0, min(extent.offset + extent.length, offset) - self.new.size)
            first += 1
        last = self._old.index_at(offset)
        self.new.extend(self._old, first, last)
        if self.new.size < offset:
            self.new.append(0, offset - self.new.size)

    def _recut_from(self, position: int) -> None:
        feeder = _Feeder(self._store, self.new, self._tensor_cuts)
        while True:
            index = self._old.index_at(position)
            extent = self._old[index] if index < len(self._old) else None
            if extent and extent.number:
                feeder.feed(self._patched(extent, position))
                position = extent.offset + extent.length
            else:
                position = self._feed_written(feeder, position, extent)
            written = self._written_at(position)
            follows_chunk = self._chunk_at(position)
            if not written and not follows_chunk:
                feeder.feed(b"", final=True)
                return
            if feeder.on_cut and not written and self._is_old_cut(position):
                return

    def _patched(self, extent: Extent, position: int) -> Bytes:
        """Return the bytes of an old chunk from `position` on, with what was written over them."""
        end = extent.offset + extent.length
        data = self._reader.read(extent.number)[position - extent.offset : extent.length]
        patched = bytearray(data)
        while self._next_range < len(self._ranges):
            offset, written = self._ranges[self._next_range]
            if offset >= end:
                break
            low, high = max(offset, position), min(offset + len(written), end)
            patched[low - position : high - position] = written[low - offset : high - offset]
            if offset + len(written) > end:
                break
            self._next_range += 1
        return patched

    def _feed_written(self, feeder: _Feeder, position: int, hole: Extent | None) -> int:
        """Feed the written range at `position`, up to its end or the hole's; return the position behind."""
        offset, written = self._ranges[self._next_range]
        stop = min(offset + len(written), hole.offset + hole.length if hole else offset + len(written))
        view = memoryview(written)
        while position < stop:
            end = min(position + FEED_SIZE, stop)
            feeder.feed(view[position - offset : end - offset])
            position = end
        if stop == offset + len(written):
            self._next_range += 1
        return position

    def _written_at(self, position: int) -> bool:
        return self._next_range < len(self._ranges) and self._ranges[self._next_range][0] <= position

    def _chunk_at(self, position: int) -> bool:
        index = self._old.index_at(position)
        return index < len(self._old) and self._old[index].number != 0

    def _is_old_cut(self, position: int) -> bool:
        index = self._old.index_at(position)
        return index < len(self._old) and self._old[index].offset == position


def recut(
    store: ChunkStore,
    reader: ChunkReader,
    old: Extents,
    ranges: Sequence[tuple[int, Bytes]],
    tensor_cuts: TensorCuts,
) -> Extents:
    """Return the extents of a file whose old extents have `ranges` written over them, cut at `tensor_cuts` too.

    The ranges are sorted and do not overlap; they may lie behind the old end, and what lies between is a hole.
    Chunks are put into the store; DamagedError and NoSpaceError pass.
    """
    return _Recut(store, reader, old, ranges, tensor_cuts).run()
