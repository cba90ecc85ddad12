"""The chunk index: which chunks are stored, under which number, and where.

ChunkIndex owns the tables `chunk_ids` and `chunks`: their newest rows in plain dicts, the rest in LMDB. It does not
read packs. Every method may be called from any thread. Its rows are made from the chunk records of the packs, so
nothing here is journalled: what a crash takes from memory, the replay puts back.
"""

import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from ckptfs.store.records import Position
from ckptfs.store.tables import Environment, Table, sorted_rows

NO_CHUNK = 0
"""The number of no chunk: a hole in a manifest, an id that is not known."""

FIRST_NUMBER = 1

LOCATION = struct.Struct("<IQIIHBx")
NUMBER = struct.Struct(">Q")


class Location(NamedTuple):
    """Where a chunk is stored and how; sizes in bytes. Its bases are named in the record itself."""

    pack: int
    offset: int
    stored_size: int
    raw_size: int
    base_count: int
    encoding: int

    @property
    def position(self) -> Position:
        """The position of the chunk's record."""
        return Position(self.pack, self.offset)


class Chunk(NamedTuple):
    """A stored chunk as the index takes it."""

    number: int
    id: bytes
    location: Location


class _Rows(NamedTuple):
    """Rows in memory: chunk id -> number, packed number -> packed location."""

    numbers: dict[bytes, int]
    locations: dict[bytes, bytes]


class ChunkIndex:
    """Chunk id -> number -> location, in memory over LMDB."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._reader = environment.reader(self._lock)
        self._active = _Rows({}, {})
        self._frozen: _Rows | None = None

    def lookup(self, ids: Sequence[bytes]) -> list[int]:
        """Return the chunk number of each id, NO_CHUNK where it is not stored."""
        with self._lock:
            known = self._active.numbers.get
            numbers = [known(chunk_id, NO_CHUNK) for chunk_id in ids]
            if NO_CHUNK in numbers and self._frozen is not None:
                known = self._frozen.numbers.get
                numbers = [number or known(chunk_id, NO_CHUNK) for chunk_id, number in zip(ids, numbers, strict=True)]
            if NO_CHUNK in numbers:
                # Sorted keys walk the tree once, from left to right.
                wanted = sorted({chunk_id for chunk_id, number in zip(ids, numbers, strict=True) if not number})
                rows = self._reader.cursor(Table.CHUNK_IDS).getmulti(wanted)
                known = {chunk_id: NUMBER.unpack(packed)[0] for chunk_id, packed in rows}.get
                numbers = [number or known(chunk_id, NO_CHUNK) for chunk_id, number in zip(ids, numbers, strict=True)]
            return numbers

    def locate(self, number: int) -> Location | None:
        """Return where a chunk is stored, or None when there is none with this number."""
        key = NUMBER.pack(number)
        with self._lock:
            packed = self._active.locations.get(key)
            if packed is None and self._frozen is not None:
                packed = self._frozen.locations.get(key)
            if packed is None:
                packed = self._reader.get(Table.CHUNKS, key)
        return None if packed is None else Location._make(LOCATION.unpack(packed))

    def register(self, chunks: Sequence[Chunk]) -> None:
        """Add chunks whose records are appended; one known already gets the new location."""
        rows = [(chunk.id, chunk.number, NUMBER.pack(chunk.number), LOCATION.pack(*chunk.location)) for chunk in chunks]
        with self._lock:
            for chunk_id, number, key, packed in rows:
                self._active.numbers[chunk_id] = number
                self._active.locations[key] = packed

    @property
    def row_count(self) -> int:
        """How many chunks wait in memory for a checkpoint."""
        return len(self._active.numbers)

    @property
    def is_frozen(self) -> bool:
        """Whether a checkpoint is under way, or its last try failed."""
        return self._frozen is not None

    def freeze(self) -> None:
        """Begin a checkpoint: later chunks are not part of it."""
        with self._lock:
            if self._frozen is not None:
                raise RuntimeError("a checkpoint of the chunk index is under way")
            self._frozen, self._active = self._active, _Rows({}, {})

    def frozen_rows(self) -> list[tuple[Table, Sequence[tuple[bytes, bytes]]]]:
        """Return the rows of the checkpoint under way, sorted."""
        if self._frozen is None:
            raise RuntimeError("no checkpoint of the chunk index is under way")
        numbers = {chunk_id: NUMBER.pack(number) for chunk_id, number in self._frozen.numbers.items()}
        return [(Table.CHUNKS, sorted_rows(self._frozen.locations)), (Table.CHUNK_IDS, sorted_rows(numbers))]

    def release(self) -> None:
        """End a checkpoint that succeeded: its rows are read from LMDB from here on."""
        with self._lock:
            self._frozen = None
            self._reader.renew()
