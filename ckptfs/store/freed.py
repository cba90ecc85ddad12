"""Freed places: where in the packs records lie that no location speaks of any more.

FreedPlaces follows a place through its life. *Superseded*: its chunk was stored anew, in memory only. *Freed*: a
checkpoint has named it in the journal and, with the new locations, in LMDB; from then on whatever is found there is
no damage. *Punched*, or removed with its pack: given back to the disk below; the next checkpoint forgets it. A crash
at any point leaves a place at an earlier step, which is taken again. It knows places and rows; it reads and punches no
pack.
Every method may be called from any thread.
"""

import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile

from sortedcontainers import SortedDict

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store.environment import Environment
from ckptfs.store.records import Journal, Place, Position, Row
from ckptfs.store.schema import Memtable, Table

PIECE_SIZE = 16 * MIB

_PACK = struct.Struct(">I")
PLACE_KEY = struct.Struct(">IQ")
PLACE_VALUE = struct.Struct("<QQ")


def build_row(place: Place) -> Row:
    """Return the row that says of a place that it is free."""
    key = PLACE_KEY.pack(place.pack, place.offset)
    return Row(Table.FREED, key, PLACE_VALUE.pack(place.size, place.number))


def parse_row(key: bytes, value: bytes) -> Place:
    """Undo `build_row`; DamagedError when it is no such row."""
    if len(key) != PLACE_KEY.size or len(value) != PLACE_VALUE.size:
        raise DamagedError("the row of a freed place has another size than it must have")
    return Place(*PLACE_KEY.unpack(key), *PLACE_VALUE.unpack(value))


def journal_places(journal: Journal) -> list[Place]:
    """Return the places that a metadata record calls free; DamagedError when a row of them is none."""
    return [parse_row(row.key, row.value or b"") for row in journal.rows if row.table == Table.FREED]


def merge(places: Iterable[Place]) -> list[Place]:
    """Return the places in the order of the packs, those that touch made one."""
    merged: list[Place] = []
    for place in sorted(places):
        before = merged[-1] if merged else None
        if before is not None and before.end >= place.position:
            end = max(before.end, place.end)
            merged[-1] = before._replace(size=end.offset - before.offset, number=max(before.number, place.number))
        else:
            merged.append(place)
    return merged


def numbers_in(places: Iterable[Place], located: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return which of some chunks, given as (pack, offset, number), begin in one of the places, which are merged."""
    found = []
    following = iter(places)
    place = next(following, None)
    for pack, offset, number in sorted(located):
        while place is not None and place.end <= (pack, offset):
            place = next(following, None)
        if place is not None and place.position <= (pack, offset):
            found.append(number)
    return found


def pieces(place: Place) -> Iterator[Place]:
    """Cut a place, which may be a whole pack, into parts that are punched within milliseconds each."""
    start = place.offset
    while start < place.end.offset:
        # At multiples of the size, so that no page is cut in two.
        end = min(start - start % PIECE_SIZE + PIECE_SIZE, place.end.offset)
        yield place._replace(offset=start, size=end - start)
        start = end


class FreedPlaces:
    """The superseded and freed places of a store, in memory over LMDB."""

    def __init__(self, environment: Environment) -> None:
        self._lock = threading.Lock()
        self._reader = environment.reader(self._lock)
        self._superseded: SortedDict = SortedDict()  # the places by their positions
        self._active: dict[bytes, bytes | None] = {}
        self._frozen: dict[bytes, bytes | None] = {}
        self._next_key = b""

    def supersede(self, places: Iterable[Place]) -> None:
        """Note places whose chunks have a newer record, appended already."""
        with self._lock:
            self._superseded.update((place.position, place) for place in places)

    def superseded(self, count_max: int | None = None) -> list[Place]:
        """Return the places that nothing durable calls free yet, or the first of them, merged."""
        with self._lock:
            return merge(islice(self._superseded.values(), count_max))

    @property
    def superseded_count(self) -> int:
        """How many places nothing durable calls free yet."""
        return len(self._superseded)

    def free(self, rows: Sequence[Row]) -> None:
        """Take over rows of the journal, just appended or replayed: their places go to LMDB at the next checkpoint."""
        with self._lock:
            for _, key, value in rows:
                self._active[key] = value
                if value is not None:
                    place = parse_row(key, value)
                    if self._superseded.pop(place.position, None) != place:
                        self._forget_superseded(place.position, place.end)

    def _forget_superseded(self, start: Position, stop: Position) -> None:
        for position in [*self._superseded.irange(start, stop, inclusive=(True, False))]:
            del self._superseded[position]

    def rows_in_memory(self) -> dict[Table, Memtable]:
        """Return copies of the rows that LMDB may not have yet."""
        with self._lock:
            return {Table.FREED: {**self._frozen, **self._active}}

    @property
    def row_count(self) -> int:
        """How many rows wait for a checkpoint, those that it will make included."""
        return len(self._active) + len(self._superseded)

    # Checkpoints

    def freeze(self) -> None:
        """Begin a checkpoint: later rows are not part of it."""
        with self._lock:
            self._frozen, self._active = self._active, {}

    def frozen_rows(self) -> tuple[Table, Sequence[tuple[bytes, bytes | None]]]:
        """Return the rows of the checkpoint under way, sorted."""
        return Table.FREED, sorted(self._frozen.items())

    def release(self) -> None:
        """End a checkpoint that succeeded: what it freed may be punched from here on."""
        with self._lock:
            self._frozen = {}
            self._next_key = b""

    # Punching

    def take(self, count_max: int) -> list[Place]:
        """Return places that are free durably and for good, in order, unmerged; `punched` is told when they are."""
        with self._lock:
            rows = self._reader.rows_from(Table.FREED, self._next_key)
            return [parse_row(*row) for row in islice((row for row in rows if not self._forgotten(row[0])), count_max)]

    def _forgotten(self, key: bytes) -> bool:
        """Tell whether a row of LMDB is one that a checkpoint under way or to come deletes."""
        rows = self._active if key in self._active else self._frozen
        return key in rows and rows[key] is None

    def forget(self, pack: int) -> None:
        """Forget the places of a pack that was removed; LMDB does at the next checkpoint."""
        prefix = _PACK.pack(pack)
        with self._lock:
            keys = {key for key in (*self._active, *self._frozen) if key.startswith(prefix)}
            stored = (key for key, _ in self._reader.rows_from(Table.FREED, prefix))
            keys.update(takewhile(lambda key: key.startswith(prefix), stored))
            self._active.update(dict.fromkeys(keys))
            self._forget_superseded(Position(pack, 0), Position(pack + 1, 0))

    def punched(self, places: Sequence[Place]) -> None:
        """Forget places that `take` has returned; LMDB does at the next checkpoint."""
        with self._lock:
            for place in places:
                key = PLACE_KEY.pack(place.pack, place.offset)
                self._active[key] = None
                self._next_key = key + b"\0"
