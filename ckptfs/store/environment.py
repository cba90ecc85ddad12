"""LMDB: the named tables of a store's index, as committed, and views of them.

Environment owns the file, and no other module imports lmdb. It does not know what a row means, but that those of
CHUNK_IDS are packed. LMDB syncs at every commit, so what `write` wrote is durable or, after a crash in the middle, not
there at all. Any thread may write; a Reader or a View is used by one thread at a time. LMDB has no checksums, so every
row ends with a check of its own here, which is held against it whenever the row is read. A row that is not what was
written, and what LMDB finds wrong with its pages, is a DamagedError.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from pathlib import Path

import lmdb
import xxhash

from ckptfs.config import GIB, KIB
from ckptfs.errors import DamagedError, NoSpaceError
from ckptfs.store.disk import FILE_MODE, Disk

MAP_SIZE = 64 * GIB
"""The address space that LMDB maps at first; the file is sparse and only as large as what is in it."""

_PACKED = b"\0"
"""The one key that LMDB has for all packed rows; they are its sorted duplicates."""

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
"""The rows of CHUNK_IDS are *packed*: in LMDB they are bare records of key, value and check, all of one size, 28 bytes
in a page rather than 38. The keys are random, so the pages are two thirds full, and this is the largest table."""

_CHECK_SIZE = 4

TREE_TABLES = tuple(table for table in Table if table <= Table.META)
"""The tables of the tree, all of whose rows are journalled; the others are the store's own."""

Memtable = dict[bytes, bytes | None]
"""Rows in memory, above those of LMDB; None marks a deletion, which hides the row below."""


