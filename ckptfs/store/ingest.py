"""Ingest: bytes cut into chunks, and chunks appended and registered, each distinct one once.

Ingest owns what the packs and the chunk index have to agree on: a chunk is in the index as soon as its record is
appended, and no more once a record releases it. It does not know files. What is appended survives a kill of the process
at once, and a power cut after the next sync. Every method may be called from any thread.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, count, pairwise
from typing import NamedTuple

from ckptfs.config import StoreConfig
from ckptfs.store import codec, kernels, records
from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.freed import FreedPlaces
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import NO_CHUNK, Chunk, Known, Location
from ckptfs.store.pack_end import PackEnd
from ckptfs.store.packs import Packs
from ckptfs.store.records import EncodedChunk, RecordBytes, RecordType, WaitingRecords


class Chunked(NamedTuple):
    """The chunks at the start of some bytes, one behind the other, by their lengths and ids."""

    lengths: list[int]
    ids: list[bytes]


class Ingested(NamedTuple):
    """The chunks at the start of some bytes, one behind the other."""

    numbers: list[int]
    lengths: list[int]


class Ingest:
    """The way of new chunks, better records and releases into the packs and the chunk index of a store."""

    def __init__(
        self,
        config: StoreConfig,
        packs: Packs,
        end: PackEnd,
        index: ChunkIndex,
        freed: FreedPlaces,
        damaged: DamagedChunks,
        *,
        check_writable: Callable[[], None],
    ) -> None:
        self._config = config
        self._packs = packs
        self._end = end
        self._index = index
        self._freed = freed
        self._damaged = damaged
        self._check_writable = check_writable
        self._again_bytes = 0

    @property
    def appended_bytes(self) -> int:
        """The bytes appended to the packs since the store was opened, for what was new."""
        return self._packs.appended_bytes - self._again_bytes

    def cut(self, data: memoryview, final: bool, cuts: Sequence[int] = ()) -> Chunked:
        """Cut bytes, as `ChunkStore.cut` says."""
        sizes = self._config.chunk_sizes
        found = Chunked([], [])
        for start, stop in pairwise((0, *cuts, len(data))):
            lengths, ids = kernels.cut_and_hash(
                data[start:stop],
                sizes.size_min,
                sizes.mean_bits,
                sizes.size_max,
                final or stop < len(data),
                self._config.seed,
            )
            found.lengths.extend(lengths)
            found.ids.extend(ids)
        return found

    def knows(self, chunks: Chunked) -> bool:
        """Tell whether all chunks are stored, as `ChunkStore.knows` says."""
        return NO_CHUNK not in self._lookup(chunks)

    def _lookup(self, chunks: Chunked) -> list[int]:
        numbers = self._index.lookup(chunks.ids)
        return self._damaged.left_out(numbers) if self._damaged else numbers

    def store(self, data: memoryview, chunks: Chunked, *, encode: bool = True) -> list[int]:
        """Store what bytes were cut into and return the numbers, as `ChunkStore.store` says."""
        numbers = self._lookup(chunks)
        if NO_CHUNK not in numbers:
            return numbers
        self._check_writable()
        spans = {
            chunk_id: (end - length, length)
            for chunk_id, number, length, end in zip(
                chunks.ids, numbers, chunks.lengths, accumulate(chunks.lengths), strict=True
            )
            if not number
        }
        views = {chunk_id: data[start : start + length] for chunk_id, (start, length) in spans.items()}
        if encode or self._damaged or not all(map(codec.can_wait, views.values())):
            stored = self._store(views, codec.encode if encode else codec.encode_later)
        else:
            stored = self._store_waiting(data, spans)
        return [number or stored[chunk_id] for chunk_id, number in zip(chunks.ids, numbers, strict=True)]

    def _store(self, fresh: dict[bytes, memoryview], encode: Callable[[memoryview], codec.Encoded]) -> dict[bytes, int]:
        """Encode and append chunks, but those that another thread was faster with; return all their numbers.

        A damaged chunk is stored anew under its number, and so heals the files that use it.
        """
        encoded = []
        for chunk_id, view in fresh.items():
            encoding, payload = encode(view)
            encoded.append(EncodedChunk(chunk_id, len(view), encoding, payload, records.payload_check(payload)))
        with self._end.lock:
            numbers = dict(zip(fresh, self._index.lookup(list(fresh)), strict=True))
            if damaged := self._damaged.among(numbers.values()):
                again = {numbers[chunk.id]: chunk for chunk in encoded if numbers[chunk.id] in damaged}
                self._append_chunks(list(again.values()), list(again))
                self._damaged.heal()
            missing = [chunk for chunk in encoded if not numbers[chunk.id]]
            if missing:
                first = self._end.mark.number
                new = range(first, first + len(missing))
                self._append_chunks(missing, new)
                numbers.update(zip((chunk.id for chunk in missing), new, strict=True))
        return numbers

    def _store_waiting(self, data: memoryview, spans: dict[bytes, tuple[int, int]]) -> dict[bytes, int]:
        """Append chunks of `data`, by offset and size, as they are; return their numbers, as `_store` does.

        This is what a save does, some ten thousand times a second: nothing here is done for one chunk that can be done
        for all.
        """
        expected = list(spans)

        def build(chunk_ids: Sequence[bytes], number: int) -> WaitingRecords:
            return WaitingRecords(data, [spans[chunk_id] for chunk_id in chunk_ids], chunk_ids, number)

        with self._end.prepared(lambda mark: build(expected, mark.number)) as (mark, prepared):
            numbers = dict(zip(spans, self._index.lookup(expected), strict=True))
            missing = [chunk_id for chunk_id, number in numbers.items() if not number]
            if missing:
                first = self._end.mark.number
                is_as_expected = missing == expected and first == mark.number
                batch = prepared if is_as_expected else build(missing, first)
                (position,) = self._end.append_chunks([batch], first + len(missing))
                sizes = [spans[chunk_id][1] for chunk_id in missing]
                self._index.register_waiting(first, missing, sizes, position)
                numbers.update(zip(missing, count(first), strict=False))
        return numbers

    def append_again(self, chunks: Sequence[EncodedChunk], numbers: Sequence[int]) -> int:
        """Append better records of chunks, but where they or their bases were released meanwhile; return how many."""
        with self._end.lock:
            before = self._packs.appended_bytes
            there = [
                (chunk, number)
                for chunk, number in zip(chunks, numbers, strict=True)
                if self._index.has_all((number, *chunk.bases))
            ]
            if there:
                self._append_chunks(*zip(*there, strict=True))
            self._again_bytes += self._packs.appended_bytes - before
        return len(there)

    def _append_chunks(self, chunks: Sequence[EncodedChunk], numbers: Sequence[int]) -> None:
        """Append and register chunks under their numbers, under the append lock."""
        batch: list[RecordBytes] = [
            records.build(
                RecordType.CHUNK,
                number,
                chunk.id,
                chunk.raw_size,
                chunk.encoding,
                chunk.payload,
                check=chunk.check,
                bases=records.pack_bases(chunk.bases),
            )
            for number, chunk in zip(numbers, chunks, strict=True)
        ]
        positions = self._end.append_chunks(batch, numbers[-1] + 1)
        registered = [
            Chunk(
                number, chunk.id, Location(*position, len(chunk.payload), chunk.raw_size, chunk.encoding, chunk.bases)
            )
            for number, chunk, position in zip(numbers, chunks, positions, strict=True)
        ]
        self._freed.supersede(self._index.register(registered))

    def release(self, chunks: Sequence[Known]) -> list[Chunk]:
        """Journal that chunks are none any more, and take them out; but those that are watched."""
        self._check_writable()
        with self._end.held():
            # First out of the index: an `ingest` that misses one appends it anew, behind this record.
            released = self._index.take_out(chunks)
            if released:
                rows = [row for chunk in released for row in Known(chunk.id, chunk.number).release_rows]
                try:
                    self._end.journal_rows(rows)
                except BaseException:
                    self._index.register(released)
                    raise
                self._freed.supersede(chunk.location.place(chunk.number) for chunk in released)
                self._damaged.heal()
            return released
