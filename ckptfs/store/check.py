"""The structure of a store: whether what LMDB says of chunks agrees with itself and with the packs.

Reads rows and the sizes of the packs, never a record: that takes seconds, and leaves the bytes to `ChunkStore.verify`.
It changes nothing. One view belongs to one thread; others may go on with the store.
"""

import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store.codec import Encoding
from ckptfs.store.condensed import Condensed
from ckptfs.store.delta import DELTA_CHAIN_MAX
from ckptfs.store.freed import merge, parse_row
from ckptfs.store.location import NUMBER, parse_location
from ckptfs.store.packs import Packs
from ckptfs.store.reader import View
from ckptfs.store.records import ALIGNMENT, HEADER_SIZE, Position, record_size
from ckptfs.store.schema import Table

PROBLEMS_MAX = 1000
"""So many problems are named; more would help nobody."""

_PACK_SHIFT = 48
_ID_SIZE = 16


class StructureReport(NamedTuple):
    """What a check found: raw size of each chunk by its number (0: no such chunk), and a sentence for each problem.

    `damaged` says by number what is wrong with the chunks that were found damaged before, and those that rest on them.
    """

    raw_sizes: "array[int]"
    problems: list[str]
    damaged: dict[int, str]


class Verified(NamedTuple):
    """What a slice of verification did: go on at the number `next_number`; `damaged` says by number what is wrong."""

    next_number: int
    raw_bytes: int
    damaged: dict[int, str]


def check_structure(
    view: View, packs: Packs, condensed: Condensed, numbers_end: int, damaged: Iterable[int]
) -> StructureReport:
    """Check chunks, chunk ids and freed places against each other and the packs; numbers below `numbers_end` exist.

    Where chunks lie that are known to be damaged says nothing.
    """
    check = _StructureCheck(view, packs, condensed, numbers_end, damaged)
    problems = list(islice(check.run(), PROBLEMS_MAX))
    return StructureReport(check.raw_sizes, problems, check.damaged)


