"""The rows of a store: what the tree knows, as byte keys and byte values in sorted tables.

Tables owns the rows in memory (the active memtable over the frozen one) above LMDB; Environment owns LMDB, and no
other module imports it. They do not know what a row means. Tables belongs to one thread, its owner; only a `Frozen`
and a `Changes` may be handed to another one. A put survives nothing by itself: it is kept by the journal, to which
`take_changes` goes, and reaches LMDB by a checkpoint. LMDB syncs at every commit, so what a checkpoint wrote is
durable or, after a crash in the middle, not there at all.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import lmdb
from sortedcontainers import SortedDict

from ckptfs.config import GIB, KIB
from ckptfs.errors import DamagedError, NoSpaceError
from ckptfs.store.disk import FILE_MODE, Disk
from ckptfs.store.records import Row

MAP_SIZE = 64 * GIB
"""The address space that LMDB maps at first; the file is sparse and only as large as what is in it."""

KEY_SIZE_MAX = 511
END = b"\xff" * KEY_SIZE_MAX
"""A key behind every other one, for ranges without an end."""

_PACKED = b"\0"
"""The one key that LMDB has for all packed rows; they are its sorted duplicates."""

_SCAN_ROWS = 256
_MAP_GROWTH = 2
_DATABASES_MAX = 16
_LOCK_SIZE = 8 * KIB
"""LMDB's own size for 126 readers; it takes a larger file as it is."""


class Table(IntEnum):
    """The tables; the numbers are part of the format of metadata records."""

    INODES = 1
    DIRENTS = 2
    XATTRS = 3
    MANIFESTS = 4
    CHANGES = 5
    SNAPSHOTS = 6
    NAMES = 7
    META = 8
    CHUNKS = 9
    CHUNK_IDS = 10
    STORE = 11
    FREED = 12
    DAMAGED = 13


PACKED_KEY_SIZE = 16
"""The rows of CHUNK_IDS are *packed*: in LMDB they are bare records of key and value, all of one size, 24 bytes in a
page rather than 34. The keys are random, so the pages are two thirds full, and this is the largest table."""

TREE_TABLES = tuple(table for table in Table if table <= Table.META)
"""The tables of the tree, all of whose rows are journalled; the others are the store's own."""

Memtable = dict[bytes, bytes | None]
"""Rows in memory, sorted by key (a SortedDict); None marks a deletion, which hides the row below."""

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


