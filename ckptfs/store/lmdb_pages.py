"""The pages of an LMDB file, looked at without LMDB: whether it can be opened without harm.

LMDB has no checksums and believes its pages: a reference to a page that is not there, or a length that leads out of
one, ends the process by a signal, a free page that is in use is written over, and a row whose key has changed is not
found where it belongs, so that an older one may show. `damage_of` walks every page that LMDB would follow (in LMDB
0.9's format, which is version 1), holds references, lengths, order and counts against each other, so that no row is
missed, and compares the check of every row. Only packed rows are left to whoever reads them: who misses one stores a
chunk once more. It takes a second for a million chunks; nobody may write meanwhile.
"""

import struct
from collections import deque
from collections.abc import Iterator
from itertools import islice
from operator import lt
from pathlib import Path
from typing import NamedTuple

from ckptfs.disk import Disk
from ckptfs.store.schema import CHECK_SIZE, Table, row_checks

_META = struct.Struct("<16xII16x")  # of a page: magic, version; then the two trees
_TREE = struct.Struct("<IHHQQQQQ")
_META_END = struct.Struct("<QQ")  # last page, transaction
_PAGE = struct.Struct(
    "<QHHHH"
)  # number, size of the keys of a packed leaf, flags, lower and upper end of the free part
_OVERFLOW_PAGES = struct.Struct("<I")
_NODE = struct.Struct("<IHH")  # low bits of the child or size of the value, high bits or flags, size of the key
_PAGE_NUMBER = struct.Struct("<Q")

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE, _PACKED, _SUBPAGE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_BIG_VALUE, _SUBTREE, _DUPLICATES = 0x01, 0x02, 0x04
_PLAIN, _PACKED_ROWS, _PACKED_TABLE, _FREE_PAGES = 0x00, 0x10, 0x14, 0x4008  # kinds of trees
_EMPTY = (1 << 64) - 1
_FIRST_PAGE = 2
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_DEPTH_MAX = 32
_TABLES = {table.name.lower().encode(): table for table in Table}


