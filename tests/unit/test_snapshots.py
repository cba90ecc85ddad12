"""Snapshots: named, found, kept as they were, and deleted in any order."""

import random
from itertools import permutations
from pathlib import Path

import pytest

from ckptfs.errors import AmbiguousSnapshotError, SnapshotNameError, UnknownSnapshotError
from ckptfs.tree import Tree
from ckptfs.tree.snapshots import NAME_MAX
from tests.unit import tree_support as support
from tests.unit.tree_support import Clock, check_tree, dump, save

SEED = 20250117


def test_a_snapshot_tells_what_it_is(tree: Tree) -> None:
    for name in ("d", "c", "b", "a"):
        save(tree, name, b"data" * 10)
    snapshot = tree.take_snapshot("first", "manual", "a label")
    assert (snapshot.id, snapshot.name, snapshot.trigger, snapshot.label) == (1, "first", "manual", "a label")
    assert (snapshot.changed_files, snapshot.written_bytes, snapshot.paths) == (4, 160, ("a", "b", "c"))
    assert snapshot.stored_bytes > 40
    second = tree.take_snapshot("second")
    assert (second.changed_files, second.written_bytes, second.stored_bytes, second.paths) == (0, 0, 0, ())


def test_a_path_that_several_files_have_had_is_one_changed_file(tree: Tree) -> None:
    for data in (b"first", b"second"):
        support.save(tree, "last", data)
        support.unlink(tree, "last")
    support.save(tree, "other", b"data")
    snapshot = tree.take_snapshot()
    assert (snapshot.changed_files, snapshot.paths) == (2, ("last", "other"))


def test_times_are_utc_with_milliseconds(tree: Tree, clock: Clock) -> None:
    clock.wall = 1_700_000_000_999_999_998
    assert tree.take_snapshot().created == "2023-11-14T22:13:20.999Z"


def test_names_by_time_differ(tree: Tree) -> None:
    assert [tree.take_snapshot().name for _ in range(3)] == [
        "20231114-221320",
        "20231114-221320-2",
        "20231114-221320-3",
    ]


def test_a_clock_that_jumps_back_changes_no_order(tree: Tree, clock: Clock) -> None:
    save(tree, "last.pt", b"one")
    first = tree.take_snapshot()
    clock.wall -= 3600 * 1_000_000_000
    save(tree, "last.pt", b"two")
    second = tree.take_snapshot()
    assert second.created_ns < first.created_ns
    assert tree.snapshots.all() == [first, second]
    assert tree.snapshots.latest() == tree.snapshots.resolve("latest") == second
    assert (support.read(tree, "last.pt", first), support.read(tree, "last.pt", second)) == (b"one", b"two")


def test_references(tree: Tree) -> None:
    taken = [tree.take_snapshot(name) for name in ("before", "bench", "10", "x~1") if not name.isdigit()]
    resolve = tree.snapshots.resolve
    assert [resolve(ref) for ref in ("before", "bef", "ben", "x", "1", "3")] == [
        taken[0], taken[0], taken[1], taken[2], taken[0], taken[2],
    ]  # fmt: skip
    assert [resolve(ref) for ref in ("latest", "latest~0", "latest~1", "latest~2")] == [
        taken[2], taken[2], taken[1], taken[0],
    ]  # fmt: skip
    with pytest.raises(AmbiguousSnapshotError, match="'be' could mean 2 snapshots: before, bench"):
        resolve("be")
    with pytest.raises(UnknownSnapshotError, match="there are only 3 snapshots"):
        resolve("latest~3")
    with pytest.raises(UnknownSnapshotError, match="the nearest are before"):
        resolve("befroe")
    for ref in ("", "99", "\N{SUPERSCRIPT TWO}", "latest~", "latest~-1"):
        with pytest.raises(UnknownSnapshotError):
            resolve(ref)


def test_a_whole_name_wins_over_a_prefix(tree: Tree) -> None:
    tree.take_snapshot("good-2")
    exact = tree.take_snapshot("good")
    assert tree.snapshots.resolve("good") == exact


def test_no_snapshot_yet(tree: Tree) -> None:
    assert tree.snapshots.latest() is None
    with pytest.raises(UnknownSnapshotError, match="there is none yet"):
        tree.snapshots.resolve("anything")
    with pytest.raises(UnknownSnapshotError, match="only 0"):
        tree.snapshots.resolve("latest")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\nb", "a\0b", "12", "latest", "latest~3", "x" * (NAME_MAX + 1), "\u00e4" * 128, "\udcff"],
)
def test_names_that_are_refused(tree: Tree, name: str) -> None:
    with pytest.raises(SnapshotNameError):
        tree.take_snapshot(name)
    assert len(tree.snapshots) == 0
    assert tree.rows.open_epoch == 1


