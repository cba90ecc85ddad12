"""What deleting a version would free is what its deletion and a collection then take away."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.store import Table
from ckptfs.store.location import parse_location
from ckptfs.tree import Tree
from ckptfs.tree import sizes as tree_sizes
from ckptfs.tree.commands import Commands
from ckptfs.tree.gc import collect
from tests.unit import tree_support as support
from tests.unit.tree_support import save

SEED = 77


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = support.new_tree(tmp_path / "store")
    yield tree
    tree.store.close(commit=False)


def sizes(tree: Tree) -> dict[int, int]:
    return dict(Commands(tree).snapshot_sizes())


def record_bytes(tree: Tree) -> int:
    with tree.store.view() as view:
        return sum(parse_location(value).place(0).size for _, value in view.scan(Table.CHUNKS))


def test_the_sizes_are_what_a_deletion_takes_away(tree: Tree) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    for step in range(30):
        path = chance.choice("abc")
        what = chance.random()
        if what < 0.6:
            save(tree, path, chance.choice((b"", chance.randbytes(3000), bytes(5000))), killed=chance.random() < 0.1)
        elif what < 0.8 and len(tree.snapshots):
            tree.roll_back(chance.choice(tree.snapshots.all()))
        elif path in support.paths(tree):
            support.unlink(tree, path)
        tree.take_snapshot(f"v{step}")
    collect(tree)
    names = [snapshot.name for snapshot in tree.snapshots.all()]
    chance.shuffle(names)
    freed = 0
    for name in names:
        snapshot = tree.snapshots.resolve(name)
        expected, before = sizes(tree)[snapshot.id], record_bytes(tree)
        tree.snapshots.delete(snapshot)
        collect(tree)
        assert before - record_bytes(tree) == expected
        freed += expected
    assert freed > 20_000
    assert sizes(tree) == {}


def test_the_sizes_are_at_hand_where_there_is_little_to_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(20):
        save(tree, "model", random.Random(step).randbytes(3000))
        tree.take_snapshot(f"v{step}")
    for tables_in_index in (False, True):
        if tables_in_index:
            tree.store.commit(checkpoint=True)
        assert Commands(tree).sizes_are_quick()
        monkeypatch.setattr(tree_sizes, "QUICK_ROWS", tree.store.stats().chunks + 10)
        assert not Commands(tree).sizes_are_quick()
        monkeypatch.undo()


def test_a_base_is_needed_by_whoever_needs_the_delta(tree: Tree) -> None:
    rng = random.Random(SEED)
    save(tree, "model", rng.randbytes(60))
    first = tree.take_snapshot("first")
    (old,) = numbers_of(tree, "model")
    save(tree, "model", rng.randbytes(60))
    second = tree.take_snapshot("second")
    (new,) = numbers_of(tree, "model")
    save(tree, "model", rng.randbytes(60))
    assert min(sizes(tree).values()) > 0
    support.append_delta(tree.store, old, new)
    before = sizes(tree)
    assert before[first.id] > 0
    assert before[second.id] == 0, "its chunk is the base of one that the first version has"
    tree.snapshots.delete(first)
    assert sizes(tree)[second.id] > 0


def numbers_of(tree: Tree, path: str) -> list[int]:
    inode = tree.names.resolve(path)
    return [extent.number for extent in tree.files.load(inode).extents.between(0, inode.size)]
