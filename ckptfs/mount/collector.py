"""Garbage collections of a mounted tree: the steps of `Collection`, in the loop or in threads, one at a time.

Saves and loads go on meanwhile. What is stopped or fails leaves nothing half done that the next one does not take up.
"""

from collections.abc import Callable

import trio

from ckptfs.mount.committer import Committer
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.offload import Offload
from ckptfs.store import Position, never
from ckptfs.tree import Tree
from ckptfs.tree.gc import ROWS_PER_STEP, Collected, Collection


class Collector:
    """The garbage collections of one mount."""

    def __init__(self, tree: Tree, jobs: Jobs, committer: Committer, offload: Offload) -> None:
        self._tree = tree
        self._jobs = jobs
        self._committer = committer
        self._offload = offload
        self.turn = trio.Lock()
        """Held by a collection, and by whoever reads what only rows keep that a collection may delete."""

    async def preview(self) -> Collected:
        """Return what `collect` would free now."""
        async with self.turn:
            with Collection(self._tree, dry_run=True) as collection:
                await self._mark(collection, never)
                async with self._committer.view() as view:
                    return await self._offload.run(collection.preview, view)

    async def collect(self, stop: Callable[[], bool] = never) -> Collected:
        """Free what nothing needs; ends early, within milliseconds, when `stop()` is true.

        StoreReadOnlyError, NoSpaceError, OSError.
        """
        swept = (0, 0)
        async with self.turn:
            with Collection(self._tree) as collection:
                if await self._mark(collection, stop):
                    while collection.delete_rows(ROWS_PER_STEP):
                        await trio.lowlevel.checkpoint()
                    await self._committer.commit(durable=False)
                    swept = await self._offload.run(collection.sweep, stop)
            return Collected(*swept, await self._reclaim(collection.end, stop))

    async def reclaim(self, stop: Callable[[], bool]) -> int:
        """Give back what is dead in the packs; return the bytes, and end early as `collect` does."""
        async with self.turn:
            return await self._reclaim(self._tree.store.position, stop)

    async def _reclaim(self, end: Position, stop: Callable[[], bool]) -> int:
        await self._committer.checkpoint()
        reclamation = await self._offload.run(self._tree.store.reclaimer.begin, end, stop)
        while not (reclamation.is_done or stop()):
            if await self._offload.run(reclamation.step, stop):
                await self._committer.checkpoint()
        return reclamation.freed_bytes

    async def _mark(self, collection: Collection, stop: Callable[[], bool]) -> bool:
        while not collection.can_look:
            await self._jobs.step()
        collection.look()
        return await self._offload.run(collection.mark, stop)
