"""Reading ahead: chunks of a file that is read from front to back are decoded before they are asked for.

The kernel's own readahead is raised where that is permitted, so that its requests are large; decoding ahead hides what
is below them. The memory of all handles together is bounded.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount import mountinfo
from ckptfs.mount.offload import Offload
from ckptfs.tree.content import FileContent
from ckptfs.tree.reader import CACHE_SIZE, Bytes, ChunkReader, ReadPlan

log = logging.getLogger(__name__)

KERNEL_READAHEAD = 4 * MIB
SLICE_SIZE = 4 * MIB
"""Bytes decoded in one call; the disk below is asked for as many behind them."""
WINDOW_MAX = 16 * MIB
NEAR = 2 * KERNEL_READAHEAD
"""Requests of one sequential reader come this far out of order, since the kernel sends several at once."""
SEQUENTIAL_REQUESTS = 2
TASKS = 2
"""Parts of one file that are decoded side by side: while one waits for the disk or the loop, the other goes on."""


FRONTS_MAX = 4


@dataclass(slots=True, eq=False)
class Front:
    """One place from which on a handle is read: threads that share a mapping have one each."""

    position: int = 0
    """Behind all requests so far."""
    requests: int = 0
    ahead: int = 0
    """Up to where chunks have been decoded ahead, or are being."""
    under_way: set[int] = field(default_factory=set)
    """Where the parts begin that are being decoded ahead now."""
    tasks: int = 0
    step: trio.Event = field(default_factory=trio.Event)
    """Set when the next chunks have been decoded ahead, or no more are."""


class ReadAhead:
    """Reading ahead for all handles of a mount."""

    def __init__(self, reader: ChunkReader, nursery: trio.Nursery, offload: Offload) -> None:
        self._reader = reader
        self._nursery = nursery
        self._offload = offload
        self._tasks = 0

    async def read(self, fronts: list[Front], content: FileContent, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes at `offset`; DamagedError. Reads that follow one another start decoding ahead.

        `fronts` are those of the handle, changed here.
        """
        plan = content.plan_read(offset, size)
        front = _front(fronts, offset)
        self._note(front, content, offset, size)
        while not plan.in_memory(self._reader):
            if not front.tasks or offset + size <= min(front.under_way, default=offset + size + 1):
                return await self._offload.run(plan.run, self._reader)
            await front.step.wait()
        return plan.run(self._reader)

    def _note(self, front: Front, content: FileContent, offset: int, size: int) -> None:
        """Note a read; when reads follow one another, begin to decode what comes next."""
        front.requests += 1
        front.position = max(front.position, offset + size)
        if front.requests < SEQUENTIAL_REQUESTS or front.tasks or not content.settled:
            return
        front.ahead = max(front.ahead, offset)
        if front.ahead < min(front.position + self._window // 2, content.size):
            for _ in range(TASKS):
                front.tasks += 1
                self._tasks += 1
                self._nursery.start_soon(self._run, front, content)

    @property
    def _window(self) -> int:
        return min(WINDOW_MAX, CACHE_SIZE // 2 // max(self._tasks // TASKS, 1))

    async def _run(self, front: Front, content: FileContent) -> None:
        try:
            while content.settled and front.ahead < min(front.position + self._window, content.size):
                await self._decode_next(front, content)
        except Exception:
            log.exception("a bug in reading ahead; reads go on without it")
        finally:
            front.tasks -= 1
            self._tasks -= 1
            self._wake(front)

    async def _decode_next(self, front: Front, content: FileContent) -> None:
        start = front.ahead
        plan = content.plan_read(start, SLICE_SIZE)
        front.ahead += plan.size
        after = content.plan_read(front.ahead + (TASKS - 1) * SLICE_SIZE, SLICE_SIZE)
        front.under_way.add(start)
        try:
            # What is wrong with a chunk is for the read that needs it to say.
            with suppress(CkptfsError, OSError):
                await self._offload.run(self._reader.read_ahead, _numbers(plan), _numbers(after))
        finally:
            front.under_way.remove(start)
            self._wake(front)

    @staticmethod
    def _wake(front: Front) -> None:
        front.step.set()
        front.step = trio.Event()


def _front(fronts: list[Front], offset: int) -> Front:
    """Return the front that a read at `offset` belongs to, a new one if it is near none; the one used last is last."""
    front = min(fronts, key=lambda each: abs(offset - each.position), default=None)
    if front is not None and abs(offset - front.position) <= NEAR:
        fronts.remove(front)
    else:
        front = Front(offset)
    fronts.append(front)
    del fronts[:-FRONTS_MAX]
    return front


def _numbers(plan: ReadPlan) -> list[int]:
    return [piece.number for piece in plan.slices]


def raise_kernel_readahead(mountpoint: str) -> None:
    """Let the kernel ask for more at once, as far as this user may; without it reads are correct and slower."""
    mount = mountinfo.mount_at(mountpoint)
    if mount is None:
        return
    path = f"/sys/class/bdi/{mount.device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as setting:
            setting.write(str(KERNEL_READAHEAD // KIB))
    except OSError as error:
        log.info("the kernel's readahead stays as it is: %s", error)
