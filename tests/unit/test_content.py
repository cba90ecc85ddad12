"""The content of an open file is a bytearray, whatever is written when, and whichever job is out meanwhile."""

import random
from collections.abc import Iterator, Sequence
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ckptfs.store import ChunkStore
from ckptfs.tree import content as content_module
from ckptfs.tree import stream as stream_module
from ckptfs.tree.content import FileContent, RecutJob, StreamJob
from ckptfs.tree.extents import Extents, load_manifest, store_manifest
from ckptfs.tree.reader import ChunkReader
from ckptfs.tree.stream import BufferPool
from tests.unit.tree_support import CHUNK_SIZES, drain, new_store

PIECE_SIZE = 1500
HEADROOM = 400
SMALL_SIZE = 300
OVERLAY_MAX = 800
SIZE_SPARSE = (1 << 63) - 1


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PIECE_SIZE", PIECE_SIZE)
    monkeypatch.setattr(stream_module, "HEADROOM", HEADROOM)
    monkeypatch.setattr(stream_module, "SMALL_SIZE", SMALL_SIZE)
    monkeypatch.setattr(content_module, "OVERLAY_MAX", OVERLAY_MAX)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChunkStore]:
    with new_store(tmp_path_factory.mktemp("content") / "store") as store:
        yield store


@pytest.fixture
def reader(store: ChunkStore) -> ChunkReader:
    return ChunkReader(store, cache_size=4 * CHUNK_SIZES.size_max)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def everything(content: FileContent, reader: ChunkReader) -> bytes:
    return bytes(content.plan_read(0, content.size).run(reader))


def content_model(store: ChunkStore) -> type[RuleBasedStateMachine]:
    """Return the model test of contents in `store`."""
    manifests = count(1)

    class ContentModel(RuleBasedStateMachine):
        """A content beside a bytearray; jobs are taken, run and finished at any time."""

        @initialize()
        def begin(self) -> None:
            self.reader = ChunkReader(store, cache_size=4 * CHUNK_SIZES.size_max)
            self.pool = BufferPool()
            self.content = FileContent(store, self.reader, self.pool, Extents())
            self.model = bytearray()
            self.has_run: set[content_module.Job] = set()

        @property
        def jobs(self) -> Sequence[content_module.Job]:
            return self.content.jobs

        def place(self, offset: int, size: int, seed: int) -> None:
            data = noise(size, seed)
            self.content.write(offset, data)
            if offset > len(self.model):
                self.model += bytes(offset - len(self.model))
            self.model[offset : offset + size] = data

        @rule(size=st.integers(1, 2500), seed=st.integers(0, 20))
        def append(self, size: int, seed: int) -> None:
            self.place(len(self.model), size, seed)

        @rule(back=st.integers(0, 3000), size=st.integers(1, 1500), seed=st.integers(0, 20))
        def write_near_the_end(self, back: int, size: int, seed: int) -> None:
            self.place(max(len(self.model) - back, 0), size, seed)

        @rule(offset=st.integers(0, 9000), size=st.integers(1, 1000), seed=st.integers(0, 20))
        def write(self, offset: int, size: int, seed: int) -> None:
            self.place(offset, size, seed)

        @precondition(lambda self: not self.jobs)
        @rule(size=st.integers(0, 9000))
        def truncate(self, size: int) -> None:
            self.content.truncate(size)
            del self.model[size:]
            self.model += bytes(size - len(self.model))

        @precondition(lambda self: not self.jobs)
        @rule(back=st.integers(0, 1500))
        def truncate_near_the_end(self, back: int) -> None:
            self.truncate(max(len(self.model) - back, 0))

        @rule(final=st.booleans())
        def take_job(self, final: bool) -> None:
            before = list(self.jobs)
            job = self.content.take_job(final=final)
            assert list(self.jobs) == before + [job] * (job is not None)

        @precondition(lambda self: self.jobs)
        @rule(index=st.integers(0, 2), hand_on=st.booleans())
        def run_job(self, index: int, hand_on: bool) -> None:
            job = self.jobs[min(index, len(self.jobs) - 1)]
            if job not in self.has_run:
                job.run()
                self.has_run.add(job)
            if hand_on:
                self.content.hand_on(job)

        @precondition(lambda self: self.jobs)
        @rule()
        def finish_job(self) -> None:
            self.run_job(index=0, hand_on=False)
            self.content.finish_job()

        @precondition(lambda self: self.jobs)
        @rule(offset=st.integers(0, 9000), size=st.integers(0, 3000))
        def plan_now_and_run_later(self, offset: int, size: int) -> None:
            plan = self.content.plan_read(offset, size)
            expected = bytes(self.model[offset : offset + size])
            self.finish_job()
            self.place(offset, 100, 99)
            assert bytes(plan.run(self.reader)) == expected

        @rule(reopen=st.booleans())
        def commit(self, reopen: bool) -> None:
            while self.jobs:
                self.finish_job()
            drain(self.content)
            assert self.content.buffered == 0
            extents = self.content.close_extents()
            assert extents.size == len(self.model)
            manifest = next(manifests)
            store_manifest(store.tables, manifest, extents)
            loaded = load_manifest(store.tables, manifest, len(self.model))
            again = FileContent(store, self.reader, self.pool, loaded)
            assert everything(again, self.reader) == self.model
            if reopen:
                self.content = again

        @rule(offset=st.integers(0, 9000), size=st.integers(0, 3000))
        def read(self, offset: int, size: int) -> None:
            plan = self.content.plan_read(offset, size)
            assert bytes(plan.run(self.reader)) == self.model[offset : offset + size]

        @invariant()
        def same_bytes(self) -> None:
            assert self.content.size == len(self.model)
            assert everything(self.content, self.reader) == self.model
            assert self.content.settled == (not self.jobs and self.content.buffered == 0)

        def teardown(self) -> None:
            if hasattr(self, "content"):
                self.commit(reopen=True)

    return ContentModel


