"""A long run, and many runs: does one more save go on to take what it took at first, and does optimizing keep up.

Every save becomes a version of a store without a mount and is optimized before the next one comes, as where a
training job leaves the machine idle between two saves. A line is an eighth of a series, the last one all of it.
*grown* is what packs and index grew by over what was saved; *plain* the part of what was saved that is not stored as
deltas in the end: keyframes, and the newest version of each run. *optimize* and *read* are rates in processor time:
of encoding and comparing, save by save, and of reading the versions back in the end. Last, planning, which looks at
all versions whenever there is a new one. Not measured: the disk below, and what a mount adds.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from direct import directory, save
from measure import note
from regimes import long_run, many_runs, series
from series import name_in_save, saves_of

from ckptfs.config import FORMAT_VERSION, KIB, ChunkSizes, StoreConfig
from ckptfs.store import ChunkStore, never
from ckptfs.tree import Tree
from ckptfs.tree.extents import Extents
from ckptfs.tree.optimize import Optimizer, optimize_part
from ckptfs.tree.reader import ChunkReader, ReadPlan

LINES = 8
PLANNED_VERSIONS = 10_000
PLANNED_SIZE = 4 * KIB


class Saved(NamedTuple):
    """A save, and what came of it: its file, the bytes that the store grew by, processor time of optimizing."""

    extents: Extents
    grown: int
    seconds: float


def report(seed: int) -> None:
    """Print a table for each series, and what planning takes."""
    for recipe in (long_run, many_runs):
        saves = series(recipe, seed)
        print(f"{saves.name}\n{recipe.__doc__}")
        print(f"{'saves':>9} {'grown':>7} {'plain':>7} {'optimize MB/s':>14} {'read MB/s':>10}")
        with _new_tree() as tree:
            saved = list(keep(tree, saves))
            for start in range(0, len(saved), -(-len(saved) // LINES)):
                _print_line(tree, start, saved[start : start + -(-len(saved) // LINES)])
            _print_line(tree, 0, saved)
    plan()


def keep(tree: Tree, saves: Path) -> Iterator[Saved]:
    """Save one version after the other and optimize each; every save is of one file."""
    optimizer = Optimizer(tree)
    stored = tree.store.stats().stored_bytes
    for (file,) in saves_of(saves):
        name = name_in_save(saves, file)
        path = os.fsencode(name)
        save(tree, os.fsencode(name.name), file.read_bytes(), directory(tree, path.rpartition(b"/")[0]))
        tree.take_snapshot()
        extents = tree.files.load(tree.names.resolve(str(name))).extents
        seconds = _processor_time(lambda: optimize_part(optimizer, tree.store, never))
        before, stored = stored, tree.store.stats().stored_bytes
        yield Saved(extents, stored - before, seconds)


def plan() -> None:
    """Print what planning takes where there are many versions."""
    with _new_tree() as tree:
        for number in range(PLANNED_VERSIONS):
            save(tree, b"last.pt", number.to_bytes(8, "little") * (PLANNED_SIZE // 8))
            tree.take_snapshot()
        planning = Optimizer(tree).take()
        assert planning is not None
        note(f"planning with {PLANNED_VERSIONS:,} versions, s", _processor_time(lambda: planning(never)))


def _print_line(tree: Tree, start: int, saved: list[Saved]) -> None:
    raw = sum(version.extents.size for version in saved)
    grown, seconds = sum(version.grown for version in saved), sum(version.seconds for version in saved)
    plain = 0
    for version in saved:
        chunks = list(version.extents.between(0, version.extents.size))
        deltas = set(tree.store.reencoder.deltas_among(chunk.number for chunk in chunks))
        plain += sum(chunk.length for chunk in chunks if chunk.number not in deltas)
    reading = _processor_time(lambda: [_read(tree, version.extents) for version in saved])
    print(
        f"{start + 1:>4}-{start + len(saved):<4} {grown / raw:>7.4f} {plain / raw:>7.4f} "
        f"{raw / seconds / 1e6:>14.0f} {raw / reading / 1e6:>10.0f}",
        flush=True,
    )


def _read(tree: Tree, extents: Extents) -> None:
    """Read a version as a process does that has not read anything yet."""
    reading = ReadPlan(extents.size)
    reading.cover(extents, 0)
    reading.run(ChunkReader(tree.store))


def _processor_time(work: Callable[[], object]) -> float:
    """Return the seconds of processor time that something takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


@contextmanager
def _new_tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(prefix="ckptfs-history-") as scratch:
        config = StoreConfig(FORMAT_VERSION, seed=1, created_ns=0, chunk_sizes=ChunkSizes())
        with ChunkStore.create(Path(scratch) / "store", config=config) as store:
            yield Tree(store)
