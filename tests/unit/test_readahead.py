"""Reading ahead changes nothing that is read, whatever is read, written and let go of meanwhile."""

import random
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.errors import DamagedError
from ckptfs.mount import readahead
from ckptfs.mount.readahead import Ahead, ReadAhead
from ckptfs.store import Budget, ChunkStore
from ckptfs.tree.content import FileContent
from ckptfs.tree.extents import Extents
from ckptfs.tree.reader import ChunkReader
from ckptfs.tree.stream import BufferPool
from tests.unit.tree_support import CHUNK_SIZES, drain, new_store

PART_SIZE = 4096
FILE_SIZE = 20 * PART_SIZE + 123
OFFSETS = st.integers(0, FILE_SIZE + 10)


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readahead, "PART_SIZE", PART_SIZE)
        patch.setattr(readahead, "FIRST_PART_SIZE", PART_SIZE // 4)
        patch.setattr(readahead, "BUFFER_SIZE", PART_SIZE + 2 * CHUNK_SIZES.size_max)
        patch.setattr(readahead, "BUFFERS_MAX", 4)
        patch.setattr(readahead, "NEAR", 2 * PART_SIZE)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChunkStore]:
    with new_store(tmp_path_factory.mktemp("readahead") / "store") as store:
        yield store


def content_of(store: ChunkStore, data: bytes) -> FileContent:
    content = FileContent(store, ChunkReader(store), BufferPool(), Extents())
    content.write(0, data)
    drain(content)
    return content


class Reading:
    """A file read through several handles at a time, and the bytes that it has."""

    def __init__(self, store: ChunkStore, nursery: trio.Nursery) -> None:
        self.expected = bytearray(random.Random(1).randbytes(FILE_SIZE))
        self.content = content_of(store, bytes(self.expected))
        self.readahead = ReadAhead(ChunkReader(store), nursery)
        self.handles = [Ahead(), Ahead(), Ahead()]

    async def read(self, handle: int, offset: int, size: int) -> None:
        reply = await self.readahead.read(self.handles[handle], self.content, offset, size)
        assert reply == self.expected[offset : offset + size]

    async def read_on(self, handle: int, offset: int, size: int, count: int) -> None:
        """Read as the kernel does: several requests at once, in any order."""
        async with trio.open_nursery() as nursery:
            for index in random.Random(count).sample(range(count), count):
                nursery.start_soon(self.read, handle, offset + index * size, size)

    async def write(self, offset: int, size: int) -> None:
        data = random.Random(size).randbytes(size)
        self.expected.extend(bytes(max(0, offset - len(self.expected))))
        self.expected[offset : offset + size] = data
        self.content.write(offset, data)

    async def truncate(self, size: int) -> None:
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))
        drain(self.content)
        self.content.truncate(size)

    async def settle(self) -> None:
        drain(self.content)

    async def close(self, handle: int) -> None:
        self.readahead.forget(self.handles[handle])


HANDLES = st.integers(0, 2)
CALLS = st.one_of(
    st.tuples(st.just("read_on"), HANDLES, OFFSETS, st.integers(1, 2 * PART_SIZE), st.integers(1, 12)),
    st.tuples(st.just("read"), HANDLES, OFFSETS, st.integers(0, 2 * PART_SIZE)),
    st.tuples(st.just("write"), OFFSETS, st.integers(1, 3000)),
    st.tuples(st.just("truncate"), OFFSETS),
    st.tuples(st.just("settle")),
    st.tuples(st.just("close"), HANDLES),
)


@settings(max_examples=60)
@given(calls=st.lists(CALLS, max_size=12))
def test_what_is_read_is_what_was_written(store: ChunkStore, calls: list[tuple[object, ...]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            reading = Reading(store, nursery)
            for name, *arguments in calls:
                await getattr(reading, str(name))(*arguments)

    trio.run(run)


def test_a_file_read_from_front_to_back_is_decoded_ahead(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read_first = ChunkReader.read_first

    def counting(reader: ChunkReader, numbers: list[int], budget: Budget | None = None) -> object:
        reads.append(len(numbers))
        return read_first(reader, numbers, budget)

    monkeypatch.setattr(ChunkReader, "read_first", counting)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            reading = Reading(store, nursery)
            for offset in range(0, FILE_SIZE, 512):
                await reading.read(0, offset, 512)

    trio.run(run)
    assert len(reads) == 1  # the first read: nobody knew yet


def test_a_file_in_very_many_pieces_is_not_read_ahead(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "PART_EXTENTS_MAX", 0)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            reading = Reading(store, nursery)
            for offset in range(0, FILE_SIZE, 512):
                await reading.read(0, offset, 512)
                assert not reading.handles[0].parts

    trio.run(run)


def test_damage_ahead_is_told_to_the_read_that_meets_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damage") / "store"
    with new_store(path) as store:

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                reading = Reading(store, nursery)
                extent = next(reading.content.extents.between(FILE_SIZE // 2, FILE_SIZE))
                (pack,) = (path / "packs").glob("*.pack")
                data = bytearray(pack.read_bytes())
                data[data.index(reading.expected[extent.offset : extent.offset + 100]) + 50] ^= 1
                pack.write_bytes(data)
                stop = extent.offset - extent.offset % 512
                for offset in range(0, stop, 512):
                    await reading.read(0, offset, 512)
                with pytest.raises(DamagedError, match=f"pack at offset .* chunk {extent.number} is not what was"):
                    await reading.read(0, extent.offset, 512)
                await reading.read(0, extent.offset + extent.length, 512)

        trio.run(run)
