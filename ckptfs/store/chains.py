"""Chains: many deltas read at once, level by level, from the chunks that the last of their bases are upwards.

A version that lies several deltas deep has a few hundred chunks in every piece that is read, on every level about as
many. So what belongs to one level is looked up, read and decoded together, by few calls that need no interpreter's
lock, and every base is decoded once. Only what was asked for is verified: where a base is not what it was, what rests
on it is not either. Any thread may call. Whatever is not as it should be leaves a chunk out, and reading
it alone (`fetch.py`) says what is wrong.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from threading import Semaphore

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store import codec, kernels, records
from ckptfs.store.delta import BASES_SIZE_MAX, DELTA_CHAIN_MAX, decode_all, find_difference
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Location
from ckptfs.store.packs import Packs
from ckptfs.store.records import HEADER_SIZE
from ckptfs.store.spans import Decoded, Located, spans

ASKED_SIZE_MAX = 4 * MIB
"""Bytes of the deltas that are read at once; what they rest on has as many on every level, and two are in memory."""
LEVEL_SIZE_MAX = 2 * ASKED_SIZE_MAX + BASES_SIZE_MAX
"""A level with more bytes than chunks that lie over one another have is not read at once."""

BUFFER_SIZE = ASKED_SIZE_MAX + MIB
"""A level has little more bytes than what was asked for, and its records have fewer."""
SPARE_BUFFERS = 6
"""So many buffers are kept for the next reads: two at a time take the records and two levels each."""
READS_MAX = 2
"""Reads at a time: each keeps a processor busy, and more would need more memory that is not in its cache."""


class _Levels:
    """Deltas and all that they rest on: each chunk on the level below the lowest one that rests on it."""

    def __init__(self, index: ChunkIndex, asked: Sequence[Located]) -> None:
        self.chunks: list[list[Located]] = []
        """From those that nothing here rests on to the last bases."""
        self.needed_until: dict[int, int] = {}
        """The number of a base -> the first level on which a chunk rests on it."""
        self.is_complete = False
        level_of: dict[int, int] = {}
        locations = dict(asked)
        level = list(locations)
        while level:
            depth = len(self.chunks)
            if depth > DELTA_CHAIN_MAX or sum(locations[number].raw_size for number in level) > LEVEL_SIZE_MAX:
                return
            self.chunks.append([])
            level_of.update(dict.fromkeys(level, depth))
            below = dict.fromkeys(base for number in level for base in locations[number].bases)
            for base, location in index.locate_many([number for number in below if number not in locations]).items():
                locations[base] = location
            if not locations.keys() >= below.keys():
                return
            level = list(below)
        for number, depth in level_of.items():
            self.chunks[depth].append(Located(number, locations[number]))
            for base in locations[number].bases:
                self.needed_until[base] = min(depth, self.needed_until.get(base, depth))
        self.is_complete = True


class _Room:
    """Buffers for levels and records, which are used again.

    Memory that is touched for the first time costs as much as decoding into it. Those of the reader's `spare` ones
    that are large enough are taken first, and a few are left there at the end.
    """

    def __init__(self, spare: deque[bytearray]) -> None:
        self._spare = spare
        self._used: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of so many bytes at least that nothing uses."""
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = bytearray()
        if len(buffer) < size:
            buffer = bytearray(max(size, BUFFER_SIZE))
        self._used.append(buffer)
        return buffer

    def give_back(self, needed: Iterable[Decoded] = ()) -> None:
        """Give back the buffers of all but these."""
        kept = {id(decoded.buffer) for decoded in needed}
        self._spare.extend(buffer for buffer in self._used if id(buffer) not in kept)
        self._used = [buffer for buffer in self._used if id(buffer) in kept]


