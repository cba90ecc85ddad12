"""The seal of the index: a digest of `index.lmdb`, set when a store is closed and broken when it is opened to write.

LMDB has no checksums: a flipped bit may show an old row, another chunk, or end the process. The packs vouch for chunks;
the seal vouches for the whole index. Whoever finds it broken makes the index anew from the packs. After a kill there is
none: then pages and rows are looked at (`lmdb_pages.py`), and every row that is read has a check (`environment.py`).
"""

import logging
from pathlib import Path

import xxhash

from ckptfs.config import MIB
from ckptfs.disk import Disk
from ckptfs.errors import NoSpaceError
from ckptfs.store.lmdb_pages import damage_of

logger = logging.getLogger(__name__)

SUFFIX = ".seal"
_PIECE_SIZE = 4 * MIB
_SIZE_MAX = 256


class Seal:
    """The seal of one index; `close` sets it, once `set_on_close` was called."""

    def __init__(self, index_path: Path, disk: Disk) -> None:
        self._index_path = index_path
        self._path = index_path.with_name(index_path.name + SUFFIX)
        self._disk = disk
        self._set_on_close = False

    def damage(self) -> str | None:
        """Return what is wrong with the index, None when it may be opened: it is what was sealed, or is not there."""
        if not self._index_path.exists():
            return None
        if not self._path.exists():
            return damage_of(self._index_path, self._disk)
        fd = self._disk.open_read(self._path)
        try:
            holds = bytes(self._disk.pread(fd, _SIZE_MAX, 0)) == self._content()
        finally:
            self._disk.close(fd)
        return None if holds else "its seal does not hold"

    def remove(self) -> None:
        """Take the seal off, durably, before the index is changed."""
        if self._path.exists():
            self._disk.unlink(self._path)
            self._disk.sync_directory(self._path.parent)

    def set_on_close(self) -> None:
        """Have `close` set the seal: the index is whole and durable."""
        self._set_on_close = True

    def close(self) -> None:
        """Set the seal if that was asked for; LMDB has the index open no more."""
        if self._set_on_close:
            try:
                self._disk.publish(self._path, self._content())
            except NoSpaceError as error:
                # Nothing is lost: an index without a seal is good, too.
                logger.info("the index is not sealed: %s", error)

    def _content(self) -> bytes:
        digest = xxhash.xxh3_128()
        fd = self._disk.open_read(self._index_path)
        try:
            buffer = memoryview(bytearray(min(_PIECE_SIZE, max(self._disk.size(fd), 1))))
            offset = 0
            while count := self._disk.pread_into(fd, [buffer], offset):
                digest.update(buffer[:count])
                offset += count
        finally:
            self._disk.close(fd)
        return f"{offset} {digest.hexdigest()}\n".encode()
