"""When the tree becomes durable: journal at once, sync when asked, checkpoint every few seconds.

The order is the store's (`docs/design.md`, "What is kept when"); this module decides the moments, and keeps to one
journal append, one sync and one checkpoint at a time. Waiting callers share them, and a close, which only needs the
journal, never waits for a sync.
"""

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import trio

from ckptfs.errors import CkptfsError
from ckptfs.mount.offload import Offload
from ckptfs.mount.trouble import Trouble
from ckptfs.store import Changes, ChunkStore, View

JOURNAL_SECONDS = 0.02
"""How long changes that nobody waits for gather before they are journalled together."""
CHECKPOINT_SECONDS = 5.0
CHECKPOINT_ROWS = 200_000
SMALL_ROWS = 200
"""A journal record of no more rows than this is small work."""
RETRY_SECONDS = 1.0


class Committer:
    """Commits of one store, for the loop that owns its tables."""

    def __init__(self, store: ChunkStore, offload: Offload) -> None:
        self._store = store
        self._offload = offload
        self._journal_lock = trio.Lock()
        self._sync_lock = trio.Lock()
        self._checkpoint_lock = trio.Lock()
        self._work = trio.Event()
        self._rounds = 0
        self._journalled = 0
        self._durable = 0
        self._checkpoint_at = math.inf

    def wake(self) -> None:
        """Ask for the journal to be brought up soon; returns at once."""
        if self._checkpoint_at == math.inf:
            self._checkpoint_at = trio.current_time() + CHECKPOINT_SECONDS
        self._work.set()

    async def commit(self, *, durable: bool) -> None:
        """Journal everything done before this call and, when `durable`, sync it; NoSpaceError and OSError pass.

        A call waits for no sync or checkpoint that others have under way, unless it asks to be durable.
        """
        begun = self._rounds
        try:
            self._journal_lock.acquire_nowait()  # a lock that is free costs no turn of the loop
        except trio.WouldBlock:
            await self._journal_lock.acquire()
        try:
            if self._journalled <= begun:  # no round that began after this call has done it
                await self._append_journal(self._store.tables.take_changes())
            journalled = self._journalled
        finally:
            self._journal_lock.release()
        if durable:
            async with self._sync_lock:
                if self._durable < journalled:
                    covered = self._journalled
                    await self._offload.run(self._store.sync)
                    self._durable = covered

    async def keep_up(self) -> None:
        """Give others a turn, and journal what was done when it is much: taking it over at once must not take long."""
        if self._store.tables.changed_rows > SMALL_ROWS:
            await self.commit(durable=False)
        self.wake()
        await trio.lowlevel.checkpoint()

    async def _append_journal(self, changes: Changes) -> None:
        """Journal what was taken, under the journal lock."""
        self._rounds += 1
        this = self._rounds
        run = self._offload.run_small if len(changes.rows) <= SMALL_ROWS else self._offload.run
        try:
            await run(self._store.append_journal, changes)
        except BaseException:
            self._store.tables.give_back(changes)
            raise
        self._journalled = this

    @asynccontextmanager
    async def view(self) -> AsyncIterator[View]:
        """Give all rows as they are now, for a thread to read; a checkpoint may go on as soon as it is given."""
        with ExitStack() as stack:
            async with self._checkpoint_lock:
                view = stack.enter_context(self._store.view())
            yield view

    async def checkpoint(self) -> None:
        """Journal everything and bring the index up to it; what fails is tried again at the next one."""
        tables = self._store.tables
        async with self._checkpoint_lock:
            async with self._journal_lock:
                changes = tables.take_changes()
                frozen = tables.frozen or tables.freeze()
                await self._append_journal(changes)
            await self._offload.run(self._store.checkpoint, frozen)
            tables.release(frozen)
            self._checkpoint_at = math.inf if not tables.changed_rows else trio.current_time() + CHECKPOINT_SECONDS

    async def run(self) -> None:
        """Do in the background what `wake` asks for, for ever; a failure is logged and tried again."""
        trouble = Trouble("bringing the store up to date")
        while True:
            with trio.move_on_at(self._checkpoint_at):
                await self._work.wait()
            await trio.sleep(JOURNAL_SECONDS)
            self._work = trio.Event()
            try:
                await self.commit(durable=False)
                if trio.current_time() >= self._checkpoint_at or self._store.waiting_rows > CHECKPOINT_ROWS:
                    await self.checkpoint()
                trouble.over()
            except (CkptfsError, OSError) as error:
                trouble.met(error)
                self._checkpoint_at = trio.current_time() + RETRY_SECONDS
                await trio.sleep(RETRY_SECONDS)
                self._work.set()
