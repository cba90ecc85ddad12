"""Reading ahead: a file that is read from front to back is in memory before it is asked for.

The kernel's own readahead is raised where that is permitted, so that its requests are large; what is read ahead here
hides the disk and the decoding below them. It is kept as bytes of the file, in a few buffers that are used again and
again: a request that meets it is answered by a piece of one, without a look at any chunk. Everything here belongs to
the loop; what is in a buffer is only changed by the thread that fills it.
"""

import logging
import mmap as mmap_module
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from mmap import mmap

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount import mountinfo
from ckptfs.mount.offload import Offload
from ckptfs.tree.content import FileContent
from ckptfs.tree.reader import Bytes, ChunkReader, ReadPlan

log = logging.getLogger(__name__)

KERNEL_READAHEAD = 4 * MIB
PART_SIZE = 4 * MIB
"""Bytes of a file that are read ahead together; parts end at multiples of it."""
FIRST_PART_SIZE = MIB // 2
"""The first part, for which somebody waits already; each one behind it may be twice as large."""
BUFFER_SIZE = PART_SIZE + 2 * MIB
"""A part is read as whole chunks, which reach over its ends."""
BUFFERS_MAX = 16
"""Parts in memory, of all handles together."""
PARTS_AHEAD = 3
"""How far a file is read ahead, in parts."""
TASKS = 2
"""Parts that are read side by side, in the order of the requests: while one is read, another one is decoded."""
NEAR = 2 * KERNEL_READAHEAD
"""Requests of one sequential reader come this far out of order, since the kernel sends several at once."""
SEQUENTIAL_REQUESTS = 2
FRONTS_MAX = 4
IDLE_SECONDS = 1.0
"""What was read ahead for a reader that has paused for so long makes room for another one's."""


@dataclass(slots=True, eq=False)
class Part:
    """The bytes of a file from `start` to `stop`, on their way to memory until `done`; None where they are not there.

    They may lie in the part's buffer. `left` of them no read has asked for yet.
    """

    start: int
    stop: int
    left: int
    buffer: mmap
    data: memoryview | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class Front:
    """One place from which on a handle is read: threads that share a mapping have one each."""

    position: int
    """Behind all requests so far."""
    requests: int = 0
    parts: deque[Part] = field(default_factory=deque)
    """What is in memory, one behind the other."""
    revision: int = 0
    """The state of the content which the parts have."""
    part_size: int = FIRST_PART_SIZE
    """How large the next part is."""
    used_at: float = 0.0

    @property
    def ahead(self) -> int:
        """Up to where the file is in memory, or on its way there."""
        return self.parts[-1].stop if self.parts else self.position

    def covering(self, start: int, stop: int) -> list[Part]:
        """Return the parts that have these bytes; none where they have not all of them."""
        if not self.parts or start < self.parts[0].start or stop > self.parts[-1].stop:
            return []
        return [part for part in self.parts if part.start < stop and start < part.stop]


