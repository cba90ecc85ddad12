"""The rows of a store: what the tree knows, as byte keys and byte values in sorted tables.

Tables owns the rows in memory (the active memtable over the frozen one, both sorted by key) above LMDB, which
environment.py has. It does not know what a row means. Tables belongs to one thread, its owner; only a `Frozen` and a
`Changes` may be handed to another one. A put survives nothing by itself: it is kept by the journal, to which
`take_changes` goes, and reaches LMDB by a checkpoint, all of it or none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import NamedTuple

from sortedcontainers import SortedDict

from ckptfs.store.environment import Environment
from ckptfs.store.records import Row
from ckptfs.store.schema import TREE_TABLES, Memtable, Table, merged

KEY_SIZE_MAX = 511
END = b"\xff" * KEY_SIZE_MAX
"""A key behind every other one, for ranges without an end."""

_SCAN_ROWS = 256
_ABSENT = b"absent"
"""Told apart from a value by identity."""


class Changes(NamedTuple):
    """Rows on their way to the journal; `generation` counts the freezes before the youngest of them was taken."""

    generation: int
    rows: tuple[Row, ...]


class Frozen(NamedTuple):
    """Rows on their way to LMDB: those of one generation, which do not change any more."""

    generation: int
    memtables: Mapping[Table, Memtable]


class Tables:
    """The rows of the tree, in memory over LMDB; see the head of this module for who may call what."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._reader = environment.reader(threading.Lock())
        self._generation = 0
        self._active: dict[Table, Memtable] = _memtables()
        self._frozen: Frozen | None = None
        self._below: dict[Table, Memtable] = {}
        self._pending: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in TREE_TABLES}
        self._before: dict[tuple[Table, bytes], tuple[bytes | None, bytes | None]] | None = None
        """Of each row that was changed since `all_or_none` began, what was active and pending before."""

    # Reading

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a key, or None when there is no such row."""
        value = self._active[table].get(key, _ABSENT)
        if value is _ABSENT and self._frozen is not None:
            value = self._below[table].get(key, _ABSENT)
        if value is _ABSENT:
            with self._reader.lock:
                value = self._reader.get(table, key)
        return value

    def last(self, table: Table, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        """Return the row with the greatest key in start <= key < stop, or None."""
        memtables = [self._active[table]]
        if self._frozen is not None:
            memtables.append(self._below[table])
        while True:
            best: bytes | None = None
            value: bytes | None = None
            for memtable in memtables:
                if memtable:
                    index = memtable.bisect_left(stop)  # type: ignore[attr-defined]
                    if index:
                        key, above = memtable.peekitem(index - 1)  # type: ignore[attr-defined]
                        if key >= start and (best is None or key > best):
                            best, value = key, above
            with self._reader.lock:
                cursor = self._reader.cursor(table)
                if cursor.seek_before(stop):
                    key = cursor.key()
                    if key >= start and (best is None or key > best):
                        best, value = key, cursor.value()
            if best is None:
                return None
            if value is not None:
                return best, value
            stop = best

    def scan(self, table: Table, start: bytes = b"", stop: bytes = END) -> Iterator[tuple[bytes, bytes]]:
        """Return the rows with start <= key < stop, ascending.

        Rows may be put and deleted, and checkpoints may happen, between two steps; the scan shows the rows in memory
        as they were when it began.
        """
        overlay = self._in_memory(table, start, stop)
        stored = self._scan_stored(table, start, stop)
        return merged(stored, overlay) if overlay else stored

    def scan_latest(self, table: Table, start: bytes, stop: bytes, suffix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return one row for each group of keys that differ in their end only, ascending: the last one up to `suffix`.

        Of the keys with start <= key < stop, whose ends are as long as `suffix`, and of which no group begins with
        another one. Groups without such a row are left out. What is stored takes as long as there are groups, however
        many rows they have. Rows may be put and deleted, and checkpoints may happen, between two steps; what is put
        meanwhile may be shown or not.
        """
        memtables = [memtable for memtable in (self._active[table], self._below.get(table)) if memtable]
        stored = self._scan_latest_stored(table, start, stop, suffix)
        if not memtables:
            return stored
        groups = {key[: -len(suffix)] for memtable in memtables for key in _keys(memtable, start, stop)}
        return self._merge_latest(table, stored, sorted(groups), suffix)

    def _merge_latest(
        self, table: Table, stored: Iterator[tuple[bytes, bytes]], groups: list[bytes], suffix: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the row of each group, of those in memory too."""
        above = deque(groups)
        for key, value in stored:
            group = key[: -len(suffix)]
            while above and above[0] < group:
                yield from self._latest(table, above.popleft(), suffix)
            if not above or above[0] != group:
                yield key, value
        for group in above:
            yield from self._latest(table, group, suffix)

    def _latest(self, table: Table, group: bytes, suffix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the one row of a group, or none."""
        row = self.last(table, group + bytes(len(suffix)), group + suffix + b"\0")
        return [] if row is None else [row]

    def _scan_latest_stored(
        self, table: Table, start: bytes, stop: bytes, suffix: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield what `scan_latest` does of LMDB alone, read in batches."""
        while start < stop:
            batch, start = self._read_latest_batch(table, start, stop, suffix)
            yield from batch

    def _read_latest_batch(
        self, table: Table, start: bytes, stop: bytes, suffix: bytes
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return the rows of some groups, and where the next group may begin."""
        size = len(suffix)
        rows: list[tuple[bytes, bytes]] = []
        with self._reader.lock:
            cursor = self._reader.cursor(table)
            for _ in range(_SCAN_ROWS):
                if not cursor.set_range(start) or (key := cursor.key()) >= stop:
                    return rows, stop
                group = key[:-size]
                if cursor.seek_before(group + suffix + b"\0") and cursor.key()[:-size] == group:
                    rows.append((cursor.key(), cursor.value()))
                start = group + b"\xff" * size + b"\0"
        return rows, start

    def _in_memory(self, table: Table, start: bytes, stop: bytes) -> Memtable:
        """Return a copy of the rows in memory with start <= key < stop."""
        overlay: Memtable = {}
        if self._frozen is not None:
            overlay.update((key, self._below[table][key]) for key in _keys(self._below[table], start, stop))
        if self._active[table]:
            overlay.update((key, self._active[table][key]) for key in _keys(self._active[table], start, stop))
        return overlay

    def _scan_stored(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return rows of LMDB, read in batches so that no cursor is held between two steps."""
        batch = self._read_batch(table, start, stop)
        return iter(batch) if len(batch) < _SCAN_ROWS else self._scan_on(table, batch, stop)

    def _scan_on(self, table: Table, batch: list[tuple[bytes, bytes]], stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield a batch and what follows it."""
        yield from batch
        while len(batch) == _SCAN_ROWS:
            start = batch[-1][0] + b"\0"
            if len(start) > KEY_SIZE_MAX:
                # No key can be longer: the next one is the next of this length.
                start = (int.from_bytes(batch[-1][0], "big") + 1).to_bytes(KEY_SIZE_MAX, "big")
            batch = self._read_batch(table, start, stop)
            yield from batch

    def _read_batch(self, table: Table, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        with self._reader.lock:
            rows = takewhile(lambda row: row[0] < stop, self._reader.rows_from(table, start))
            return list(islice(rows, _SCAN_ROWS))

    # Writing

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set the value of a key; an empty value is a value."""
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise ValueError(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
        if self._before is not None:
            self._note_before(table, key)
        self._active[table][key] = value
        self._pending[table][key] = value

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a row; a missing one is fine."""
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise ValueError(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
        if self._before is not None:
            self._note_before(table, key)
        self._active[table][key] = None
        self._pending[table][key] = None

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Take back what the body has put and deleted if it fails; it takes no changes and begins no checkpoint."""
        self._before = {}
        try:
            yield
        except BaseException:
            for (table, key), values in self._before.items():
                for rows, value in zip((self._active[table], self._pending[table]), values, strict=True):
                    if value is _ABSENT:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
            raise
        finally:
            self._before = None

    def _note_before(self, table: Table, key: bytes) -> None:
        assert self._before is not None
        if (table, key) not in self._before:
            active, pending = self._active[table].get(key, _ABSENT), self._pending[table].get(key, _ABSENT)
            self._before[table, key] = active, pending

    def apply(self, rows: Iterable[Row]) -> None:
        """Take over rows from the journal, which are therefore not journalled again; for the replay."""
        for table, key, value in rows:
            self._active[Table(table)][key] = value

    def take_changes(self) -> Changes:
        """Return the rows that changed since the last take, for the journal; whoever takes them appends them."""
        rows = tuple(
            Row(table, key, value) for table, pending in self._pending.items() for key, value in pending.items()
        )
        for pending in self._pending.values():
            pending.clear()
        return Changes(self._generation, rows)

    def give_back(self, changes: Changes) -> None:
        """Take back rows that could not be appended; what changed since then is newer and stays."""
        for table, key, value in changes.rows:
            self._pending[Table(table)].setdefault(key, value)

    @property
    def changed_rows(self) -> int:
        """How many rows wait for the journal."""
        return sum(len(pending) for pending in self._pending.values())

    @property
    def row_count(self) -> int:
        """How many rows wait in the active memtable for a checkpoint."""
        return sum(len(memtable) for memtable in self._active.values())

    def rows_in_memory(self, tables: Iterable[Table]) -> dict[Table, Memtable]:
        """Return copies of the rows of some of these tables that LMDB may not have yet."""
        copies = {table: _copied(self._active[table]) for table in tables}
        return {table: _copied(self._below[table]) | copies[table] for table in copies} if self._below else copies

    def freeze(self) -> Frozen:
        """Begin a checkpoint: what is in memory becomes the frozen memtable, which goes on being read."""
        if self._frozen is not None:
            raise RuntimeError("a checkpoint is under way: release its rows first")
        self._environment.make_room()
        self._frozen = Frozen(self._generation, self._active)
        self._below = self._active
        self._active = _memtables()
        self._generation += 1
        return self._frozen

    @property
    def frozen(self) -> Frozen | None:
        """The rows of the checkpoint that is under way, or whose last try failed."""
        return self._frozen

    def release(self, frozen: Frozen) -> None:
        """End a checkpoint that succeeded: its rows are read from LMDB from here on."""
        if frozen is not self._frozen:
            raise RuntimeError("these rows are not those of the checkpoint under way")
        self._frozen = None
        self._below = {}


def is_key(key: bytes) -> bool:
    """Tell whether LMDB takes this as a key."""
    return 0 < len(key) <= KEY_SIZE_MAX


def _memtables() -> dict[Table, Memtable]:
    return {table: SortedDict() for table in TREE_TABLES}


def _copied(memtable: Memtable) -> Memtable:
    """Return the rows of a memtable in no order, in a fifth of the time that going through it takes."""
    return dict(zip(dict.keys(memtable), dict.values(memtable), strict=True))


def _keys(memtable: Memtable, start: bytes, stop: bytes) -> Iterator[bytes]:
    keys: Iterator[bytes] = memtable.irange(start, stop, inclusive=(True, False))  # type: ignore[attr-defined]
    return keys
