"""Optimizing keeps every version what it was, leaves the newest alone, and takes up again what a crash cut short."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ckptfs.config import MIB
from ckptfs.store import DELTA_CHAIN_MAX, ChunkStore, Table, never
from ckptfs.tree import Tree
from ckptfs.tree.commands import Commands
from ckptfs.tree.optimize import Optimizer, uncompared_bytes
from tests.unit.tree_support import (
    NoSyncDisk,
    check_tree,
    crash,
    journal,
    link,
    make_directory,
    read,
    rename,
    save,
    unlink,
)

SHAPE = (256, 512)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with ChunkStore.create(tmp_path / "store", disk=NoSyncDisk()) as store:
        yield Tree(store)


def reopened(tree: Tree) -> Tree:
    """Return the tree as a later process has it, after this one was killed."""
    crash(tree)
    return Tree(ChunkStore.open(tree.store.path, disk=NoSyncDisk()))


def training(count: int) -> list[bytes]:
    """Return so many saves of a small training: bfloat16 weights that move a little."""
    random = torch.Generator().manual_seed(7)
    weights = {f"layer.{index}": torch.randn(SHAPE, generator=random) for index in range(4)}
    saves = []
    for _ in range(count):
        for tensor in weights.values():
            tensor.add_(torch.randn(SHAPE, generator=random) * 2e-3)
        file = io.BytesIO()
        torch.save({name: tensor.bfloat16() for name, tensor in weights.items()}, file)
        saves.append(file.getvalue())
    return saves


def optimize(optimizer: Optimizer, stop: Callable[[], bool] = never) -> int:
    """Work to the end and return how many pieces of work there were."""
    count = 0
    while (work := optimizer.take()) is not None:
        work(stop)
        optimizer.finish()
        count += 1
    return count


def encode(tree: Tree) -> None:
    """Do what idle time does before it optimizes."""
    tree.store.commit(checkpoint=True)
    while tree.store.reencoder.encode_waiting(1 << 40).chunks:
        pass


def freed(tree: Tree) -> int:
    """Free what has a successor and return what the store takes then."""
    tree.store.commit(checkpoint=True)
    tree.store.reclaimer.punch()
    return tree.store.stats().stored_bytes


def deltas(tree: Tree, path: str, epoch: int | None = None) -> int:
    """Return how many chunks of a file are deltas."""
    inode = tree.names.resolve(path) if epoch is None else tree.names.resolve(path, epoch)
    extents = tree.files.load(inode).extents
    return len(tree.store.reencoder.deltas_among(extent.number for extent in extents.between(0, extents.size)))


def test_versions_of_one_path_become_differences_and_stay_what_they_were(tree: Tree) -> None:
    saves = training(12)
    snapshots = []
    for data in saves:
        save(tree, "last.pt", data)
        snapshots.append(tree.take_snapshot())
    encode(tree)
    before = freed(tree)
    assert uncompared_bytes(tree) == sum(map(len, saves[:-1]))
    optimize(Optimizer(tree))
    assert uncompared_bytes(tree) == 0
    assert freed(tree) < 0.5 * before
    assert deltas(tree, "last.pt") == 0
    keyframes = [snapshot.id for snapshot in snapshots if not deltas(tree, "last.pt", snapshot.id)]
    assert len(keyframes) >= len(saves) // (DELTA_CHAIN_MAX + 1)
    again = reopened(tree)
    with again.store:
        for data, snapshot in zip(saves, snapshots, strict=True):
            assert read(again, "last.pt", snapshot) == data


@pytest.mark.parametrize(
    "name",
    ["step-{}.pt", "_{}.pt", "checkpoint-{}/model.pt", "checkpoint-{}/model-00001-of-00002.pt", "{}/__0_0.distcp"],
)
def test_files_of_earlier_steps_become_differences(tree: Tree, name: str) -> None:
    saves = training(3)
    paths = [name.format(100 * step) for step in (9, 10, 11)]
    for path, data in zip(paths, saves, strict=True):
        if "/" in path:
            make_directory(tree, path.split("/")[0])
        save(tree, path, data)
    encode(tree)
    optimize(Optimizer(tree))
    assert [bool(deltas(tree, path)) for path in paths] == [True, True, False]
    assert [read(tree, path) for path in paths] == saves


def test_a_file_of_the_same_tensors_elsewhere_becomes_a_difference(tree: Tree) -> None:
    base, tuned = training(2)
    make_directory(tree, "models")
    make_directory(tree, "run")
    save(tree, "models/base.pt", base)
    save(tree, "notes.pt", b"no tensors at all" * 4096)
    link(tree, "models/base.pt", "models/latest.pt")
    encode(tree)
    optimize(Optimizer(tree))
    assert not deltas(tree, "models/base.pt"), "a second name is no second version"
    save(tree, "run/best.bin", tuned)
    rename(tree, "run/best.bin", "run/final.bin")
    encode(tree)
    optimize(Optimizer(tree))
    assert deltas(tree, "models/base.pt")
    assert not deltas(tree, "run/final.bin")
    again = reopened(tree)
    with again.store:
        optimize(Optimizer(again))
        assert deltas(again, "models/base.pt"), "what was found out is kept"
        assert read(again, "models/latest.pt") == base
        assert read(again, "run/final.bin") == tuned


def test_a_second_pass_has_nothing_to_do_also_in_a_later_process(tree: Tree) -> None:
    for data in training(3):
        save(tree, "last.pt", data)
        tree.take_snapshot()
    encode(tree)
    optimizer = Optimizer(tree)
    optimize(optimizer)
    assert optimizer.take() is None
    journal(tree)
    appended = tree.store.appended_bytes
    again = reopened(tree)
    with again.store:
        later = Optimizer(again)
        assert optimize(later) == 1, "it plans, and finds nothing"
        assert later.done_bytes == 0
        assert appended


def test_work_that_is_stopped_or_killed_anywhere_is_taken_up_again(tree: Tree) -> None:
    saves = training(4)
    snapshots = []
    for data in saves:
        save(tree, "last.pt", data)
        snapshots.append(tree.take_snapshot())
    encode(tree)
    steps = 0
    finished = False
    while not finished:
        optimizer = Optimizer(tree)
        asked = 0

        def stop(limit: int = 5 + 3 * steps) -> bool:
            nonlocal asked
            asked += 1
            return asked > limit

        # A few chunks, then the process dies: before, between or behind what makes it durable.
        for _ in range(2):
            work = optimizer.take()
            finished = work is None
            if work is None:
                break
            work(stop)
            optimizer.finish()
        if steps % 3:
            journal(tree)
        if steps % 3 == 2:
            freed(tree)
        tree = reopened(tree)
        steps += 1
        for data, snapshot in zip(saves, snapshots, strict=True):
            assert read(tree, "last.pt", snapshot) == data
        assert steps < 50
    with tree.store:
        check_tree(tree)
        assert uncompared_bytes(tree) == 0
        assert all(deltas(tree, "last.pt", snapshot.id) for snapshot in snapshots[:-1])


def test_what_a_rollback_brings_back_is_stored_by_itself_again(tree: Tree) -> None:
    saves = training(3)
    snapshots = []
    for data in saves:
        save(tree, "last.pt", data)
        snapshots.append(tree.take_snapshot())
    encode(tree)
    optimizer = Optimizer(tree)
    optimize(optimizer)
    assert deltas(tree, "last.pt", snapshots[0].id)
    tree.roll_back(snapshots[0])
    optimize(optimizer)
    assert deltas(tree, "last.pt") == 0
    assert read(tree, "last.pt") == saves[0]
    assert [read(tree, "last.pt", snapshot) for snapshot in snapshots] == saves


def test_a_save_that_finds_an_old_chunk_again_is_read_at_full_speed(tree: Tree) -> None:
    saves = training(2)
    for data in saves:
        save(tree, "last.pt", data)
        tree.take_snapshot()
    encode(tree)
    optimizer = Optimizer(tree)
    optimize(optimizer)
    save(tree, "elsewhere.pt", saves[0])
    assert deltas(tree, "elsewhere.pt")
    optimize(optimizer)
    assert deltas(tree, "elsewhere.pt") == 0
    assert read(tree, "elsewhere.pt") == saves[0]


def test_a_damaged_header_leaves_a_version_as_it_is(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    saves = training(3)
    for data in saves:
        save(tree, "last.pt", data)
        tree.take_snapshot()
    encode(tree)
    freed(tree)
    first = tree.snapshots.all()[0]
    number = tree.files.load(tree.names.resolve("last.pt", first.id)).extents[0].number
    location = tree.store._index.locate(number)
    assert location is not None
    (pack,) = (tree.store.path / "packs").iterdir()
    with pack.open("r+b") as file:
        file.seek(location.offset + 100)
        file.write(b"damage")
    tree.reader = type(tree.reader)(tree.store)
    optimize(Optimizer(tree))
    assert "an earlier version of last.pt stays as it is" in caplog.text
    assert uncompared_bytes(tree) == 0


def test_the_command_works_to_the_end_in_parts(tree: Tree) -> None:
    saves = training(4)
    for data in saves:
        save(tree, "last.pt", data)
        tree.take_snapshot()
    waiting = tree.store.waiting_bytes
    assert waiting > MIB
    commands = Commands(tree)
    done, finished = 0, False
    while not finished:
        part = commands.optimize()
        done, finished = done + part["done_bytes"], part["finished"]
    assert done == waiting + sum(map(len, saves[:-1]))
    assert part["left_bytes"] == 0
    assert commands.stats()["waiting_bytes"] == commands.stats()["uncompared_bytes"] == 0
    assert tree.rows.tables.get(Table.META, b"optimized_until") is not None
    stats = commands.stats()
    assert stats["version_bytes"] == sum(map(len, saves))
    assert stats["stored_bytes"] < stats["chunk_bytes"] <= stats["version_bytes"]
    assert 0.7 * stats["version_bytes"] < stats["delta_bytes"] < stats["chunk_bytes"]


def test_versions_of_a_deleted_file_become_differences_too(tree: Tree) -> None:
    saves = training(2)
    for step, data in enumerate(saves):
        save(tree, f"step-{step}.pt", data)
    snapshot = tree.take_snapshot()
    unlink(tree, "step-0.pt")
    encode(tree)
    optimize(Optimizer(tree))
    assert deltas(tree, "step-0.pt", snapshot.id)
    assert read(tree, "step-0.pt", snapshot) == saves[0]