class ReadAhead:
    """Reading ahead for all handles of a mount."""

    def __init__(self, reader: ChunkReader, nursery: trio.Nursery, offload: Offload) -> None:
        self._reader = reader
        self._nursery = nursery
        self._offload = offload
        self._fronts: OrderedDict[Front, None] = OrderedDict()
        """Those that have parts, the one read last at the end."""
        self._buffers: list[mmap] = []
        """Those that no part has."""
        self._buffer_count = 0
        self._turn = trio.Semaphore(TASKS)

    async def read(self, fronts: list[Front], content: FileContent, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes at `offset`; DamagedError. Reads that follow one another start reading ahead.

        `fronts` are those of the handle, changed here. The bytes are good until the caller waits for something.
        """
        stop = min(offset + size, content.size)
        front = self._front(fronts, offset)
        self._note(front, content, offset, stop)
        if parts := front.covering(offset, stop):
            for part in parts:
                await part.done.wait()
            if (reply := _join(parts, offset, stop)) is not None:
                self._served(front, parts, offset, stop)
                return reply
        plan = content.plan_read(offset, size)
        if plan.in_memory(self._reader):
            return plan.run(self._reader)
        return await self._offload.run(plan.run, self._reader)

    def forget(self, fronts: list[Front]) -> None:
        """Let go of what was read ahead for a handle."""
        for front in fronts:
            self._drop(front)
        fronts.clear()

    def _front(self, fronts: list[Front], offset: int) -> Front:
        """Return the front that a read at `offset` belongs to, a new one if it is near none; the last used is last."""
        front = min(fronts, key=lambda each: abs(offset - each.position), default=None)
        if front is not None and abs(offset - front.position) <= NEAR:
            fronts.remove(front)
        else:
            front = Front(offset)
        fronts.append(front)
        if len(fronts) > FRONTS_MAX:
            self._drop(fronts.pop(0))
        return front

    def _note(self, front: Front, content: FileContent, offset: int, stop: int) -> None:
        """Note a read; when reads follow one another, begin to read what comes next."""
        if front.revision != content.revision:
            self._drop(front)
            front.revision = content.revision
        front.requests += 1
        if front.requests >= SEQUENTIAL_REQUESTS and not front.parts:
            front.position = offset  # the next part begins here
            self._begin(front, content)
        front.position = max(front.position, stop)
        if front.parts:
            front.used_at = trio.current_time()
            self._fronts.move_to_end(front)
            self._go_on(front, content)

    def _go_on(self, front: Front, content: FileContent) -> None:
        """Begin to read more parts, as far as they are few and near."""
        limit = front.position + min(PARTS_AHEAD, max(BUFFERS_MAX // len(self._fronts) - 1, 1)) * PART_SIZE
        while front.ahead < limit and self._begin(front, content):
            pass

    def _begin(self, front: Front, content: FileContent) -> bool:
        """Begin to read the next part of a front, if there is one, and a buffer for it."""
        start = front.ahead
        stop = min(start - start % front.part_size + front.part_size, content.size)
        if start >= stop or not content.settled:
            return False
        buffer = self._take_buffer()
        if buffer is None:
            return False
        front.part_size = min(2 * front.part_size, PART_SIZE)
        part = Part(start, stop, stop - start, buffer)
        front.parts.append(part)
        self._fronts[front] = None
        self._nursery.start_soon(self._fill, front, part, content, content.plan_read(start, stop - start))
        return True

    def _take_buffer(self) -> mmap | None:
        """Return a buffer, at need one of a reader that has paused; None where there is none."""
        if not self._buffers and self._buffer_count < BUFFERS_MAX:
            self._buffer_count += 1
            return _new_buffer()
        while not self._buffers and self._fronts:
            front = next(iter(self._fronts))
            if trio.current_time() - front.used_at < IDLE_SECONDS:
                return None
            self._drop(front)
        return self._buffers.pop() if self._buffers else None

    async def _fill(self, front: Front, part: Part, content: FileContent, plan: ReadPlan) -> None:
        data: Bytes | None = None
        try:
            # What is wrong with a chunk is for the read that needs it to say.
            with suppress(CkptfsError, OSError):
                async with self._turn:
                    if part in front.parts:
                        data = await self._offload.run(plan.run, self._reader, part.buffer)
        except Exception:
            log.exception("a bug in reading ahead; reads go on without it")
        finally:
            part.done.set()
        if part not in front.parts:
            self._buffers.append(part.buffer)
        elif data is not None:
            part.data = memoryview(data)

    def _served(self, front: Front, parts: list[Part], offset: int, stop: int) -> None:
        """Note which bytes were asked for, and let go of parts that nobody will ask for again."""
        for part in parts:
            part.left -= min(stop, part.stop) - max(offset, part.start)
        while front.parts and (front.parts[0].left <= 0 or front.parts[0].stop + NEAR <= front.position):
            self._let_go(front.parts.popleft())
        if not front.parts:
            self._fronts.pop(front, None)

    def _drop(self, front: Front) -> None:
        """Let go of all parts of a front."""
        self._fronts.pop(front, None)
        front.part_size = FIRST_PART_SIZE
        while front.parts:
            self._let_go(front.parts.popleft())

    def _let_go(self, part: Part) -> None:
        part.data = None
        if part.done.is_set():
            self._buffers.append(part.buffer)


def _join(parts: list[Part], start: int, stop: int) -> Bytes | None:
    """Return the bytes from `start` to `stop` of parts that lie one behind the other; None if one is not there."""
    pieces = []
    for part in parts:
        if part.data is None:
            return None
        pieces.append(part.data[max(start - part.start, 0) : stop - part.start])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _new_buffer() -> mmap:
    """Return a buffer, of huge pages where there are some: its memory is touched by the thread that fills it."""
    buffer = mmap(-1, BUFFER_SIZE)
    if (huge := getattr(mmap_module, "MADV_HUGEPAGE", None)) is not None:
        with suppress(OSError):  # a kernel without them
            buffer.madvise(huge)
    return buffer


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