def test_a_content_is_a_bytearray(store: ChunkStore) -> None:
    machine = content_model(store)
    wanted = settings(max_examples=150, stateful_step_count=30, deadline=None, print_blob=True)
    run_state_machine_as_test(machine, settings=wanted)


def test_a_stream_is_cut_like_a_whole(store: ChunkStore, reader: ChunkReader) -> None:
    data = noise(20_000, 1)
    content = FileContent(store, reader, BufferPool(), Extents())
    for offset in range(0, len(data), 700):
        content.write(offset, data[offset : offset + 700])
        if (job := content.take_job()) is not None:
            assert isinstance(job, StreamJob)
            job.run()
            content.finish_job()
    assert content.buffered <= PIECE_SIZE + CHUNK_SIZES.size_max
    drain(content)
    lengths = [content.extents[index].length for index in range(len(content.extents))]
    assert lengths == store.ingest(memoryview(data), True).lengths


def test_a_file_grown_later_is_cut_as_if_written_at_once(store: ChunkStore, reader: ChunkReader) -> None:
    data = noise(9_000, 2)
    content = FileContent(store, reader, BufferPool(), Extents())
    for start, stop in ((0, 3_333), (3_333, 3_334), (3_334, 7_000), (7_000, 9_000)):
        content.write(start, data[start:stop])
        drain(content)
        content = FileContent(store, reader, BufferPool(), content.close_extents())
    lengths = [content.extents[index].length for index in range(len(content.extents))]
    assert lengths == store.ingest(memoryview(data), True).lengths


def test_writes_that_jump_are_worked_in_when_they_are_many(store: ChunkStore, reader: ChunkReader) -> None:
    content = FileContent(store, reader, BufferPool(), Extents())
    content.write(0, noise(10_000, 3))
    drain(content)
    content.write(500, bytes(OVERLAY_MAX - 1))
    assert content.take_job() is None
    content.write(4_000, b"x")
    assert isinstance(content.take_job(), RecutJob)


def test_the_end_of_a_sparse_file_costs_nothing(store: ChunkStore, reader: ChunkReader) -> None:
    content = FileContent(store, reader, BufferPool(), Extents())
    before = store.appended_bytes
    content.truncate(SIZE_SPARSE)
    drain(content)
    assert content.buffered == 0
    assert store.appended_bytes == before
    assert content.close_extents().size == SIZE_SPARSE
    assert bytes(content.plan_read(SIZE_SPARSE - 10, 100).run(reader)) == bytes(10)
    content.write(SIZE_SPARSE - 3, b"end")
    drain(content)
    assert content.close_extents().size == SIZE_SPARSE
    assert bytes(content.plan_read(SIZE_SPARSE - 5, 5).run(reader)) == b"\0\0end"


def test_an_abandoned_job_leaves_what_is_in_chunks(store: ChunkStore, reader: ChunkReader) -> None:
    data = noise(8_000, 4)
    content = FileContent(store, reader, BufferPool(), Extents())
    content.write(0, data)
    job = content.take_job()
    assert job is not None
    job.run()
    content.finish_job()
    kept = content.extents.size
    assert 0 < kept < len(data)
    content.write(len(data), noise(3_000, 5))
    content.write(20, b"over")
    assert content.take_job() is not None
    content.abandon_jobs()
    assert content.settled
    assert content.size == kept
    assert everything(content, reader) == data[:kept]


def test_a_read_behind_the_end_is_empty(store: ChunkStore, reader: ChunkReader) -> None:
    content = FileContent(store, reader, BufferPool(), Extents())
    content.write(0, b"abc")
    for offset, expected in ((0, b"abc"), (2, b"c"), (3, b""), (9, b"")):
        assert bytes(content.plan_read(offset, 10).run(reader)) == expected
