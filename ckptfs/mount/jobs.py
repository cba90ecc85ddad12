"""Data work of open files in worker threads, and the memory that may wait for it.

One job of a file runs at a time, jobs of several files side by side. Whoever writes more than the threads keep up
with is held until there is room. A job that fails makes its file's error sticky.
"""

import logging

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount.offload import Offload
from ckptfs.tree.content import Job
from ckptfs.tree.files import OpenFile
from ckptfs.tree.stream import PIECE_SIZE
from ckptfs.tree.tree import Tree

log = logging.getLogger(__name__)

BUFFERED_MAX = 128 * MIB
FILE_BUFFERED_MAX = 4 * PIECE_SIZE
SMALL_SIZE = 64 * KIB
"""A job of no more bytes than this is small work."""


class Jobs:
    """The jobs of all open files of a tree."""

    def __init__(self, tree: Tree, nursery: trio.Nursery, offload: Offload) -> None:
        self._tree = tree
        self._nursery = nursery
        self._offload = offload
        self._running: set[OpenFile] = set()
        self._step = trio.Event()

    @property
    def buffered(self) -> int:
        """Bytes of all files that are in no chunk yet."""
        return sum(file.content.buffered for file in {*self._tree.files, *self._running})

    def start(self, file: OpenFile) -> None:
        """Begin the work that a file has, if it has any and none is under way."""
        if file not in self._running and (job := file.content.take_job()) is not None:
            self._running.add(file)
            self._nursery.start_soon(self._run, file, job)

    async def _run(self, file: OpenFile, job: Job | None) -> None:
        try:
            while job is not None:
                await self._carry_out(file, job)
                job = file.content.take_job()
        finally:
            self._running.discard(file)
            self._wake()

    async def _carry_out(self, file: OpenFile, job: Job) -> None:
        run = self._offload.run_small if job.size <= SMALL_SIZE else self._offload.run
        try:
            await run(job.run)
        except Exception as error:
            file.error = error
            file.content.abandon_job()
            unforeseen = not isinstance(error, (CkptfsError, OSError))
            log.error("%s cannot be stored: %s", self._tree.names.path(file.ino), error, exc_info=unforeseen)
        else:
            file.content.finish_job()
        self._wake()

    def _wake(self) -> None:
        self._step.set()
        self._step = trio.Event()

    async def step(self) -> None:
        """Return when the next job has ended."""
        await self._step.wait()

    async def idle(self, file: OpenFile) -> None:
        """Return when no job of the file is out."""
        while file in self._running:
            await self._step.wait()

    async def drain(self, file: OpenFile) -> None:
        """Return when every byte of the file is in a chunk, or lost to its sticky error."""
        while not file.content.settled:
            await self.idle(file)
            if (job := file.content.take_job(final=True)) is not None:
                self._running.add(file)
                try:
                    await self._carry_out(file, job)
                finally:
                    self._running.discard(file)
                    self._wake()

    async def accept(self, file: OpenFile) -> None:
        """Put a file that was written to to work, and return when another write to it may be accepted."""
        self.start(file)
        while file in self._running and (file.content.buffered > FILE_BUFFERED_MAX or self.buffered > BUFFERED_MAX):
            await self._step.wait()
