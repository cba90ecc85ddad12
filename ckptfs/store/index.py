"""The chunk index: which chunks are stored, under which number, and where.

ChunkIndex owns what the rows of `chunk_ids` and `chunks`, which chunk_rows.py keeps, mean and amount to. It does not
read packs. Every method may be called from any thread. Its rows are made from the chunk records of the packs, so
nothing here is journalled: what a crash takes from memory, the replay puts back.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice

from ckptfs.store.chunk_rows import NOWHERE, RELEASED, ChunkRows
from ckptfs.store.codec import Encoding
from ckptfs.store.environment import Environment
from ckptfs.store.location import (
    FIRST_NUMBER,
    HEIGHT_MAX,
    LOCATION,
    NO_CHUNK,
    NUMBER,
    Chunk,
    Known,
    Location,
    build_location,
    parse_location,
    parse_number,
)
from ckptfs.store.records import Place, Position, Row, record_size
from ckptfs.store.schema import Memtable, Table
from ckptfs.store.totals import Summary, Tally, Totals

_WALK_ROWS = 1024

_BASE_COUNT = slice(20, 22)
"""Where a location has it."""
_NO_BASES = bytes(2)
_HEIGHT_AT = 23


class ChunkIndex:
    """Chunk id -> number -> location."""

    def __init__(self, environment: Environment) -> None:
        self._lock = threading.Lock()
        self.rows = ChunkRows(environment, self._lock)
        self._summary = self._frozen_summary = Summary()
        self._awaited_heights: dict[int, int] = {}
        self._watched: set[int] | None = None
        self.count = environment.count(Table.CHUNKS)
        """How many chunks there are."""
        with self._lock:
            self._next_number = self.rows.stored_end()

    def resume(self, summary: Summary) -> None:
        """Go on from what was true of the rows in LMDB."""
        self._summary = self._frozen_summary = summary

    @property
    def next_number(self) -> int:
        """A number above those of all chunks."""
        return self._next_number

    @property
    def totals(self) -> Totals:
        """What all chunks amount to."""
        return self._summary.totals

    def lookup(self, ids: Sequence[bytes]) -> list[int]:
        """Return the chunk number of each id, NO_CHUNK where it is not stored."""
        with self._lock:
            numbers = self.rows.find_numbers(ids)
            if self._watched is not None:
                self._watch(numbers)
            return numbers

    def locate(self, number: int) -> Location | None:
        """Return where a chunk is stored, or None when there is none with this number."""
        with self._lock:
            return self._locate(NUMBER.pack(number))

    def _locate(self, key: bytes) -> Location | None:
        row = self.rows.location(key)
        return parse_location(row) if row else None

    def has_all(self, numbers: Iterable[int]) -> bool:
        """Tell whether all these chunks are stored; what they rest on then is too."""
        return all(self.locate(number) is not None for number in numbers)

    def bases(self, number: int) -> tuple[int, ...]:
        """Return the chunks that have to be kept for this one to be read, without what they need in turn."""
        location = self.locate(number)
        return () if location is None else location.bases

    def descend(self, numbers: Iterable[int]) -> Iterator[set[int]]:
        """Yield these chunks, then all their bases, then all of theirs, as long as there are any."""
        level = set(numbers)
        while level:
            yield level
            level = {base for number in level for base in self.bases(number)}

    def register(self, chunks: Sequence[Chunk]) -> list[Place]:
        """Add chunks whose records are appended; return the places that no location speaks of any more.

        One known already gets the new location, if that is the later one in the packs.
        """
        numbers, ids, locations = zip(*chunks, strict=True) if chunks else ((), (), ())
        return self.register_rows(numbers, ids, [build_location(location) for location in locations])

    def register_rows(self, numbers: Sequence[int], ids: Sequence[bytes], rows: Sequence[bytes]) -> list[Place]:
        """Add chunks as `register` does, whose locations are given as rows of LMDB."""
        with self._lock:
            if self._are_new(numbers) and len(packed := b"".join(rows)) == len(rows) * LOCATION.size:
                _, _, _, raw_sizes, _, encodings, _ = zip(*LOCATION.iter_unpack(packed), strict=True)
                self._put_new(numbers, ids, rows, Tally.of(raw_sizes, encodings))
                return []
            totals = Tally()
            replaced = []
            for number, chunk_id, row in zip(numbers, ids, rows, strict=True):
                place = self._put(number, chunk_id, row, totals)
                if place is not None:
                    replaced.append(place)
            self._count(totals)
        return replaced

    def register_waiting(self, first: int, ids: Sequence[bytes], sizes: Sequence[int], position: Position) -> None:
        """Add new chunks, numbered from `first`, that wait for an encoding; their records begin at `position`.

        The same as `register`, at once for the many chunks of a save.
        """
        pack, offset = position
        numbers = range(first, first + len(ids))
        offsets = accumulate(map(record_size, sizes), initial=offset)
        rows = [
            LOCATION.pack(pack, offset, size, size, 0, Encoding.WAITING, 0)
            for offset, size in zip(offsets, sizes, strict=False)
        ]
        raw_bytes = sum(sizes)
        with self._lock:
            assert first >= self._next_number
            self._put_new(numbers, ids, rows, Tally(len(ids), raw_bytes, len(ids), raw_bytes))

    def _are_new(self, numbers: Sequence[int]) -> bool:
        """Tell whether chunks are numbered one behind the other, above all others, and no height awaits one."""
        is_above = bool(numbers) and numbers[0] >= self._next_number and not self._awaited_heights
        return is_above and [*numbers] == [*range(numbers[0], numbers[0] + len(numbers))]

    def _put_new(self, numbers: Sequence[int], ids: Sequence[bytes], rows: Sequence[bytes], totals: Tally) -> None:
        """Add chunks with numbers above all others that have no bases, and on which nothing rests."""
        self.rows.newest.numbers.update(zip(ids, numbers, strict=True))
        self.rows.newest.locations.update(zip(map(NUMBER.pack, numbers), rows, strict=True))
        self._next_number = numbers[-1] + 1
        self._count(totals)

    def _put(self, number: int, chunk_id: bytes, row: bytes, totals: Tally) -> Place | None:
        """Add a chunk, whatever is known; return the place that no location speaks of any more, if there is one."""
        key = NUMBER.pack(number)
        location = parse_location(row)
        # A number above all others needs no look-up, and that is how chunks are put.
        before = self._locate(key) if number < self._next_number else None
        # An id in memory may be that of a chunk released before this one: a replay over its own rows.
        if before is None or chunk_id in self.rows.newest.numbers:
            self.rows.newest.numbers[chunk_id] = number
        replaced = None
        if before is None:
            self._next_number = max(self._next_number, number + 1)
            totals.add(location)
        elif location.position > before.position:
            replaced = before.place(number)
            totals.move(before, location)
        else:
            return None
        self.rows.newest.locations[key] = row
        if self._watched is not None:
            self._watch(location.bases)
        self._raise_bases(location, 0)
        if height := before.height if before is not None else self._awaited_heights.pop(number, 0):
            self._raise_height(number, height)
        return replaced

    def _raise_bases(self, location: Location, height: int) -> None:
        for base in location.bases:
            self._raise_height(base, height + 1)

    def _raise_height(self, number: int, height: int) -> None:
        """Note that a chain of so many deltas rests on a chunk, and a longer one on what the chunk rests on."""
        key = NUMBER.pack(number)
        row = self.rows.location(key)
        if not row:
            # The replay meets a delta before its base where that was stored anew.
            self._awaited_heights[number] = max(height, self._awaited_heights.get(number, 0))
        elif row[_HEIGHT_AT] < height <= HEIGHT_MAX:
            self.rows.newest.locations[key] = row[:_HEIGHT_AT] + bytes((height,)) + row[_HEIGHT_AT + 1 :]
            if row[_BASE_COUNT] != _NO_BASES:
                self._raise_bases(parse_location(row), height)

    def _count(self, tally: Tally) -> None:
        """Bring the totals up to locations that were set or taken away."""
        self._summary = self._summary._replace(totals=tally.added_to(self._summary.totals))
        self.count += tally.chunks

    # Chunks that nothing needs

    def watch(self) -> int:
        """Note from here on which chunks `lookup` tells of, or a delta is made against; return the next new number.

        `take_out` leaves these alone, and what they rest on.
        """
        with self._lock:
            self._watched = set()
            return self._next_number

    def end_watch(self) -> None:
        """End what `watch` began."""
        with self._lock:
            self._watched = None

    def _watch(self, numbers: Iterable[int]) -> None:
        """Note that chunks are not to be taken out, nor what they rest on, as far as that is not noted yet."""
        assert self._watched is not None
        pending = [*numbers]
        while pending:
            number = pending.pop()
            if number != NO_CHUNK and number not in self._watched:
                self._watched.add(number)
                location = self._locate(NUMBER.pack(number))
                if location is not None:
                    pending += location.bases

    def walk_known(self, start: bytes, wanted: Callable[[int], bool]) -> tuple[list[Known], bytes | None]:
        """Look through the chunks by id: at first those in memory, then some rows of LMDB from the id `start` on.

        Return those whose number is wanted, and where to go on, None at the end.
        """
        if not start:
            with self._lock:  # no longer than it takes to copy them: whoever saves waits for it
                rows = self.rows.numbers_in_memory()
            return [Known(*row) for row in rows if row[1] != RELEASED and wanted(row[1])], b"\0"
        with self._lock:
            stored = self.rows.stored(Table.CHUNK_IDS, start)
            rows = [(chunk_id, parse_number(packed)) for chunk_id, packed in islice(stored, _WALK_ROWS)]
            following = next(stored, None)
        return [Known(*row) for row in rows if wanted(row[1])], None if following is None else following[0]

    def walk_encoded_against(self, start: int) -> tuple[list[int], int | None]:
        """Look for chunks that have bases: at first those in memory, then some rows of LMDB from `start` on.

        Return their numbers, and where to go on, None at the end.
        """
        if start < FIRST_NUMBER:
            with self._lock:
                locations = self.rows.locations_in_memory()
            located = ((key, parse_location(packed)) for key, packed in locations.items() if packed)
            return [NUMBER.unpack(key)[0] for key, location in located if location.bases], FIRST_NUMBER
        with self._lock:
            rows = list(islice(self.rows.stored(Table.CHUNKS, NUMBER.pack(start)), _WALK_ROWS))
        found = [parse_number(key) for key, packed in rows if packed[_BASE_COUNT] != _NO_BASES]
        return found, parse_number(rows[-1][0]) + 1 if len(rows) == _WALK_ROWS else None

    def take_out(self, chunks: Iterable[Known]) -> list[Chunk]:
        """Take chunks out, but those that are gone already and those watched; return those that were there."""
        released = []
        with self._lock:
            for chunk_id, number in chunks:
                location = self._locate(NUMBER.pack(number))
                if location is not None and not (self._watched and number in self._watched):
                    released.append(Chunk(number, chunk_id, location))
            self._drop(row for number, chunk_id, _ in released for row in Known(chunk_id, number).release_rows)
        return released

    def drop(self, rows: Iterable[Row]) -> list[Place]:
        """Take over release rows of the journal in a replay; return the places that no location speaks of any more."""
        with self._lock:
            return self._drop(rows)

    def _drop(self, rows: Iterable[Row]) -> list[Place]:
        places = []
        totals = Tally()
        for table, key, _ in rows:
            if table == Table.CHUNK_IDS:
                self.rows.newest.numbers[key] = RELEASED
                continue
            before = self._locate(key)
            self.rows.newest.locations[key] = NOWHERE
            if before is not None:
                totals.add(before, -1)
                places.append(before.place(NUMBER.unpack(key)[0]))
        self._count(totals)
        return places

    def rows_in_memory(self) -> dict[Table, Memtable]:
        """Return copies of the rows that LMDB may not have yet."""
        with self._lock:
            rows = self.rows.copy()
        return {Table.CHUNKS: rows.location_rows(), Table.CHUNK_IDS: rows.id_rows()}

    def locate_many(self, numbers: Iterable[int]) -> dict[int, Location]:
        """Return where chunks are stored, as many of them as there are."""
        number_of = {NUMBER.pack(number): number for number in numbers}
        with self._lock:
            packed = self.rows.find_locations(number_of)
        return {number_of[key]: parse_location(found) for key, found in packed.items() if found}

    # Chunks that wait for an encoding

    def keep_raw(self, number: int) -> None:
        """Note that a waiting chunk was tried and keeps its record, which is from here on a raw one."""
        key = NUMBER.pack(number)
        with self._lock:
            before = self._locate(key)
            if before is not None and before.encoding == Encoding.WAITING:
                after = before._replace(encoding=Encoding.RAW)
                self.rows.newest.locations[key] = build_location(after)
                tally = Tally()
                tally.move(before, after)
                self._count(tally)

    def walk_waiting(self, start: int, count_max: int) -> tuple[list[int], int | None]:
        """Look through some rows of LMDB from the number `start` on, in the order of the packs.

        Return the numbers of at most `count_max` that wait as far as LMDB knows, and where to go on, None at the end.
        """
        with self._lock:
            rows = list(islice(self.rows.stored(Table.CHUNKS, NUMBER.pack(start)), _WALK_ROWS))
        waiting = (parse_number(key) for key, packed in rows if parse_location(packed).encoding == Encoding.WAITING)
        found = list(islice(waiting, count_max))
        if len(found) == count_max:
            return found, found[-1] + 1
        return found, parse_number(rows[-1][0]) + 1 if len(rows) == _WALK_ROWS else None

    @property
    def tried_until(self) -> int:
        """The number below which no chunk waits."""
        return self._summary.tried_until

    @tried_until.setter
    def tried_until(self, number: int) -> None:
        with self._lock:
            self._summary = self._summary._replace(tried_until=number)

    # Checkpoints

    def freeze(self) -> None:
        """Begin a checkpoint: later chunks are not part of it, and the rows of the others are frozen."""
        with self._lock:
            self.rows.freeze()
            self._frozen_summary = self._summary

    @property
    def frozen_summary(self) -> Summary:
        """What is true of LMDB once the checkpoint under way is done."""
        return self._frozen_summary

    def release(self) -> None:
        """End a checkpoint that succeeded."""
        with self._lock:
            self.rows.release()
