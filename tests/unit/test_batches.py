"""Optimizing has no more than a batch twice: places are freed as it goes on, in a mount's process and without one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from ckptfs.config import KIB, MIB
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.idle import Idle
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.offload import Offload
from ckptfs.store import ChunkStore, Frozen, never
from ckptfs.store.records import Position
from ckptfs.tree import Tree
from ckptfs.tree.optimize import Optimizer, optimize_part, uncompared_bytes
from tests.unit.tree_support import NoSyncDisk, read, save

SEED = 11
VERSIONS = 20
VERSION_SIZE = MIB
BATCH_SIZE = 3 * MIB
SLACK = VERSION_SIZE + 256 * KIB
"""One piece of work more, which ends a batch, and what the index and the journal grow by meanwhile."""


class MeteredDisk(NoSyncDisk):
    """A disk that knows by how much the store has been larger than it had been before, at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin()

    def begin(self) -> None:
        """Look from here on."""
        self._least = self.used()
        self.growth = 0

    def used(self) -> int:
        """Return what the store takes now."""
        return sum(self.stored_size(file) for file in self._path.rglob("*"))

    def pwrite(self, fd: int, buffers, offset: int, path: Path) -> None:  # type: ignore[no-untyped-def]
        """Write, and look."""
        super().pwrite(fd, buffers, offset, path)
        used = self.used()
        self._least = min(self._least, used)
        self.growth = max(self.growth, used - self._least)


@pytest.fixture
def disk(tmp_path: Path) -> MeteredDisk:
    return MeteredDisk(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path, disk: MeteredDisk) -> Iterator[Tree]:
    with ChunkStore.create(tmp_path / "store", disk=disk) as store:
        yield Tree(store)


def saved(tree: Tree, disk: MeteredDisk) -> list[bytes]:
    """Save versions of weights of which every one moves, and begin to look at the disk; return them."""
    print(f"seed {SEED}")
    chance = np.random.default_rng(SEED)
    weights = chance.standard_normal(VERSION_SIZE // 4, dtype=np.float32)
    versions = []
    for _ in range(VERSIONS):
        # Moves that are large: a difference takes so much that a whole store of them would be seen.
        weights += chance.standard_normal(len(weights), dtype=np.float32) * np.float32(0.05)
        save(tree, "last.bin", data := weights.tobytes())
        tree.take_snapshot()
        versions.append(data)
    tree.store.commit(checkpoint=True)
    disk.begin()
    return versions


def judge(tree: Tree, disk: MeteredDisk, versions: list[bytes], before: Position) -> None:
    assert tree.store.waiting_bytes == uncompared_bytes(tree) == 0
    assert [read(tree, "last.bin", snapshot) for snapshot in tree.snapshots.all()] == versions
    after = tree.store.position
    anew = after.offset - before.offset
    print(f"{anew / MIB:.1f} MiB were stored anew, and the store was {disk.growth / MIB:.1f} MiB larger at most")
    assert after.pack == before.pack and anew > 3 * (BATCH_SIZE + SLACK), "else a batch is all there was"
    assert disk.growth <= BATCH_SIZE + SLACK


def test_a_store_without_a_mount_grows_by_a_batch_at_most(tree: Tree, disk: MeteredDisk) -> None:
    versions = saved(tree, disk)
    before = tree.store.position
    optimizer = Optimizer(tree)
    parts = 1
    while not optimize_part(optimizer, tree.store, never, batch_size=BATCH_SIZE).finished:
        parts += 1
    assert parts > VERSIONS * VERSION_SIZE // BATCH_SIZE
    judge(tree, disk, versions, before)


def test_a_mounted_store_grows_by_a_batch_at_most(tree: Tree, disk: MeteredDisk) -> None:
    versions = saved(tree, disk)
    before = tree.store.position

    async def optimize() -> None:
        async with trio.open_nursery() as nursery:
            idle = idle_of(tree, nursery)
            while not (await idle.optimize()).finished:
                pass

    trio.run(optimize)
    judge(tree, disk, versions, before)


def test_work_that_is_told_to_stop_begins_no_checkpoint(
    tree: Tree, disk: MeteredDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint cannot be interrupted: who has begun to read or write would wait beside it."""
    saved(tree, disk)
    checkpoints, told = 0, False
    reencode, checkpoint = tree.store.reencoder.encode_waiting, tree.store.checkpoint

    def reencode_and_be_told(size: int, stop: Callable[[], bool]) -> object:
        nonlocal told
        done = reencode(size, stop)
        told = done.raw_bytes > 0
        return done

    def count_checkpoint(frozen: Frozen) -> None:
        nonlocal checkpoints
        checkpoints += 1
        checkpoint(frozen)

    def is_told() -> bool:
        return told

    monkeypatch.setattr(tree.store.reencoder, "encode_waiting", reencode_and_be_told)
    monkeypatch.setattr(tree.store, "checkpoint", count_checkpoint)

    async def work() -> None:
        nonlocal told
        async with trio.open_nursery() as nursery:
            idle = idle_of(tree, nursery)
            for expected in (0, 1):
                told = False
                await idle._work(is_told, optimizing=False)
                assert told
                assert checkpoints == expected

    trio.run(work)


def test_optimizing_ends_while_saves_go_on(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each save has something to compare with a version, and each comes before the next piece of work is taken."""
    take, count = Optimizer.take, 0

    def save_and_take(optimizer: Optimizer) -> object:
        nonlocal count
        count += 1
        save(tree, "metrics", bytes([count % 256]) * 8 * KIB)
        return take(optimizer)

    save(tree, "metrics", bytes(8 * KIB))
    tree.take_snapshot()
    monkeypatch.setattr(Optimizer, "take", save_and_take)

    async def optimize() -> int:
        async with trio.open_nursery() as nursery:
            idle = idle_of(tree, nursery)
            for parts in range(1, 4):
                if (await idle.optimize()).finished:
                    return parts
        return 0

    assert trio.run(optimize)
    assert count < 10


def idle_of(tree: Tree, nursery: trio.Nursery) -> Idle:
    offload = Offload()
    committer = Committer(tree.store, offload)
    collector = Collector(tree, Jobs(tree, nursery), committer, offload)
    return Idle(tree, collector, committer, offload, optimizing=False, batch_size=BATCH_SIZE)
