"""Whether two indexes of one store say the same, entry by entry."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter

from ckptfs.errors import DamagedError
from ckptfs.store.codec import Encoding
from ckptfs.store.location import build_location, parse_location
from ckptfs.store.reader import View
from ckptfs.store.schema import TREE_TABLES, Table

COMPARED = (*TREE_TABLES, Table.CHUNKS, Table.CHUNK_IDS)
"""The others say how far LMDB is, which places are still to be punched, and what was found damaged."""

_BATCH_ROWS = 128
"""Rows of each index in memory, which may have 64 KiB each."""


def differences(one: View, two: View) -> dict[str, int]:
    """Return, by the name of the table, how many rows of two indexes are not the same; only tables that differ.

    Rows that are the same with their checks are good in both or in neither, so only those that are not are verified.
    """
    counts = {table.name.lower(): _count(table, one, two) for table in COMPARED}
    return {name: count for name, count in counts.items() if count}


def lacks(new: View, old: View) -> bool:
    """Tell whether an index has not all that another one has: its rows, and its chunks, wherever they lie."""
    return any(_misses(_needed(new, table), _needed(old, table)) for table in COMPARED)


def _needed(view: View, table: Table) -> Iterator[tuple[bytes, bytes]]:
    return ((key, b"" if table is Table.CHUNKS else value) for key, value in view.scan(table))


def _misses(one: Iterator[tuple[bytes, bytes]], two: Iterator[tuple[bytes, bytes]]) -> bool:
    """Tell whether the ascending run `two` has a row that `one` has not."""
    left = next(one, None)
    for right in two:
        while left is not None and left[0] < right[0]:
            left = next(one, None)
        if left != right:
            return True
    return False


def _is_same(table: Table, one: bytes, two: bytes) -> bool:
    """Compare but for what LMDB alone knows: that a waiting chunk was tried and stays raw, and old heights."""
    return one == two or (table is Table.CHUNKS and _comparable_location(one) == _comparable_location(two))


def _comparable_location(packed: bytes) -> bytes:
    try:
        location = parse_location(packed)
    except DamagedError:
        return packed
    encoding = Encoding.RAW if location.encoding == Encoding.WAITING else location.encoding
    return build_location(location._replace(encoding=encoding, height=0))


def _count(table: Table, one: View, two: View) -> int:
    """Count the keys of a table that are not in both with the same value; DamagedError of rows that are not the same.

    Many rows are compared at once; one by one only where those are not the same.
    """
    count = 0
    ones, twos = one.sealed(table), two.sealed(table)
    left: list[tuple[bytes, bytes]] = []
    right: list[tuple[bytes, bytes]] = []
    while True:
        left += islice(ones, _BATCH_ROWS - len(left))
        right += islice(twos, _BATCH_ROWS - len(right))
        if not left or not right:
            return count + _rest(table, one, chain(left, ones)) + _rest(table, two, chain(right, twos))
        if left == right:
            left, right = [], []
            continue
        # What lies behind the end of the one may be among what the other has not read yet.
        end = min(left[-1][0], right[-1][0])
        mine = dict(one.unsealed(table, _take_until(left, end)))
        others = dict(two.unsealed(table, _take_until(right, end)))
        count += sum(1 for key in mine.keys() & others.keys() if not _is_same(table, mine[key], others[key]))
        count += len(mine.keys() ^ others.keys())


def _rest(table: Table, view: View, rows: Iterable[tuple[bytes, bytes]]) -> int:
    """Count and verify the rows that the other one has no more of."""
    return sum(len(view.unsealed(table, [row])) for row in rows)


def _take_until(rows: list[tuple[bytes, bytes]], end: bytes) -> list[tuple[bytes, bytes]]:
    """Take the rows up to a key off the front of a list: all of them if the last one is not behind it."""
    count = len(rows) if rows[-1][0] <= end else bisect_right(rows, end, key=itemgetter(0))
    taken = rows[:count]
    del rows[:count]
    return taken
