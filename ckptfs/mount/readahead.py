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


@dataclass(slots=True)
class ReadState:
    """How one handle is being read."""

    position: int = 0
    sequential: int = 0
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

    async def read(self, state: ReadState, content: FileContent, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes at `offset`; DamagedError. Reads that follow one another start decoding ahead."""
        plan = content.plan_read(offset, size)
        self._note(state, content, offset, size)
        while not plan.in_memory(self._reader):
            if not state.tasks or offset + size <= min(state.under_way, default=offset + size + 1):
                return await self._offload.run(plan.run, self._reader)
            await state.step.wait()
        return plan.run(self._reader)

    def _note(self, state: ReadState, content: FileContent, offset: int, size: int) -> None:
        """Note a read; when reads follow one another, begin to decode what comes next."""
        if abs(offset - state.position) <= NEAR:
            state.sequential += 1
        else:
            state.sequential = state.ahead = 0
        before = state.position
        state.position = max(before, offset + size) if state.sequential else offset + size
        if state.sequential >= SEQUENTIAL_REQUESTS and content.settled and not state.tasks:
            state.ahead = max(state.ahead, offset)
            if state.ahead < min(state.position + self._window // 2, content.size):
                for _ in range(TASKS):
                    state.tasks += 1
                    self._tasks += 1
                    self._nursery.start_soon(self._run, state, content)

    @property
    def _window(self) -> int:
        return min(WINDOW_MAX, CACHE_SIZE // 2 // max(self._tasks // TASKS, 1))

    async def _run(self, state: ReadState, content: FileContent) -> None:
        try:
            while content.settled and state.ahead < min(state.position + self._window, content.size):
                await self._decode_next(state, content)
        except Exception:
            log.exception("a bug in reading ahead; reads go on without it")
        finally:
            state.tasks -= 1
            self._tasks -= 1
            self._wake(state)

    async def _decode_next(self, state: ReadState, content: FileContent) -> None:
        start = state.ahead
        plan = content.plan_read(start, SLICE_SIZE)
        state.ahead += plan.size
        after = content.plan_read(state.ahead + (TASKS - 1) * SLICE_SIZE, SLICE_SIZE)
        state.under_way.add(start)
        try:
            # What is wrong with a chunk is for the read that needs it to say.
            with suppress(CkptfsError, OSError):
                await self._offload.run(self._reader.read_ahead, _numbers(plan), _numbers(after))
        finally:
            state.under_way.remove(start)
            self._wake(state)

    @staticmethod
    def _wake(state: ReadState) -> None:
        state.step.set()
        state.step = trio.Event()


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