class _StructureCheck:
    """One check; the places of live chunks are gathered as integers, pack and offset in one, which sort like them."""

    def __init__(
        self, view: View, packs: Packs, condensed: Condensed, numbers_end: int, damaged: Iterable[int]
    ) -> None:
        self.raw_sizes = array("I", [0])
        self.damaged = {number: f"chunk {number} was found damaged before" for number in damaged}
        self._heights = bytearray(1)
        self._deltas = array("Q")
        """Pairs of a delta's number and that of one of its bases."""
        self._view = view
        self._packs = packs
        self._condensed = condensed
        self._pack_sizes = packs.sizes()
        self._numbers_end = numbers_end
        self._starts = array("Q")
        self._sizes = array("Q")

    def run(self) -> Iterator[str]:
        """Yield a sentence for each problem."""
        yield from self._check_packs()
        yield from self._check_condensed()
        yield from self._check_chunks()
        yield from self._check_deltas()
        yield from self._check_ids()
        yield from self._check_places()

    def _check_packs(self) -> Iterator[str]:
        for pack, size in self._pack_sizes.items():
            if size < HEADER_SIZE:
                yield f"{self._packs.path(pack)} ends before its header does"
        first = self._condensed.first_pack
        for before, pack in pairwise([first - 1, *(pack for pack in self._pack_sizes if pack >= first)]):
            if pack != before + 1:
                yield f"{self._packs.path(before + 1)} is missing"

    def _check_condensed(self) -> Iterator[str]:
        losses: list[str] = []
        if self._condensed.path.exists():
            deque(self._condensed.rows(losses), maxlen=0)
        yield from losses

    def _check_chunks(self) -> Iterator[str]:
        for key, value in self._view.scan(Table.CHUNKS):
            try:
                (number,) = NUMBER.unpack(key)
                location = parse_location(value)
            except (struct.error, DamagedError):
                yield f"the row {key.hex()} of chunks has another size than it must have"
                continue
            if not 0 < number < self._numbers_end:
                yield f"chunk {number} has a number that was never given"
                continue
            self.raw_sizes.extend([0] * (number - len(self.raw_sizes)))
            self.raw_sizes.append(location.raw_size)
            self._heights.extend(bytes(number - len(self._heights)))
            self._heights.append(location.height)
            if number in self.damaged:
                continue
            if (location.encoding == Encoding.DELTA) != bool(location.bases):
                yield f"chunk {number} has encoding {location.encoding} and {len(location.bases)} bases"
            for base in location.bases:
                self._deltas.extend((number, base))
            size = record_size(location.stored_size, len(location.bases))
            if location.offset < HEADER_SIZE or location.offset % ALIGNMENT or not location.raw_size:
                yield f"chunk {number}: no record can be at {self._packs.place(location.position)}"
            elif location.offset + size > self._pack_sizes.get(location.pack, 0):
                yield f"chunk {number}: {self._packs.place(location.position)} is behind the end of the pack"
            else:
                self._starts.append(location.pack << _PACK_SHIFT | location.offset)
                self._sizes.append(size)

    def _check_deltas(self) -> Iterator[str]:
        """Every base is there, and higher than what rests on it: so chains end. None is too long to be read."""
        depths = bytearray(len(self._heights))
        pairs = zip(self._deltas[::2], self._deltas[1::2], strict=True)
        for number, base in sorted(pairs, key=lambda pair: self._heights[pair[0]], reverse=True):
            if base >= len(self.raw_sizes) or not self.raw_sizes[base]:
                yield f"chunk {number} rests on chunk {base}, which is not there"
            elif self._heights[base] <= self._heights[number]:
                yield f"chunk {number} rests on chunk {base}, which is not known to be rested on"
            elif depths[base] == DELTA_CHAIN_MAX:
                yield f"chunk {number} rests on a chain of more than {DELTA_CHAIN_MAX} deltas"
            else:
                if base in self.damaged:
                    self.damaged[number] = f"chunk {number} rests on chunk {base}, which is damaged"
                depths[number] = max(depths[number], depths[base] + 1)  # those of higher chunks are known by now

    def _check_ids(self) -> Iterator[str]:
        known = bytearray(len(self.raw_sizes))
        for key, value in self._view.scan(Table.CHUNK_IDS):
            number = NUMBER.unpack(value)[0] if len(value) == NUMBER.size else 0
            if len(key) != _ID_SIZE or not 0 < number < len(known) or not self.raw_sizes[number]:
                yield f"the chunk id {key.hex()} means chunk {number}, which is not there"
            elif known[number]:
                yield f"chunk {number} has two ids"
            else:
                known[number] = 1
        for number, (has_id, raw_size) in enumerate(zip(known, self.raw_sizes, strict=True)):
            if raw_size and not has_id:
                yield f"chunk {number} has no id"

    def _check_places(self) -> Iterator[str]:
        """No record lies in another one, nor in a freed place."""
        order = sorted(range(len(self._starts)), key=self._starts.__getitem__)
        places = []
        for key, value in self._view.scan(Table.FREED):
            try:
                places.append(parse_row(key, value))
            except DamagedError as error:
                yield str(error)
        freed = iter(merge(places))
        place = next(freed, None)
        reached = 0
        for index in order:
            start = self._starts[index]
            end = start + self._sizes[index]
            if start < reached:
                yield f"two chunks share {self._named(start)}"
            reached = max(reached, end)
            while place is not None and _key(place.end) <= start:
                place = next(freed, None)
            if place is not None and _key(place.position) < end:
                yield f"the chunk at {self._named(start)} lies in a place that is called free"

    def _named(self, key: int) -> str:
        return self._packs.place(Position(key >> _PACK_SHIFT, key & (1 << _PACK_SHIFT) - 1))


def _key(position: Position) -> int:
    return position.pack << _PACK_SHIFT | position.offset
