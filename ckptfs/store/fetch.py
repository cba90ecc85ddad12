"""Chunks by number, read from the packs and verified.

Fetcher follows a chunk to where it is, also when it is stored anew meanwhile and its old place is punched, and a delta
down to what it rests on. Whatever it returns has the length and the id that were stored. Chunks that are stored close
together, as a save leaves them, are read by one call, and decoded, verified and laid one behind the other by another.
It caches nothing beyond a call. Any thread may call.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate

import xxhash

from ckptfs.config import GIB, MIB
from ckptfs.errors import DamagedError
from ckptfs.store import codec, kernels, records
from ckptfs.store.budget import CHUNK_COST, Budget
from ckptfs.store.buffers import Buffers
from ckptfs.store.chains import ChainReader
from ckptfs.store.check import Verified
from ckptfs.store.delta import BASES_SIZE_MAX, DELTA_CHAIN_MAX
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Location
from ckptfs.store.packfile import READ_MARGIN
from ckptfs.store.packs import Packs
from ckptfs.store.records import EncodedChunk, Record
from ckptfs.store.spans import SPAN_SIZE_MAX, Decoded, Located, Room, spans

READ_SIZE_MAX = 32 * MIB
"""Bytes of chunks that are read together at most."""
DECODED_SIZE_MAX = 2 * GIB
"""What is decoded at most for one chunk that is read alone: bytes, and CHUNK_COST for each chunk.

