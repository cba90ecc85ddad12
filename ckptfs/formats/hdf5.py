"""The layout of an HDF5 file: its datasets that lie in one piece, and the pieces of those that do not.

Source: the HDF5 file format specification, versions 2 and 3. Groups are followed by symbol tables, by link messages in
their headers, and by those in a heap where they are many (`hdf5_heap.py`); the pieces of a dataset ("chunks" in HDF5)
by a B-tree, which is what h5py writes if it is not told `libver="latest"`. The other indexes of pieces are not
followed, nor are compressed datasets and files with addresses that are not 8 bytes.
"""

import struct
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import NamedTuple

from ckptfs.formats.hdf5_heap import heap_links
from ckptfs.formats.layout import ITEM_SIZES, MalformedError, Request, Walk, checked_shape, dense, take

MAGIC = b"\x89HDF\r\n\x1a\n"
_OBJECTS_MAX = 1 << 16
_MESSAGES_MAX = 1 << 12
"""Of one object header."""
_CHECKSUM_SIZE = 4
_PATH_SIZE_MAX = 1024
_UNDEFINED = (1 << 64) - 1
_ADDRESS_SIZES = b"\x08\x08"

_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _LAYOUT, _FILTERS = 0x01, 0x02, 0x03, 0x06, 0x08, 0x0B
_CONTINUATION, _SYMBOL_TABLE = 0x10, 0x11
_IS_SHARED = 1 << 1
_CONTIGUOUS, _IN_PIECES = 1, 2
_PIECES_MAX = 1 << 17
"""Of one dataset."""
_INTEGER, _FLOAT = 0, 1
_IS_BIG_ENDIAN, _IS_SIGNED = 1 << 0, 1 << 3
_FLOATS = {(2, 5): "float16", (2, 8): "bfloat16", (4, 8): "float32", (8, 11): "float64"}
"""By bytes, and bits of the exponent."""

_ENTRY = struct.Struct("<QQ24x")
"""Of a symbol table: where the name lies in the heap, and where the object's header."""

Address = int


class _Message(NamedTuple):
    kind: int
    flags: int
    data: bytes


class _Link(NamedTuple):
    name: str
    address: Address


def walk_hdf5() -> Walk:
    """Yield the datasets as they are met; asks for bytes in any order."""
    waiting = deque([_Link("", (yield from _root()))])
    seen = {waiting[0].address}
    while waiting:
        path, address = waiting.popleft()
        try:
            messages = yield from _messages(address)
            yield from _dataset(path, messages)
            links = yield from _links(messages)
        except (MalformedError, struct.error, IndexError):
            continue
        for name, target in links:
            child = f"{path}/{name}" if path else name
            if target not in seen and len(seen) < _OBJECTS_MAX and len(child) <= _PATH_SIZE_MAX:
                seen.add(target)
                waiting.append(_Link(child, target))


def _root() -> Generator[Request, bytes, Address]:
    """Return where the header of the root group lies."""
    superblock = yield from take(0, 76)
    version = superblock[8]
    sizes, position = (superblock[13:15], 64 + 4 * version) if version < 2 else (superblock[9:11], 36)
    if version > 3 or sizes != _ADDRESS_SIZES:
        raise MalformedError("another version of HDF5")
    return int.from_bytes(superblock[position : position + 8], "little")


def _messages(address: Address) -> Generator[Request, bytes, list[_Message]]:
    """Return the messages of an object header, with those of its continuations."""
    head = yield from take(address, 16)
    flags = head[5] if head.startswith(b"OHDR\2") else None
    if flags is not None:
        size_width = 1 << (flags & 3)
        size_offset = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        size = int.from_bytes((yield from take(address + size_offset, size_width)), "little")
        parts = [(address + size_offset + size_width, size)]
    elif head[0] == 1:
        parts = [(address + 16, int.from_bytes(head[8:12], "little"))]
    else:
        raise MalformedError("no object header")
    messages: list[_Message] = []
    for index, (offset, size) in enumerate(parts):
        data = yield from take(offset, size)
        if flags is not None and index:
            data = data[len(b"OCHK") : -_CHECKSUM_SIZE]
        for message in _split(data, flags):
            if message.kind == _CONTINUATION and len(message.data) >= 16:
                parts.append(struct.unpack_from("<QQ", message.data))
            messages.append(message)
            if len(messages) > _MESSAGES_MAX:
                raise MalformedError("too many messages")
    return messages


def _split(data: bytes, header_flags: int | None) -> Iterator[_Message]:
    """Split a part of a header into messages; `header_flags` are those of a version 2 header, None for version 1."""
    prefix_size = 8 if header_flags is None else 6 if header_flags & 4 else 4
    position = 0
    while position + prefix_size <= len(data):
        if header_flags is None:
            kind, size, flags = struct.unpack_from("<HHB", data, position)
        else:
            kind, size, flags = struct.unpack_from("<BHB", data, position)
        position += prefix_size
        yield _Message(kind, flags, data[position : position + size])
        position += size


