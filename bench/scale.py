"""The speed benchmark's rows of large stores: mount, snapshot, rollback, and the size of the index.

The large store is made by ckptfs itself, with chunks of some 300 bytes: what counts for these rows is how many chunks,
rows and snapshots there are, and not how large the chunks are.
"""

import os
import shutil
import statistics
from pathlib import Path

import numpy as np
from direct import save
from measure import MIB, Bench, Timings, line, timed
from places import Ckptfs

from ckptfs.config import FORMAT_VERSION, ChunkSizes, StoreConfig
from ckptfs.mount.client import Client
from ckptfs.store import ChunkStore
from ckptfs.tree import Commands, Tree

CHUNKS = 1_000_000
SNAPSHOTS = 10_000
CHUNK_SIZES = ChunkSizes(size_min=64, mean_bits=8, size_max=1024)
FILE_SIZE = MIB
CHECKPOINT_CHUNKS = 50_000
"""About what two checkpoints of a mount that stores new bytes at full speed have between them."""
RUN_FILES = 1000
RUN_FILE_SIZE = 4096


def make_large_store(path: Path, chunk_count: int = CHUNKS, snapshot_count: int = SNAPSHOTS) -> None:
    """Make a store of so many chunks in files of FILE_SIZE, and of snapshots that each change one file."""
    config = StoreConfig(FORMAT_VERSION, seed=1, created_ns=0, chunk_sizes=CHUNK_SIZES)
    source = np.random.default_rng(0)
    with ChunkStore.create(path, config=config) as store:
        tree = Tree(store)
        saved, number = 0, 0
        while (chunks := store.stats().chunks) < chunk_count:
            save(tree, b"%06d.pt" % number, source.bytes(FILE_SIZE))
            number += 1
            if chunks - saved > CHECKPOINT_CHUNKS:
                store.commit(checkpoint=True)
                saved = chunks
        for step in range(snapshot_count):
            save(tree, b"last.txt", b"%d" % step)
            tree.take_snapshot(f"step-{step}")


def large_store(bench: Bench) -> None:
    """Mount a large store beside an empty one, take snapshots in it, and measure its index."""
    large = Ckptfs(bench.scratch, name="large", mounted=False)
    seconds = timed(lambda: make_large_store(large.store))
    index = os.stat(large.store / "index.lmdb").st_blocks * 512
    empty = Ckptfs(bench.scratch, name="empty", mounted=False)
    timings, snapshots = Timings(), []
    for number in range(-1, bench.runs):
        for place in (empty, large):
            place.quiesce()
            began = timed(lambda place=place: (place.mount(), os.listdir(place.path)))
            if number >= 0:
                timings.add(place.name, began)
            if place is large:
                (place.path / "last.txt").write_text(str(number))
                snapshots.append(timed((place.path / ".snapshots" / f"run-{number}").mkdir))
            place.unmount()
    later = timings.median("large") - timings.median("empty")
    work = f"mount of {CHUNKS:.0e} chunks, {SNAPSHOTS:.0e} snapshots: s later"
    line(work, later, "<=", 0.3, f"{timings.spread('large', 'empty')}; made in {seconds:.0f} s")
    detail = f"{min(snapshots) * 1000:.1f}-{max(snapshots) * 1000:.1f}, with fsync, in the large store"
    line("snapshot, ms", statistics.median(snapshots) * 1000, "<=", 10, detail)
    detail = f"data.mdb and all, after checkpoints of {CHECKPOINT_CHUNKS} chunks"
    line("index on disk, bytes per chunk", index / CHUNKS, "<=", 120, detail)
    bench.memory_peak = max(bench.memory_peak, large.memory_peak)
    for place in (empty, large):
        shutil.rmtree(place.store)
        place.path.rmdir()


def rollback(bench: Bench) -> None:
    """Roll a run back whose files have all been replaced."""
    with bench.places(Ckptfs) as (place,):
        assert isinstance(place, Ckptfs)
        run = place.path / "run"
        run.mkdir()
        client: Commands = Client(str(place.store))
        seconds = []
        for number in range(-1, bench.runs):
            _save_run(run)
            target = client.snapshot_create(None, "")["name"]
            _save_run(run)
            place.quiesce()
            took = timed(lambda target=target: client.snapshot_rollback(target, "run"))
            if number >= 0:
                seconds.append(took * 1000)
        detail = f"{min(seconds):.0f}-{max(seconds):.0f}, {RUN_FILES} files of {RUN_FILE_SIZE} bytes replaced by rename"
        line("rollback of a run, ms", statistics.median(seconds), "<=", 100, detail)


def _save_run(run: Path) -> None:
    """Replace every file of a run."""
    for index in range(RUN_FILES):
        unfinished = run / ".tmp"
        unfinished.write_bytes(os.urandom(RUN_FILE_SIZE))
        unfinished.rename(run / f"{index}.bin")
