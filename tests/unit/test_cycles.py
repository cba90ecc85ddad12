"""Directories without an end, as a tampered store may have them, end in an error; deep ones are as good as others."""

import errno
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import Table
from ckptfs.tree import Tree, places, renaming
from ckptfs.tree.dirent import DIRENT_STRUCT
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.optimize import file_versions
from ckptfs.tree.rows import name_prefix
from tests.unit.test_check import problems
from tests.unit.tree_support import OWNER, make_directory, new_tree, read, rename, save, split

DEPTH = 200
CALLS_MAX = 350
"""Python's own bound on calls in calls, lowered: with 1,000 the tree would have to be deeper."""
CONTENT = b"content" * 600


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Give a tree with two directories, one in the other, and a version of it."""
    monkeypatch.setattr(places, "DEPTH_MAX", 1000)
    tree = new_tree(tmp_path / "store")
    make_directory(tree, "one")
    make_directory(tree, "one/two")
    save(tree, "one/file", CONTENT)
    tree.take_snapshot("before")
    yield tree
    tree.store.close(commit=False)


def put_name(tree: Tree, parent: int, name: bytes, ino: int) -> None:
    """Write a directory entry without asking anybody."""
    tree.rows.put(Table.DIRENTS, name_prefix(parent, name), DIRENT_STRUCT.pack(ino, stat.S_IFDIR >> 12))


def test_a_directory_that_is_in_itself_is_walked_once(tree: Tree) -> None:
    one, two = (tree.names.resolve(path).ino for path in ("one", "one/two"))
    put_name(tree, two, b"three", one)
    snapshot = tree.take_snapshot("after")
    assert any("is a directory with 2 names" in problem for problem in problems(tree))
    with pytest.raises(DamagedError, match="below itself"):
        tree.history.changes(snapshot)
    tree.store.commit()
    for ref in ("before", "after"):
        for path in ("", "one"):
            with pytest.raises(DamagedError, match="below itself"):
                tree.roll_back(tree.snapshots.resolve(ref), path)
            assert not tree.store.tables.take_changes().rows
    assert read(tree, "one/file") == CONTENT
    tree.rows.remove(Table.DIRENTS, name_prefix(two, b"three"))
    tree.roll_back(tree.snapshots.resolve("before"))
    with pytest.raises(DamagedError, match="below itself"):  # the version has what the live tree has no more
        tree.roll_back(snapshot)


def test_a_ring_of_directories_without_a_way_to_the_root_has_no_path(tree: Tree) -> None:
    one, two = (tree.names.resolve(path).ino for path in ("one", "one/two"))
    put_name(tree, two, b"three", one)
    tree.rows.remove(Table.DIRENTS, name_prefix(ROOT_INO, b"one"))
    assert any(problem.startswith(f"#{two} in the live tree") for problem in problems(tree))
    tree.names.lookup(two, b"three")
    assert tree.names.path(two) == f"#{two}"
    (version,) = file_versions(tree.rows.tables.scan, [tree.rows.open_epoch]).committed
    assert version.path.endswith(b"/file") and version.path.count(b"/") > 1000
    make_directory(tree, "outside")
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EINVAL):
        renaming.rename(tree.names, *split(tree, "outside"), two, b"inside")


def test_a_tree_that_is_deeper_than_python_calls_itself_is_rolled_back(tmp_path: Path) -> None:
    tree = new_tree(tmp_path / "store")
    parent = ROOT_INO
    for _ in range(DEPTH):
        parent = tree.names.create(parent, b"d", stat.S_IFDIR | 0o755, OWNER).ino
    path = "/".join("d" * DEPTH)
    save(tree, f"{path}/file", b"one")
    target = tree.take_snapshot("deep")
    save(tree, f"{path}/file", b"two")
    rename(tree, "d", "e")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(CALLS_MAX)
    try:
        _, result = tree.roll_back(target)
        assert sys.getrecursionlimit() == CALLS_MAX
    finally:
        sys.setrecursionlimit(before)
    assert result.changed_files == {f"{path}/file", f"{path.replace('d', 'e', 1)}/file"}
    assert read(tree, f"{path}/file") == b"one"
    assert [name for name, _ in tree.names.entries(ROOT_INO)] == [b"d"]
    assert problems(tree) == []
    tree.store.close()
