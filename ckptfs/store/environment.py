"""LMDB: the named tables of a store's index, as committed.

Environment owns the file; beside it only reader.py imports lmdb. It does not know what a row means, but that those of
CHUNK_IDS are packed. LMDB syncs at every commit, so what `write` wrote is durable or, after a crash in the middle, not
there at all. Any thread may write. LMDB has no checksums, so every row ends with a check of its own, which reader.py
holds against it. What LMDB finds wrong with its pages is a DamagedError.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import lmdb

from ckptfs.config import GIB, KIB, MIB
from ckptfs.disk import FILE_MODE, Disk
from ckptfs.errors import NoSpaceError
from ckptfs.store.reader import PACKED, Cursor, Reader, View, begin, damaged, failure
from ckptfs.store.schema import Memtable, Table, row_check

MAP_SIZE = 64 * GIB
"""The address space that LMDB maps at first; the file is sparse and only as large as what is in it."""

_ROOM_MIN = 1 * MIB
"""A full disk takes a part of a write, which LMDB calls an I/O error; with more room than this it is one."""
_MAP_GROWTH = 2
_DATABASES_MAX = 16
_LOCK_SIZE = 8 * KIB
"""LMDB's own size for 126 readers; it takes a larger file as it is."""

_Rows = Collection[tuple[bytes, bytes | None]]
"""Of one table, sorted by key; None deletes."""


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
            raise failure(path, error) from error

    def _check_names(self) -> None:
        """Refuse a table of an unknown name: it is one of the others, and that would be made anew, empty."""
        with begin(self._env, self.path) as transaction:
            names = {name for name, _ in transaction.cursor()}
        if unknown := names.difference(table.name.lower().encode() for table in Table):
            raise damaged(self.path, f"unknown table {unknown.pop()!r}")

    def _open_table(self, table: Table, *, create: bool) -> lmdb._Database:
        packed = table == Table.CHUNK_IDS
        database = self._env.open_db(table.name.lower().encode(), create=create, dupsort=packed, dupfixed=packed)
        if database.flags()["dupfixed"] != packed:
            raise damaged(self.path, f"the table {table.name.lower()} is of another kind than it must be")
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
            with begin(self._env, self.path) as transaction:
                yield View(transaction, self._databases, overlays, self.path)
        finally:
            with self._views_lock:
                self._views -= 1

    def make_room(self) -> None:
        """Enlarge the map when half of it is used; called while nothing writes and no reader's lock is held.

        Not while somebody has a view, which would lose its transaction: `write` does it when the other half is used.
        """
        info = self._env.info()
        if info["last_pgno"] * self._env.stat()["psize"] * _MAP_GROWTH >= info["map_size"]:
            self._grow()

    def _grow(self) -> bool:
        """Enlarge the map, unless somebody has a view; while nothing writes and no reader's lock is held."""
        # Resizing moves the map, so no transaction may be open: readers begin again at their next use.
        with ExitStack() as stack:
            stack.enter_context(self._views_lock)
            if self._views:
                return False
            for reader in self._readers:
                stack.enter_context(reader.lock)
                reader.renew()
            self._env.set_mapsize(self._env.info()["map_size"] * _MAP_GROWTH)
        return True

    def write(self, tables: Collection[tuple[Table, _Rows]]) -> None:
        """Write rows, sorted by key within each table, in one durable transaction; None deletes.

        Readers see them from here on. One that stayed at the state before would keep LMDB from using its pages again.
        The map becomes as large as that takes; EBUSY where a view is in the way.
        """
        try:
            while not self._write_in_map(tables):
                if not self._grow():
                    reason = "the map of the index is full, and cannot grow while somebody reads all of it"
                    raise OSError(errno.EBUSY, reason, str(self.path))
        except lmdb.DiskError as error:
            raise NoSpaceError(f"the disk below the store is full: {self.path}") from error
        except lmdb.Error as error:
            if "Input/output error" in str(error) and self._disk.space(self.path.parent).free < _ROOM_MIN:
                raise NoSpaceError(f"the disk below the store is full: {self.path}") from error
            raise OSError(
                errno.EIO, f"the index cannot be written ({error}), open the store again", str(self.path)
            ) from error
        for reader in self._readers:
            with reader.lock:
                reader.renew()

    def _write_in_map(self, tables: Iterable[tuple[Table, _Rows]]) -> bool:
        """Write rows; False, and nothing is written, where they do not fit into the map."""
        try:
            with self._env.begin(write=True) as transaction:
                for table, rows in tables:
                    database = self._databases[table]
                    write = _write_packed if table == Table.CHUNK_IDS else _write_rows
                    if not transaction.stat(database)["entries"]:
                        write = _write_first
                    with transaction.cursor(database) as cursor:
                        write(cursor, table, rows)
        except lmdb.MapFullError:
            return False
        return True

    def read_one(self, table: Table, key: bytes) -> bytes | None:
        """Return the committed value of a key, or None."""
        with self._views_lock, begin(self._env, self.path) as transaction:
            cursor = Cursor(transaction.cursor(self._databases[table]), table, self.path)
            return cursor.value() if cursor.set_key(key) else None

    def count(self, table: Table) -> int:
        """Return how many rows a table has."""
        with self._views_lock, begin(self._env, self.path) as transaction:
            return int(transaction.stat(self._databases[table])["entries"])

    def table_size(self, table: Table) -> int:
        """Return the bytes of the pages that have the rows of a table."""
        with self._views_lock, begin(self._env, self.path) as transaction:
            stat = transaction.stat(self._databases[table])
            return int((stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"])

    def stored_size(self) -> int:
        """Return the bytes that the index takes on the disk below."""
        return self._disk.stored_size(self.path)

    def close(self) -> None:
        """Close LMDB and every reader."""
        for reader in self._readers:
            reader.renew()
        self._env.close()


def _write_rows(cursor: lmdb.Cursor[bytes], table: Table, rows: _Rows) -> None:
    for key, value in rows:
        if value is None and cursor.set_key(key):
            cursor.delete()
    cursor.putmulti(_puts(table, rows))


def _write_packed(cursor: lmdb.Cursor[bytes], table: Table, rows: _Rows) -> None:
    for key, _ in rows:
        if cursor.set_range_dup(PACKED, key) and cursor.value().startswith(key):
            cursor.delete()
    cursor.putmulti(_puts(table, rows))


def _write_first(cursor: lmdb.Cursor[bytes], table: Table, rows: _Rows) -> None:
    """Write rows into a table that has none: nothing is looked for, and one comes behind the other."""
    puts = _puts(table, rows)
    if cursor.putmulti(puts, append=True)[1] != len(puts):
        raise ValueError(f"the rows of the table {table.name.lower()} are not sorted")


def _puts(table: Table, rows: _Rows) -> list[tuple[bytes, bytes]]:
    """Return rows as LMDB gets them, each with its check, but for those that are deleted."""
    if table == Table.CHUNK_IDS:
        return [(PACKED, key + value + row_check(table, key, value)) for key, value in rows if value is not None]
    return [(key, value + row_check(table, key, value)) for key, value in rows if value is not None]