class ChainReader:
    """Reads the deltas of one store."""

    def __init__(self, index: ChunkIndex, packs: Packs, seed: int) -> None:
        self._index = index
        self._packs = packs
        self._seed = seed
        self._spare: deque[bytearray] = deque(maxlen=SPARE_BUFFERS)
        self._turn = Semaphore(READS_MAX)

    def read(self, deltas: Sequence[Located]) -> dict[int, Decoded]:
        """Return those deltas that are what was written, by number; OSError passes."""
        found: dict[int, Decoded] = {}
        asked: list[Located] = []
        size = 0
        for delta in deltas:
            if asked and size + delta.location.raw_size > ASKED_SIZE_MAX:
                found |= self._read_asked(asked)
                asked, size = [], 0
            asked.append(delta)
            size += delta.location.raw_size
        return found | self._read_asked(asked)

    def _read_asked(self, asked: Sequence[Located]) -> dict[int, Decoded]:
        with self._turn:
            return self._read_levels(asked)

    def _read_levels(self, asked: Sequence[Located]) -> dict[int, Decoded]:
        levels = _Levels(self._index, asked)
        if not levels.is_complete:
            return {}
        wanted = {number for number, _ in asked}
        room = _Room(self._spare)
        decoded: dict[int, Decoded] = {}
        found: dict[int, Decoded] = {}
        try:
            for depth, level in reversed([*enumerate(levels.chunks)]):
                record_of = self._read_records(level, room)
                # What is handed out has a buffer of its own; the other levels share a few.
                buffer = room.take(_raw_size(level)) if depth else bytearray(_raw_size(level))
                decoded |= _decode_level(level, record_of, decoded, buffer)
                for number in self._verified([chunk for chunk in level if chunk.number in wanted], record_of, decoded):
                    each = decoded[number]
                    found[number] = Decoded(bytes(each.view()), 0, each.size) if depth else each
                until = levels.needed_until
                decoded = {number: each for number, each in decoded.items() if until.get(number, depth) < depth}
                room.give_back(decoded.values())
        except DamagedError:
            return found
        finally:
            room.give_back()
        return found

    def _read_records(self, chunks: Sequence[Located], room: _Room) -> dict[int, memoryview]:
        """Return the records of chunks as they are, by number."""
        together = list(spans(sorted(chunks, key=lambda chunk: chunk.location.position)))
        sizes = [span[-1].end - span[0].location.offset for span in together]
        left = memoryview(room.take(sum(sizes)))
        record_of = {}
        for span, size in zip(together, sizes, strict=True):
            data, left = left[:size], left[size:]
            data = data[: self._packs.read_into(span[0].location.position, [data])]
            for number, location in span:
                start = location.offset - span[0].location.offset
                record_of[number] = data[start : start + location.read_size]
        return record_of

    def _verified(
        self, chunks: Sequence[Located], record_of: dict[int, memoryview], decoded: dict[int, Decoded]
    ) -> Iterator[int]:
        """Yield those chunks whose records are theirs and whose bytes have the id."""
        for _, together in groupby(chunks, key=lambda chunk: id(decoded[chunk.number].buffer)):
            run = list(together)
            lengths = [chunk.location.raw_size for chunk in run]
            first, last = decoded[run[0].number], decoded[run[-1].number]
            if last.stop - first.start != sum(lengths):
                continue
            raw = memoryview(first.buffer)[first.start : last.stop]
            for chunk, chunk_id in zip(run, kernels.hash_chunks(raw, lengths, self._seed), strict=True):
                header = records.parse_header(record_of[chunk.number][:HEADER_SIZE])
                if header is not None and header.number == chunk.number and header.id == chunk_id:
                    yield chunk.number


def _decode_level(
    level: Sequence[Located], record_of: dict[int, memoryview], bases: dict[int, Decoded], buffer: bytearray
) -> dict[int, Decoded]:
    """Return the chunks of a level, decoded into a buffer from their records and what they rest on; DamagedError."""
    ends = list(accumulate(chunk.location.raw_size for chunk in level))
    places = dict(zip((chunk.number for chunk in level), zip([0, *ends], ends, strict=False), strict=True))
    for is_delta, together in groupby(level, key=lambda chunk: bool(chunk.location.bases)):
        run = list(together)
        room = memoryview(buffer)[places[run[0].number][0] : places[run[-1].number][1]]
        if is_delta:
            differences = [
                find_difference(_payload(chunk, record_of), _join(chunk.location, bases), chunk.location.raw_size)
                for chunk in run
            ]
            decode_all(differences, room)
        else:
            start = 0
            for chunk in run:
                payload, raw_size = _payload(chunk, record_of), chunk.location.raw_size
                room[start : start + raw_size] = codec.decode(chunk.location.encoding, payload, raw_size)
                start += raw_size
    return {number: Decoded(buffer, start, stop) for number, (start, stop) in places.items()}


def _raw_size(chunks: Iterable[Located]) -> int:
    return sum(chunk.location.raw_size for chunk in chunks)


def _payload(chunk: Located, record_of: dict[int, memoryview]) -> memoryview:
    return record_of[chunk.number][chunk.payload_offset - chunk.location.offset :]


def _join(location: Location, bases: dict[int, Decoded]) -> memoryview:
    """Return the bytes of a delta's bases; mostly they lie one behind the other already."""
    parts = [bases[number] for number in location.bases]
    if all(part.continues(before) for before, part in pairwise(parts)):
        return memoryview(parts[0].buffer)[parts[0].start : parts[-1].stop]
    return memoryview(b"".join(part.view() for part in parts))