class _Tree(NamedTuple):
    """A B-tree: `pad` is the page size in that of the free pages."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class _Meta(NamedTuple):
    """One of the two pages that say what counts; the one of the greater transaction does."""

    transaction: int
    last_page: int
    free: _Tree
    main: _Tree


class _DamageError(Exception):
    """Something does not hold."""


def damage_of(path: Path, disk: Disk) -> str | None:
    """Return what is wrong with the pages of an LMDB file, None when LMDB may open it. OSError."""
    fd = disk.open_read(path)
    try:
        disk.expect(fd, 0, disk.size(fd))
        _Walk(disk, fd).run()
    except (_DamageError, struct.error) as error:
        return str(error)
    finally:
        disk.close(fd)
    return None


class _Walk:
    """One walk; every page is met once at most."""

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk = disk
        self._fd = fd
        self._size = disk.size(fd)
        self._page_size = _PAGE_SIZES[0]
        self._met = bytearray()

    def run(self) -> None:
        """Raise _DamageError at the first thing that does not hold."""
        meta = self._meta()
        if (meta.last_page + 1) > 2 * (self._size // self._page_size + 1):
            raise _DamageError("it is shorter than it says")
        self._met = bytearray(meta.last_page + 1)
        for name, _, tree in self._rows(meta.main, _PLAIN):
            if tree is None or name not in _TABLES:
                raise _DamageError("a table is no table")
            for _, _, rows in self._rows(tree, _PLAIN, _PACKED_TABLE, table=_TABLES[name]):
                if rows is not None:
                    deque(self._rows(rows, _PACKED_ROWS), maxlen=0)
        for _, value, _ in self._rows(meta.free, _FREE_PAGES):
            numbers = [number for (number,) in _PAGE_NUMBER.iter_unpack(value)]
            if not numbers or numbers[0] != len(numbers) - 1:
                raise _DamageError("a list of free pages has another length than it says")
            for number in numbers[1:]:
                self._meet(number)

    def _meta(self) -> _Meta:
        metas = []
        first = self._parse_meta(0)
        self._page_size = first.free.pad
        if self._page_size not in _PAGE_SIZES:
            raise _DamageError("a meta page does not hold")
        metas = [first, self._parse_meta(self._page_size)]
        return max(metas, key=lambda meta: meta.transaction)

    def _parse_meta(self, offset: int) -> _Meta:
        data = self._disk.pread(self._fd, _PAGE_SIZES[0], offset)
        magic, version = _META.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION) or not _PAGE.unpack_from(data)[2] & _META_PAGE:
            raise _DamageError("a meta page does not hold")
        free, main = (_Tree(*_TREE.unpack_from(data, _META.size + index * _TREE.size)) for index in range(2))
        last_page, transaction = _META_END.unpack_from(data, _META.size + 2 * _TREE.size)
        return _Meta(transaction, last_page, free, main)

    def _meet(self, number: int) -> None:
        """Note that a page has its place."""
        if not _FIRST_PAGE <= number < len(self._met) or self._met[number]:
            raise _DamageError(f"page {number} is met where it cannot be")
        self._met[number] = 1

    def _page(self, number: int, count: int = 1) -> bytearray:
        """Return the bytes of some pages, one of which has not been met before."""
        self._meet(number)
        data = self._disk.pread(self._fd, count * self._page_size, number * self._page_size)
        if len(data) < count * self._page_size or _PAGE_NUMBER.unpack_from(data)[0] != number:
            raise _DamageError(f"page {number} is not there")
        return data

    def _rows(
        self, tree: _Tree, *kinds: int, table: Table | None = None
    ) -> Iterator[tuple[bytes, bytes, _Tree | None]]:
        """Yield the rows of a tree of one of these kinds: key, value, and the tree that the value is.

        Of packed leaves it yields nothing. In a table the check of every row is compared, and nothing is yielded of
        pages that have nothing but rows without pages of their own.
        """
        if tree.flags not in kinds:
            raise _DamageError("a tree is of another kind than it must be")
        if tree.root == _EMPTY:
            if tree.entries or tree.depth:
                raise _DamageError("an empty tree has rows")
            return
        if not 0 < tree.depth <= _DEPTH_MAX:
            raise _DamageError("a tree is too deep")
        branches = leaves = overflow = entries = 0
        pending = [(tree.root, 1, b"")]  # with the key that its branch has for the page: none before it is as great
        before = b""
        while pending:
            number, depth, least = pending.pop()
            page = self._page(number)
            _, pad, flags, lower, _ = _PAGE.unpack_from(page)
            count = (lower - _PAGE.size) // 2
            if (
                (depth < tree.depth) != bool(flags & _BRANCH)
                or (depth == tree.depth) != bool(flags & _LEAF)
                or not count
            ):
                raise _DamageError(f"page {number} is of another kind than it must be")
            if before and least and before >= least:
                raise _DamageError(f"the keys before page {number} do not belong there")
            if flags & _BRANCH:
                branches += 1
                nodes = list(self._nodes(number, page, count, branch=True))
                children = [(low | high << 32, depth + 1, _ordered(tree, key)) for low, high, key, _ in nodes]
                children[0] = (*children[0][:2], least)  # the first key in a branch page says nothing
                pending += reversed(children)
                continue
            leaves += 1
            if flags & _PACKED:
                entries += count
                before = self._check_packed(number, page, count, pad, before, least)
                continue
            if table is not None and (rows := self._plain_rows(page, count)) is not None:
                entries += count
                before = _last_of(number, [key for key, _ in rows], before, least)
                _compare(number, table, [row for _, row in rows])
                continue
            for low, node_flags, key, start in self._nodes(number, page, count, branch=False):
                if (before and _ordered(tree, key) <= before) or _ordered(tree, key) < least:
                    raise _DamageError(f"the keys of page {number} are not in order")
                before = _ordered(tree, key)
                if node_flags & _BIG_VALUE:
                    (first,) = _PAGE_NUMBER.unpack_from(page, start)
                    value, pages = self._big_value(first, low)
                    overflow += pages
                else:
                    value = bytes(page[start : start + low])
                if bool(node_flags & _DUPLICATES) > (tree.flags == _PACKED_TABLE):
                    raise _DamageError(f"page {number} has packed rows, which cannot be there")
                subtree = _Tree(*_TREE.unpack(value)) if node_flags & _SUBTREE else None
                if subtree is not None and node_flags & _DUPLICATES:
                    branches, leaves = branches + subtree.branch_pages, leaves + subtree.leaf_pages
                    entries += subtree.entries
                elif node_flags & _DUPLICATES:
                    entries += self._check_subpage(number, value)
                else:
                    entries += 1
                    if table is not None:
                        _compare(number, table, [key + value])
                yield key, value, subtree
        if (branches, leaves, overflow, entries) != tree[3:7]:
            raise _DamageError("a tree has other pages or rows than it says")

    def _nodes(
        self, number: int, page: bytearray, count: int, *, branch: bool
    ) -> Iterator[tuple[int, int, bytes, int]]:
        """Yield (low, high or flags, key, where the value starts) of each node, all of which lie inside the page."""
        if _PAGE.size + 2 * count > self._page_size:
            raise _DamageError(f"page {number} has too many rows")
        for at in struct.unpack_from(f"<{count}H", page, _PAGE.size):
            low, high, key_size = _NODE.unpack_from(page, at)
            start = at + _NODE.size + key_size
            size = 0 if branch else _PAGE_NUMBER.size if high & _BIG_VALUE else low
            if at < _PAGE.size + 2 * count or start + size > self._page_size:
                raise _DamageError(f"a row of page {number} does not lie in it")
            yield low, high, bytes(page[at + _NODE.size : start]), start

    def _plain_rows(self, page: bytes | bytearray, count: int) -> list[tuple[bytes, bytes]] | None:
        """Return the keys and the whole rows of a leaf, where all lie in it and have no pages of their own; else None.

        What `_nodes` and the look at each of them does, for most pages and in a third of the time.
        """
        floor = _PAGE.size + 2 * count
        if floor > self._page_size:
            return None
        data, size, unpack, rows = bytes(page), self._page_size, _NODE.unpack_from, []
        for at in struct.unpack_from(f"<{count}H", page, _PAGE.size):
            low, flags, key_size = unpack(data, at)
            start = at + _NODE.size + key_size
            if flags or at < floor or start + low > size:
                return None
            rows.append((data[at + _NODE.size : start], data[at + _NODE.size : start + low]))
        return rows

    def _big_value(self, first: int, size: int) -> tuple[bytes, int]:
        """Return the value that has pages of its own, and how many."""
        data = self._page(first)
        (pages,) = _OVERFLOW_PAGES.unpack_from(data, _PAGE.size - _OVERFLOW_PAGES.size)
        needed = -(-(_PAGE.size + size) // self._page_size)
        if not _PAGE.unpack_from(data)[2] & _OVERFLOW or pages != needed:
            raise _DamageError(f"page {first} is not the value that it should be")
        for number in range(first + 1, first + pages):
            self._meet(number)
        data = self._disk.pread(self._fd, _PAGE.size + size, first * self._page_size)
        if len(data) < _PAGE.size + size:
            raise _DamageError(f"page {first} is not there")
        return bytes(data[_PAGE.size :]), pages

    def _check_packed(
        self, number: int, page: bytes | bytearray, count: int, key_size: int, before: bytes, least: bytes
    ) -> bytes:
        """Check a packed leaf, whose keys lie one behind the other, and return its last key."""
        if not key_size or _PAGE.size + count * key_size > len(page):
            raise _DamageError(f"page {number} has too many rows")
        packed = page[_PAGE.size : _PAGE.size + count * key_size]
        return _last_of(number, [key for (key,) in struct.iter_unpack(f"{key_size}s", packed)], before, least)

    def _check_subpage(self, number: int, value: bytes) -> int:
        """Check the few packed rows that lie in a page of their table; return how many."""
        _, key_size, flags, lower, _ = _PAGE.unpack_from(value)
        count = (int(lower) - _PAGE.size) // 2
        if not flags & _SUBPAGE or not flags & _PACKED or count <= 0:
            raise _DamageError(f"page {number} has rows of another kind than it must have")
        self._check_packed(number, value, count, key_size, b"", b"")
        return count


def _last_of(number: int, keys: list[bytes], before: bytes, least: bytes) -> bytes:
    """Return the last key of a page; the keys ascend, from behind the one `before` and from `least` on."""
    if keys[0] < least or (before and keys[0] <= before) or not all(map(lt, keys, islice(keys, 1, None))):
        raise _DamageError(f"the keys of page {number} are not in order")
    return keys[-1]


def _compare(number: int, table: Table, rows: list[bytes]) -> None:
    """Compare rows with their checks; not packed ones, one of which a page of its table may have by itself."""
    if table == Table.CHUNK_IDS:
        return
    if row_checks(table, [row[:-CHECK_SIZE] for row in rows]) != [row[-CHECK_SIZE:] for row in rows]:
        raise _DamageError(f"a row of page {number}, of the table {table.name.lower()}, is not what was written")


def _ordered(tree: _Tree, key: bytes) -> bytes:
    """Return a key such that it sorts as in the tree: those of free pages are little-endian integers."""
    return key[::-1] if tree.flags == _FREE_PAGES else key
