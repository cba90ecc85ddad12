"""What each snapshot changed, which snapshots changed a path, and what a restart finds again."""

from pathlib import Path

import pytest

from ckptfs.errors import UsageError
from ckptfs.tree import Tree
from ckptfs.tree.history import PathChange
from tests.unit import tree_support as support
from tests.unit.tree_support import save


def changing(tree: Tree, path: str) -> list[str]:
    return [snapshot.name for snapshot in tree.history.changing(path)]


def test_changes_are_by_path(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/model", b"one")
    save(tree, "run/same", b"same")
    first = tree.take_snapshot()
    save(tree, "run/model", b"second")
    save(tree, "new", b"12345")
    second = tree.take_snapshot()
    support.rename(tree, "run", "moved")
    support.unlink(tree, "new")
    third = tree.take_snapshot()
    changes = tree.history.changes
    assert changes(first) == [
        PathChange("run/", "added", 0), PathChange("run/model", "added", 3), PathChange("run/same", "added", 4),
    ]  # fmt: skip
    assert changes(second) == [PathChange("new", "added", 5), PathChange("run/model", "modified", 6)]
    moved = {change.path: change.change for change in changes(third)}
    assert moved.items() >= {"new": "removed", "moved/": "added", "run/": "removed"}.items()


def test_changes_are_against_the_snapshot_that_is_left(tree: Tree) -> None:
    tree.take_snapshot("empty")
    save(tree, "model", b"one")
    middle = tree.take_snapshot()
    save(tree, "model", b"two")
    last = tree.take_snapshot()
    assert tree.history.changes(last) == [PathChange("model", "modified", 3)]
    tree.snapshots.delete(middle)
    assert tree.history.changes(last) == [PathChange("model", "added", 3)]


def test_a_killed_save_is_no_change(tree: Tree) -> None:
    save(tree, "model", b"one")
    tree.take_snapshot()
    save(tree, "model", b"tw", killed=True)
    save(tree, "other", b"ot", killed=True)
    assert tree.history.changes(tree.take_snapshot()) == []


def test_snapshots_that_changed_a_path(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/model", b"one")
    save(tree, "other", b"other")
    tree.take_snapshot("made")
    save(tree, "run/model", b"two")
    tree.take_snapshot("written")
    save(tree, "other", b"another")
    tree.take_snapshot("elsewhere")
    support.unlink(tree, "run/model")
    tree.take_snapshot("removed")
    save(tree, "unseen", b"in no snapshot yet")
    assert changing(tree, "run/model") == ["made", "written", "removed"]
    assert changing(tree, "/run/") == ["made", "written", "removed"]
    assert changing(tree, "other") == ["made", "elsewhere"]
    assert changing(tree, "unseen") == []
    with pytest.raises(UsageError, match="no version has such a file"):
        tree.history.changing("run/nothing")


def test_changes_of_a_deleted_snapshot_count_for_the_next(tree: Tree) -> None:
    save(tree, "model", b"one")
    first = tree.take_snapshot("first")
    tree.take_snapshot("second")
    tree.snapshots.delete(first)
    assert changing(tree, "model") == ["second"]


def test_a_restart_finds_the_files_that_the_open_epoch_changed(tmp_path: Path) -> None:
    tree = support.new_tree(tmp_path / "again")
    support.make_directory(tree, "run")
    save(tree, "run/model", b"one")
    save(tree, "run/gone", b"gone")
    tree.take_snapshot()
    save(tree, "run/model", b"two")
    save(tree, "run/new", b"new")
    save(tree, "run/partial", b"pa", killed=True)
    support.unlink(tree, "run/gone")
    before = dict(tree.epoch.changed)
    assert sorted(before.values()) == ["run/gone", "run/model", "run/new"]
    tree.close()
    tree = support.open_tree(tmp_path / "again")
    snapshot = tree.take_snapshot()
    assert snapshot.changed_files == len(before)
    assert snapshot.paths == ("run/gone", "run/model", "run/new")
    tree.close()
