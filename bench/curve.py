"""The chunk size: what it does to dedup, to what history takes, to the index and to the speed of storing.

Every size gets the same saves of a few series, one after the other, in a store of its own and without a mount. A mean
of 2^b is asked for between a least size of a quarter and a greatest of four times as much, as the default has it. The
speed is that of storing raw, in processor time, which a neighbour on the machine does not lengthen; waiting for the
disk is not in it. *Stored* is what packs and index take once every save was optimized before the next one came.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from direct import save
from regimes import demo, demo_frozen, rl_bf16, series
from series import raw_size, saves_of

from ckptfs.config import FORMAT_VERSION, KIB, ChunkSizes, StoreConfig
from ckptfs.store import ChunkStore, never
from ckptfs.tree import Tree
from ckptfs.tree.optimize import Optimizer, optimize_part

MEAN_BITS = range(14, 20)
ROUNDS = 3


class Point(NamedTuple):
    """What one chunk size makes of a series: bytes, and the seconds of processor time that storing all of it took."""

    chunks: int
    distinct: int
    index: int
    seconds: float


@contextmanager
def _empty_store(mean_bits: int) -> Iterator[ChunkStore]:
    sizes = ChunkSizes(1 << mean_bits - 2, mean_bits, 1 << mean_bits + 2)
    with tempfile.TemporaryDirectory(prefix="ckptfs-curve-") as directory:
        config = StoreConfig(FORMAT_VERSION, seed=1, created_ns=0, chunk_sizes=sizes)
        with ChunkStore.create(Path(directory) / "store", config=config) as store:
            yield store


def measure(series: Path, mean_bits: int) -> Point:
    """Store a series in chunks of one size."""
    seconds = 0.0
    with _empty_store(mean_bits) as store:
        tree = Tree(store)
        for files in saves_of(series):
            for file in files:
                data = file.read_bytes()
                began = time.process_time()
                save(tree, os.fsencode(file.name), data)
                seconds += time.process_time() - began
            tree.take_snapshot()
            store.commit(durable=False)
        store.commit(checkpoint=True)
        stats = store.stats()
        index = os.stat(store.path / "index.lmdb").st_blocks * 512
        return Point(stats.chunks, stats.raw_bytes, index, seconds)


def optimized(series: Path, mean_bits: int) -> int:
    """Store a series in chunks of one size, each save optimized before the next; return the bytes that takes."""
    with _empty_store(mean_bits) as store:
        tree = Tree(store)
        optimizer = Optimizer(tree)
        for files in saves_of(series):
            for file in files:
                save(tree, os.fsencode(file.name), file.read_bytes())
            tree.take_snapshot()
            optimize_part(optimizer, store, never)
        store.commit(checkpoint=True)
        store.reclaimer.punch()
        return store.stats().stored_bytes


def report(seed: int) -> None:
    """Print a table for each series; sizes take turns, and the fastest of their rounds counts."""
    for recipe in (demo, demo_frozen, rl_bf16):
        saves = series(recipe, seed)
        raw = raw_size(saves)
        print(f"series {saves.name}: {sum(1 for _ in saves_of(saves))} saves, {raw:,} bytes raw, seed {seed}")
        print(f"{'asked for':>9} {'mean chunk':>11} {'distinct':>9} {'index':>8} {'stored':>7} {'MB/s':>6}  (of raw)")
        points = [[measure(saves, bits) for bits in MEAN_BITS] for _ in range(ROUNDS)]
        for bits, rounds in zip(MEAN_BITS, zip(*points, strict=True), strict=True):
            chunks, distinct, index, _ = rounds[0]
            rate = raw / min(point.seconds for point in rounds) / 1e6
            mean = f"{distinct / chunks / KIB:.1f} KiB"
            print(
                f"{(1 << bits) // KIB:>5} KiB {mean:>11} {distinct / raw:>9.4f} {index / raw:>8.3%} "
                f"{optimized(saves, bits) / raw:>7.4f} {rate:>6.0f}",
                flush=True,
            )
