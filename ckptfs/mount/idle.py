"""Work for idle time: collect what nothing needs, encode what went out raw, and give places back to the disk below.

It begins when nobody has read or written for a while, and stops within the time of one chunk when somebody does.
Killed at any point it loses nothing: the store frees a place only when the new one is durable.
"""

import logging
import time

import trio

from ckptfs.config import MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.offload import Offload
from ckptfs.tree import Tree

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
"""How long nobody may have asked for data before the work begins."""
SLICE_SIZE = 8 * MIB
"""Raw bytes that are encoded in one call."""
CHECKPOINT_SIZE = 256 * MIB
"""Raw bytes after which the places they leave are freed."""
COLLECT_SHARE = 0.05
"""The share of the time that collections may take."""
RETRY_SECONDS = 60.0


class Idle:
    """The idle work of one mount; `busy` is told of every request for data."""

    def __init__(self, tree: Tree, collector: Collector, committer: Committer, offload: Offload) -> None:
        self._tree = tree
        self._store = tree.store
        self._collector = collector
        self._committer = committer
        self._offload = offload
        self._collect_at = 0.0
        self._busy_at = time.monotonic()
        self._encoded = 0

    def busy(self) -> None:
        """Note that somebody reads or writes."""
        self._busy_at = time.monotonic()

    def _is_busy(self) -> bool:
        return time.monotonic() - self._busy_at < QUIET_SECONDS

    async def run(self) -> None:
        """Work whenever the mount is idle, for ever; a failure is logged and tried again."""
        while True:
            await trio.sleep(QUIET_SECONDS)
            try:
                if not self._is_busy():
                    await self._work()
            except (CkptfsError, OSError) as error:
                log.error("what is to be done in idle time cannot be done now, trying again: %s", error)
                await trio.sleep(RETRY_SECONDS)

    async def _work(self) -> None:
        if self._tree.rows.has_garbage and time.monotonic() >= self._collect_at:
            await self._collect()
        while not self._is_busy():
            if not self._store.waiting_bytes:
                break
            if not await self._encode() and not self._is_busy():
                # What waits is not in the index yet; a checkpoint brings it there.
                await self._committer.checkpoint()
                if not await self._encode():
                    break
            if self._encoded >= CHECKPOINT_SIZE:
                await self._free()
        if self._encoded and not self._is_busy():
            await self._free()

    async def _collect(self) -> None:
        began = time.monotonic()
        collected = await self._collector.collect(self._is_busy)
        ended = time.monotonic()
        self._collect_at = ended + (ended - began) / COLLECT_SHARE
        if collected.chunks:
            log.info("%d chunks that nothing needs released, %d bytes freed", collected.chunks, collected.freed_bytes)

    async def _encode(self) -> bool:
        """Encode a slice of what waits; return False when nothing of it could be taken."""
        done = await self._offload.run(self._store.reencode, SLICE_SIZE, self._is_busy)
        self._encoded += done.raw_bytes
        return done.chunks > 0

    async def _free(self) -> None:
        await self._committer.checkpoint()
        self._encoded = 0
        freed = await self._offload.run(self._store.punch, self._is_busy)
        log.info("encoding what was saved gave %d bytes back to the disk below", freed)
