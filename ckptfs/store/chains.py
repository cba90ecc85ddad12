"""Chains: many deltas read at once, with all that they rest on.

A version that lies several deltas deep has a few hundred chunks in every piece that is read, on every level about as
many. All of them are looked up level by level, their records are read, and then one call that needs no interpreter's
lock decodes them (`kernels.take_chains`). Only what was asked for is verified: where a base is not what it was, what
rests on it is not either. Any thread may call. Whatever is not as it should be leaves a chunk out, and reading it alone
(`fetch.py`) says what is wrong.
"""

from collections.abc import Mapping, Sequence
from threading import Semaphore

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store import codec, kernels
from ckptfs.store.budget import Budget
from ckptfs.store.buffers import Buffers
from ckptfs.store.delta import BASES_SIZE_MAX, DELTA_CHAIN_MAX
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Location
from ckptfs.store.packs import Packs
from ckptfs.store.records import HEADER_SIZE, pack_bases
from ckptfs.store.spans import Decoded, Located, Room, spans

ASKED_SIZE_MAX = 20 * MIB
"""Bytes of the deltas that are read at once. What they rest on reaches over their ends on every level, so that more of
it is decoded twice where they are fewer."""
LEVEL_SIZE_MAX = 2 * ASKED_SIZE_MAX + BASES_SIZE_MAX
"""A level with more bytes than chunks that lie over one another have is not read at once."""
RECORDS_SIZE = 128 * MIB
"""Room for the records of a read; few need more."""
DATA_SIZE_MAX = 512 * MIB
"""Records that take more, as they may where others lie between them, are not read at once."""
LEVELS_SIZE = 32 * MIB
"""Room for what is decoded of all levels and kept until what rests on it is; few reads need more."""
TRIES_MAX = 2
"""So often `take_chains` decodes a chunk at most; of versions that lie deep, as ckptfs writes them, once."""
READS_MAX = 2
"""Reads at a time: each keeps a processor busy, and more would need more memory that is not in its cache."""


class ChainReader:
    """Reads the deltas of one store."""

    def __init__(self, index: ChunkIndex, packs: Packs, seed: int) -> None:
        self._index = index
        self._packs = packs
        self._seed = seed
        self._records = Buffers(RECORDS_SIZE, READS_MAX)
        self._levels = Buffers(LEVELS_SIZE, READS_MAX)
        self._turn = Semaphore(READS_MAX)

    def read(self, deltas: Sequence[Located], room: Room, start: int, budget: Budget) -> dict[int, Decoded]:
        """Return those deltas that are what was written, by number; OSError passes, and DamagedError of the budget.

        Each has its place in `room`, one behind the other from `start` on.
        """
        found: dict[int, Decoded] = {}
        asked: dict[int, Decoded] = {}
        for number, location in deltas:
            stop = start + location.raw_size
            if asked and stop - next(iter(asked.values())).start > ASKED_SIZE_MAX:
                found |= self._read_asked(asked, room, budget)
                asked = {}
            asked[number] = Decoded(room, start, stop)
            start = stop
        return found | self._read_asked(asked, room, budget)

    def _read_asked(self, asked: Mapping[int, Decoded], room: Room, budget: Budget) -> dict[int, Decoded]:
        """Return those of the chunks, which have their places already, that are what was written."""
        with self._turn:
            chains = _Chains(self._index, asked, budget)
            if not chains.is_complete:
                return {}
            levels_size = chains.level_room * DELTA_CHAIN_MAX
            with self._records.taken(chains.data_size) as data, self._levels.taken(levels_size) as levels:
                try:
                    payloads = chains.read(self._packs, data)
                except DamagedError:
                    return {}
                links, bases = chains.links(payloads, asked)
                taken = kernels.take_chains(data, links, bases, room, levels[:levels_size], self._seed)
        return {number: asked[number] for number, is_taken in zip(chains.level_of, taken, strict=True) if is_taken}