What a delta rests on lies one behind the other in the next version, and reaches over its ends by less than a chunk.
Where tensors keep their order there are two chunks more at most on each level than on the one above: with chunks of
512 KiB that is 40 MiB on eight levels. Where they change it with every save, each chunk rests on chunks of its own: on
three of the mean size, level after level, it is 1.3 GiB."""
MEMO_SIZE_MAX = 32 * MIB
"""Bases that a call keeps, because the next delta may need them as well: the last ones of eight levels, even of chunks
as large as can be. So what is decoded below a delta that was ever written stays below its bound."""
_VERIFY_CHUNKS = 16
_BUFFERS_KEPT = 6
"""About as many as threads that read at once."""


class _Memo:
    """The bases that a read of one chunk has decoded lately, and what all that it has decoded counts."""

    def __init__(self) -> None:
        self._raw: dict[int, bytes] = {}
        self._size = 0
        self.decoded_size = 0

    def count(self, location: Location) -> None:
        """Count a chunk that is about to be decoded; DamagedError when it is one too many."""
        self.decoded_size += location.larger_size + CHUNK_COST
        if self.decoded_size > DECODED_SIZE_MAX:
            raise DamagedError(f"a delta that takes more than {DECODED_SIZE_MAX} bytes to decode")

    def get(self, number: int) -> bytes | None:
        """Return the bytes of a base, or None when it has to be read."""
        return self._raw.get(number)

    def put(self, number: int, raw: bytes) -> None:
        """Keep the bytes of a base; the oldest ones go."""
        self._size += len(raw) - len(self._raw.pop(number, b""))
        self._raw[number] = raw
        while self._size > MEMO_SIZE_MAX:
            self._size -= len(self._raw.pop(next(iter(self._raw))))


class Fetcher:
    """Reads the chunks of one store."""

    def __init__(self, index: ChunkIndex, packs: Packs, seed: int, on_damaged: Callable[[int, Location], None]) -> None:
        """Take what to read from; `on_damaged` is told of a chunk that is not what was written, and where it lies."""
        self._index = index
        self._packs = packs
        self._seed = seed
        self._on_damaged = on_damaged
        self._chains = ChainReader(index, packs, seed)
        self._buffers = Buffers(SPAN_SIZE_MAX + READ_MARGIN, _BUFFERS_KEPT)

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk; DamagedError names the place when they are not what was written."""
        return self.read_with_id(number)[0]

    def read_many(self, numbers: Sequence[int]) -> list[Decoded]:
        """Return the bytes of several chunks, with few reads where they lie one behind the other; as `read`."""
        found: list[Decoded] = []
        while len(found) < len(numbers):
            found += self.read_first(numbers[len(found) :])
        return found

    def read_first(
        self, numbers: Sequence[int], room: Room | None = None, budget: Budget | None = None
    ) -> list[Decoded]:
        """Return what `read_many` does of the first chunks, of as many as have READ_SIZE_MAX bytes, or of one.

        What it takes to decode them is taken from `budget`, or from one of this call; DamagedError where it is more.
        Mostly they lie in `room`, if it is large enough: first those that are no deltas, then the others.
        """
        located = self._locate(numbers)
        if sum(chunk.location.raw_size for chunk in located) > READ_SIZE_MAX and len(located) > 1:
            numbers = _first(numbers, dict(located))
            located = self._locate(numbers)
        deltas = [chunk for chunk in located if chunk.location.bases]
        rest = [chunk for chunk in located if not chunk.location.bases] if deltas else located
        size = sum(chunk.location.raw_size for chunk in located)
        if room is None or len(room) < size:
            room = bytearray(size)
        budget = budget or Budget(size)
        budget.take(sum(chunk.location.larger_size for chunk in rest), len(rest))
        found: dict[int, Decoded] = {}
        start = 0
        for span in spans(rest):
            with suppress(DamagedError):
                found |= self._read_span(span, room, start)
            start += sum(chunk.location.raw_size for chunk in span)
        if deltas:
            with suppress(DamagedError):  # a pack was removed: its chunks are looked for one by one
                found |= self._chains.read(deltas, room, start, budget)
        for number in numbers:
            if number not in found:
                memo = _Memo()
                found[number] = _whole(self._read(number, memo, DELTA_CHAIN_MAX)[0])
                budget.take(memo.decoded_size)
        return [found[number] for number in numbers]

    def _locate(self, numbers: Sequence[int]) -> list[Located]:
        return [Located(*each) for each in self._index.locate_many(dict.fromkeys(numbers)).items()]

    def _read_span(self, span: Sequence[Located], room: Room, start: int) -> dict[int, Decoded]:
        """Return those chunks of a span, none of them deltas, that are what was written, in `room` from `start` on."""
        position = span[0].location.position
        places = [(chunk.location.offset - position.offset, chunk.number, chunk.location.raw_size) for chunk in span]
        ends = list(accumulate((size for _, _, size in places), initial=start))
        found = {}
        with self._buffers.taken() as buffer:
            data = self._packs.read_run(position, span[-1].end - position.offset, buffer)
            packed = b"".join(kernels.PLACE.pack(*place) for place in places)
            taken = kernels.take_chunks(data, packed, memoryview(room)[start : ends[-1]], self._seed)
            for chunk, (at, _, size), end, is_taken in zip(span, places, ends[1:], taken, strict=True):
                if is_taken or self._take_other(chunk, data[at:], memoryview(room)[end - size : end]):
                    found[chunk.number] = Decoded(room, end - size, end)
        return found

    def _take_other(self, chunk: Located, data: memoryview, room: memoryview) -> bool:
        """Put a chunk that the kernel did not take into `room`; False where it is not what was written.

        Reading it alone says what is wrong then, unless the chunk has only moved.
        """
        number, location = chunk
        record_data = data[: location.read_size]
        try:
            record = self._packs.parse_record(location.position, record_data, location.stored_size, 0)
            room[:] = self._verified(number, location, record, _Memo(), DELTA_CHAIN_MAX)
        except DamagedError:
            return False
        return True

    def verify(self, numbers: Sequence[int]) -> dict[int, str]:
        """Read chunks and return what is wrong with those that are not what was written, by number."""
        try:
            self.read_many(numbers)
        except (DamagedError, OSError):
            return {number: why for number in numbers if (why := self._why_damaged(number)) is not None}
        return {}

    def verify_range(self, start: int, stop: int, size_max: int) -> Verified:
        """Verify the chunks numbered from `start` to `stop` (not included), about `size_max` bytes of them."""
        located: dict[int, Location] = {}
        raw_bytes = 0
        while start < stop and raw_bytes < size_max:
            end = min(start + _VERIFY_CHUNKS, stop)
            found = self._index.locate_many(range(start, end))
            located |= found
            raw_bytes += sum(location.raw_size for location in found.values())
            start = end
        in_order = sorted(located, key=lambda number: located[number].position)
        return Verified(start, raw_bytes, self.verify(in_order))

    def _why_damaged(self, number: int) -> str | None:
        try:
            self.read(number)
        except DamagedError as error:
            return str(error) if self._index.locate(number) is not None else None  # it was released meanwhile
        except OSError as error:  # the disk below cannot read it
            return f"chunk {number}: {error.strerror or error}"
        return None

    def read_with_id(self, number: int) -> tuple[bytes, bytes]:
        """Return the bytes of a chunk and its id."""
        return self._read(number, _Memo(), DELTA_CHAIN_MAX)

    def read_stored(self, number: int, pack: int) -> EncodedChunk | None:
        """Return a chunk as it is stored, if that is in a pack, and undecoded; None where it is elsewhere or nowhere.

        DamagedError when its record is not what was written.
        """
        location = self._index.locate(number)
        if location is None or location.pack != pack:
            return None
        try:
            record = self._packs.read_record(location.position, location.stored_size, len(location.bases))
            header = record.header
            if header.number != number or header.raw_size != location.raw_size or not records.is_intact(record):
                raise DamagedError(f"{self._packs.place(location.position)}: chunk {number} is not what was written")
        except DamagedError:
            if self._index.locate(number) != location:  # stored anew meanwhile, or released
                return None
            self._on_damaged(number, location)
            raise
        check = header.payload_check
        return EncodedChunk(header.id, header.raw_size, location.encoding, record.payload, check, record.bases)

    def _read(self, number: int, memo: _Memo, chain_left: int) -> tuple[bytes, bytes]:
        """Read a chunk that may be, or rest on, a chain of so many deltas."""
        location = self._index.locate(number)
        if location is not None:
            memo.count(location)
        while location is not None:
            try:
                record = self._packs.read_record(location.position, location.stored_size, len(location.bases))
                return self._verified(number, location, record, memo, chain_left), record.header.id
            except DamagedError:
                # It may have been stored anew since the look-up, and the old place punched: look again.
                before, location = location, self._index.locate(number)
                if location is None or location.position == before.position:
                    if location is not None:
                        self._on_damaged(number, before)
                    raise
        raise DamagedError(f"chunk {number} is not in the index")

    def _verified(self, number: int, location: Location, record: Record, memo: _Memo, chain_left: int) -> bytes:
        """Return the bytes of a chunk's record if they are what was written."""
        header = record.header
        try:
            base = self._read_bases(record.bases, memo, chain_left) if record.bases else b""
            raw = codec.decode(header.encoding, record.payload, header.raw_size, base)
        except DamagedError as error:
            raise DamagedError(f"{self._packs.place(location.position)}: chunk {number}: {error}") from error
        if (
            header.number != number
            or len(raw) != location.raw_size
            or xxhash.xxh3_128_digest(raw, self._seed) != header.id
        ):
            raise DamagedError(f"{self._packs.place(location.position)}: chunk {number} is not what was written")
        return raw

    def _read_bases(self, numbers: Sequence[int], memo: _Memo, chain_left: int) -> bytes:
        """Return the bytes of a delta's bases, one behind the other."""
        if not chain_left:
            raise DamagedError(f"more than {DELTA_CHAIN_MAX} deltas rest on one another")
        sizes = [location.raw_size for number in numbers if (location := self._index.locate(number)) is not None]
        if sum(sizes) > BASES_SIZE_MAX:
            raise DamagedError(f"a delta whose bases have {sum(sizes)} bytes")
        parts = []
        for number in numbers:
            raw = memo.get(number)
            if raw is None:
                raw = self._read(number, memo, chain_left - 1)[0]
                memo.put(number, raw)
            parts.append(raw)
        return b"".join(parts)


def _first(numbers: Sequence[int], locations: Mapping[int, Location]) -> Sequence[int]:
    """Return as many of the numbers, from the first one on, as have READ_SIZE_MAX bytes together, one at least."""
    taken: set[int] = set()
    size = 0
    for index, number in enumerate(numbers):
        if number not in taken and number in locations:
            taken.add(number)
            size += locations[number].raw_size
            if size > READ_SIZE_MAX and index:
                return numbers[:index]
    return numbers


def _whole(raw: bytes) -> Decoded:
    return Decoded(raw, 0, len(raw))
