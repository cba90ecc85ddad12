"""Data work of open files in worker threads, and the memory that may wait for it.

Jobs of several files run side by side; of one file, a piece is cut while the one before is stored, which may wait for
the disk. Whoever writes more than the threads keep up with is held until there is room. A job that fails makes its
file's error sticky.
"""

import logging
import os

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError, NoSpaceError
from ckptfs.mount.offload import Offload
from ckptfs.tree.content import Job, StreamJob
from ckptfs.tree.files import OpenFile
from ckptfs.tree.stream import PIECE_SIZE
from ckptfs.tree.tree import Tree

log = logging.getLogger(__name__)

BUFFERED_MAX = 128 * MIB
FILE_BUFFERED_MAX = 4 * PIECE_SIZE
THREADS = min(max(len(os.sched_getaffinity(0)), 2), 4)
"""One cuts while another one stores. More than there are processors take them, and the interpreter, from the loop: with
two processors and four threads eight writers were a tenth slower than with two."""
SMALL_SIZE = 64 * KIB
"""A job of no more bytes than this is small work."""


class Jobs:
    """The jobs of all open files of a tree."""

    def __init__(self, tree: Tree, nursery: trio.Nursery) -> None:
        self._tree = tree
        self._nursery = nursery
        self._offload = Offload(THREADS)
        self._running: dict[Job, OpenFile] = {}
        self._token = trio.lowlevel.current_trio_token()
        self._step = trio.Event()

    @property
    def buffered(self) -> int:
        """Bytes of all files that are in no chunk yet."""
        return sum(file.content.buffered for file in {*self._tree.files, *self._running.values()})

    def start(self, file: OpenFile, *, final: bool = False) -> None:
        """Begin the next work that a file has, if it has any that can begin; `final` as for `take_job`."""
        if (job := file.content.take_job(final=final)) is not None:
            self._nursery.start_soon(self._run, file, job, final)

    async def _run(self, file: OpenFile, job: Job, final: bool) -> None:
        await self._carry_out(file, job, final)
        self.start(file, final=final)

    async def _carry_out(self, file: OpenFile, job: Job, final: bool) -> None:
        self._running[job] = file
        jobs = file.content.jobs
        try:
            if job.size <= SMALL_SIZE:
                await self._offload.run_small(job.run)
            elif isinstance(job, StreamJob):
                await self._offload.run(job.run, lambda: self._token.run_sync_soon(self._hand_on, file, job, final))
            else:
                await self._offload.run(job.run)
            while job in jobs and job is not jobs[0]:
                await self._step.wait()
        except Exception as error:
            if job in jobs:
                file.fail(error)
                file.content.abandon_jobs()
            unforeseen = not isinstance(error, (CkptfsError, OSError))
            if not isinstance(job, StreamJob) or not job.known_only:  # else whoever wrote says so
                log.error("%s cannot be stored: %s", self._tree.names.path(file.ino), error, exc_info=unforeseen)
            # Its frames have the file, and one of them the error: nobody would let go of what nobody has any more.
            error.__traceback__ = None
        else:
            if job in jobs:
                file.content.finish_job()
        finally:
            del self._running[job]
            self._wake()

    def _hand_on(self, file: OpenFile, job: StreamJob, final: bool) -> None:
        if job in file.content.jobs:
            file.content.hand_on(job)
            self.start(file, final=final)

    def _wake(self) -> None:
        self._step.set()
        self._step = trio.Event()

    async def step(self) -> None:
        """Return when the next job has ended."""
        await self._step.wait()

    async def idle(self, file: OpenFile) -> None:
        """Return when no job of the file is out."""
        while file in self._running.values():
            await self._step.wait()

    async def drain(self, file: OpenFile) -> None:
        """Return when every byte of the file is in a chunk, or lost to its sticky error."""
        while not file.content.settled:
            if (job := file.content.take_job(final=True)) is not None:
                await self._carry_out(file, job, True)
            else:
                await self._step.wait()

    async def store_known(self, file: OpenFile) -> None:
        """Store what was written to a file, but for less than a chunk at its end; NoSpaceError if it is new."""
        await self.idle(file)
        job = file.content.take_known_job()
        if job is None:
            raise NoSpaceError(f"the disk below the store is full: {self._tree.store.path}")
        await self._carry_out(file, job, False)
        file.raise_error()

    async def accept(self, file: OpenFile) -> None:
        """Put a file that was written to to work, and return when another write to it may be accepted."""
        self.start(file)
        while file.content.jobs and (file.content.buffered > FILE_BUFFERED_MAX or self.buffered > BUFFERED_MAX):
            await self._step.wait()
