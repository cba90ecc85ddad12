"""Reading ahead: a file that is read from front to back is in memory before it is asked for.

The kernel's own readahead is raised where that is permitted, so that its requests are large; what is read ahead here
hides the disk and the decoding below them. It is kept as bytes of the file, in a few buffers that are used again and
again: a request that meets it is answered by a piece of one, without a look at any chunk. Everything here belongs to
the loop; what is in a buffer is only changed by the thread that fills it.
"""

import logging
from bisect import insort
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from mmap import mmap
from operator import attrgetter

import trio

from ckptfs.config import KIB, MIB
from ckptfs.errors import CkptfsError
from ckptfs.mount import mountinfo
from ckptfs.mount.offload import Offload
from ckptfs.store import new_buffer
from ckptfs.tree.content import FileContent
from ckptfs.tree.reader import Bytes, ChunkReader, ReadPlan

log = logging.getLogger(__name__)

KERNEL_READAHEAD = 4 * MIB
PART_SIZE = 16 * MIB
"""Bytes of a file that are read ahead together; parts end at multiples of it. Each costs its thread and the loop some
turns with the interpreter, however large it is, and in a version that lies deep more to decode at both ends."""
FIRST_PART_SIZE = MIB // 2
"""The first part, for which somebody waits already; each one behind it may be twice as large."""
BUFFER_SIZE = PART_SIZE + 2 * MIB
"""A part is read as whole chunks, which reach over its ends."""
PART_EXTENTS_MAX = 1 << 14
"""A part in more pieces is not read ahead; mostly it is in some hundred."""
BUFFERS_MAX = 8
"""Parts in memory, of all handles together."""
PARTS_AHEAD = 3
"""How far a file is read ahead, in parts of the size that the next one has."""
TASKS = 6
"""Parts that are read side by side, in the order of the requests: some wait for the disk, some are being decoded, and
some for their turn with the interpreter, which the loop needs for each reply."""
READ_THREADS = TASKS + 2
"""Reads that follow nothing are not to wait for parts."""
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
    """A place from which on a file is read: threads that share a mapping have one each."""

    position: int
    """Behind all requests so far."""
    requests: int = 0
    part_size: int = FIRST_PART_SIZE
    """How large the next part is."""


@dataclass(slots=True, eq=False)
class Ahead:
    """What was read ahead for a handle: its fronts, the one used last at the end, and parts, in the file's order."""

    fronts: list[Front] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    revision: int = 0
    """The state of the content which the parts have."""
    used_at: float = 0.0

    def front(self, offset: int) -> Front:
        """Return the front that a read at `offset` belongs to, a new one if it is near none."""
        front = min(self.fronts, key=lambda each: abs(offset - each.position), default=None)
        if front is not None and abs(offset - front.position) <= NEAR:
            self.fronts.remove(front)
        else:
            front = Front(offset)
        self.fronts.append(front)
        del self.fronts[:-FRONTS_MAX]
        return front

    def covering(self, start: int, stop: int) -> list[Part]:
        """Return the parts that have these bytes; none where they have not all of them."""
        parts = [part for part in self.parts if part.start < stop and start < part.stop]
        return parts if sum(min(part.stop, stop) - max(part.start, start) for part in parts) == stop - start else []

    def gap(self, start: int) -> tuple[int, int | None]:
        """Return where the first bytes from `start` on begin that no part has, and where the part behind them does."""
        for part in self.parts:
            if part.start > start:
                return start, part.start
            start = max(start, part.stop)
        return start, None

    def far(self) -> list[Part]:
        """Return the parts that no front is near to."""
        return [part for part in self.parts if not any(_is_near(part, front) for front in self.fronts)]