class _Chains:
    """Deltas and all that they rest on: each chunk on the level below the lowest one that rests on it."""

    def __init__(self, index: ChunkIndex, asked: Mapping[int, Decoded], budget: Budget) -> None:
        """Look up all levels. What decoding them may take is taken from the budget level by level, or DamagedError."""
        self.level_of: dict[int, int] = {}
        """What is asked for first, in its order."""
        self.is_complete = False
        self.level_room = 0
        """Bytes in which the bases of any delta lie one behind the other, wherever on their level they begin."""
        self._locations: dict[int, Location] = {}
        level: Mapping[int, object] = asked
        depth = 0
        while level:
            new = [number for number in level if number not in self._locations]
            budget.take(0, TRIES_MAX * len(new))
            located = index.locate_many(new)
            budget.take(TRIES_MAX * sum(location.larger_size for location in located.values()))
            self._locations |= located
            if depth > DELTA_CHAIN_MAX or not self._locations.keys() >= level.keys():
                return
            self.level_of |= dict.fromkeys(level, depth)
            locations = [self._locations[number] for number in level]
            if sum(location.larger_size for location in locations) > LEVEL_SIZE_MAX:
                return
            level = dict.fromkeys(base for location in locations for base in location.bases)
            depth += 1
        size_of = {number: location.raw_size for number, location in self._locations.items()}
        bases_size_max = max(sum(map(size_of.__getitem__, each.bases)) for each in self._locations.values())
        self.level_room = bases_size_max + max(size_of.values())
        self._spans = list(spans(sorted(map(Located._make, self._locations.items()), key=_position)))
        self.is_complete = bases_size_max <= BASES_SIZE_MAX and self.data_size <= DATA_SIZE_MAX

    @property
    def data_size(self) -> int:
        """Bytes of all records, and of the chunks that are decoded here."""
        decoded = sum(each.raw_size for each in self._locations.values() if not each.bases)
        return decoded + sum(_size(span) for span in self._spans)

    def read(self, packs: Packs, data: memoryview) -> dict[int, tuple[int, int, int]]:
        """Read all records into `data`; return encoding, place and size of every payload there. DamagedError."""
        payloads, at = {}, 0
        for span in self._spans:
            size = _size(span)
            if packs.read_into(span[0].location.position, [data[at : at + size]]) < size:
                raise DamagedError("records that end too early")
            shift = at - span[0].location.offset
            for number, (_, offset, stored_size, _, encoding, bases, _) in span:
                payloads[number] = encoding, shift + offset + HEADER_SIZE + 8 * len(bases), stored_size
            at += size
        for number, (encoding, start, size) in payloads.items():
            payload = data[start : start + size]
            if not codec.is_known_to_kernels(encoding, payload):
                raw_size = self._locations[number].raw_size
                data[at : at + raw_size] = codec.decode(encoding, payload, raw_size)
                payloads[number] = codec.Encoding.RAW, at, raw_size
                at += raw_size
        return payloads

    def links(self, payloads: Mapping[int, tuple[int, int, int]], asked: Mapping[int, Decoded]) -> tuple[bytes, bytes]:
        """Return what `kernels.take_chains` takes: the chunks in the order of `level_of`, and their bases."""
        index_of = {number: index for index, number in enumerate(self.level_of)}
        links, bases = [], []
        for number, level in self.level_of.items():
            encoding, start, stored_size = payloads[number]
            location = self._locations[number]
            place = asked[number].start if number in asked else kernels.NO_PLACE
            links.append(
                kernels.LINK.pack(
                    start, number, place, stored_size, location.raw_size, level, encoding, len(location.bases)
                )
            )
            bases += [index_of[base] for base in location.bases]
        return b"".join(links), pack_bases(bases)


def _position(chunk: Located) -> tuple[int, int]:
    return chunk.location[:2]


def _size(span: Sequence[Located]) -> int:
    return span[-1].end - span[0].location.offset
