"""The content of one open file: what is in chunks, what is on its way there, and what was written over it.

From the bottom: `extents` (chunks and holes), the *stream* (bytes that continue the extents, cut and stored in
pieces as they come), and `overlay` (all other writes). A write is placed at once and read back at once; the
costly part is a `Job`, which a worker thread carries out while the file goes on being written and read. At most one
job of a file is out at a time. Everything but `Job.run` belongs to the thread that owns the tree. Nothing here is
durable; a version becomes durable when its extents are in a manifest and that in the journal.
"""

from dataclasses import dataclass, field
from typing import Protocol

from ckptfs.config import MIB
from ckptfs.store import ChunkStore
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.ranges import Ranges
from ckptfs.tree.reader import ChunkReader, ChunkSlice, ReadPlan
from ckptfs.tree.recut import recut

PIECE_SIZE = 4 * MIB
"""Bytes of the stream that are cut and stored at once."""
OVERLAY_MAX = 8 * MIB
"""Bytes of other writes that are held before they are worked into the extents."""


class Job(Protocol):
    """Work on a file's bytes for a thread; `run` touches nothing that the file's owner changes meanwhile."""

    @property
    def size(self) -> int:
        """Roughly how many bytes will be handled."""

    def run(self) -> None:
        """Do the work; NoSpaceError, DamagedError and OSError pass."""


@dataclass(slots=True)
class StreamJob:
    """Cut `carry + piece` and store the chunks; `joined` is a last extent whose bytes come before them."""

    store: ChunkStore
    reader: ChunkReader
    joined: Extent | None
    carry: bytes
    piece: bytearray
    final: bool
    numbers: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    rest: bytes = b""

    @property
    def size(self) -> int:
        """The bytes to cut and store."""
        return len(self.carry) + len(self.piece) + (self.joined.length if self.joined else 0)

    def run(self) -> None:
        """Fill `numbers`, `lengths` and `rest` (the bytes behind the last complete chunk)."""
        before = self.reader.read(self.joined.number)[: self.joined.length] if self.joined else b""
        data = b"".join((before, self.carry, self.piece)) if before or self.carry else self.piece
        view = memoryview(data)
        self.numbers, self.lengths = self.store.ingest(view, self.final)
        self.rest = bytes(view[sum(self.lengths) :])


@dataclass(slots=True)
class RecutJob:
    """Work the written ranges into the extents."""

    store: ChunkStore
    reader: ChunkReader
    extents: Extents
    ranges: Ranges
    result: Extents | None = None

    @property
    def size(self) -> int:
        """The bytes written, and about a chunk around each range of them."""
        return self.ranges.size + self.ranges.count * self.store.config.chunk_sizes.size_max

    def run(self) -> None:
        """Fill `result`."""
        self.result = recut(self.store, self.reader, self.extents, [(offset, data) for offset, data in self.ranges])


