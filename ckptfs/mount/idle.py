"""Work for idle time: collect what nothing needs, encode what went out raw, optimize, and give places back to the disk.

It begins when nobody has read or written for a while, and stops within the time of one chunk when somebody does; a
person may ask for it at any time, in parts. Killed at any point it loses nothing: the store frees a place only when the
new one is durable.
"""

import logging
import time
from collections.abc import Callable

import trio

from ckptfs.config import MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.offload import Offload
from ckptfs.mount.trouble import Trouble
from ckptfs.tree import Tree
from ckptfs.tree.commands import PART_SECONDS
from ckptfs.tree.optimize import BATCH_SIZE, Optimizer, Progress

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
"""How long nobody may have asked for data before the work begins."""
SLICE_SIZE = 8 * MIB
"""Raw bytes that are encoded in one call."""
COLLECT_SHARE = 0.05
"""The share of a processor's time that collections may take."""
RETRY_SECONDS = 60.0

Stop = Callable[[], bool]


class Idle:
    """The idle work of one mount; `busy` is told of every request for data. `optimizing` is done only where asked."""

    def __init__(
        self,
        tree: Tree,
        collector: Collector,
        committer: Committer,
        offload: Offload,
        *,
        optimizing: bool,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._tree = tree
        self._store = tree.store
        self._optimizer = Optimizer(tree)
        self._collector = collector
        self._committer = committer
        self._offload = offload
        self._optimizing = optimizing
        self._batch_size = batch_size
        self._turn = trio.Lock()
        self._requests = 0
        self._collect_at = 0.0
        self._busy_at = time.monotonic()
        self._unfreed = 0

    def busy(self) -> None:
        """Note that somebody reads or writes."""
        self._busy_at = time.monotonic()

    def _is_busy(self) -> bool:
        return self._requests > 0 or time.monotonic() - self._busy_at < QUIET_SECONDS

    async def run(self) -> None:
        """Work whenever the mount is idle, for ever; a failure is logged and tried again."""
        trouble = Trouble("what is to be done in idle time")
        while True:
            await trio.sleep(QUIET_SECONDS)
            try:
                if not self._is_busy():
                    async with self._turn:
                        if time.monotonic() >= self._collect_at:
                            await self._collect()
                        await self._work(self._is_busy, optimizing=self._optimizing)
                    trouble.over()
            except (CkptfsError, OSError) as error:
                trouble.met(error)
                await trio.sleep(RETRY_SECONDS)

    async def optimize(self) -> Progress:
        """Do a part of the work now, whoever reads or writes; CkptfsError and OSError pass."""
        self._requests += 1
        try:
            async with self._turn:
                waiting, done = self._store.waiting_bytes, self._optimizer.done_bytes
                deadline = time.monotonic() + PART_SECONDS
                finished = await self._work(lambda: time.monotonic() >= deadline, optimizing=True)
        finally:
            self._requests -= 1
        encoded = max(waiting - self._store.waiting_bytes, 0)  # a save may have added more
        left = self._store.waiting_bytes + self._optimizer.left_bytes
        return Progress(encoded + self._optimizer.done_bytes - done, left, finished)

    async def _work(self, stop: Stop, *, optimizing: bool) -> bool:
        """Work until nothing is left or `stop()`; return whether nothing is."""
        await self._encode(stop)
        if optimizing:
            await self._optimize(stop)
        if stop():
            return False
        if self._unfreed:
            await self._free(stop)
        return not self._unfreed

    async def _encode(self, stop: Stop) -> None:
        """Encode what waits now; what saves add meanwhile is for the next time, or there would never be an end."""
        slice_size = min(SLICE_SIZE, self._batch_size)
        left = self._store.waiting_bytes
        while left > 0 and not stop():
            await self._free_batch(stop)
            done = await self._offload.run(self._store.reencoder.encode_waiting, slice_size, stop)
            if done.chunks == 0 and not stop():
                # What waits is not in the index yet; a checkpoint brings it there.
                await self._committer.checkpoint()
                done = await self._offload.run(self._store.reencoder.encode_waiting, slice_size, stop)
                if done.chunks == 0:
                    return
            left -= done.raw_bytes
            self._unfreed += done.raw_bytes

    async def _optimize(self, stop: Stop) -> None:
        """Optimize what there is now; what saves add meanwhile is for the next time, or there would never be an end."""
        begun = self._optimizer.state
        while not stop():
            await self._free_batch(stop)
            async with self._collector.turn:  # a collection would take away what is being compared
                if (work := self._optimizer.take()) is None:
                    return
                try:
                    self._unfreed += await self._offload.run(work, stop)
                finally:
                    self._optimizer.finish()
            if self._optimizer.done >= begun:
                return

    async def _free_batch(self, stop: Stop) -> None:
        """Free what two copies lie there of before more is stored anew; not behind it, where somebody may wait."""
        if self._unfreed >= self._batch_size:
            await self._free(stop)

    async def _collect(self) -> None:
        """Free what nothing needs, or, where only the packs have grown by a good part, what is dead in them."""
        began = time.process_time()  # not the time that it waits for the disk
        if self._tree.rows.has_garbage:
            collected = await self._collector.collect(self._is_busy)
            if collected.chunks:
                log.info("%d chunks that nothing needs released", collected.chunks)
            freed = collected.freed_bytes
        elif self._store.reclaimer.is_due:
            freed = await self._collector.reclaim(self._is_busy)
        else:
            return
        self._collect_at = time.monotonic() + (time.process_time() - began) / COLLECT_SHARE
        if freed:
            log.info("%d bytes of the packs freed", freed)

    async def _free(self, stop: Stop) -> None:
        await self._committer.checkpoint()
        unfreed = self._unfreed
        freed = await self._collector.punch(stop)
        if not stop():  # else some of it is still to be freed
            self._unfreed -= unfreed
        log.info("encoding what was saved gave %d bytes back to the disk below", freed)
