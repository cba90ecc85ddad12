"""The content of one open file: what is in chunks, what is on its way there, and what was written over it.

From the bottom: `extents` (chunks and holes), the *stream* (bytes that continue the extents, cut and stored in
pieces as they come), and `overlay` (all other writes). A write is placed at once and read back at once; the
costly part is a `Job`, which a worker thread carries out while the file goes on being written and read. The next
piece can be cut as soon as the one before is, while that is being stored. Everything but `Job.run` belongs to the
thread that owns the tree. Nothing here is durable; a version becomes durable when its extents are in a manifest and
that in the journal.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ckptfs.config import MIB
from ckptfs.errors import NoSpaceError
from ckptfs.formats import TensorCuts
from ckptfs.store import Chunked, ChunkStore
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.ranges import Ranges
from ckptfs.tree.reader import ChunkReader, ReadPlan
from ckptfs.tree.recut import recut
from ckptfs.tree.stream import BufferPool, Piece, Stream

OVERLAY_MAX = 8 * MIB
"""Bytes of other writes that are held before they are worked into the extents."""
_JOBS_MAX = 3


def _nothing() -> None:
    pass


class Job(Protocol):
    """Work on a file's bytes for a thread; `run` touches nothing that the file's owner changes meanwhile."""

    @property
    def size(self) -> int:
        """Roughly how many bytes will be handled."""

    def run(self) -> None:
        """Do the work; NoSpaceError, DamagedError and OSError pass."""


@dataclass(slots=True, eq=False)
class StreamJob:
    """Cut a piece of the stream and store its chunks; `joined` is a last extent whose bytes come before it.

    `offset` is where in the file the bytes to cut begin, `joined` included. Where there is no room for new chunks, it
    stores `known_only`: NoSpaceError when there is a new one.
    """

    store: ChunkStore
    reader: ChunkReader
    tensor_cuts: TensorCuts
    offset: int
    joined: Extent | None
    piece: Piece
    final: bool
    known_only: bool = False
    is_handed_on: bool = False
    chunks: Chunked | None = None
    numbers: list[int] = field(default_factory=list)
    rest: bytes = b""

    @property
    def size(self) -> int:
        """The bytes to cut and store."""
        return len(self.piece) + (self.joined.length if self.joined else 0)

    @property
    def end(self) -> int:
        """Where in the file the chunks of a piece that was cut end."""
        assert self.chunks is not None
        return self.offset + sum(self.chunks.lengths)

    def run(self, on_cut: Callable[[], None] = _nothing) -> None:
        """Fill `chunks` and `rest` (the bytes behind the last complete chunk), call `on_cut`, and fill `numbers`."""
        view = self.piece.view()
        if self.joined:
            view = memoryview(b"".join((self.reader.read(self.joined.number)[: self.joined.length], view)))
        self.tensor_cuts.feed(self.offset, view)
        cuts = [cut - self.offset for cut in self.tensor_cuts.between(self.offset, self.offset + len(view))]
        self.chunks = self.store.cut(view, self.final, cuts)
        self.rest = bytes(view[self.end - self.offset :])
        if self.known_only and not self.store.knows(self.chunks):
            raise NoSpaceError(f"the disk below the store is full: {self.store.path}")
        on_cut()
        self.numbers = self.store.store(view, self.chunks, encode=False)


@dataclass(slots=True, eq=False)
class RecutJob:
    """Work the written ranges into the extents."""

    store: ChunkStore
    reader: ChunkReader
    tensor_cuts: TensorCuts
    extents: Extents
    ranges: Ranges
    result: Extents | None = None

    @property
    def size(self) -> int:
        """The bytes written, and about a chunk around each range of them."""
        return self.ranges.size + self.ranges.count * self.store.config.chunk_sizes.size_max

    def run(self) -> None:
        """Fill `result`."""
        ranges = [(offset, data) for offset, data in self.ranges]
        self.result = recut(self.store, self.reader, self.extents, ranges, self.tensor_cuts)


class FileContent:
    """Bytes of a file under reading and writing; `size` is the file's size.

    Owns the extents it is given; `layout` is the fingerprint of the tensors in them.
    """

    def __init__(
        self, store: ChunkStore, reader: ChunkReader, pool: BufferPool, extents: Extents, layout: int = 0
    ) -> None:
        self._store = store
        self._reader = reader
        self.extents = extents
        self.size = extents.size
        self.revision = 0
        """Another one whenever bytes have changed."""
        self._join_next = True  # the next stream job starts at the last extent, so that cuts stay content-defined
        self._stream = Stream(pool)
        self._overlay = Ranges()
        self._tensor_cuts = TensorCuts()  # the job's while one is out
        self._layout = layout
        self._jobs: deque[StreamJob | RecutJob] = deque()

    @property
    def buffered(self) -> int:
        """Bytes held in memory that are in no chunk yet."""
        recut_size = self._recut.ranges.size if self._recut else 0
        stored_size = sum(len(job.piece) for job in self._jobs if isinstance(job, StreamJob) and job.numbers)
        return len(self._stream) - stored_size + self._overlay.size + recut_size

    @property
    def jobs(self) -> Sequence[Job]:
        """The jobs that are out, in the order in which they have to be finished."""
        return self._jobs

    @property
    def _recut(self) -> RecutJob | None:
        """The job that works the overlay in, while it is out; it is alone then."""
        job = self._jobs[0] if self._jobs else None
        return job if isinstance(job, RecutJob) else None

    @property
    def settled(self) -> bool:
        """Whether every byte is in a chunk or a hole; then `extents` and `size` are the whole truth."""
        return not (self._jobs or self._overlay or self._stream)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Place `data` at `offset`; it is read back from now on."""
        end = offset + len(data)
        self.revision += 1
        self.size = max(self.size, end)
        streamed = self.extents.size
        start, stop = streamed + self._stream.tail_position, streamed + len(self._stream)
        if self._recut or offset > stop or end <= start:
            self._overlay.write(offset, data)
            return
        if self._overlay:
            self._overlay.clip(max(offset, start), end)
        if offset < start:
            self._overlay.write(offset, data[: start - offset])
            data, offset = data[start - offset :], start
        self._stream.write(offset - streamed, data)
        if self._overlay:
            self._absorb()

    def _absorb(self) -> None:
        """Move overlay bytes that continue the stream to its tail."""
        while (more := self._overlay.take_at(self.extents.size + len(self._stream))) is not None:
            self._stream.write(len(self._stream), more)

    def truncate(self, size: int) -> None:
        """Cut or lengthen the file; only while no job is out."""
        assert not self._jobs
        self.revision += 1
        if size < self.size:
            self._overlay.clip(size, self.size)
            self._stream.truncate(size - self.extents.size)
            if size < self.extents.size:
                self.extents.truncate(size)
                self._join_next = True
        if size == 0:
            self._tensor_cuts = TensorCuts()
            self._layout = 0
        self.size = size

    def take_job(self, *, final: bool = False) -> Job | None:
        """Return the next work to do, if there is any and it can begin; `final` asks until all is in chunks."""
        before = self._jobs[-1] if self._jobs else None
        if isinstance(before, RecutJob) or len(self._jobs) >= _JOBS_MAX or (before and not before.is_handed_on):
            return None
        recutting = self._overlay.size >= OVERLAY_MAX or (final and bool(self._overlay))
        # The ranges of the overlay are worked in when the extents reach to the end of the stream.
        job: StreamJob | RecutJob
        if (piece := self._stream.take(final=final or recutting)) is not None:
            last = (final or recutting) and self._stream.is_last_out
            joined = None if before else self._joinable()
            offset = joined.offset if joined else before.end if before else self.extents.size
            job = StreamJob(self._store, self._reader, self._tensor_cuts, offset, joined, piece, last)
        elif recutting and not before:
            job = RecutJob(self._store, self._reader, self._tensor_cuts, self.extents, self._overlay)
            self._overlay = Ranges()
        else:
            return None
        self._jobs.append(job)
        return job

    def take_known_job(self) -> StreamJob | None:
        """Return work on the stream as it is now that stores nothing new; None where other work comes first."""
        if self._jobs or self._overlay or self._joinable() or (piece := self._stream.take(final=True)) is None:
            return None
        offset = self.extents.size
        job = StreamJob(self._store, self._reader, self._tensor_cuts, offset, None, piece, False, known_only=True)
        self._jobs.append(job)
        return job

    def hand_on(self, job: Job) -> None:
        """Let the next job begin, once this one has cut its piece, if what follows the piece can be cut already."""
        if isinstance(job, StreamJob) and not (job.joined or job.final or job.is_handed_on):
            self._stream.hand_on(job.rest)
            job.is_handed_on = True

    def _joinable(self) -> Extent | None:
        """Return the last extent if the stream goes on from a chunk that was cut short by the end of the file."""
        if not self._join_next or not len(self.extents):
            return None
        last = self.extents[len(self.extents) - 1]
        return last if last.number and last.length < self._store.config.chunk_sizes.size_max else None

    def finish_job(self) -> None:
        """Take over what the first of the jobs that are out has done."""
        job = self._jobs.popleft()
        if isinstance(job, StreamJob):
            assert job.chunks is not None
            if job.joined:
                self.extents.pop()
            for number, length in zip(job.numbers, job.chunks.lengths, strict=True):
                self.extents.append(number, length)
            if not job.is_handed_on:
                self._stream.hand_on(job.rest)
            self._stream.finish()
            self._join_next = job.final
        else:
            assert job.result is not None
            self.extents = job.result
            self._join_next = True
        self._absorb()

    def abandon_jobs(self) -> None:
        """Give up the jobs that are out, and all bytes that are in no chunk: the failure of one is the file's."""
        self.revision += 1
        self._jobs.clear()
        self._stream.clear()
        self._overlay = Ranges()
        self.size = min(self.size, self.extents.size)

    @property
    def layout(self) -> int:
        """The fingerprint of the tensors: of those that were written, else of those that were there; when settled."""
        assert self.settled
        return self._tensor_cuts.layout or self._layout

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
        plan.cover(self.extents, offset)
        if self._recut:
            plan.patch(offset, self._recut.ranges.between(offset, stop))
        if stop > (streamed := self.extents.size):
            plan.patch(offset - streamed, self._stream.between(offset - streamed, stop - streamed))
        if self._overlay:
            plan.patch(offset, self._overlay.between(offset, stop))
        return plan