def test_a_taken_name_is_refused_until_it_is_free(tree: Tree) -> None:
    taken = tree.take_snapshot("name")
    with pytest.raises(SnapshotNameError, match="already"):
        tree.take_snapshot("name")
    tree.snapshots.delete(taken)
    assert tree.take_snapshot("name").id == 2


def history(tree: Tree) -> None:
    """Make six snapshots in which files come, change, go, come back, move, and are half written."""
    save(tree, "stays", b"stays")
    save(tree, "model", b"one")
    support.make_directory(tree, "run")
    tree.take_snapshot("s1")
    save(tree, "model", b"two")
    save(tree, "run/x", b"x")
    tree.xattrs.set(tree.names.resolve("model").ino, b"user.step", b"2")
    tree.take_snapshot("s2")
    support.unlink(tree, "model")
    support.rename(tree, "run", "moved")
    tree.take_snapshot("s3")
    save(tree, "model", b"three")
    save(tree, "half", b"half", killed=True)
    support.link(tree, "moved/x", "linked")
    tree.take_snapshot("s4")
    save(tree, "model", b"killed", killed=True)
    support.unlink(tree, "moved/x")
    tree.names.rmdir(*support.split(tree, "moved"))
    tree.take_snapshot("s5")
    tree.roll_back(tree.snapshots.resolve("s2"))
    save(tree, "half", b"whole")
    tree.take_snapshot("s7")


def test_a_deletion_changes_nothing_else(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    orders = random.Random(SEED).sample(list(permutations(range(7))), 12)
    for number, order in enumerate([tuple(range(7)), tuple(reversed(range(7))), *orders]):
        tree = support.new_tree(tmp_path / str(number))
        history(tree)
        snapshots = tree.snapshots.all()
        assert len(snapshots) == len(order)
        live = dump(tree)
        shown = {snapshot.id: support.raw_inodes(tree, snapshot.id) for snapshot in snapshots}
        seen = {snapshot.id: dump(tree, snapshot.id) for snapshot in snapshots}
        for index in order:
            tree.snapshots.delete(snapshots[index])
            del shown[snapshots[index].id], seen[snapshots[index].id]
            assert dump(tree) == live
            assert {epoch: dump(tree, epoch) for epoch in seen} == seen
            assert {epoch: support.raw_inodes(tree, epoch) for epoch in shown} == shown
            check_tree(tree)
        tree.close()


def test_deletion_frees_the_rows_that_nobody_else_saw(tree: Tree) -> None:
    save(tree, "model", b"data")
    tree.take_snapshot()
    rows = len(list(tree.rows.changes(0, tree.rows.open_epoch)))
    for number in range(10):
        save(tree, "model", b"%d" % number)
        save(tree, f"extra-{number}", b"")
        tree.take_snapshot()
        support.unlink(tree, f"extra-{number}")
    tree.take_snapshot()
    for snapshot in tree.snapshots.all()[1:-1]:
        tree.snapshots.delete(snapshot)
    left = [change for epoch, change in tree.rows.changes(1, tree.rows.open_epoch)]
    assert len(left) <= rows


def test_snapshots_survive_the_store(tmp_path: Path) -> None:
    tree = support.new_tree(tmp_path / "store")
    history(tree)
    tree.snapshots.delete(tree.snapshots.resolve("s3"))
    before, names = {each.id: dump(tree, each.id) for each in tree.snapshots.all()}, tree.snapshots.all()
    tree.close()
    tree = support.open_tree(tmp_path / "store", read_only=True)
    assert tree.snapshots.all() == names
    assert {each.id: dump(tree, each.id) for each in tree.snapshots.all()} == before
    tree.close()


def test_neighbours(tree: Tree) -> None:
    taken = [tree.take_snapshot(name).id for name in ("a", "b", "c")]
    tree.snapshots.delete(tree.snapshots.resolve("b"))
    assert [tree.snapshots.before(epoch) for epoch in (1, 2, 3, 4)] == [0, taken[0], taken[0], taken[2]]
    assert [tree.snapshots.after(epoch) for epoch in (0, 1, 2)] == [taken[0], taken[2], taken[2]]
    assert tree.snapshots.after(3) > taken[2]
    assert [tree.snapshots.has(epoch) for epoch in (1, 2, 3)] == [True, False, True]
