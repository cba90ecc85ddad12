"""Rollback: the live tree becomes what a snapshot shows, nothing else is lost, and it can be undone."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import DamagedError, OpenFilesError, UsageError
from ckptfs.store import Table
from ckptfs.tree import Tree, rollback
from ckptfs.tree.rows import LIVE, Row, id_prefix
from ckptfs.tree.snapshots import Snapshot
from tests.unit import tree_support as support
from tests.unit.tree_support import check_tree, dump, open_tree, read, save


@pytest.fixture(params=[rollback.CHANGES_MAX, 0], ids=["changes-known", "changes-too-many"], autouse=True)
def changes_max(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(rollback, "CHANGES_MAX", request.param)
    return int(request.param)


def test_rollback_brings_back_names_contents_and_attributes(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/model", b"old")
    save(tree, "run/gone", b"gone")
    tree.xattrs.set(tree.names.resolve("run/model").ino, b"user.step", b"1")
    target = tree.take_snapshot("good")
    before = dump(tree)
    save(tree, "run/model", b"newer and longer")
    tree.xattrs.set(tree.names.resolve("run/model").ino, b"user.more", b"2")
    support.unlink(tree, "run/gone")
    save(tree, "run/extra", b"extra")
    support.make_directory(tree, "run/dir")
    support.rename(tree, "run/extra", "run/dir/extra")
    left = dump(tree)
    saved, result = tree.roll_back(target)
    assert dump(tree) == before
    assert dump(tree, saved.id) == left
    assert saved.trigger == "rollback"
    assert result.changed_files == {"run/model", "run/gone", "run/dir/extra"}
    assert result.removed_partial == []
    run = tree.names.resolve("run").ino
    assert {(run, b"model"), (run, b"gone"), (run, b"dir")} <= result.entries
    tree.roll_back(saved)
    assert dump(tree) == left
    assert not tree.epoch.pending, "a rollback is a version already"


def test_the_attributes_of_a_file_are_the_old_ones_in_all(tree: Tree) -> None:
    before = save(tree, "model", b"old")
    target = tree.take_snapshot()
    save(tree, "model", b"new")
    tree.roll_back(target)
    assert tree.names.resolve("model") == before


def test_rollback_of_one_path_leaves_its_neighbours(tree: Tree) -> None:
    for run in ("one", "two"):
        support.make_directory(tree, run)
        save(tree, f"{run}/model", b"old")
    target = tree.take_snapshot()
    for run in ("one", "two"):
        save(tree, f"{run}/model", b"new")
        save(tree, f"{run}/extra", b"extra")
    tree.roll_back(target, "one")
    assert support.paths(tree) == ["one/", "one/model", "two/", "two/extra", "two/model"]
    assert read(tree, "one/model") == b"old"
    assert read(tree, "two/model") == b"new"
    tree.roll_back(target, "/two/model/")
    assert read(tree, "two/model") == b"old"
    assert read(tree, "two/extra") == b"extra"


def test_a_removed_path_comes_back(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/model", b"data")
    target = tree.take_snapshot()
    before = dump(tree)
    support.unlink(tree, "run/model")
    tree.names.rmdir(*support.split(tree, "run"))
    tree.roll_back(target, "run")
    assert dump(tree) == before


def test_what_moved_out_of_the_path_stays_and_the_path_gets_a_copy(tree: Tree) -> None:
    support.make_directory(tree, "run")
    support.make_directory(tree, "kept")
    save(tree, "run/model", b"old")
    target = tree.take_snapshot()
    support.rename(tree, "run/model", "kept/model")
    save(tree, "kept/model", b"trained on")
    tree.roll_back(target, "run")
    assert read(tree, "run/model") == b"old"
    assert read(tree, "kept/model") == b"trained on"
    assert tree.names.resolve("run/model").ino != tree.names.resolve("kept/model").ino


def test_a_file_and_a_directory_change_places(tree: Tree) -> None:
    save(tree, "a", b"file")
    support.make_directory(tree, "b")
    save(tree, "b/inner", b"inner")
    target = tree.take_snapshot()
    before = dump(tree)
    support.unlink(tree, "a")
    support.rename(tree, "b", "a")
    save(tree, "b", b"a file now")
    saved, _ = tree.roll_back(target)
    assert dump(tree) == before
    tree.roll_back(saved, "a")
    assert read(tree, "a/inner") == b"inner"


@pytest.mark.parametrize("removed", ["a", "b"])
def test_a_lost_hard_link_is_one_again(tree: Tree, removed: str) -> None:
    save(tree, "a", b"both")
    support.link(tree, "a", "b")
    target = tree.take_snapshot()
    before = dump(tree)
    support.unlink(tree, removed)
    tree.roll_back(target)
    assert dump(tree) == before


@pytest.mark.parametrize("removed", ["a", "b"])
def test_a_lost_hard_link_is_one_again_with_its_old_content(tree: Tree, removed: str) -> None:
    save(tree, "a", b"both")
    support.link(tree, "a", "b")
    target = tree.take_snapshot()
    before = dump(tree)
    support.unlink(tree, removed)
    save(tree, "a" if removed == "b" else "b", b"changed")
    tree.roll_back(target)
    assert dump(tree) == before


def test_a_hard_link_outside_the_path_keeps_its_content(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/a", b"old")
    support.link(tree, "run/a", "run/b")
    target = tree.take_snapshot()
    support.link(tree, "run/a", "outside")
    save(tree, "outside", b"new")
    tree.roll_back(target, "run")
    assert [read(tree, path) for path in ("run/a", "run/b", "outside")] == [b"old", b"old", b"new"]
    assert tree.names.resolve("run/a").ino == tree.names.resolve("run/b").ino != tree.names.resolve("outside").ino


def test_rollback_refuses_files_open_for_writing(tree: Tree) -> None:
    save(tree, "model", b"old")
    target = tree.take_snapshot()
    save(tree, "model", b"new")
    before, snapshots = dump(tree), len(tree.snapshots)
    file = support.open_path(tree, "model")
    with pytest.raises(OpenFilesError, match="open for writing: model"):
        tree.roll_back(target)
    assert dump(tree) == before
    assert len(tree.snapshots) == snapshots
    support.close_file(tree, file)
    tree.roll_back(target)
    assert read(tree, "model") == b"old"


def test_rollback_names_some_of_many_open_files(tree: Tree) -> None:
    target = tree.take_snapshot()
    files = [support.create(tree, f"part-{number}") for number in range(7)]
    with pytest.raises(OpenFilesError, match=r"part-0, part-1, part-2, part-3, part-4, \.\.\.; close them"):
        tree.roll_back(target)
    for file in files:
        support.close_file(tree, file)


def test_a_file_open_for_writing_that_would_not_change_is_no_hindrance(tree: Tree) -> None:
    save(tree, "log", b"same")
    target = tree.take_snapshot()
    save(tree, "model", b"extra")
    file = support.open_path(tree, "log")
    tree.roll_back(target)
    assert support.paths(tree) == ["log"]
    tree.files.write(file, 4, b"!")
    support.close_file(tree, file)
    assert read(tree, "log") == b"same!"


def test_a_file_open_outside_the_path_is_no_hindrance(tree: Tree) -> None:
    for run in ("one", "one-more"):
        support.make_directory(tree, run)
        save(tree, f"{run}/model", b"old")
    target = tree.take_snapshot()
    save(tree, "one/model", b"new")
    file = support.open_path(tree, "one-more/model")
    tree.files.write(file, 0, b"writing")
    tree.roll_back(target, "one")
    assert read(tree, "one/model") == b"old"
    support.close_file(tree, file)
    assert read(tree, "one-more/model") == b"writing"


@pytest.mark.parametrize("change", ["content", "removal"])
def test_an_open_reader_goes_on_reading_what_it_opened(tree: Tree, change: str) -> None:
    if change == "content":
        save(tree, "model", b"old")
    target = tree.take_snapshot()
    save(tree, "model", b"newer")
    file = support.open_path(tree, "model", writing=False)
    tree.roll_back(target)
    assert support.read_content(tree, file.content) == b"newer"
    assert file.detached
    assert tree.files.attributes(file).size == len(b"newer")
    tree.files.release(file, writing=False)
    assert (read(tree, "model") == b"old") if change == "content" else support.paths(tree) == []


def test_a_file_unlinked_while_open_does_not_meet_itself(tree: Tree) -> None:
    save(tree, "model", b"old")
    target = tree.take_snapshot()
    file = support.open_path(tree, "model")
    support.unlink(tree, "model")
    tree.files.write(file, 0, b"scratch")
    tree.roll_back(target)
    assert read(tree, "model") == b"old"
    again = support.open_path(tree, "model", writing=False)
    support.close_file(tree, file)
    assert support.read_content(tree, again.content) == b"old"
    tree.files.release(again, writing=False)
    assert read(tree, "model") == b"old"


def test_what_has_lost_its_name_while_in_use_is_another_than_what_is_put_back(tree: Tree) -> None:
    for path in ("removed", "moved"):
        save(tree, path, b"old")
    before = {path: tree.names.resolve(path).ino for path in ("removed", "moved")}
    target = tree.take_snapshot()
    files = [support.open_path(tree, path, writing=False) for path in before]
    support.unlink(tree, "removed")
    support.rename(tree, "moved", "elsewhere")
    tree.roll_back(target)
    assert tree.names.resolve("removed").ino != before["removed"]
    assert tree.names.resolve("moved").ino == before["moved"]
    assert (tree.attributes(before["removed"]).nlink, tree.attributes(before["moved"]).nlink) == (0, 1)
    assert [support.read_content(tree, file.content) for file in files] == [b"old"] * 2
    for file in files:
        tree.files.release(file, writing=False)
    support.check_tree(tree)


def test_partial_files_are_removed_and_named(tree: Tree) -> None:
    save(tree, "model", b"old")
    target = tree.take_snapshot()
    save(tree, "model", b"half", killed=True)
    save(tree, "other", b"half", killed=True)
    _, result = tree.roll_back(target)
    assert sorted(result.removed_partial) == ["model", "other"]
    assert read(tree, "model") == b"old"
    assert support.paths(tree) == ["model"]
    assert list(tree.names.interrupted()) == []


def test_a_file_being_saved_by_rename_makes_way(tree: Tree) -> None:
    save(tree, "model", b"old")
    target = tree.take_snapshot()
    file = support.create(tree, "model.tmp")
    tree.files.write(file, 0, b"half")
    support.rename(tree, "model.tmp", "model")
    support.close_file(tree, file, killed=True)
    assert read(tree, "model") == b"half"
    tree.roll_back(target)
    assert read(tree, "model") == b"old"
    assert support.paths(tree) == ["model"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing is not in that snapshot"),
        ("run/nothing", "run/nothing is not in that snapshot"),
        ("run/model/below", "is not in that snapshot"),
        ("gone/model", "gone does not exist any more; roll back gone itself"),
        ("file/model", "file is no directory any more"),
    ],
)
def test_a_path_that_cannot_go_back(tree: Tree, path: str, message: str) -> None:
    for directory in ("run", "gone", "file"):
        support.make_directory(tree, directory)
        save(tree, f"{directory}/model", b"data")
    target = tree.take_snapshot()
    for directory in ("gone", "file"):
        support.unlink(tree, f"{directory}/model")
        tree.names.rmdir(*support.split(tree, directory))
    save(tree, "file", b"a file")
    before = len(tree.snapshots)
    with pytest.raises(UsageError, match=message):
        tree.roll_back(target, path)
    assert len(tree.snapshots) == before


def test_rollback_survives_a_crash_behind_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tree = support.new_tree(path)
    save(tree, "model", b"old")
    target = tree.take_snapshot()
    save(tree, "model", b"new")
    saved, _ = tree.roll_back(target)
    support.journal(tree)
    support.crash(tree)
    tree = support.open_tree(path)
    assert read(tree, "model") == b"old"
    assert read(tree, "model", saved) == b"new"
    check_tree(tree)
    tree.close()


def test_a_rollback_looks_up_and_writes_only_what_has_changed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, changes_max: int
) -> None:
    support.make_directory(tree, "run")
    for number in range(100):
        save(tree, f"run/part-{number}", b"old")
    target = tree.take_snapshot()
    save(tree, "run/part-7", b"new")
    tree.commit()
    found: list[bytes] = []
    find = tree.rows.find

    def noted(table: Table, prefix: bytes, epoch: int = LIVE) -> Row | None:
        found.append(prefix)
        return find(table, prefix, epoch)

    monkeypatch.setattr(tree.rows, "find", noted)
    _, result = tree.roll_back(target)
    assert result.changed_files == {"run/part-7"}
    assert len(found) < 20 or changes_max == 0
    written = [row for row in tree.store.tables.take_changes().rows if row.table in support.VERSIONED]
    assert {row.key[:8] for row in written} == {id_prefix(tree.names.resolve("run/part-7").ino)}


def test_an_entry_that_comes_back_touches_the_directory_around_the_path(tree: Tree) -> None:
    support.make_directory(tree, "run")
    save(tree, "run/model", b"old")
    target = tree.take_snapshot()
    support.unlink(tree, "run/model")
    before = tree.names.resolve("run").mtime_ns
    tree.roll_back(target, "run/model")
    touched = tree.names.resolve("run").mtime_ns
    assert touched > before
    tree.roll_back(target, "run/model")
    assert tree.names.resolve("run").mtime_ns == touched, "nothing was renamed"


def changed_since(tree: Tree) -> Snapshot:
    """Change a bit of everything since a snapshot, and return that."""
    support.make_directory(tree, "run")
    save(tree, "run/model", b"old")
    support.link(tree, "run/model", "run/other name")
    save(tree, "run/gone", b"gone")
    save(tree, "run/partial", b"whole")
    tree.xattrs.set(tree.names.resolve("run/gone").ino, b"user.step", b"1")
    target = tree.take_snapshot("good")
    save(tree, "run/model", b"newer")
    support.unlink(tree, "run/other name")
    support.unlink(tree, "run/gone")
    support.make_directory(tree, "run/new")
    save(tree, "run/new/extra", b"extra")
    tree.xattrs.set(tree.names.resolve("run/new/extra").ino, b"user.more", b"2")
    save(tree, "run/partial", b"half", killed=True)
    save(tree, "run/half", b"half", killed=True)
    tree.store.commit(checkpoint=True)
    return target


@pytest.mark.parametrize("path", ["", "run"])
def test_a_rollback_that_meets_damage_changes_nothing(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Whichever row it is that cannot be read, of all that are read when the changes have begun."""
    save(tree, "scratch", b"scratch")
    target = changed_since(tree)
    scratch = support.open_path(tree, "scratch", writing=False)
    support.unlink(tree, "scratch")
    reader = support.open_path(tree, "run/model", writing=False)
    left, partial = dump(tree), list(tree.names.interrupted())
    run, tables = rollback.Rollback.run, tree.store.tables
    reads_left = 0

    def failing(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*arguments: Any) -> Any:
            nonlocal reads_left
            reads_left -= 1
            if not reads_left:
                raise DamagedError("a row of the table is not what was written")
            return read(*arguments)

        return reading

    def running(self: rollback.Rollback) -> rollback.RollbackResult:
        with monkeypatch.context() as patch:
            for name in ("last", "get", "scan_latest"):
                patch.setattr(tables, name, failing(getattr(tables, name)))
            return run(self)

    failed = 0
    with monkeypatch.context() as patch:
        patch.setattr(rollback.Rollback, "run", running)
        while True:
            reads_left = failed + 1
            try:
                saved, result = tree.roll_back(target, path)
            except DamagedError as error:
                assert "is not what was written; nothing was rolled back, see `ckptfs check`" in str(error)
                failed += 1
            else:
                break
            assert dump(tree) == left, failed
            assert list(tree.names.interrupted()) == partial
            assert tree.names.inode(scratch.ino).nlink == 0, "somebody has it open"
            assert not tree.epoch.pending and not tree.epoch.changed
            check_tree(tree)
            if failed % 10 == 0:
                tree.store.commit(durable=False)
                shutil.copytree(tree.store.path, tmp_path / f"copy-{failed}")
                with closing(open_tree(tmp_path / f"copy-{failed}")) as copy:
                    assert dump(copy) == left
    assert failed > 20
    assert dump(tree, saved.id)["/run/model"] == left["/run/model"]
    assert sorted(result.removed_partial) == ["run/half", "run/partial"]
    assert read(tree, "run/model") == read(tree, "run/other name") == b"old"
    assert support.read_content(tree, reader.content) == b"newer"
    for file in (reader, scratch):
        tree.files.release(file, writing=False)


def test_a_rollback_to_a_version_whose_inode_is_lost_changes_nothing(tree: Tree) -> None:
    save(tree, "first", b"old")
    lost = save(tree, "second", b"old").ino
    target = tree.take_snapshot()
    save(tree, "first", b"new")
    support.unlink(tree, "second")
    left = dump(tree)
    row = next(key for key, _ in tree.store.tables.scan(Table.INODES, id_prefix(lost), id_prefix(lost + 1)))
    value = tree.store.tables.get(Table.INODES, row)
    tree.store.tables.delete(Table.INODES, row)
    with pytest.raises(DamagedError, match="nothing was rolled back"):
        tree.roll_back(target)
    assert dump(tree) == left
    assert value is not None
    tree.store.tables.put(Table.INODES, row, value)
    tree.roll_back(target)
    assert read(tree, "first") == read(tree, "second") == b"old"