class FileContent:
    """Bytes of a file under reading and writing; `size` is the file's size. Owns the extents it is given."""

    def __init__(self, store: ChunkStore, reader: ChunkReader, extents: Extents) -> None:
        self._store = store
        self._reader = reader
        self.extents = extents
        self.size = extents.size
        self._join_next = True  # the next stream job starts at the last extent, so that cuts stay content-defined
        self._carry = b""
        self._tail = bytearray()
        self._overlay = Ranges()
        self._job: StreamJob | RecutJob | None = None

    @property
    def buffered(self) -> int:
        """Bytes held in memory that are in no chunk yet."""
        held = len(self._carry) + len(self._tail) + self._overlay.size
        if isinstance(self._job, StreamJob):
            held += len(self._job.piece)
        elif isinstance(self._job, RecutJob):
            held += self._job.ranges.size
        return held

    @property
    def settled(self) -> bool:
        """Whether every byte is in a chunk or a hole; then `extents` and `size` are the whole truth."""
        return not (self._carry or self._tail or self._overlay or self._job)

    @property
    def _tail_offset(self) -> int:
        """Where the bytes begin that a write may still change in place."""
        piece = len(self._job.piece) if isinstance(self._job, StreamJob) else 0
        return self.extents.size + len(self._carry) + piece

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Place `data` at `offset`; it is read back from now on."""
        end = offset + len(data)
        self.size = max(self.size, end)
        start, stop = self._tail_offset, self._tail_offset + len(self._tail)
        if isinstance(self._job, RecutJob) or offset > stop or end <= start:
            self._overlay.write(offset, data)
            return
        if self._overlay:
            self._overlay.clip(max(offset, start), end)
        if offset < start:
            self._overlay.write(offset, data[: start - offset])
            data, offset = data[start - offset :], start
        self._tail[offset - start : end - start] = data
        if self._overlay:
            self._absorb()

    def _absorb(self) -> None:
        """Move overlay bytes that continue the stream to its tail."""
        while (more := self._overlay.take_at(self._tail_offset + len(self._tail))) is not None:
            self._tail += more

    def truncate(self, size: int) -> None:
        """Cut or lengthen the file; only while no job is out."""
        assert self._job is None
        if size < self.size:
            self._overlay.clip(size, self.size)
            streamed = self.extents.size
            if size < streamed:
                self.extents.truncate(size)
                self._carry = b""
                self._tail.clear()
                self._join_next = True
            else:
                keep = size - streamed
                self._carry, carried = self._carry[:keep], len(self._carry)
                del self._tail[max(keep - carried, 0) :]
        self.size = size

    def take_job(self, *, final: bool = False) -> Job | None:
        """Return the next work to do, if there is any and none is out; `final` asks until all is in chunks."""
        if self._job is not None:
            return None
        if len(self._tail) >= PIECE_SIZE or (final and (self._tail or self._carry)):
            joined = self._joinable()
            self._job = StreamJob(self._store, self._reader, joined, self._carry, self._tail, final)
            self._tail = bytearray()
        elif self._overlay.size >= OVERLAY_MAX or (final and self._overlay):
            if self._carry or self._tail:
                return self.take_job(final=True)
            self._job = RecutJob(self._store, self._reader, self.extents, self._overlay)
            self._overlay = Ranges()
        return self._job

    def _joinable(self) -> Extent | None:
        """Return the last extent if the stream goes on from a chunk that was cut short by the end of the file."""
        if not self._join_next or not len(self.extents):
            return None
        last = self.extents[len(self.extents) - 1]
        return last if last.number and last.length < self._store.config.chunk_sizes.size_max else None

    def finish_job(self) -> None:
        """Take over what the job that is out has done."""
        job, self._job = self._job, None
        if isinstance(job, StreamJob):
            if job.joined:
                self.extents.pop()
            for number, length in zip(job.numbers, job.lengths, strict=True):
                self.extents.append(number, length)
            self._carry = job.rest
            self._join_next = job.final
        elif isinstance(job, RecutJob):
            assert job.result is not None
            self.extents = job.result
            self._join_next = True
        self._absorb()

    def abandon_job(self) -> None:
        """Give up the job that is out, and all bytes that are in no chunk: its failure is the file's."""
        self._job = None
        self._carry = b""
        self._tail.clear()
        self._overlay = Ranges()
        self.size = min(self.size, self.extents.size)

    def close_extents(self) -> Extents:
        """Return the extents of the whole file, a hole at its end included; only when settled."""
        assert self.settled
        if self.extents.size < self.size:
            self.extents.append(0, self.size - self.extents.size)
        return self.extents

    def plan_read(self, offset: int, size: int) -> ReadPlan:
        """Return the plan of reading up to `size` bytes at `offset` of the file as it is now."""
        stop = min(offset + size, self.size)
        plan = ReadPlan(max(stop - offset, 0))
        if plan.size == 0:
            return plan
        for extent in self.extents.between(offset, stop):
            low, high = max(offset, extent.offset), min(stop, extent.offset + extent.length)
            if extent.number and low < high:
                plan.slices.append(ChunkSlice(extent.number, low - extent.offset, high - low, low - offset))
        layers: list[tuple[int, bytes | bytearray | memoryview]] = []
        if isinstance(self._job, RecutJob):
            layers += self._job.ranges.between(offset, stop)
        layers.append((self.extents.size, self._carry))
        if isinstance(self._job, StreamJob):
            layers.append((self.extents.size + len(self._carry), self._job.piece))
        layers.append((self._tail_offset, self._tail))
        layers += self._overlay.between(offset, stop)
        for start, data in layers:
            low, high = max(offset, start), min(stop, start + len(data))
            if low < high:
                with memoryview(data) as view:
                    plan.patches.append((low - offset, bytes(view[low - start : high - start])))
        return plan
