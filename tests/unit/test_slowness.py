"""A coarse guard: something that has become ten times slower. Figures are the business of `bench/`."""

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ckptfs.config import GIB, MIB
from ckptfs.store import ChunkStore, Table, kernels
from tests.unit.tree_support import NoSyncDisk

SIZE = 16 * MIB
PIECE_SIZE = 4 * MIB
FACTOR = 10
"""Far more than the store takes beyond cutting, hashing and a plain write, and more than a busy machine makes of it."""


REBUILD_SIZE = 128 * MIB
REBUILD_SECONDS = 5 * REBUILD_SIZE / GIB
"""1 GiB of packs in 5 s; seconds of the processor, which what else runs on the machine takes no part in."""
RECORDS = 8192
RECORD_SECONDS = 40e-6
"""Five times what it takes."""


def fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three runs."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def test_storing_bytes_takes_no_multiple_of_touching_them(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "store", disk=NoSyncDisk()) as store:
        sizes = store.config.chunk_sizes
        limits = sizes.size_min, sizes.mean_bits, sizes.size_max
        fresh = iter([random.Random(seed).randbytes(SIZE) for seed in range(3)])
        data = random.Random(3).randbytes(SIZE)

        def touch() -> None:
            for start in range(0, SIZE, PIECE_SIZE):
                kernels.cut_and_hash(data[start : start + PIECE_SIZE], *limits, True, 0)

        def write() -> None:
            fd = os.open(tmp_path / "plain", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, data)
            os.close(fd)

        def ingest(data: bytes) -> None:
            for start in range(0, SIZE, PIECE_SIZE):
                store.ingest(memoryview(data)[start : start + PIECE_SIZE], True, encode=False)

        touched, written = fastest(touch), fastest(write)
        new = fastest(lambda: ingest(next(fresh)))
        ingest(data)
        known = fastest(lambda: ingest(data))
    print(f"touched {touched:.4f} s, written {written:.4f} s, known {known:.4f} s, new {new:.4f} s")
    assert known < FACTOR * touched
    assert new < FACTOR * (touched + written)


def rebuild_seconds(path: Path, pieces: Iterable[bytes]) -> float:
    """Return how long it takes the processor to make an index anew, and to compare it, of a store of these pieces."""
    with ChunkStore.create(path, disk=NoSyncDisk()) as store:
        for piece in pieces:
            store.ingest(memoryview(piece), True, encode=False)
        store.tables.put(Table.META, b"there", b"")
    seconds = []
    for _ in range(3):
        began = time.process_time()
        ChunkStore.open(path, disk=NoSyncDisk(), rebuild=True, salvage=True).close()
        seconds.append(time.process_time() - began)
    return min(seconds)


def test_an_index_is_made_anew_from_a_gibibyte_of_packs_in_five_seconds(tmp_path: Path) -> None:
    source = random.Random(1)
    seconds = rebuild_seconds(tmp_path / "store", (source.randbytes(SIZE) for _ in range(REBUILD_SIZE // SIZE)))
    print(f"{REBUILD_SIZE / MIB:.0f} MiB in {seconds:.2f} s")
    assert seconds < REBUILD_SECONDS


def test_each_small_record_costs_a_rebuild_microseconds(tmp_path: Path) -> None:
    """Of records of less than 4 KiB in the mean, which only differences of very small steps are, a GiB takes longer."""
    source = random.Random(1)
    seconds = rebuild_seconds(tmp_path / "store", (source.randbytes(1500) for _ in range(RECORDS)))
    print(f"{seconds / RECORDS * 1e6:.0f} microseconds for each record")
    assert seconds / RECORDS < RECORD_SECONDS
