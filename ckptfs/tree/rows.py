"""Rows with epochs: what a key meant at each point of the history.

Owns the key layout `prefix + epoch` and the rule that reading at an epoch takes the greatest row at or below it.
The live tree is the reading at `LIVE`. Knows nothing of what the rows mean. Belongs to the thread that owns the
tables; durability is the store's business.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import Table, Tables

LIVE = 0xFFFFFFFF
"""The greatest epoch number: reading there gives the live tree; a row there is live-only, and never frozen."""

_EPOCH = struct.Struct(">I")
_U64 = struct.Struct(">Q")
CHANGE = struct.Struct(">IB")
_TOMBSTONE = b""
_VERSIONED = {int(table): table for table in (Table.INODES, Table.DIRENTS, Table.XATTRS)}
_PRESENT = b"\x01"

_META_EPOCH = b"open_epoch"
_META_ID = b"next_id"
_ID_END = 1 << 63
_CHANGES_END = b"\xff\xff\xff\xff\xff"
ID_MAX = 1 << 47
"""No store comes to have so many inodes and manifests; a greater number in a row is no number that was given."""


class Row(NamedTuple):
    """One row as read: the epoch that wrote it and its value."""

    epoch: int
    value: bytes


class Change(NamedTuple):
    """A key that an epoch wrote: the table and the key without its epoch."""

    table: Table
    prefix: bytes


def id_prefix(number: int) -> bytes:
    """Return the key prefix of an inode or manifest number; prefixes sort like the numbers."""
    return _U64.pack(number)


def name_prefix(ino: int, name: bytes) -> bytes:
    """Return the key prefix of a directory entry or an extended attribute of the inode `ino`."""
    return _U64.pack(ino) + name + b"\0"


def split_name_prefix(prefix: bytes) -> tuple[int, bytes]:
    """Return (inode number, name) of a prefix that `name_prefix` made; DamagedError when it made no such one."""
    if len(prefix) <= _U64.size:
        raise DamagedError(f"the row {prefix.hex()} names nothing of an inode")
    return _U64.unpack_from(prefix)[0], prefix[8:-1]


def split_epoch(key: bytes, value: bytes) -> tuple[bytes, Row]:
    """Return the key without its epoch, and the row, of what a versioned table has; DamagedError without an epoch."""
    if len(key) < _EPOCH.size:
        raise DamagedError(f"the row {key.hex()} has no epoch")
    return key[:-4], Row(_EPOCH.unpack_from(key, len(key) - 4)[0], value)


def with_next(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Row, int]]:
    """Yield (key without epoch, row, epoch of the next row of the same key, or one behind all) of a versioned table."""
    current: tuple[bytes, Row] | None = None
    for key, value in rows:
        prefix, row = split_epoch(key, value)
        if current is not None:
            yield *current, row.epoch if current[0] == prefix else LIVE + 1
        current = prefix, row
    if current is not None:
        yield *current, LIVE + 1


class Rows:
    """The versioned tables of a tree: reads at any epoch, writes in the open one."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        epochs = self._greatest(Table.SNAPSHOTS, _EPOCH, LIVE) + 1, self._greatest(Table.CHANGES, _EPOCH, LIVE)
        ids = self._greatest(Table.INODES, _U64, ID_MAX), self._greatest(Table.MANIFESTS, _U64, ID_MAX)
        self.open_epoch = max(self.meta_number(_META_EPOCH, 1, LIVE), *epochs)
        self._next_id = max(self.meta_number(_META_ID, 2, _ID_END), *(number + 1 for number in ids))
        if self.open_epoch >= LIVE:
            raise DamagedError(f"there is a snapshot {self.open_epoch - 1}, and no number for another one")
        self.has_garbage = True
        """Whether content may have lost its last row since a collection last looked, in an earlier process even."""

    def meta_number(self, key: bytes, default: int, end: int) -> int:
        """Return a number that a row of its own has: `default` where there is none, DamagedError where it cannot be."""
        value = self.tables.get(Table.META, key)
        if value is None:
            return default
        if len(value) != _U64.size:
            raise DamagedError(f"the row {os.fsdecode(key)} has {len(value)} bytes, it must have {_U64.size}")
        number = int(_U64.unpack(value)[0])
        if not default <= number < end:
            raise DamagedError(f"the row {os.fsdecode(key)} says {number}, which cannot be")
        return number

    def _greatest(self, table: Table, number: struct.Struct, end: int) -> int:
        """Return the greatest number below `end` that keys of a table begin with, 0 where there is none.

        What the META rows say is not to give a number again, or to write what newer rows hide, even where one is lost.
        """
        found = self.tables.last(table, b"", number.pack(end))
        return 0 if found is None else int(number.unpack(found[0][: number.size].ljust(number.size, b"\0"))[0])

    def keep_numbers(self) -> None:
        """Write down again which numbers come next, where the rows that say so are lost."""
        for key, first, number in ((_META_EPOCH, 1, self.open_epoch), (_META_ID, 2, self._next_id)):
            if number != self.meta_number(key, first, _ID_END):
                self.tables.put(Table.META, key, _U64.pack(number))

    @property
    def next_id(self) -> int:
        """The number that `new_id` gives next; all others are smaller."""
        return self._next_id

    def new_id(self) -> int:
        """Return a number that no inode or manifest of this store ever had."""
        number = self._next_id
        self._next_id = number + 1
        self.tables.put(Table.META, _META_ID, _U64.pack(self._next_id))
        return number

    def open_next_epoch(self) -> int:
        """Freeze the open epoch, open the next one, and return the frozen one."""
        frozen = self.open_epoch
        self.open_epoch = frozen + 1
        self.tables.put(Table.META, _META_EPOCH, _U64.pack(self.open_epoch))
        return frozen

    def find(self, table: Table, prefix: bytes, epoch: int = LIVE) -> Row | None:
        """Return the row that `epoch` sees under `prefix`, a tombstone included; None where there never was one."""
        found = self._last(table, prefix, epoch)
        return None if found is None else split_epoch(*found)[1]

    def get(self, table: Table, prefix: bytes, epoch: int = LIVE) -> bytes | None:
        """Return the value that `epoch` sees under `prefix`, None where it sees nothing."""
        found = self._last(table, prefix, epoch)
        return found[1] if found and found[1] != _TOMBSTONE else None

    def _last(self, table: Table, prefix: bytes, epoch: int) -> tuple[bytes, bytes] | None:
        return self.tables.last(table, prefix + b"\0\0\0\0", prefix + _EPOCH.pack(epoch) + b"\0")

    def put(self, table: Table, prefix: bytes, value: bytes, epoch: int | None = None) -> None:
        """Write a row in the open epoch, or in `LIVE` to make it live-only."""
        epoch = self.open_epoch if epoch is None else epoch
        self.tables.put(table, prefix + _EPOCH.pack(epoch), value)
        self.tables.put(Table.CHANGES, CHANGE.pack(epoch, table) + prefix, _PRESENT)

    def erase(self, table: Table, prefix: bytes, epoch: int) -> None:
        """Take out the row that `epoch` itself wrote, if it did; older rows show again."""
        key = prefix + _EPOCH.pack(epoch)
        if self.tables.get(table, key) is not None:  # a deletion of nothing would be journalled as well
            self.tables.delete(table, key)
            self.tables.delete(Table.CHANGES, CHANGE.pack(epoch, table) + prefix)

    def remove(self, table: Table, prefix: bytes, *, is_frozen: bool = False) -> None:
        """Make the open epoch see nothing under `prefix`: a tombstone, or no row at all where none is older.

        `is_frozen` says that an earlier epoch has a value there, which saves looking.
        """
        if is_frozen:
            self.put(table, prefix, _TOMBSTONE)
            return
        row = self.find(table, prefix, self.open_epoch)
        if row is not None and row.epoch == self.open_epoch:
            self.erase(table, prefix, self.open_epoch)
            row = self.find(table, prefix, self.open_epoch)
        if row is not None and row.value != _TOMBSTONE:
            self.put(table, prefix, _TOMBSTONE)

    def scan(self, table: Table, prefix: bytes, epoch: int = LIVE) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without epoch, value) of all that `epoch` sees below an 8-byte `prefix`, in key order."""
        for key, value in self.tables.scan_latest(table, prefix, _successor(prefix), _EPOCH.pack(epoch)):
            if value != _TOMBSTONE:
                yield key[: -_EPOCH.size], value

    def history(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, Row]]:
        """Yield (key without epoch, row) of every row below `prefix`, of every epoch and tombstones included."""
        for key, value in self.tables.scan(table, prefix, _successor(prefix)):
            yield split_epoch(key, value)

    def changes(self, after: int, last: int) -> Iterator[tuple[int, Change]]:
        """Yield (epoch, change) of what the epochs after `after`, up to and with `last`, wrote."""
        stop = _EPOCH.pack(last + 1) if last < LIVE else _CHANGES_END
        for key, _ in self.tables.scan(Table.CHANGES, _EPOCH.pack(after + 1), stop):
            _check_change(key)
            epoch, table = CHANGE.unpack_from(key)
            yield epoch, Change(_VERSIONED[table], key[CHANGE.size :])

    def changed_inodes(self, after: int, rows_max: int) -> tuple[set[int], set[int]] | None:
        """Return the inodes that the epochs after `after` wrote, or their xattrs, and those in which they wrote names.

        None where more than `rows_max` rows tell of it.
        """
        inodes: set[bytes] = set()
        directories: set[bytes] = set()
        start, stop = CHANGE.size, CHANGE.size + _U64.size
        for count, (key, _) in enumerate(self.tables.scan(Table.CHANGES, _EPOCH.pack(after + 1), _CHANGES_END), 1):
            if count > rows_max:
                return None
            _check_change(key)
            (directories if key[_EPOCH.size] == Table.DIRENTS else inodes).add(key[start:stop])
        return {int.from_bytes(each, "big") for each in inodes}, {int.from_bytes(each, "big") for each in directories}

    def live_only(self) -> Iterator[Change]:
        """Yield the keys of all live-only rows."""
        for _, change in self.changes(LIVE - 1, LIVE):
            yield change


def _check_change(key: bytes) -> None:
    """Refuse the key of a row of `changes` that cannot be one."""
    if len(key) < CHANGE.size or key[_EPOCH.size] not in _VERSIONED:
        raise DamagedError(f"the row {key.hex()} of changes names no row with an epoch")


def _successor(prefix: bytes) -> bytes:
    """Return the least key behind all keys that begin with an 8-byte `prefix`."""
    return _U64.pack(_U64.unpack(prefix)[0] + 1)
