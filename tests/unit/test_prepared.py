"""Records are built for the next batch while another is written, and what comes between them loses nothing."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckptfs.config import KIB, MIB
from ckptfs.errors import NoSpaceError
from ckptfs.store import ChunkStore, Disk, Table, codec, kernels, records
from ckptfs.store.records import EncodedChunk
from tests.unit.test_chunkstore import random_bytes

SIZE = MIB
WAIT_SECONDS = 30


class HeldDisk(Disk):
    """A disk on which the first large write waits until it is told to fail."""

    def __init__(self) -> None:
        self.holds = False
        self.fail = threading.Event()

    def pwrite(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int, path: Path) -> None:
        if self.holds and sum(map(len, buffers)) > 256 * KIB:
            self.holds = False
            assert self.fail.wait(WAIT_SECONDS)
            raise NoSpaceError("full")
        super().pwrite(fd, buffers, offset, path)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released whenever the records of a batch have been built."""
    semaphore = threading.Semaphore(0)
    build = kernels.raw_records

    def told(*arguments: Any) -> None:
        build(*arguments)
        semaphore.release()

    monkeypatch.setattr(kernels, "raw_records", told)
    return semaphore


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def put(pool: ThreadPoolExecutor, store: ChunkStore, data: bytes) -> Future[list[int]]:
    return pool.submit(lambda: store.ingest(memoryview(data), True, encode=False).numbers)


def content(store: ChunkStore, numbers: list[int]) -> bytes:
    return b"".join(map(store.read, numbers))


def leave(store: ChunkStore) -> None:
    """Close a store whose chunks only the packs know; they count because a row follows them."""
    store.tables.put(Table.META, b"last", b"row")
    store.commit()
    store.close(commit=False)


def nothing(store: ChunkStore, data: bytes) -> None:
    """Come in between with nothing at all."""


def a_journal_step(store: ChunkStore, data: bytes) -> None:
    """Come in between with rows: the batch begins elsewhere."""
    store._end.journal_rows([records.Row(Table.META, b"key", b"value")])


def another_chunk(store: ChunkStore, data: bytes) -> None:
    """Come in between with a chunk: the batch has other numbers."""
    _append(store, random_bytes(5000, 5))


def one_of_its_chunks(store: ChunkStore, data: bytes) -> None:
    """Come in between with a chunk of the batch itself, which then has one less."""
    (length, *_), _ = store.cut(memoryview(data), True)
    _append(store, data[:length])


def _append(store: ChunkStore, data: bytes) -> None:
    ((chunk_id,),) = [store.cut(memoryview(data), True).ids]
    chunk = EncodedChunk(chunk_id, len(data), codec.Encoding.WAITING, data, records.payload_check(data))
    store._ingest._append_chunks([chunk], [store.next_number])


@pytest.mark.parametrize("intrusion", [nothing, a_journal_step, another_chunk, one_of_its_chunks])
def test_what_comes_between_building_and_writing_is_noticed(
    tmp_path: Path,
    built: threading.Semaphore,
    pool: ThreadPoolExecutor,
    intrusion: Callable[[ChunkStore, bytes], None],
) -> None:
    data = random_bytes(SIZE)
    store = ChunkStore.create(tmp_path / "store")
    with store._end.held():
        numbers = put(pool, store, data)
        assert built.acquire(timeout=WAIT_SECONDS)
        intrusion(store, data)
    assert content(store, numbers.result(WAIT_SECONDS)) == data
    leave(store)
    with ChunkStore.open(tmp_path / "store") as again:  # from the packs alone
        assert content(again, numbers.result()) == data
        assert again.stats().chunks == len(set(numbers.result())) + (intrusion is another_chunk)


def test_a_batch_that_was_built_behind_one_that_failed_is_whole(
    tmp_path: Path, built: threading.Semaphore, pool: ThreadPoolExecutor
) -> None:
    disk = HeldDisk()
    first, second = random_bytes(SIZE, 1), random_bytes(SIZE, 2)
    store = ChunkStore.create(tmp_path / "store", disk=disk)
    disk.holds = True
    failing = put(pool, store, first)
    assert built.acquire(timeout=WAIT_SECONDS)
    numbers = put(pool, store, second)
    assert built.acquire(timeout=WAIT_SECONDS)
    disk.fail.set()
    with pytest.raises(NoSpaceError):
        failing.result(WAIT_SECONDS)
    assert content(store, numbers.result(WAIT_SECONDS)) == second
    again = put(pool, store, first).result(WAIT_SECONDS)
    assert content(store, again) == first
    leave(store)
    with ChunkStore.open(tmp_path / "store") as reopened:
        assert content(reopened, again) + content(reopened, numbers.result()) == first + second