class ReadAhead:
    """Reading ahead for all handles of a mount."""

    def __init__(self, reader: ChunkReader, nursery: trio.Nursery) -> None:
        self._reader = reader
        self._nursery = nursery
        self._offload = Offload(READ_THREADS)
        self._handles: OrderedDict[Ahead, None] = OrderedDict()
        """Those that have parts, the one read last at the end."""
        self._buffers: list[mmap] = []
        """Those that no part has."""
        self._buffer_count = 0
        self._turn = trio.Semaphore(TASKS)

    async def read(self, ahead: Ahead, content: FileContent, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes at `offset`; DamagedError. Reads that follow one another start reading ahead.

        `ahead` is the handle's, changed here. The bytes are good until the caller waits for something.
        """
        stop = min(offset + size, content.size)
        self._note(ahead, content, offset, stop)
        if parts := ahead.covering(offset, stop):
            for part in parts:
                await part.done.wait()
            if (reply := _join(parts, offset, stop)) is not None:
                self._served(ahead, parts, offset, stop)
                return reply
        plan = content.plan_read(offset, size)
        if plan.in_memory(self._reader):
            return plan.run(self._reader)
        return await self._offload.run(plan.run, self._reader)

    def forget(self, ahead: Ahead) -> None:
        """Let go of all that was read ahead for a handle."""
        self._let_go(ahead, list(ahead.parts))

    def _note(self, ahead: Ahead, content: FileContent, offset: int, stop: int) -> None:
        """Note a read; when reads follow one another, begin to read what comes next."""
        if ahead.revision != content.revision:
            self.forget(ahead)
            ahead.revision = content.revision
        front = ahead.front(offset)
        front.requests += 1
        start = front.position if ahead.parts else offset
        front.position = max(front.position, stop)
        if front.requests >= SEQUENTIAL_REQUESTS and content.settled:
            self._begin(ahead, front, content, min(start, offset))
        if ahead.parts:
            ahead.used_at = trio.current_time()
            self._handles.move_to_end(ahead)

    def _begin(self, ahead: Ahead, front: Front, content: FileContent, start: int) -> None:
        """Begin to read the next parts from `start` on that are not there yet, as far as they are few and near."""
        few = max(BUFFERS_MAX // max(len(self._handles), 1) - 1, 1)
        limit = min(front.position + min(PARTS_AHEAD, few) * front.part_size, content.size)
        while True:
            start, behind = ahead.gap(start)
            if start >= limit:
                return
            self._let_go(ahead, ahead.far())
            size = front.part_size
            stop = min(start - start % size + size, content.size if behind is None else behind)
            if content.extents.count_between(start, stop) > PART_EXTENTS_MAX:
                return
            plan = content.plan_read(start, stop - start)
            buffer = self._take_buffer(ahead) if plan.has_chunks else None
            if buffer is None:  # or a hole, which nobody has to wait for
                return
            front.part_size = min(2 * size, PART_SIZE)
            part = Part(start, stop, stop - start, buffer)
            insort(ahead.parts, part, key=attrgetter("start"))
            self._handles[ahead] = None
            self._nursery.start_soon(self._fill, ahead, part, plan)

    def _take_buffer(self, taker: Ahead) -> mmap | None:
        """Return a buffer, at need one of a reader that has paused; None where there is none."""
        if not self._buffers and self._buffer_count < BUFFERS_MAX:
            self._buffer_count += 1
            return new_buffer(BUFFER_SIZE)
        while not self._buffers and self._handles:
            ahead = next(iter(self._handles))
            if ahead is taker or trio.current_time() - ahead.used_at < IDLE_SECONDS:
                return None
            self.forget(ahead)
        return self._buffers.pop() if self._buffers else None

    async def _fill(self, ahead: Ahead, part: Part, plan: ReadPlan) -> None:
        data: Bytes | None = None
        try:
            # What is wrong with a chunk is for the read that needs it to say.
            with suppress(CkptfsError, OSError):
                async with self._turn:
                    if part in ahead.parts:
                        data = await self._offload.run(plan.run, self._reader, part.buffer)
        except Exception:
            log.exception("a bug in reading ahead; reads go on without it")
        finally:
            part.done.set()
        if part not in ahead.parts:
            self._buffers.append(part.buffer)
        elif data is not None:
            part.data = memoryview(data)

    def _served(self, ahead: Ahead, parts: list[Part], offset: int, stop: int) -> None:
        """Note which bytes were asked for, and let go of parts of which all were: nobody will ask again."""
        for part in parts:
            part.left -= min(stop, part.stop) - max(offset, part.start)
        self._let_go(ahead, [part for part in parts if part.left <= 0 and part in ahead.parts])

    def _let_go(self, ahead: Ahead, parts: list[Part]) -> None:
        for part in parts:
            ahead.parts.remove(part)
            part.data = None
            if part.done.is_set():
                self._buffers.append(part.buffer)
        if not ahead.parts:
            self._handles.pop(ahead, None)


def _is_near(part: Part, front: Front) -> bool:
    return part.stop + NEAR > front.position and part.start < front.position + NEAR + PARTS_AHEAD * PART_SIZE


def _join(parts: list[Part], start: int, stop: int) -> Bytes | None:
    """Return the bytes from `start` to `stop` of parts that lie one behind the other; None if one is not there."""
    pieces = []
    for part in parts:
        if part.data is None:
            return None
        pieces.append(part.data[max(start - part.start, 0) : stop - part.start])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
