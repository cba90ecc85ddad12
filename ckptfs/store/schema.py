"""The tables of a store's index: names, numbers, the checks of rows, and how rows in memory lie over stored ones.

Owns what everybody who reads or writes a row agrees on; it does not know what a row means. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

import xxhash


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

CHECK_SIZE = 4
"""The bytes of the check behind the value of every row in LMDB."""

TREE_TABLES = tuple(table for table in Table if table <= Table.META)
"""The tables of the tree, all of whose rows are journalled; the others are the store's own."""

Memtable = dict[bytes, bytes | None]
"""Rows in memory, above those of LMDB; None marks a deletion, which hides the row below."""


def row_check(table: Table, key: bytes, value: bytes) -> bytes:
    """Return the check of a row: the low 32 bits of XXH3-64 over its key and value, seeded with the table's number."""
    return xxhash.xxh3_64_digest(key + value, table)[-CHECK_SIZE:]


def row_checks(table: Table, rows: Iterable[bytes]) -> list[bytes]:
    """Return the checks of many rows, each given as its key and value in one."""
    digest, seed = xxhash.xxh3_64_digest, table.value
    return [digest(row, seed)[-CHECK_SIZE:] for row in rows]


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
