"""The reserve: room on the disk below that is kept back for what has to succeed when it is full.

Reserve owns the file `reserve`, allocated and empty of meaning. Data never gets its room: when the disk is full, the
journal and the index do, so that a deletion can be recorded, and everything accepted be committed. It does not know
what is written. After a crash the file is there, or is made again; every method may be called from any thread.
"""

import logging
import mmap
import threading
from collections.abc import Callable
from pathlib import Path

from ckptfs.config import MIB
from ckptfs.disk import Disk
from ckptfs.errors import NoSpaceError

logger = logging.getLogger(__name__)

NAME = "reserve"
SIZE_MAX = 32 * MIB
_SHARE = 64
"""Of a small disk the reserve takes no more than this part."""
_PARTS = 8
"""In so many parts the room is given up: whoever else fills the disk takes at once what is free and not used."""


class Reserve:
    """The reserve of one store, held or not."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._path = directory / NAME
        self._disk = disk
        self._lock = threading.Lock()
        self._wanted = False

    @property
    def missing(self) -> int:
        """How many bytes of room data must leave, so that a reserve that was held can be held again."""
        return self._wanted * max(self._size() - self._disk.stored_size(self._path), 0)

    @property
    def spare(self) -> int:
        """How many bytes new rows may take of it on a full disk; the other half is for deletions."""
        return self._size() // 2 - self.missing

    def _size(self) -> int:
        return min(SIZE_MAX, self._disk.space(self._path.parent).total // _SHARE)

    def hold(self) -> bool:
        """Keep the room back, from now on; False where there is none now."""
        self._wanted = True
        return self.hold_again()

    def hold_again(self) -> bool:
        """Keep back what was given up, if it was ever held; False where there is no room for it now."""
        with self._lock:
            if not self.missing:
                return True
            try:
                fd = self._disk.open_write(self._path, create=True)
                try:
                    self._disk.allocate(fd, self._size(), self._path)
                finally:
                    self._disk.close(fd)
            except NoSpaceError as error:
                logger.info("no room is kept back for the index: %s", error)
                return False
            return True

    def give_up(self) -> bool:
        """Give a part of the room to whoever needs it now; False when there was none to give."""
        with self._lock:
            held = self._disk.stored_size(self._path)
            if not held:
                return False
            part = self._size() // _PARTS
            left = held - part if mmap.PAGESIZE <= part <= held // 2 else 0
            fd = self._disk.open_write(self._path, empty=not left)
            try:
                if left:
                    self._disk.truncate(fd, left, self._path)
            finally:
                self._disk.close(fd)
            logger.info("the disk below the store is full: %d bytes kept back for the index are used", held - left)
            return True

    def spend_on(self, write: Callable[[], object]) -> None:
        """Write what has to succeed on a full disk too: with as much of the room kept back for it as that takes."""
        while True:
            try:
                write()
            except NoSpaceError:
                if not self.give_up():
                    raise
            else:
                return
