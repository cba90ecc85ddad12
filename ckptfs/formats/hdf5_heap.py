"""The links of a large HDF5 group: messages in a fractal heap, found by a B-tree of their names.

Source: the HDF5 file format specification, version 3, "Fractal Heap" and "Version 2 B-trees". A heap is one direct
block or an indirect block of them; what lies deeper, in groups of more than some ten thousand links, is not followed.
"""

import struct
from bisect import bisect_right
from collections.abc import Generator
from typing import NamedTuple

from ckptfs.formats.layout import MalformedError, Request, take

_LINK_SIZE_MAX = 1100
"""Bytes of a link message that are looked at: a long name and what goes with it."""
_LINKS_MAX = 1 << 16
_UNDEFINED = (1 << 64) - 1
_HAS_CREATION_INDEX = 1 << 0
_BY_NAME = 5
_ADDRESS_SIZE = 8
_NODE_HEAD, _NODE_SIZE = 6, 10
"""Bytes of a node before its records, and with the checksum behind them."""
_HASH_SIZE = 4
_NODE_SIZE_MAX = 1 << 13
_DEPTH_MAX = 8
_ROWS_MAX = 32

_HEAP = struct.Struct("<4sxHH101xHQQHxxQH")
_TREE = struct.Struct("<4sxBIHHxxQH")
_NOT_IN_BLOCKS = 0x30
"""Bits of a heap id: what it stands for is huge, or in the id itself."""

Address = int


class _Block(NamedTuple):
    """A direct block: where its bytes begin in the heap and in the file."""

    offset: int
    size: int
    address: Address


def heap_links(link_info: bytes) -> Generator[Request, bytes, list[bytes]]:
    """Return the link messages, with what lies behind each, of the group that has this link info message."""
    skip = 8 if link_info[1] & _HAS_CREATION_INDEX else 0
    heap, tree = struct.unpack_from("<QQ", link_info, 2 + skip)
    if _UNDEFINED in (heap, tree):
        return []
    head = yield from take(heap, _HEAP.size)
    magic, id_size, filters_size, width, start_size, direct_max, bits, root, rows = _HEAP.unpack(head)
    if magic != b"FRHP" or filters_size or rows > _ROWS_MAX:
        raise MalformedError("no heap of links")
    offset_size = (bits + 7) // 8
    if not rows:
        blocks = [_Block(0, start_size, root)]
    else:
        blocks = yield from _blocks(root, rows, width, start_size, direct_max, offset_size)
    starts = [block.offset for block in blocks]
    links = []
    for heap_id in (yield from _heap_ids(tree, id_size)):
        offset = int.from_bytes(heap_id[1 : 1 + offset_size], "little")
        block = blocks[bisect_right(starts, offset) - 1]
        if not heap_id[0] & _NOT_IN_BLOCKS and block.offset <= offset < block.offset + block.size:
            links.append((yield Request(block.address + offset - block.offset, _LINK_SIZE_MAX)))
    return links


def _blocks(
    root: Address, rows: int, width: int, start_size: int, direct_max: int, offset_size: int
) -> Generator[Request, bytes, list[_Block]]:
    """Return the direct blocks that the root's indirect block names; their sizes double from its third row on."""
    addresses = yield from take(root + 13 + offset_size, 8 * rows * width)
    blocks = []
    offset = 0
    for index, (address,) in enumerate(struct.iter_unpack("<Q", addresses)):
        size = start_size << max(index // width - 1, 0)
        if size <= direct_max and address != _UNDEFINED:
            blocks.append(_Block(offset, size, address))
        offset += size
    return blocks


def _heap_ids(tree: Address, id_size: int) -> Generator[Request, bytes, list[bytes]]:
    """Return where the links lie in their heap, from the B-tree of their names."""
    magic, kind, node_size, record_size, depth, root, count = _TREE.unpack((yield from take(tree, _TREE.size)))
    if magic != b"BTHD" or kind != _BY_NAME or record_size != _HASH_SIZE + id_size:
        raise MalformedError("no B-tree of names")
    if depth > _DEPTH_MAX or node_size > _NODE_SIZE_MAX:
        raise MalformedError("a B-tree larger than any group")
    count_size, pointer_sizes = _pointers(node_size - _NODE_SIZE, record_size, depth)
    found: list[bytes] = []
    nodes = [(root, count, depth)]
    for address, count, level in nodes:
        if len(found) + count > _LINKS_MAX:  # and so many nodes, nearly: a node has one child more than records
            raise MalformedError("too many links")
        node = yield from take(address, node_size)
        end = _NODE_HEAD + count * record_size
        if not node.startswith(b"BTIN" if level else b"BTLF") or end > node_size:
            raise MalformedError("no node of a B-tree")
        found += [node[start + _HASH_SIZE :][:id_size] for start in range(_NODE_HEAD, end, record_size)]
        for child in range(count + 1 if level else 0):
            pointer = node[end + child * pointer_sizes[level] :][: _ADDRESS_SIZE + count_size]
            target, below = pointer[:_ADDRESS_SIZE], pointer[_ADDRESS_SIZE:]
            nodes.append((int.from_bytes(target, "little"), int.from_bytes(below, "little"), level - 1))
    return found


def _pointers(room: int, record_size: int, depth: int) -> tuple[int, list[int]]:
    """Return the bytes of a count of records, and those of a pointer to a child in a node of each level, 0 for leaves.

    A pointer is an address, the records in the child and, where that is no leaf, those below it: each as wide as their
    greatest number needs, which follows from the `room` in a node.
    """
    below = room // record_size
    count_size, total_size = _width(below), 0
    sizes = [0]
    for _ in range(depth):
        sizes.append(_ADDRESS_SIZE + count_size + total_size)
        records = (room - sizes[-1]) // (record_size + sizes[-1])
        below = (records + 1) * below + records
        total_size = _width(below)
    return count_size, sizes


def _width(number: int) -> int:
    return (number.bit_length() + 7) // 8
