"""Reading ahead: chunks of a file that is read from front to back are decoded before they are asked for.

The kernel's own readahead is raised where that is permitted, so that its requests are large; decoding ahead hides what
is below them. One task of a handle reads ahead at a time, and the memory of all together is bounded.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount import mountinfo
from ckptfs.mount.offload import Offload
from ckptfs.tree.content import FileContent
from ckptfs.tree.reader import CACHE_SIZE, ChunkReader

log = logging.getLogger(__name__)

KERNEL_READAHEAD = 4 * MIB
SLICE_SIZE = 2 * MIB
"""Bytes decoded in one call."""
WINDOW_MAX = 16 * MIB
NEAR = 2 * MIB
"""Requests of one sequential reader come this far out of order, since the kernel sends several at once."""
SEQUENTIAL_REQUESTS = 2


@dataclass(slots=True)
class ReadState:
    """How one handle is being read."""

    position: int = 0
    sequential: int = 0
    ahead: int = 0
    """Up to where chunks have been decoded ahead, or are being."""
    running: bool = False


class ReadAhead:
    """Reading ahead for all handles of a mount."""

    def __init__(self, reader: ChunkReader, nursery: trio.Nursery, offload: Offload) -> None:
        self._reader = reader
        self._nursery = nursery
        self._offload = offload
        self._running = 0

    def note(self, state: ReadState, content: FileContent, offset: int, size: int) -> None:
        """Note a read; when reads follow one another, begin to decode what comes next."""
        if abs(offset - state.position) <= NEAR:
            state.sequential += 1
        else:
            state.sequential = state.ahead = 0
        state.position = max(state.position, offset + size) if state.sequential else offset + size
        if state.sequential < SEQUENTIAL_REQUESTS or state.running or not content.settled:
            return
        if state.ahead < min(state.position + self._window // 2, content.size):
            state.running = True
            self._running += 1
            self._nursery.start_soon(self._run, state, content)

    @property
    def _window(self) -> int:
        return min(WINDOW_MAX, CACHE_SIZE // 2 // max(self._running, 1))

    async def _run(self, state: ReadState, content: FileContent) -> None:
        try:
            state.ahead = max(state.ahead, state.position)
            while content.settled and state.ahead < min(state.position + self._window, content.size):
                plan = content.plan_read(state.ahead, SLICE_SIZE)
                state.ahead += plan.size
                # What is wrong with a chunk is for the read that needs it to say.
                with suppress(CkptfsError, OSError):
                    await self._offload.run(self._reader.read_many, [piece.number for piece in plan.slices])
        except Exception:
            log.exception("a bug in reading ahead; reads go on without it")
        finally:
            state.running = False
            self._running -= 1


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