def _links(messages: list[_Message]) -> Generator[Request, bytes, list[_Link]]:
    """Return what a group holds: the links in its header, or those of its symbol table or its heap."""
    links: list[_Link] = []
    for message in messages:
        if message.kind == _LINK:
            links += _link(message.data)
        elif message.kind == _SYMBOL_TABLE:
            links += yield from _symbol_table(message.data)
        elif message.kind == _LINK_INFO:
            for found in (yield from heap_links(message.data)):
                with suppress(IndexError):
                    links += _link(found)
    return links


def _link(data: bytes) -> list[_Link]:
    """Return the link of a message if it is a hard one."""
    flags = data[1]
    if flags & 8 and data[2] != 0:
        return []
    position = 2 + (flags >> 3 & 1) + (8 if flags & 4 else 0) + (flags >> 4 & 1)
    size_width = 1 << (flags & 3)
    start = position + size_width
    end = start + int.from_bytes(data[position:start], "little")
    return [_Link(data[start:end].decode("utf-8", "replace"), int.from_bytes(data[end : end + 8], "little"))]


def _symbol_table(data: bytes) -> Generator[Request, bytes, list[_Link]]:
    """Return the links of an old group: a B-tree of nodes of entries, their names in a heap."""
    tree, heap = struct.unpack_from("<QQ", data)
    _, _, size, _, segment = struct.unpack("<4sIQQQ", (yield from take(heap, 32)))
    names = yield from take(segment, size)
    links: list[_Link] = []
    nodes = [tree]
    for address in nodes:
        magic, count = struct.unpack("<4sxxH", (yield from take(address, 8)))
        if magic == b"SNOD" and len(links) + count <= _OBJECTS_MAX:
            entries = yield from take(address + 8, _ENTRY.size * count)
            for name_offset, target in _ENTRY.iter_unpack(entries):
                name = names[name_offset : name_offset + _PATH_SIZE_MAX].partition(b"\0")[0]
                links.append(_Link(name.decode("utf-8", "replace"), target))
        elif magic == b"TREE" and len(nodes) + count <= _OBJECTS_MAX:
            pairs = yield from take(address + 32, 16 * count)  # of a child and the key behind it
            nodes += struct.unpack(f"<{2 * count}Q", pairs)[::2]
        else:
            raise MalformedError("no B-tree")
    return links


def _dataset(path: str, messages: list[_Message]) -> Walk:
    """Yield the dataset of an object if it has one: as a tensor, or its pieces as one each."""
    found = {message.kind: message.data for message in messages if not message.flags & _IS_SHARED}
    if not found.keys() >= {_DATASPACE, _DATATYPE, _LAYOUT} or _FILTERS in found:
        return
    layout, space = found[_LAYOUT], found[_DATASPACE]
    dtype, item_size = _datatype(found[_DATATYPE])
    if layout[0] in (3, 4) and layout[1] == _CONTIGUOUS:
        offset = int.from_bytes(layout[2:10], "little")
        if offset != _UNDEFINED:
            shape = checked_shape(list(struct.unpack_from(f"<{space[1]}Q", space, 8 if space[0] == 1 else 4)))
            yield dense(path, offset, shape, dtype, item_size)
    elif layout[0] == 3 and layout[1] == _IN_PIECES:
        rank = layout[2] - 1  # the last length is an item's
        shape = checked_shape(list(struct.unpack_from(f"<{rank}I", layout, 11)))
        tree = int.from_bytes(layout[3:11], "little")
        if tree != _UNDEFINED and rank > 0:
            for place, offset in (yield from _pieces(tree, rank)):
                yield dense(f"{path}{list(place)}", offset, shape, dtype, item_size)


def _pieces(tree: Address, rank: int) -> Generator[Request, bytes, list[tuple[tuple[int, ...], Address]]]:
    """Return where in a dataset each piece begins and where it lies in the file, from a B-tree of nodes of them."""
    pieces: list[tuple[tuple[int, ...], Address]] = []
    entry = struct.Struct(f"<8x{rank}Q8xQ")  # size and filters, where it begins, then the child
    nodes = [tree]
    for address in nodes:
        magic, kind, level, count = struct.unpack("<4sBBH", (yield from take(address, 8)))
        if magic != b"TREE" or kind != 1 or len(nodes) + count > _OBJECTS_MAX or len(pieces) + count > _PIECES_MAX:
            raise MalformedError("no B-tree")
        for *place, target in entry.iter_unpack((yield from take(address + 24, entry.size * count))):
            if level:
                nodes.append(target)
            else:
                pieces.append((tuple(place), target))
    return pieces


def _datatype(data: bytes) -> tuple[str, int]:
    """Return the dtype, "" where it has no name here, and the bytes of an item."""
    kind, order, item_size = data[0] & 15, data[1], int.from_bytes(data[4:8], "little")
    name = ""
    if kind == _INTEGER:
        name = f"{'int' if order & _IS_SIGNED else 'uint'}{8 * item_size}"
    elif kind == _FLOAT:
        name = _FLOATS.get((item_size, data[13]), "")
    return (name if name in ITEM_SIZES and not order & _IS_BIG_ENDIAN else ""), item_size
