"""The layouts of zip files: `torch.save`, DCP's `.distcp`, numpy's `.npz`, and `.keras`, which has an HDF5 file in it.

The members are walked by their local headers, because that also works while the file is being written, and because a
`.distcp` file is many zip files one behind the other, of which a central directory tells only the last one. A header
need not tell the size of its member (torch writes it behind the member only): it is taken from what the member is, a
storage that the pickle in front of it has named or an array with a header of its own. Small members are searched for
the descriptor behind them. Compressed members are passed over where their size is known.
"""

import struct
from collections.abc import Generator
from contextlib import suppress

from ckptfs.formats.hdf5 import walk_hdf5
from ckptfs.formats.layout import HEADER_SIZE_MAX, MalformedError, Request, Tensor, Walk, take, within
from ckptfs.formats.npy import npy_tensor
from ckptfs.formats.pickled import read_pickle
from ckptfs.formats.torch_state import Storage, read_storages

MAGIC = b"PK\3\4"
_ENTRIES_MAX = 1 << 18
_ENTRY = struct.Struct("<4sHHHHHIIIHH")
_HAS_DESCRIPTOR = 1 << 3
_ZIP64_EXTRA = 1
_IN_EXTRA = 0xFFFFFFFF
_SEARCH_SIZE = 256

_DESCRIPTOR, _DESCRIPTOR_SIZE, _DESCRIPTOR64_SIZE = b"PK\7\x08", 16, 24
_CENTRAL, _CENTRAL_SIZE = b"PK\1\2", 46
_CENTRAL64_END, _CENTRAL64_LOCATOR, _CENTRAL_END = b"PK\6\6", b"PK\6\7", b"PK\5\6"

_Step = Generator[Request | Tensor, bytes, int]
"""A part of a walk; returns the offset where the file goes on."""


class _Archive:
    """What is known of the zip file at hand, number `index` of those in the file."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.storages: dict[str, Storage] = {}

    def unique(self, name: str) -> str:
        """Return a name that no other archive of the file has."""
        return ".".join(filter(None, [str(self.index) if self.index or not name else "", name]))


def walk_zip() -> Walk:
    """Yield the tensors in the order of their offsets, each before its bytes are passed."""
    offset = 0
    archive = _Archive(0)
    for _ in range(_ENTRIES_MAX):
        head = (yield Request(offset, _CENTRAL_SIZE)).ljust(_CENTRAL_SIZE, b"\0")
        magic = head[:4]
        if magic == MAGIC:
            offset = yield from _member(archive, offset, head)
        elif magic == _CENTRAL:
            offset += _CENTRAL_SIZE + sum(struct.unpack_from("<HHH", head, 28))
        elif magic == _CENTRAL64_END:
            offset += 12 + int.from_bytes(head[4:12], "little")
        elif magic == _CENTRAL64_LOCATOR:
            offset += 20
        elif magic == _CENTRAL_END:
            offset += 22 + int.from_bytes(head[20:22], "little")
            archive = _Archive(archive.index + 1)
        else:
            return


def _member(archive: _Archive, offset: int, head: bytes) -> _Step:
    """Pass a member and its descriptor."""
    _, _, flags, method, _, _, _, size, _, name_size, extra_size = _ENTRY.unpack_from(head)
    texts = yield from take(offset + _ENTRY.size, name_size + extra_size)
    name, extra = texts[:name_size].decode("utf-8", "replace"), texts[name_size:]
    start = offset + _ENTRY.size + len(texts)
    told = None if flags & _HAS_DESCRIPTOR else _size64(extra) if size == _IN_EXTRA else size
    if method != 0:
        if not told:
            raise MalformedError("a compressed member of unknown size")
        return start + told
    end = yield from _contents(archive, name, start, told)
    if not flags & _HAS_DESCRIPTOR:
        return end
    descriptor = yield from take(end, _DESCRIPTOR_SIZE + 2)
    if not _is_descriptor(descriptor, 0, end - start):
        raise MalformedError("a member of another size")
    # Sizes of 8 bytes are for what lies or reaches behind 4 GiB; the next structure shows which these were.
    return end + (_DESCRIPTOR_SIZE if descriptor.endswith(b"PK") else _DESCRIPTOR64_SIZE)


def _contents(archive: _Archive, name: str, start: int, told: int | None) -> _Step:
    """Pass the bytes of a member that is not compressed; `told` is its size where the header tells it."""
    storage = archive.storages.get(name.rpartition("/data/")[2])
    if storage is not None:
        yield storage.tensor(archive.unique(storage.name), start)
        return start + storage.size
    if name.endswith(".h5") and told:
        with suppress(MalformedError):
            yield from within(walk_hdf5(), start, told)
        return start + told
    if name.endswith(".npy"):
        try:
            array = yield from npy_tensor(start, archive.unique(name.removesuffix(".npy")))
        except MalformedError:
            if not told:
                raise
            return start + told
        yield array
        return array.offset + array.size
    if not name.endswith("/data.pkl"):
        return start + (len((yield from _until_descriptor(start))) if told is None else told)
    pickle = (yield from _until_descriptor(start)) if told is None else (yield from take(start, told))
    archive.storages = read_storages(read_pickle(pickle)[0])
    return start + len(pickle)


def _size64(extra: bytes) -> int:
    """Return the size that a local header has put into its zip64 extra field, 0 where there is none."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64_EXTRA:
            return int.from_bytes(extra[position + 12 : position + 20], "little")
        position += 4 + size
    return 0


def _until_descriptor(start: int) -> Generator[Request, bytes, bytes]:
    """Return the bytes of a small member, from `start` to the descriptor that tells just this size."""
    size = _SEARCH_SIZE
    position = 0
    while size <= HEADER_SIZE_MAX:
        data = yield Request(start, size)
        while (position := data.find(_DESCRIPTOR, position)) >= 0 and position + _DESCRIPTOR_SIZE <= len(data):
            if _is_descriptor(data, position, position):
                return data[:position]
            position += 1
        if len(data) < size:
            break
        position = size - _DESCRIPTOR_SIZE
        size += max(_SEARCH_SIZE, size // 8)
    raise MalformedError("a member without an end")


def _is_descriptor(data: bytes, position: int, size: int) -> bool:
    """Say whether the descriptor of a stored member of `size` bytes lies at `position`."""
    told = int.from_bytes(data[position + 8 : position + 12], "little")
    return data.startswith(_DESCRIPTOR, position) and told == size & 0xFFFFFFFF
