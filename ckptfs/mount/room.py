"""Room on the disk below for what is written: taken before bytes are accepted, and made where there is none.

A write is refused rather than accepted and lost. Before that, what nothing needs is collected; then, where the mount
was told to, versions that its policy does not keep are given up, oldest automatic ones first and no more than it takes.
Belongs to the loop.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import NoSpaceError
from ckptfs.mount.collector import Collector
from ckptfs.mount.jobs import Jobs
from ckptfs.store import never
from ckptfs.tree import Tree

log = logging.getLogger(__name__)

ROW_SIZE = 1 * KIB
"""What a name or an inode takes at most in journal and index together, about."""
SMALL_SIZE = 2 * ROW_SIZE
ROOM_ONCE = 16 * MIB
"""After so many bytes at the latest the disk below is asked again how much it takes."""
ROWS_ONCE = 64 * KIB
"""The same for names and attributes: what another program leaves of the reserve must do for them."""
MADE_SHARE = 64
"""At least this part of the disk is made free at a time: a collection costs more than a few megabytes are worth."""


class Room:
    """The room of one mount. `give_up(count)` deletes up to `count` versions and tells how many it has deleted."""

    def __init__(self, tree: Tree, jobs: Jobs, collector: Collector, give_up: Callable[[int], Awaitable[int]]) -> None:
        self._tree = tree
        self._store = tree.store
        self._jobs = jobs
        self._collector = collector
        self._give_up = give_up
        self._making = trio.Lock()
        self._left = 0
        """Bytes that may still be accepted before somebody looks at the disk below again."""
        self._left_for_rows = 0

    def take(self, size: int) -> bool:
        """Take room for `size` bytes; False where there is not so much."""
        if size > self._left:
            free = self._free() - size
            if free < 0:
                return False
            self._left = size + min(free // 2, ROOM_ONCE)
        self._left -= size
        return True

    def take_row(self, size: int = 0) -> None:
        """Take room for a new row with a value of `size` bytes; NoSpaceError.

        On a full disk a small one gets what is kept back for rows, but only a part of that: a deletion, which makes
        room, has to be written down, too.
        """
        size += ROW_SIZE
        if size > self._left_for_rows:
            free = self._free()
            if free < size and (size > SMALL_SIZE or not self._store.takes_rows()):
                raise NoSpaceError(f"the disk below the store is full: {self._store.path}")
            self._left_for_rows = max(size, min(free, ROWS_ONCE))
        self._left_for_rows -= size

    def _free(self) -> int:
        return self._store.room() - self._jobs.buffered

    async def make(self, size: int) -> None:
        """Make room for `size` bytes and take it; NoSpaceError where there is none to be made."""
        wanted = size + self._store.space().total // MADE_SHARE
        async with self._making:
            count = 1
            if self._free() < size and self._tree.rows.has_garbage:
                await self._collect()
            while self._free() < wanted and (given_up := await self._give_up(count)):
                log.info("the disk below the store is full: %d versions were given up", given_up)
                await self._collect()
                count *= 2
        if not self.take(size):
            raise NoSpaceError(f"the disk below the store is full: {self._store.path}")

    async def _collect(self) -> None:
        collected = await self._collector.collect(never)
        log.info("the disk below the store is full: %d bytes of what nothing needs freed", collected.freed_bytes)
