"""The rows of the chunk index: those that a checkpoint has yet to bring to LMDB in plain dicts, over those in LMDB.

ChunkRows owns where a row is found and how a checkpoint takes rows over; what they mean is for index.py to say. A row
in memory hides the one in LMDB, also where it says that there is none. Every call but those about frozen rows, which
belong to the checkpoint, is made under the lock that it was made with.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ckptfs.store.environment import Environment
from ckptfs.store.location import FIRST_NUMBER, NO_CHUNK, NUMBER, parse_number
from ckptfs.store.schema import Memtable, Table, sorted_rows

RELEASED = -1
"""In memory, the number of an id whose row in LMDB does not count any more."""
NOWHERE = b""
"""In memory, the location of a chunk whose row in LMDB does not count any more."""

_PART_ROWS = 2048


class MemoryRows(NamedTuple):
    """Rows in memory: chunk id -> number (or RELEASED), packed number -> packed location (or NOWHERE)."""

    numbers: dict[bytes, int]
    locations: dict[bytes, bytes]

    def id_rows(self) -> Memtable:
        """Return the rows of `chunk_ids` as LMDB gets them."""
        numbers = self.numbers.items()
        return {chunk_id: None if number == RELEASED else NUMBER.pack(number) for chunk_id, number in numbers}

    def location_rows(self) -> Memtable:
        """Return the rows of `chunks` as LMDB gets them."""
        return {key: packed or None for key, packed in self.locations.items()}


class ChunkRows:
    """The rows of `chunk_ids` and `chunks`; `newest` are those that the next checkpoint takes, changed in place."""

    def __init__(self, environment: Environment, lock: threading.Lock) -> None:
        self.newest = MemoryRows({}, {})
        self._frozen: MemoryRows | None = None
        self._environment = environment
        self._reader = environment.reader(lock)

    def stored_end(self) -> int:
        """Return the number behind that of the last chunk in LMDB."""
        cursor = self._reader.cursor(Table.CHUNKS)
        return parse_number(cursor.key()) + 1 if cursor.last() else FIRST_NUMBER

    def stored(self, table: Table, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows that LMDB has of one of the tables, from a key on."""
        return self._reader.rows_from(table, start)

    def find_numbers(self, ids: Sequence[bytes]) -> list[int]:
        """Return the chunk number of each id, NO_CHUNK where there is none."""
        known = self.newest.numbers.get
        numbers = [known(chunk_id, NO_CHUNK) for chunk_id in ids]
        if NO_CHUNK in numbers and self._frozen is not None:
            known = self._frozen.numbers.get
            numbers = [number or known(chunk_id, NO_CHUNK) for chunk_id, number in zip(ids, numbers, strict=True)]
        if NO_CHUNK in numbers:
            wanted = sorted({chunk_id for chunk_id, number in zip(ids, numbers, strict=True) if not number})
            rows = self._reader.find_packed(wanted)
            known = {chunk_id: parse_number(packed) for chunk_id, packed in rows.items()}.get
            numbers = [number or known(chunk_id, NO_CHUNK) for chunk_id, number in zip(ids, numbers, strict=True)]
        if RELEASED in numbers:
            numbers = [NO_CHUNK if number == RELEASED else number for number in numbers]
        return numbers

    def location(self, key: bytes) -> bytes | None:
        """Return the packed location of a chunk by its packed number; none, or NOWHERE, where there is no chunk."""
        packed = self.newest.locations.get(key)
        if packed is None and self._frozen is not None:
            packed = self._frozen.locations.get(key)
        if packed is None:
            packed = self._reader.get(Table.CHUNKS, key)
        return packed

    def find_locations(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Return what `location` does of each key; those that are nowhere may be missing."""
        below = self._frozen.locations if self._frozen is not None else {}
        packed = {key: self.newest.locations.get(key, below.get(key)) for key in keys}
        return packed | self._reader.find(Table.CHUNKS, [key for key, found in packed.items() if found is None])

    def numbers_in_memory(self) -> list[tuple[bytes, int]]:
        """Return chunk ids in memory with their numbers; where one is there twice, the newest comes first."""
        return [*self.newest.numbers.items(), *(self._frozen.numbers.items() if self._frozen else ())]

    def locations_in_memory(self) -> dict[bytes, bytes]:
        """Return packed numbers in memory with their packed locations."""
        return {**(self._frozen.locations if self._frozen else {}), **self.newest.locations}

    def copy(self) -> MemoryRows:
        """Return the rows in memory as they are now."""
        numbers = {**(self._frozen.numbers if self._frozen else {}), **self.newest.numbers}
        return MemoryRows(numbers, self.locations_in_memory())

    # Checkpoints

    @property
    def row_count(self) -> int:
        """How many chunks wait in memory for a checkpoint."""
        return len(self.newest.locations)

    @property
    def is_frozen(self) -> bool:
        """Whether a checkpoint is under way, or its last try failed."""
        return self._frozen is not None

    def freeze(self) -> None:
        """Begin a checkpoint: later rows are not part of it."""
        if self._frozen is not None:
            raise RuntimeError("a checkpoint of the chunk index is under way")
        self._frozen, self.newest = self.newest, MemoryRows({}, {})

    def release(self) -> None:
        """End a checkpoint that succeeded: its rows are read from LMDB from here on."""
        self._frozen = None

    def frozen_ids(self) -> list[Sequence[tuple[bytes, bytes | None]]]:
        """Return the rows of `chunk_ids` of the checkpoint under way, sorted, in parts that each take little space.

        A transaction writes the pages that it touches anew, and LMDB keeps the old ones for the next but one. Ids are
        random: in one transaction they would touch every page, and two thirds of the table were free space. There are
        no old pages where the table is empty, as that of an index made anew.
        """
        rows = sorted_rows(self._under_way().id_rows())
        part_rows = _PART_ROWS if self._environment.count(Table.CHUNK_IDS) else max(len(rows), 1)
        return [rows[start : start + part_rows] for start in range(0, len(rows) or 1, part_rows)]

    def frozen_locations(self) -> Sequence[tuple[bytes, bytes | None]]:
        """Return the rows of `chunks` of the checkpoint under way, sorted."""
        return sorted_rows(self._under_way().location_rows())

    def _under_way(self) -> MemoryRows:
        if self._frozen is None:
            raise RuntimeError("no checkpoint of the chunk index is under way")
        return self._frozen