class Reader:
    """A read transaction with a cursor for each table, begun at first use. `lock` guards it; its user holds it."""

    def __init__(self, env: lmdb.Environment, databases: Mapping[Table, lmdb._Database], lock: threading.Lock) -> None:
        self.lock = lock
        self._env = env
        self._databases = databases
        self._transaction: lmdb.Transaction[bytes] | None = None
        self._cursors: dict[Table, lmdb.Cursor[bytes]] = {}

    def has(self, table: Table) -> bool:
        """Tell whether there is such a table: not in a store of an older version that is open for reading only."""
        return table in self._databases

    def cursor(self, table: Table) -> lmdb.Cursor[bytes]:
        """Return the cursor of a table; it is good until the next `renew`."""
        cursor = self._cursors.get(table)
        if cursor is None:
            if self._transaction is None:
                self._transaction = self._env.begin()
            cursor = self._cursors[table] = self._transaction.cursor(self._databases[table])
        return cursor

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        cursor = self.cursor(table)
        return cursor.value() if cursor.set_key(key) else None

    def find_packed(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the packed rows of those keys that there are; sorted keys walk the tree once, from left to right."""
        cursor = self.cursor(Table.CHUNK_IDS)
        return {key: cursor.value()[PACKED_KEY_SIZE:] for key in keys if _seek_packed(cursor, key)}

    def packed_from(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the packed rows from the key `start` on, ascending; good until the lock is let go."""
        cursor = self.cursor(Table.CHUNK_IDS)
        if not self._databases[Table.CHUNK_IDS].flags()["dupfixed"]:
            # In an index of an older version that is open for reading only they are rows like others.
            if cursor.set_range(start):
                yield from cursor
            return
        more = cursor.set_range_dup(_PACKED, start)
        while more:
            yield _split(cursor.value())
            more = cursor.next_dup()

    def renew(self) -> None:
        """Let go of the transaction: the next use sees what is committed by then."""
        self._cursors.clear()
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None


class Environment:
    """The LMDB file of a store. Any thread may `write`; a Reader belongs to whoever holds its lock."""

    def __init__(self, path: Path, disk: Disk, *, read_only: bool, map_size: int = MAP_SIZE) -> None:
        self.path = path
        self.lock_path = path.with_name(path.name + "-lock")
        self._disk = disk
        self._readers: list[Reader] = []
        self._views = 0
        try:
            if not read_only:
                if not path.exists():
                    self._make()
                self._make_lock()
            size = path.stat().st_size if path.exists() else 0
            self._env = lmdb.open(
                str(path),
                map_size=max(map_size, size * _MAP_GROWTH),
                subdir=False,
                readonly=read_only,
                lock=not read_only,
                mode=FILE_MODE,
                max_dbs=_DATABASES_MAX,
                meminit=False,
            )
            self._databases: dict[Table, lmdb._Database] = {}
            for table in Table:
                # Tables that a store open for reading only does not have yet are empty.
                with suppress(lmdb.NotFoundError):
                    self._databases[table] = self._open_table(table, create=not read_only)
            if not read_only:
                self._pack_rows()
        except lmdb.DiskError as error:
            raise NoSpaceError(f"the disk below the store is full: {path}") from error
        except lmdb.Error as error:
            raise DamagedError(
                f"the index {path} cannot be read ({error}); it is rebuilt from the packs when it is moved away"
            ) from error

    def _open_table(self, table: Table, *, create: bool = True) -> lmdb._Database:
        packed = table == Table.CHUNK_IDS
        return self._env.open_db(table.name.lower().encode(), create=create, dupsort=packed, dupfixed=packed)

    def _pack_rows(self) -> None:
        """Pack the rows of CHUNK_IDS in an index of format version 1 or 2, whole or not at all."""
        with self._env.begin(write=True) as transaction:
            database = self._databases[Table.CHUNK_IDS]
            if database.flags()["dupfixed"]:
                return
            rows = list(transaction.cursor(database))
            transaction.drop(database)
            name = Table.CHUNK_IDS.name.lower().encode()
            self._databases[Table.CHUNK_IDS] = database = self._env.open_db(
                name, transaction, dupsort=True, dupfixed=True
            )
            _write_packed(transaction.cursor(database), rows)

    def _make(self) -> None:
        """Make an empty index: whole when it has its name, for LMDB does not sync the first pages of a new file."""
        making = self.path.with_name(self.path.name + ".new")
        # LMDB takes an empty file for a new one; made here, it is private whatever the umask.
        self._disk.close(self._disk.open_write(making, create=True, empty=True))
        with lmdb.open(str(making), subdir=False, lock=False, max_dbs=_DATABASES_MAX) as environment:
            environment.open_db(Table.STORE.name.lower().encode())  # the first commit, and LMDB syncs every one
        self._disk.rename(making, self.path)

    def _make_lock(self) -> None:
        """Make LMDB's lock file, private whatever the umask, with all its room.

        It is mapped and written to: a page that a full disk could not give would be a SIGBUS.
        """
        fd = self._disk.open_write(self.lock_path, create=True)
        try:
            if self._disk.stored_size(self.lock_path) < _LOCK_SIZE:
                self._disk.allocate(fd, _LOCK_SIZE, self.lock_path)
        finally:
            self._disk.close(fd)

    def reader(self, lock: threading.Lock) -> Reader:
        """Make a reader that is used under `lock`."""
        reader = Reader(self._env, self._databases, lock)
        self._readers.append(reader)
        return reader

    @contextmanager
    def view(self, overlays: Mapping[Table, Memtable]) -> Iterator[View]:
        """Give the committed rows that some tables have now, with others laid over them, to any one thread at a time.

        What a view shows does not change; the file keeps its pages, and grows, as long as the view lasts.
        """
        self._views += 1
        try:
            with self._env.begin() as transaction:
                yield View(transaction, self._databases, overlays)
        finally:
            self._views -= 1

    def make_room(self) -> None:
        """Enlarge the map when half of it is used; called while nothing writes and no reader's lock is held.

        Not while somebody has a view: it would lose its transaction, and the other half lasts until the next call.
        """
        if self._views:
            return
        info = self._env.info()
        if info["last_pgno"] * self._env.stat()["psize"] * _MAP_GROWTH < info["map_size"]:
            return
        # Resizing moves the map, so no transaction may be open: readers begin again at their next use.
        with ExitStack() as stack:
            for reader in self._readers:
                stack.enter_context(reader.lock)
                reader.renew()
            self._env.set_mapsize(info["map_size"] * _MAP_GROWTH)

    def write(self, tables: Iterable[tuple[Table, Iterable[tuple[bytes, bytes | None]]]]) -> None:
        """Write rows, sorted by key within each table, in one durable transaction; None deletes.

        Readers see them from here on. One that stayed at the state before would keep LMDB from using its pages again.
        """
        try:
            with self._env.begin(write=True) as transaction:
                for table, rows in tables:
                    with transaction.cursor(self._databases[table]) as cursor:
                        (_write_packed if table == Table.CHUNK_IDS else _write_rows)(cursor, rows)
        except lmdb.MapFullError as error:
            raise NoSpaceError(f"the map of {self.path} is full; opening the store again enlarges it") from error
        except lmdb.DiskError as error:
            raise NoSpaceError(f"the disk below the store is full: {self.path}") from error
        except lmdb.Error as error:
            raise OSError(errno.EIO, f"the index cannot be written ({error})", str(self.path)) from error
        for reader in self._readers:
            with reader.lock:
                reader.renew()

    def read_one(self, table: Table, key: bytes) -> bytes | None:
        """Return the committed value of a key, or None."""
        with self._env.begin() as transaction:
            return transaction.get(key, db=self._databases[table])

    def count(self, table: Table) -> int:
        """Return how many rows a table has."""
        with self._env.begin() as transaction:
            return int(transaction.stat(self._databases[table])["entries"])

    def stored_size(self) -> int:
        """Return the bytes that the index takes on the disk below."""
        return self._disk.stored_size(self.path)

    def close(self) -> None:
        """Close LMDB and every reader."""
        for reader in self._readers:
            reader.renew()
        self._env.close()


class View:
    """Rows of a store at one moment, made by `ChunkStore.view`; for one thread at a time."""

    def __init__(
        self,
        transaction: lmdb.Transaction[bytes],
        databases: Mapping[Table, lmdb._Database],
        overlays: Mapping[Table, Memtable],
    ) -> None:
        self._transaction = transaction
        self._databases = databases
        self._overlays = overlays

    def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a table, ascending."""
        return _merged(self._stored(table), self._overlays[table])

    def _stored(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        database = self._databases.get(table)
        if database is None:
            return iter(())
        stored = iter(self._transaction.cursor(database))
        return (_split(row) for _, row in stored) if database.flags()["dupfixed"] else stored


def _write_rows(cursor: lmdb.Cursor[bytes], rows: Iterable[tuple[bytes, bytes | None]]) -> None:
    puts: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if value is not None:
            puts.append((key, value))
        elif cursor.set_key(key):
            cursor.delete()
    cursor.putmulti(puts)


def _write_packed(cursor: lmdb.Cursor[bytes], rows: Iterable[tuple[bytes, bytes | None]]) -> None:
    puts: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if _seek_packed(cursor, key):
            cursor.delete()
        if value is not None:
            puts.append((_PACKED, key + value))
    cursor.putmulti(puts)


def _split(packed: bytes) -> tuple[bytes, bytes]:
    """Return key and value of a packed row."""
    return packed[:PACKED_KEY_SIZE], packed[PACKED_KEY_SIZE:]


def _seek_packed(cursor: lmdb.Cursor[bytes], key: bytes) -> bool:
    """Move to the packed row of a key, and tell whether there is one."""
    return bool(cursor.set_range_dup(_PACKED, key)) and cursor.value().startswith(key)


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
                if cursor.prev() if cursor.set_range(stop) else cursor.last():
                    key = cursor.key()
                    if key >= start and (best is None or key > best):
                        best, value = key, cursor.value()
            if best is None:
                return None
            if value is not None:
                return best, value
            stop = best

    def scan(self, table: Table, start: bytes = b"", stop: bytes = END) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows with start <= key < stop, ascending.

        Rows may be put and deleted, and checkpoints may happen, between two steps; the scan shows the rows in memory
        as they were when it began.
        """
        yield from _merged(self._scan_stored(table, start, stop), self._in_memory(table, start, stop))

    def _in_memory(self, table: Table, start: bytes, stop: bytes) -> Memtable:
        """Return a copy of the rows in memory with start <= key < stop."""
        overlay: Memtable = {}
        if self._frozen is not None:
            overlay.update(_range(self._below[table], start, stop))
        overlay.update(_range(self._active[table], start, stop))
        return overlay

    def _scan_stored(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows of LMDB, read in batches so that no cursor is held between two steps."""
        while True:
            batch: list[tuple[bytes, bytes]] = []
            with self._reader.lock:
                cursor = self._reader.cursor(table)
                more = cursor.set_range(start)
                while more and len(batch) < _SCAN_ROWS:
                    key = cursor.key()
                    if key >= stop:
                        break
                    batch.append((key, cursor.value()))
                    more = cursor.next()
            yield from batch
            if len(batch) < _SCAN_ROWS:
                return
            start = batch[-1][0] + b"\0"
            if len(start) > KEY_SIZE_MAX:
                # No key can be longer: the next one is the next of this length.
                start = (int.from_bytes(batch[-1][0], "big") + 1).to_bytes(KEY_SIZE_MAX, "big")

    # Writing

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set the value of a key; an empty value is a value."""
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise ValueError(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
        self._active[table][key] = value
        self._pending[table][key] = value

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a row; a missing one is fine."""
        if not 0 < len(key) <= KEY_SIZE_MAX:
            raise ValueError(f"a key has 1 to {KEY_SIZE_MAX} bytes, not {len(key)}")
        self._active[table][key] = None
        self._pending[table][key] = None

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
    def has_changes(self) -> bool:
        """Whether rows wait for the journal."""
        return any(self._pending.values())

    @property
    def row_count(self) -> int:
        """How many rows wait in the active memtable for a checkpoint."""
        return sum(len(memtable) for memtable in self._active.values())

    def rows_in_memory(self, tables: Iterable[Table]) -> dict[Table, Memtable]:
        """Return copies of the rows of some of these tables that LMDB may not have yet."""
        return {table: self._in_memory(table, b"", END) for table in tables}

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


def _merged(stored: Iterator[tuple[bytes, bytes]], overlay: Memtable) -> Iterator[tuple[bytes, bytes]]:
    """Yield stored rows, ascending, and over them those in memory."""
    keys = sorted(overlay)
    index = 0
    for key, value in stored:
        while index < len(keys) and keys[index] < key:
            above = overlay[keys[index]]
            if above is not None:
                yield keys[index], above
            index += 1
        if key not in overlay:
            yield key, value
    for key in keys[index:]:
        above = overlay[key]
        if above is not None:
            yield key, above


def _memtables() -> dict[Table, Memtable]:
    return {table: SortedDict() for table in TREE_TABLES}


def _range(memtable: Memtable, start: bytes, stop: bytes) -> list[tuple[bytes, bytes | None]]:
    keys = memtable.irange(start, stop, inclusive=(True, False))  # type: ignore[attr-defined]
    return [(key, memtable[key]) for key in keys]


def sorted_rows(rows: Mapping[bytes, bytes | None]) -> Sequence[tuple[bytes, bytes | None]]:
    """Return the rows of a plain dict in the order that `Environment.write` wants."""
    return sorted(rows.items())
