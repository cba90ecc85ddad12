"""The commands: JSON-able answers, all or nothing."""

import json
from pathlib import Path

import pytest

from ckptfs.errors import StoreReadOnlyError, UnknownSnapshotError, UsageError
from ckptfs.store import ChunkStore
from ckptfs.tree import Commands, Tree
from tests.unit import tree_support as support
from tests.unit.tree_support import read, save


@pytest.fixture
def commands(tree: Tree) -> Commands:
    return Commands(tree)


def test_create_and_list(tree: Tree, commands: Commands) -> None:
    save(tree, "model", b"data")
    made = commands.snapshot_create("named", "a label")
    save(tree, "other", b"more")
    commands.snapshot_create()
    assert made == json.loads(json.dumps(made))
    stored = made.pop("stored_bytes")
    assert stored > 0
    assert made.pop("created").startswith("2023-11-14T22:13:20.")
    assert made == {
        "id": 1, "name": "named", "trigger": "manual", "label": "a label",
        "changed_files": 1, "written_bytes": 4, "paths": ["model"],
    }  # fmt: skip
    assert [answer["id"] for answer in commands.snapshot_list()] == [1, 2]
    assert [answer["id"] for answer in commands.snapshot_list("/")] == [1, 2]
    assert [answer["id"] for answer in commands.snapshot_list("other")] == [2]


def test_show(tree: Tree, commands: Commands) -> None:
    save(tree, "model", b"data")
    commands.snapshot_create("named")
    shown = commands.snapshot_show("nam")
    assert shown["changes"] == [{"path": "model", "change": "added", "size": 4}]
    assert shown["name"] == "named"


def test_rollback_tells_what_it_did(tree: Tree, commands: Commands) -> None:
    save(tree, "model", b"old")
    commands.snapshot_create("good")
    save(tree, "model", b"new")
    save(tree, "partial", b"pa", killed=True)
    answer = commands.snapshot_rollback("good")
    assert answer["target"]["name"] == "good"
    assert answer["saved"]["trigger"] == "rollback"
    assert answer["saved"]["label"] == "before the rollback to good"
    assert (answer["changed_files"], answer["removed_partial"]) == (2, ["partial"])
    assert commands.last_rollback is not None
    assert commands.last_rollback.changed_files == {"model", "partial"}
    assert read(tree, "model") == b"old"


def test_delete_is_all_or_nothing(tree: Tree, commands: Commands) -> None:
    for name in ("a", "b", "c"):
        commands.snapshot_create(name)
    with pytest.raises(UnknownSnapshotError):
        commands.snapshot_delete(["a", "nothing"])
    assert len(tree.snapshots) == 3
    deleted = commands.snapshot_delete(["a", "1", "latest"])
    assert [answer["name"] for answer in deleted] == ["a", "c"]
    assert [answer["name"] for answer in commands.snapshot_list()] == ["b"]


def test_prune_deletes_what_the_policy_does_not_keep(tree: Tree, commands: Commands) -> None:
    for number in range(4):
        save(tree, "model", b"%d" % number)
        tree.take_snapshot(trigger="auto")
    commands.snapshot_create("named")
    removable = commands.prune("last=2", dry_run=True)
    assert [answer["id"] for answer in removable] == [1, 2, 3]
    assert len(tree.snapshots) == 5
    assert commands.prune("last=2", dry_run=False) == removable
    assert [answer["id"] for answer in commands.snapshot_list()] == [4, 5]
    assert commands.gc(dry_run=False)["chunks"] == 3
    with pytest.raises(UsageError):
        commands.prune("last=x", dry_run=False)


def test_stats_count_live_and_kept_bytes(tree: Tree, commands: Commands) -> None:
    save(tree, "model", b"x" * 100)
    commands.snapshot_create()
    commands.snapshot_create()
    save(tree, "model", b"y" * 30)
    support.link(tree, "model", "linked")
    save(tree, "gone", b"z" * 7)
    commands.snapshot_create()
    support.unlink(tree, "gone")
    save(tree, "partial", b"p" * 5, killed=True)
    stats = commands.stats()
    assert (stats["live_bytes"], stats["version_bytes"]) == (35, 142)
    assert (stats["snapshots"], stats["chunks"], stats["interrupted"]) == (3, 4, ["partial"])
    assert stats["stored_bytes"] > 0
    assert stats["store"] == str(tree.store.path)
    assert json.loads(json.dumps(stats)) == stats


def test_an_empty_store_is_not_opened_for_reading_only(tmp_path: Path) -> None:
    support.new_store(tmp_path / "empty").close()
    with (
        ChunkStore.open(tmp_path / "empty", read_only=True) as store,
        pytest.raises(StoreReadOnlyError, match="mount it writable once"),
    ):
        Tree(store)
