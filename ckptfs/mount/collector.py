"""Garbage collections of a mounted tree: the steps of `Collection`, in the loop or in threads, one at a time.

Saves and loads go on meanwhile. What is stopped or fails leaves nothing half done that the next one does not take up.
"""

from collections.abc import Callable

import trio

from ckptfs.mount.committer import Committer
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.offload import Offload
from ckptfs.store import Position, Reclamation, Swept, never
from ckptfs.tree import Tree
from ckptfs.tree.commands import PART_SECONDS
from ckptfs.tree.gc import ROWS_PER_STEP, Collected, Collection


class Collector:
    """The garbage collections of one mount."""

    def __init__(self, tree: Tree, jobs: Jobs, committer: Committer, offload: Offload) -> None:
        self._tree = tree
        self._jobs = jobs
        self._committer = committer
        self._offload = offload
        self._begun: Reclamation | None = None
        self.turn = trio.Lock()
        """Held by a collection, and by whoever reads what only rows keep that a collection may delete."""

    async def preview(self) -> Collected:
        """Return what `collect` would free now."""
        async with self.turn:
            with Collection(self._tree, dry_run=True) as collection:
                await self._mark(collection, never)
                async with self._committer.view() as view:
                    return await self._offload.run(collection.preview, view)

    async def collect(self, stop: Callable[[], bool]) -> Collected:
        """Free what nothing needs; ends early, within milliseconds, when `stop()` is true.

        StoreReadOnlyError, NoSpaceError, OSError.
        """
        async with self.turn:
            swept, reclamation = await self._sweep(stop)
            await self._go_on(reclamation, stop, stop)
            return Collected.part(swept, reclamation.freed_bytes, reclamation)

    async def collect_part(self) -> Collected:
        """Free what nothing needs, whoever reads or writes, for about a second; ask again until it is finished."""
        deadline = trio.current_time() + PART_SECONDS
        async with self.turn:
            swept, reclamation = (Swept(), self._begun) if self._begun is not None else await self._sweep(never)
            self._begun, before = None, reclamation.freed_bytes
            await self._go_on(reclamation, never, lambda: trio.current_time() >= deadline)
            self._begun = None if reclamation.is_done else reclamation
            return Collected.part(swept, reclamation.freed_bytes - before, reclamation)

    async def reclaim(self, stop: Callable[[], bool]) -> int:
        """Give back what is dead in the packs; return the bytes, and end early as `collect` does."""
        async with self.turn:
            reclamation = await self._plan(self._tree.store.position, stop)
            await self._go_on(reclamation, stop, stop)
            return reclamation.freed_bytes

    async def punch(self, stop: Callable[[], bool]) -> int:
        """Give back places that are free since the last checkpoint; return the bytes, and end early as `collect`."""
        async with self.turn:
            return await self._offload.run(self._tree.store.reclaimer.punch, stop)

    async def _sweep(self, stop: Callable[[], bool]) -> tuple[Swept, Reclamation]:
        """Release what nothing needs, and plan what to do about its space."""
        swept = Swept()
        with Collection(self._tree) as collection:
            if await self._mark(collection, stop) and await self._delete_rows(collection, stop):
                swept = await self._offload.run(collection.sweep, stop)
        return swept, await self._plan(collection.end, stop)

    async def _delete_rows(self, collection: Collection, stop: Callable[[], bool]) -> bool:
        """Delete the rows that nothing needs and journal that, in steps; False when it was stopped, the rest stays."""
        while True:
            left = collection.delete_rows(ROWS_PER_STEP)
            await self._committer.commit(durable=False)  # all at once would hold up the loop
            if not left:
                return True
            if stop():
                return False
            await trio.lowlevel.checkpoint()

    async def _plan(self, end: Position, stop: Callable[[], bool]) -> Reclamation:
        """Plan to give back what is dead before `end`; one that was begun in parts is given up."""
        self._begun = None
        await self._committer.checkpoint()
        return await self._offload.run(self._tree.store.reclaimer.begin, end, stop)

    async def _go_on(self, reclamation: Reclamation, stop: Callable[[], bool], is_over: Callable[[], bool]) -> None:
        """Reclaim until nothing is left, or, between two steps, `is_over()`; a step ends early at `stop()`."""
        while not (reclamation.is_done or is_over()):
            if await self._offload.run(reclamation.step, stop):
                await self._committer.checkpoint()

    async def _mark(self, collection: Collection, stop: Callable[[], bool]) -> bool:
        while not collection.can_look:
            await self._jobs.step()
        collection.look()
        return await self._offload.run(collection.mark, stop)
