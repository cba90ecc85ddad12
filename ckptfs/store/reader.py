"""Reading LMDB: cursors over committed rows, and views of all rows of one moment.

Reader and View own a read transaction each; environment.py makes them, and beside it no other module imports lmdb.
They do not know what a row means, but that those of CHUNK_IDS are packed. A Reader or a View is used by one thread at a
time. A row that is not what was written, and what LMDB finds wrong with its pages, is a DamagedError.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import lmdb

from ckptfs.config import KIB
from ckptfs.errors import DamagedError
from ckptfs.store.schema import CHECK_SIZE, PACKED_KEY_SIZE, Memtable, Table, merged, row_check, row_checks

PACKED = b"\0"
"""The one key that LMDB has for all packed rows; they are its sorted duplicates."""


_BATCH_ROWS = 1024
_BATCH_SIZE = 64 * KIB
"""Bytes of the values that are verified at once, or one value: few rows are large, but an attribute has 64 KiB."""


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
            raise failure(self._path, error) from error

    def last(self) -> bool:
        """Move to the last row; this and all other moves tell whether there is one."""
        return self._move(self._cursor.last)

    def set_key(self, key: bytes) -> bool:
        """Move to the row of a key."""
        return self._move(self._cursor.set_key, key)

    def set_range(self, key: bytes) -> bool:
        """Move to the first row from a key on."""
        return self._move(self._cursor.set_range, key)

    def seek_before(self, key: bytes) -> bool:
        """Move to the last row before a key."""
        try:
            return self._cursor.prev() if self._cursor.set_range(key) else self._cursor.last()
        except lmdb.Error as error:
            raise failure(self._path, error) from error

    def packed_row(self) -> tuple[bytes, bytes]:
        """Return key and value of the packed row that the cursor is at."""
        key, value = _split(self._cursor.value())
        return key, _unsealed(self._table, key, value, self._path)

    def seek_packed(self, key: bytes) -> bool:
        """Move to the packed row of a key."""
        return self.set_packed_range(key) and self._cursor.value().startswith(key)

    def set_packed_range(self, key: bytes) -> bool:
        """Move to the first packed row from a key on."""
        return self._move(self._cursor.set_range_dup, PACKED, key)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the rows of those keys that there are; the cursor is anywhere then."""
        try:
            found = self._cursor.getmulti(keys)
        except lmdb.Error as error:
            raise failure(self._path, error) from error
        return {key: _unsealed(self._table, key, sealed, self._path) for key, sealed in found}

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows from the one that the cursor is at, from nowhere from the first; packed ones too."""
        for key, sealed in self.sealed():
            yield key, _unsealed(self._table, key, sealed, self._path)

    def sealed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows as `rows` does, but with their checks behind the values, which are not verified."""
        try:
            if self._table == Table.CHUNK_IDS:
                yield from map(_split, self._cursor.iternext(keys=False, values=True))
            else:
                yield from self._cursor
        except lmdb.Error as error:
            raise failure(self._path, error) from error

    def batches(self) -> Iterator[Iterable[tuple[bytes, bytes]]]:
        """Yield all rows as `rows` does, many at a time, which takes a third of the time; to be used up one by one."""
        try:
            if self._table == Table.CHUNK_IDS:
                values = self._cursor.iternext(keys=False, values=True)
                while packed := list(islice(values, _BATCH_ROWS)):
                    checked = [each[:-CHECK_SIZE] for each in packed]
                    rows = [(each[:PACKED_KEY_SIZE], each[PACKED_KEY_SIZE:]) for each in checked]
                    yield self._verified(rows, checked, [each[-CHECK_SIZE:] for each in packed])
            else:
                stored = iter(self._cursor)
                while batch := _batch(stored):
                    rows = [(key, sealed[:-CHECK_SIZE]) for key, sealed in batch]
                    checked = [key + value for key, value in rows]
                    yield self._verified(rows, checked, [sealed[-CHECK_SIZE:] for _, sealed in batch])
        except lmdb.Error as error:
            raise failure(self._path, error) from error

    def _verified(
        self, rows: list[tuple[bytes, bytes]], checked: list[bytes], checks: list[bytes]
    ) -> Iterable[tuple[bytes, bytes]]:
        """Return rows, or those before the first one that is not what its check says, and then DamagedError."""
        if row_checks(self._table, checked) == checks:
            return rows
        sealed = ((key, value + check) for (key, value), check in zip(rows, checks, strict=True))
        return ((key, _unsealed(self._table, key, each, self._path)) for key, each in sealed)


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

    def cursor(self, table: Table) -> Cursor:
        """Return the cursor of a table; it is good until the next `renew`."""
        cursor = self._cursors.get(table)
        if cursor is None:
            if self._transaction is None:
                self._transaction = begin(self._env, self._path)
            cursor = Cursor(self._transaction.cursor(self._databases[table]), table, self._path)
            self._cursors[table] = cursor
        return cursor

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        cursor = self.cursor(table)
        return cursor.value() if cursor.set_key(key) else None

    def rows_from(self, table: Table, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a table, packed or not, from the key `start` on; good until the lock is let go."""
        cursor = self.cursor(table)
        found = cursor.set_packed_range(start) if table == Table.CHUNK_IDS else cursor.set_range(start)
        return cursor.rows() if found else iter(())

    def find(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the rows, not packed ones, of those keys that there are."""
        return self.cursor(table).find(keys)

    def find_packed(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the packed rows of those keys that there are; sorted keys walk the tree once, from left to right."""
        cursor = self.cursor(Table.CHUNK_IDS)
        return dict(cursor.packed_row() for key in keys if cursor.seek_packed(key))

    def renew(self) -> None:
        """Let go of the transaction: the next use sees what is committed by then."""
        self._cursors.clear()
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None


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
        overlay = self._overlays[table]
        return merged(self._stored(table), overlay) if overlay else self._stored(table)

    def sealed(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of a table as LMDB has them, ascending, with their checks, which are not verified.

        ValueError where there are rows in memory above them.
        """
        if self._overlays[table]:
            raise ValueError(f"rows of the table {table.name.lower()} are in memory only")
        cursor = self._cursor(table)
        return cursor.sealed() if cursor else iter(())

    def unsealed(self, table: Table, rows: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Verify rows that `sealed` has given, and return them as `scan` does."""
        return [(key, _unsealed(table, key, sealed, self._path)) for key, sealed in rows]

    def _stored(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._cursor(table)
        return chain.from_iterable(cursor.batches()) if cursor else iter(())

    def _cursor(self, table: Table) -> Cursor | None:
        database = self._databases.get(table)
        return None if database is None else Cursor(self._transaction.cursor(database), table, self._path)


def _batch(stored: Iterator[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Take the next rows, as many as are verified at once."""
    batch, size = [], 0
    for row in stored:
        batch.append(row)
        size += len(row[1])
        if size >= _BATCH_SIZE or len(batch) == _BATCH_ROWS:
            break
    return batch


def _split(packed: bytes) -> tuple[bytes, bytes]:
    """Return the key of a packed row, and its value and check."""
    return packed[:PACKED_KEY_SIZE], packed[PACKED_KEY_SIZE:]


def _unsealed(table: Table, key: bytes, sealed: bytes, path: Path) -> bytes:
    """Return the value that a row has before its check, which has to hold."""
    value = sealed[:-CHECK_SIZE]
    if row_check(table, key, value) != sealed[-CHECK_SIZE:]:
        raise damaged(path, f"a row of the table {table.name.lower()} is not what was written")
    return value


def begin(env: lmdb.Environment, path: Path) -> lmdb.Transaction[bytes]:
    """Begin to read."""
    try:
        return env.begin()
    except lmdb.Error as error:
        raise failure(path, error) from error


def failure(path: Path, error: lmdb.Error) -> Exception:
    """Return what a person is told of an error of LMDB, which refuses everything when a commit has failed half-way."""
    if isinstance(error, lmdb.PanicError):
        return OSError(errno.EIO, "an earlier write of the index failed, open the store again", str(path))
    return damaged(path, str(error))


def damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"the index {path} cannot be read ({reason}); `ckptfs repair --rebuild-index` makes it anew from the packs"
    )
