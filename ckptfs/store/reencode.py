"""Raw first, encode later: chunks that were put raw because encoding them would have held a save back, and deltas.

Reencoder takes waiting chunks in the order of the packs, or those that it is told to store as deltas, encodes them, and
has what becomes smaller appended anew under the number it has. It knows the index and the codec, and reaches packs only
through what it is given. It works in the caller's thread, in slices; put, read and checkpoints go on meanwhile. A crash
loses work, no bytes: the old record stays until a checkpoint has made the new one durable (`freed.py`).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ckptfs.config import BASES_MAX, MIB
from ckptfs.errors import DamagedError
from ckptfs.store import codec, records
from ckptfs.store.codec import Encoding
from ckptfs.store.delta import BASES_SIZE_MAX, DELTA_CHAIN_MAX, Alignment, encode_delta
from ckptfs.store.fetch import Fetcher
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Location
from ckptfs.store.planes import RATIO_WORTH
from ckptfs.store.records import EncodedChunk
from ckptfs.store.spans import Decoded

logger = logging.getLogger(__name__)

_BATCH_CHUNKS = 16
"""So many chunks are encoded before what came of them is appended: that is what is in memory."""
_MOVE_SIZE = 4 * MIB
"""Bytes of records that are read before they are appended anew."""


class Reencoded(NamedTuple):
    """What a call did: `chunks` of `raw_bytes` were tried, and their records are `saved_bytes` smaller together."""

    chunks: int
    raw_bytes: int
    saved_bytes: int


class DeltaCandidate(NamedTuple):
    """A chunk that may be smaller as a delta against others, and how it lies over them."""

    number: int
    bases: tuple[int, ...]
    alignment: Alignment


class Deltas(NamedTuple):
    """What a call did: `chunks` have become deltas; what was stored anew had `before_bytes` and has `after_bytes`."""

    chunks: int
    before_bytes: int
    after_bytes: int


def never() -> bool:
    """Let the work go on to its end."""
    return False


class Reencoder:
    """Stores chunks of one store anew; calls from several threads take turns.

    Every call ends early, within a chunk's time, when `stop`, asked before each one, says so. The old record of a chunk
    stays until a checkpoint has made the new one durable.
    """

    def __init__(
        self,
        index: ChunkIndex,
        fetcher: Fetcher,
        append: Callable[[Sequence[EncodedChunk], Sequence[int]], int],
        *,
        check_writable: Callable[[], None],
    ) -> None:
        self._index = index
        self._fetcher = fetcher
        self._append = append
        self._check_writable = check_writable
        self._lock = threading.Lock()

    def encode_waiting(self, limit_bytes: int, stop: Callable[[], bool] = never) -> Reencoded:
        """Encode waiting chunks that have about `limit_bytes` together; StoreReadOnlyError.

        Takes what a checkpoint has brought to LMDB. `Reencoded.chunks` is 0 when none of that waits any more.
        """
        self._check_writable()
        with self._lock:
            done = Reencoded(0, 0, 0)
            start: int | None = self._index.tried_until
            while start is not None and done.raw_bytes < limit_bytes and self._index.totals.waiting_chunks:
                numbers, start = self._index.walk_waiting(start, _BATCH_CHUNKS)
                encoded: dict[int, EncodedChunk] = {}
                for number in numbers:
                    if stop() or done.raw_bytes >= limit_bytes:
                        start = number
                        break
                    raw_size, smaller = self._encode(number)
                    if smaller is not None:
                        encoded[number] = smaller
                    saved_size = 0 if smaller is None else raw_size - len(smaller.payload)
                    done = Reencoded(done.chunks + 1, done.raw_bytes + raw_size, done.saved_bytes + saved_size)
                if encoded:
                    self._append(list(encoded.values()), list(encoded))
                # Only now: what a checkpoint calls tried has to be registered.
                if start is not None:
                    self._index.tried_until = start
                elif numbers:
                    self._index.tried_until = numbers[-1] + 1
                if stop():
                    break
            return done

    def _encode(self, number: int) -> tuple[int, EncodedChunk | None]:
        """Return the raw size of a chunk, and its better record; without one it keeps the old one for good."""
        location = self._index.locate(number)
        if location is None or location.encoding != Encoding.WAITING:
            # The replay met a later record of it than LMDB knows.
            return 0, None
        try:
            raw, chunk_id = self._fetcher.read_with_id(number)
        except DamagedError as error:
            if self._index.locate(number) is None:
                return 0, None  # released meanwhile
            logger.warning("a chunk cannot be encoded, it stays as it is: %s", error)
            self._index.keep_raw(number)
            return location.raw_size, None
        encoding, payload = codec.encode(raw)
        if encoding == Encoding.RAW:
            self._index.keep_raw(number)
            return len(raw), None
        return len(raw), EncodedChunk(chunk_id, len(raw), encoding, payload, records.payload_check(payload))

    def encode_deltas(self, candidates: Iterable[DeltaCandidate], stop: Callable[[], bool] = never) -> Deltas:
        """Store chunks as deltas against others where that is smaller; StoreReadOnlyError.

        Left as they are: deltas, chunks that one of their bases rests on, and those whose chain of deltas would become
        longer than DELTA_CHAIN_MAX. A waiting chunk gets its plain encoding where that is smaller. A sweep keeps the
        bases for as long as it keeps the deltas.
        """
        self._check_writable()
        with self._lock:
            done = Deltas(0, 0, 0)
            bases: dict[int, Decoded] = {}
            for candidate in candidates:
                if stop():
                    break
                location = self._index.locate(candidate.number)
                if location is None or not self._may_become_delta(candidate, location):
                    continue
                try:
                    # Neighbours have bases in common, so those of the last candidate are kept.
                    missing = [number for number in candidate.bases if number not in bases]
                    bases |= zip(missing, self._fetcher.read_many(missing), strict=True)
                    bases = {number: bases[number] for number in candidate.bases}
                    base = b"".join(bases[number].view() for number in candidate.bases)
                    smaller = self._encode_delta(candidate, location, base)
                except DamagedError as error:
                    if self._index.has_all((candidate.number, *candidate.bases)):  # else released meanwhile
                        logger.warning("a chunk cannot be stored as a delta, it stays as it is: %s", error)
                    continue
                # One by one: whether the next candidate may rest on this one is asked of the index.
                if smaller is None or not self._append([smaller], [candidate.number]):
                    continue
                done = Deltas(
                    done.chunks + (smaller.encoding == Encoding.DELTA),
                    done.before_bytes + location.stored_size,
                    done.after_bytes + 8 * len(smaller.bases) + len(smaller.payload),
                )
            return done

    def deltas_among(self, numbers: Iterable[int]) -> list[int]:
        """Return those of the chunks that are stored as deltas."""
        return [number for number in numbers if self._index.bases(number)]

    def encode_plain(self, numbers: Iterable[int], stop: Callable[[], bool] = never) -> int:
        """Store those of the chunks that are deltas by themselves again, return their raw bytes; StoreReadOnlyError."""
        self._check_writable()
        with self._lock:
            raw_bytes = 0
            for number in numbers:
                if stop():
                    break
                if not self._index.bases(number):
                    continue
                try:
                    raw, chunk_id = self._fetcher.read_with_id(number)
                except DamagedError as error:
                    if self._index.has_all([number]):  # else released meanwhile
                        logger.warning("a chunk cannot be stored by itself again, it stays a delta: %s", error)
                    continue
                encoding, payload = codec.encode(raw)
                check = records.payload_check(payload)
                self._append([EncodedChunk(chunk_id, len(raw), encoding, payload, check)], [number])
                raw_bytes += len(raw)
            return raw_bytes

    def store_again(self, numbers: Iterable[int]) -> None:
        """Store chunks anew as they are, out of places that are called free; one that cannot be read stays damaged."""
        for number in numbers:
            with suppress(DamagedError):
                raw, chunk_id = self._fetcher.read_with_id(number)
                check = records.payload_check(raw)
                self._append([EncodedChunk(chunk_id, len(raw), Encoding.WAITING, raw, check)], [number])

    def move(self, numbers: Iterable[int], pack: int, stop: Callable[[], bool]) -> bool:
        """Store those of the chunks that lie in a pack anew, as they are.

        Returns false when `stop`, asked before each one, said so, or when one cannot be moved because it is damaged.
        """
        with self._lock:
            batch: dict[int, EncodedChunk] = {}
            batch_size = 0
            is_whole = True
            for number in numbers:
                if stop():
                    is_whole = False
                    break
                try:
                    chunk = self._fetcher.read_stored(number, pack)
                except DamagedError as error:
                    logger.warning("a chunk cannot be moved, its pack stays: %s", error)
                    is_whole = False
                    continue
                if chunk is not None:
                    batch[number] = chunk
                    batch_size += len(chunk.payload)
                if batch_size >= _MOVE_SIZE:
                    self._append(list(batch.values()), list(batch))
                    batch, batch_size = {}, 0
            if batch:
                self._append(list(batch.values()), list(batch))
            return is_whole

    def _may_become_delta(self, candidate: DeltaCandidate, location: Location) -> bool:
        """Tell whether a chunk may rest on these bases: without a cycle, and in a chain that is not too long."""
        if location.encoding == Encoding.DELTA or not 0 < len(candidate.bases) <= BASES_MAX:
            return False
        for depth, chunks in enumerate(self._index.descend(candidate.bases), 1):
            if candidate.number in chunks or location.height + depth > DELTA_CHAIN_MAX:
                return False
        sizes = [base.raw_size for number in candidate.bases if (base := self._index.locate(number)) is not None]
        covered = candidate.alignment.skip + location.raw_size <= sum(sizes) <= BASES_SIZE_MAX
        return covered and len(sizes) == len(candidate.bases)

    def _encode_delta(self, candidate: DeltaCandidate, location: Location, base: bytes) -> EncodedChunk | None:
        """Return the better record of a chunk, a delta or, where it waits and is smaller so, its plain encoding."""
        raw, chunk_id = self._fetcher.read_with_id(candidate.number)
        encoding, payload = codec.encode(raw) if location.encoding == Encoding.WAITING else (Encoding.RAW, raw)
        plain_size = min(len(payload), location.stored_size)
        delta = encode_delta(raw, base, candidate.alignment)
        if len(delta) + 8 * len(candidate.bases) <= RATIO_WORTH * plain_size:
            check = records.payload_check(delta, records.pack_bases(candidate.bases))
            return EncodedChunk(chunk_id, len(raw), Encoding.DELTA, delta, check, candidate.bases)
        if encoding != Encoding.RAW:
            return EncodedChunk(chunk_id, len(raw), encoding, payload, records.payload_check(payload))
        self._index.keep_raw(candidate.number)
        return None