class Cursor:
    """A cursor over the rows of one table, ascending; DamagedError where they or LMDB's pages are damaged."""

    __slots__ = ("_cursor", "_path", "_table", "key")

    def __init__(self, cursor: lmdb.Cursor[bytes], table: Table, path: Path) -> None:
        self._cursor = cursor
        self._table = table
        self._path = path
        self.key: Callable[[], bytes] = cursor.key
        """Return the key of the row that the cursor is at, which `value` verifies."""

    def value(self) -> bytes:
        """Return the value of the row that the cursor is at."""
        return _unsealed(self._table, self._cursor.key(), self._cursor.value(), self._path)

    def _move(self, move: Callable[..., bool], *target: bytes) -> bool:
        try:
            return move(*target)
        except lmdb.Error as error:
            raise _failure(self._path, error) from error

    def first(self) -> bool:
        """Move to the first row; this and all other moves tell whether there is one."""
        return self._move(self._cursor.first)

    def last(self) -> bool:
        """Move to the last row."""
        return self._move(self._cursor.last)

    def next(self) -> bool:
        """Move to the next row; from nowhere, to the first."""
        return self._move(self._cursor.next)

    def prev(self) -> bool:
        """Move to the row before; from nowhere, to the last."""
        return self._move(self._cursor.prev)

    def set_key(self, key: bytes) -> bool:
        """Move to the row of a key."""
        return self._move(self._cursor.set_key, key)

    def set_range(self, key: bytes) -> bool:
        """Move to the first row from a key on."""
        return self._move(self._cursor.set_range, key)

    def packed_row(self) -> tuple[bytes, bytes]:
        """Return key and value of the packed row that the cursor is at."""
        key, value = _split(self._cursor.value())
        return key, _unsealed(self._table, key, value, self._path)

    def seek_packed(self, key: bytes) -> bool:
        """Move to the packed row of a key."""
        return self.set_packed_range(key) and self._cursor.value().startswith(key)

    def set_packed_range(self, key: bytes) -> bool:
        """Move to the first packed row from a key on."""
        return self._move(self._cursor.set_range_dup, _PACKED, key)

    def next_packed(self) -> bool:
        """Move to the next packed row."""
        return self._move(self._cursor.next_dup)

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows, packed or not."""
        stored: Iterable[tuple[bytes, bytes]] = self._cursor
        if self._table == Table.CHUNK_IDS:
            stored = (_split(packed) for _, packed in self._cursor)
        try:
            for key, sealed in stored:
                yield key, _unsealed(self._table, key, sealed, self._path)
        except lmdb.Error as error:
            raise _failure(self._path, error) from error


class Reader:
    """A read transaction with a cursor for each table, begun at first use. `lock` guards it; its user holds it."""

    def __init__(
        self, env: lmdb.Environment, path: Path, databases: Mapping[Table, lmdb._Database], lock: threading.Lock
    ) -> None:
        self.lock = lock
        self._env = env
        self._path = path
        self._databases = databases
        self._transaction: lmdb.Transaction[bytes] | None = None
        self._cursors: dict[Table, Cursor] = {}

    def has(self, table: Table) -> bool:
        """Tell whether there is such a table: not in a store of an older version that is open for reading only."""
        return table in self._databases

    def cursor(self, table: Table) -> Cursor:
        """Return the cursor of a table; it is good until the next `renew`."""
        cursor = self._cursors.get(table)
        if cursor is None:
            if self._transaction is None:
                self._transaction = _begin(self._env, self._path)
            cursor = Cursor(self._transaction.cursor(self._databases[table]), table, self._path)
            self._cursors[table] = cursor
        return cursor

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        cursor = self.cursor(table)
        return cursor.value() if cursor.set_key(key) else None

    def find_packed(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the packed rows of those keys that there are; sorted keys walk the tree once, from left to right."""
        cursor = self.cursor(Table.CHUNK_IDS)
        return dict(cursor.packed_row() for key in keys if cursor.seek_packed(key))

    def packed_from(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the packed rows from the key `start` on, ascending; good until the lock is let go."""
        cursor = self.cursor(Table.CHUNK_IDS)
        more = cursor.set_packed_range(start)
        while more:
            yield cursor.packed_row()
            more = cursor.next_packed()

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
        self._views_lock = threading.Lock()
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
            self._check_names()
            self._databases: dict[Table, lmdb._Database] = {}
            for table in Table:
                # Tables that a store open for reading only does not have yet are empty.
                with suppress(lmdb.NotFoundError):
                    self._databases[table] = self._open_table(table, create=not read_only)
        except lmdb.DiskError as error:
            raise NoSpaceError(f"the disk below the store is full: {path}") from error
        except lmdb.Error as error:
            raise _failure(path, error) from error

    def _check_names(self) -> None:
        """Refuse a table of an unknown name: it is one of the others, and that would be made anew, empty."""
        with _begin(self._env, self.path) as transaction:
            names = {name for name, _ in transaction.cursor()}
        if unknown := names.difference(table.name.lower().encode() for table in Table):
            raise _damaged(self.path, f"unknown table {unknown.pop()!r}")

    def _open_table(self, table: Table, *, create: bool) -> lmdb._Database:
        packed = table == Table.CHUNK_IDS
        database = self._env.open_db(table.name.lower().encode(), create=create, dupsort=packed, dupfixed=packed)
        if database.flags()["dupfixed"] != packed:
            raise _damaged(self.path, f"the table {table.name.lower()} is of another kind than it must be")
        return database

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
        reader = Reader(self._env, self.path, self._databases, lock)
        self._readers.append(reader)
        return reader

    @contextmanager
    def view(self, overlays: Mapping[Table, Memtable]) -> Iterator[View]:
        """Give the committed rows that some tables have now, with others laid over them, to any one thread at a time.

        What a view shows does not change; the file keeps its pages, and grows, as long as the view lasts.
        """
        with self._views_lock:
            self._views += 1
        try:
            with _begin(self._env, self.path) as transaction:
                yield View(transaction, self._databases, overlays, self.path)
        finally:
            with self._views_lock:
                self._views -= 1

    def make_room(self) -> None:
        """Enlarge the map when half of it is used; called while nothing writes and no reader's lock is held.

        Not while somebody has a view: it would lose its transaction, and the other half lasts until the next call.
        """
        info = self._env.info()
        if info["last_pgno"] * self._env.stat()["psize"] * _MAP_GROWTH < info["map_size"]:
            return
        # Resizing moves the map, so no transaction may be open: readers begin again at their next use.
        with ExitStack() as stack:
            stack.enter_context(self._views_lock)
            if self._views:
                return
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
                        (_write_packed if table == Table.CHUNK_IDS else _write_rows)(cursor, table, rows)
        except lmdb.MapFullError as error:
            raise NoSpaceError(f"the map of {self.path} is full; opening the store again enlarges it") from error
        except lmdb.DiskError as error:
            raise NoSpaceError(f"the disk below the store is full: {self.path}") from error
        except lmdb.Error as error:
            raise OSError(
                errno.EIO, f"the index cannot be written ({error}), open the store again", str(self.path)
            ) from error
        for reader in self._readers:
            with reader.lock:
                reader.renew()

    def read_one(self, table: Table, key: bytes) -> bytes | None:
        """Return the committed value of a key, or None."""
        with _begin(self._env, self.path) as transaction:
            cursor = Cursor(transaction.cursor(self._databases[table]), table, self.path)
            return cursor.value() if cursor.set_key(key) else None

    def count(self, table: Table) -> int:
        """Return how many rows a table has."""
        with _begin(self._env, self.path) as transaction:
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
        path: Path,
    ) -> None:
        self._path = path
        self._transaction = transaction
        self._databases = databases
        self._overlays = overlays

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a key, or None; not for packed rows."""
        overlay = self._overlays[table]
        if key in overlay:
            return overlay[key]
        stored = self._transaction.get(key, db=self._databases[table])
        return None if stored is None else _unsealed(table, key, stored, self._path)

    def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a table, ascending."""
        return merged(self._stored(table), self._overlays[table])

    def _stored(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        database = self._databases.get(table)
        if database is None:
            return iter(())
        return Cursor(self._transaction.cursor(database), table, self._path).rows()


def _check(table: Table, key: bytes, value: bytes) -> bytes:
    """Return the check of a row: the low 32 bits of XXH3-64 over its key and value, seeded with the table's number."""
    return xxhash.xxh3_64_digest(key + value, table)[-_CHECK_SIZE:]


def _unsealed(table: Table, key: bytes, sealed: bytes, path: Path) -> bytes:
    """Return the value that a row has before its check, which has to hold."""
    value = sealed[:-_CHECK_SIZE]
    if _check(table, key, value) != sealed[-_CHECK_SIZE:]:
        raise _damaged(path, f"a row of the table {table.name.lower()} is not what was written")
    return value


def _write_rows(cursor: lmdb.Cursor[bytes], table: Table, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
    puts: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if value is not None:
            puts.append((key, value + _check(table, key, value)))
        elif cursor.set_key(key):
            cursor.delete()
    cursor.putmulti(puts)


def _write_packed(cursor: lmdb.Cursor[bytes], table: Table, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
    puts: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if cursor.set_range_dup(_PACKED, key) and cursor.value().startswith(key):
            cursor.delete()
        if value is not None:
            puts.append((_PACKED, key + value + _check(table, key, value)))
    cursor.putmulti(puts)


def _split(packed: bytes) -> tuple[bytes, bytes]:
    """Return the key of a packed row, and its value and check."""
    return packed[:PACKED_KEY_SIZE], packed[PACKED_KEY_SIZE:]


def _begin(env: lmdb.Environment, path: Path) -> lmdb.Transaction[bytes]:
    """Begin to read."""
    try:
        return env.begin()
    except lmdb.Error as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: lmdb.Error) -> Exception:
    """Return what a person is told of an error of LMDB, which refuses everything when a commit has failed half-way."""
    if isinstance(error, lmdb.PanicError):
        return OSError(errno.EIO, "an earlier write of the index failed, open the store again", str(path))
    return _damaged(path, str(error))


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"the index {path} cannot be read ({reason}); `ckptfs repair --rebuild-index` makes it anew from the packs"
    )


def merged(stored: Iterator[tuple[bytes, bytes]], overlay: Memtable) -> Iterator[tuple[bytes, bytes]]:
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


def sorted_rows(rows: Mapping[bytes, bytes | None]) -> Sequence[tuple[bytes, bytes | None]]:
    """Return the rows of a plain dict in the order that `Environment.write` wants."""
    return sorted(rows.items())
