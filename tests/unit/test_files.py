"""Open files: when their content becomes a version, and when it does not."""

import errno
import logging
import random
from pathlib import Path

import pytest

from ckptfs.config import MIB
from ckptfs.errors import NoSpaceError
from ckptfs.store import ChunkStore
from ckptfs.tree import Tree, renaming
from ckptfs.tree.epoch import SAVE_SIZE_MIN
from ckptfs.tree.files import LOG_AGE_SECONDS, LOG_RATE
from ckptfs.tree.gc import collect
from ckptfs.tree.inode import INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from tests.unit import tree_support as support
from tests.unit.tree_support import Clock, check_tree, close_file, create, open_path, read, save


def test_a_new_file_is_a_version_when_it_is_closed(tree: Tree) -> None:
    file = create(tree, "model")
    tree.files.write(file, 0, b"half")
    assert read(tree, "model") == b"half"
    assert tree.attributes(file.ino).size == 4
    before = tree.take_snapshot()
    assert support.paths(tree, before) == []
    close_file(tree, file)
    after = tree.take_snapshot()
    assert read(tree, "model", after) == b"half"
    assert support.paths(tree, before) == []
    assert tree.names.inode(file.ino).flags == 0
    assert tree.files.get(file.ino) is None


def test_an_empty_file_is_a_version_too(tree: Tree) -> None:
    close_file(tree, create(tree, "done"))
    assert read(tree, "done", tree.take_snapshot()) == b""


def test_a_version_stays_until_its_successor_is_closed(tree: Tree) -> None:
    save(tree, "model", b"first")
    file = open_path(tree, "model")
    tree.files.truncate(file, 0)
    tree.files.write(file, 0, b"sec")
    snapshot = tree.take_snapshot()
    assert read(tree, "model") == b"sec"
    assert read(tree, "model", snapshot) == b"first"
    close_file(tree, file)
    assert read(tree, "model", snapshot) == b"first"
    assert read(tree, "model", tree.take_snapshot()) == b"sec"


def test_the_last_writer_commits(tree: Tree) -> None:
    one = create(tree, "model")
    two = open_path(tree, "model")
    reader = open_path(tree, "model", writing=False)
    assert one is two is reader
    tree.files.write(one, 0, b"data")
    close_file(tree, one)
    assert tree.names.inode(one.ino).flags == UNCOMMITTED
    close_file(tree, two)
    assert tree.names.inode(one.ino).flags == 0
    assert tree.files.get(one.ino) is reader
    close_file(tree, reader, writing=False)
    assert tree.files.get(one.ino) is None


def test_fsync_commits_a_file_that_stays_open(tree: Tree) -> None:
    file = create(tree, "model")
    tree.files.write(file, 0, b"synced")
    support.fsync(tree, file)
    tree.files.write(file, 0, b"later!")
    snapshot = tree.take_snapshot()
    assert read(tree, "model", snapshot) == b"synced"
    close_file(tree, file)
    assert read(tree, "model") == b"later!"


def test_a_close_without_a_write_makes_no_version(tree: Tree) -> None:
    inode = save(tree, "model", b"data")
    tree.take_snapshot()
    close_file(tree, open_path(tree, "model"))
    assert tree.names.resolve("model") == inode
    assert not tree.epoch.pending


def test_each_version_names_its_predecessor(tree: Tree) -> None:
    first = save(tree, "model", b"first")
    second = save(tree, "model", b"second")
    assert first.predecessor == 0
    assert second.predecessor == first.manifest != 0
    save(tree, "model", b"killed", killed=True)
    third = save(tree, "model", b"third")
    assert third.predecessor == second.manifest
    save(tree, "new", b"renamed over it")
    support.rename(tree, "new", "model")
    assert tree.names.resolve("model").predecessor == third.manifest


def test_a_file_renamed_into_place_while_open_succeeds_what_was_there(tree: Tree) -> None:
    first = save(tree, "model", b"first")
    file = create(tree, "model.tmp")
    tree.files.write(file, 0, b"second")
    support.rename(tree, "model.tmp", "model")
    close_file(tree, file)
    assert tree.names.resolve("model").predecessor == first.manifest


@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_save_is_no_version(tree: Tree, exists: bool, caplog: pytest.LogCaptureFixture) -> None:
    if exists:
        save(tree, "model", b"whole")
    with caplog.at_level(logging.WARNING):
        save(tree, "model", b"ha", killed=True)
    assert "interrupted: model (its writer was killed; 2 bytes are kept" in caplog.text
    assert read(tree, "model") == b"ha"
    assert [inode.ino for inode in tree.names.interrupted()] == [tree.names.resolve("model").ino]
    snapshot = tree.take_snapshot()
    if exists:
        assert read(tree, "model", snapshot) == b"whole"
    else:
        assert support.paths(tree, snapshot) == []
    save(tree, "model", b"again")
    assert list(tree.names.interrupted()) == []
    assert read(tree, "model", tree.take_snapshot()) == b"again"


def test_attributes_of_an_interrupted_file_reach_its_version(tree: Tree) -> None:
    save(tree, "model", b"whole")
    save(tree, "model", b"ha", killed=True)
    support.link(tree, "model", "other")
    snapshot = tree.take_snapshot()
    check_tree(tree)
    assert read(tree, "other", snapshot) == b"whole"
    assert tree.attributes(tree.names.resolve("other").ino, snapshot.id).nlink == 2


def test_a_crash_leaves_a_file_in_creation_as_interrupted(tmp_path: Path) -> None:
    tree = support.new_tree(tmp_path / "crashing")
    file = create(tree, "model")
    tree.files.write(file, 0, b"lost")
    support.journal(tree)
    support.crash(tree)
    tree = support.open_tree(tmp_path / "crashing")
    assert tree.names.resolve("model").flags == UNCOMMITTED | INTERRUPTED
    assert support.paths(tree, tree.take_snapshot()) == []
    close_file(tree, open_path(tree, "model"))
    assert tree.names.resolve("model").flags == UNCOMMITTED | INTERRUPTED, "nobody has finished it"
    save(tree, "model", b"")
    check_tree(tree)
    tree.close()


def fail_to_store(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def store(*_: object, **__: object) -> list[int]:
        raise NoSpaceError("full")

    monkeypatch.setattr(ChunkStore, "store", store)


def test_a_failure_after_a_write_is_never_forgotten(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tree, "model", b"whole")
    file = open_path(tree, "model")
    tree.files.write(file, 0, b"new and longer")
    with monkeypatch.context() as patch:
        fail_to_store(tree, patch)
        job = file.content.take_job(final=True)
        assert job is not None
        with pytest.raises(NoSpaceError) as caught:
            job.run()
    file.content.abandon_jobs()
    file.error = caught.value
    for _ in range(2):
        with pytest.raises(NoSpaceError):
            tree.files.write(file, 0, b"more")
        with pytest.raises(NoSpaceError):
            tree.files.truncate(file, 0)
    close_file(tree, file)
    assert read(tree, "model", tree.take_snapshot()) == b"whole"
    assert tree.names.resolve("model").flags == INTERRUPTED


def test_a_log_that_is_appended_to_asks_for_no_snapshot(tree: Tree) -> None:
    file = create(tree, "log", appending=True)
    tree.files.write(file, 0, b"line\n")
    assert tree.files.is_log(file)
    assert tree.files.unfinished_since() is None
    support.fsync(tree, file)
    assert not tree.epoch.pending
    assert read(tree, "log", tree.take_snapshot()) == b"line\n"
    other = open_path(tree, "log")
    tree.files.write(other, 0, b"LINE")
    assert not tree.files.is_log(file), "one who writes may write anywhere"
    close_file(tree, file, appending=True)
    close_file(tree, other)
    assert tree.epoch.pending


def test_a_file_written_slowly_and_for_long_is_a_log(tree: Tree, clock: Clock) -> None:
    file = create(tree, "metrics")
    tree.files.write(file, 0, b"step 1\n")
    assert tree.files.unfinished_since() == clock.now
    clock.advance(LOG_AGE_SECONDS)
    assert not tree.files.is_log(file)
    clock.advance(1)
    assert tree.files.is_log(file)
    assert tree.files.unfinished_since() is None
    tree.files.write(file, 7, bytes(MIB))
    assert MIB > LOG_RATE * (LOG_AGE_SECONDS + 1)
    assert tree.files.unfinished_since() == clock.now
    close_file(tree, file)


def test_written_bytes_count_what_each_version_got(tree: Tree) -> None:
    file = create(tree, "model")
    tree.files.write(file, 0, bytes(100))
    support.fsync(tree, file)
    tree.files.write(file, 100, bytes(50))
    close_file(tree, file)
    snapshot = tree.take_snapshot()
    assert (snapshot.written_bytes, snapshot.changed_files, snapshot.paths) == (150, 1, ("model",))


LARGE = bytes(SAVE_SIZE_MIN)


def test_a_save_over_a_completed_save_makes_that_a_version(tree: Tree) -> None:
    save(tree, "model", LARGE + b"1")
    save(tree, "model", LARGE + b"2")
    save(tree, "model", LARGE + b"3")
    assert [read(tree, "model", each)[-1:] for each in tree.snapshots.all()] == [b"1", b"2"]
    assert [snapshot.trigger for snapshot in tree.snapshots.all()] == ["auto", "auto"]
    assert tree.epoch.pending


@pytest.mark.parametrize("closed", ["before the rename", "after the rename"])
def test_a_save_by_rename_over_a_completed_save_makes_that_a_version(tree: Tree, closed: str) -> None:
    save(tree, "model", LARGE + b"1")
    file = create(tree, "temporary")
    tree.files.write(file, 0, LARGE + b"2")
    if closed == "before the rename":
        close_file(tree, file)
        support.rename(tree, "temporary", "model")
    else:
        support.rename(tree, "temporary", "model")
        close_file(tree, file)
    (kept,) = tree.snapshots.all()
    assert read(tree, "model", kept)[-1:] == b"1"
    assert read(tree, "model")[-1:] == b"2"


def test_a_removal_of_a_completed_save_makes_that_a_version(tree: Tree) -> None:
    save(tree, "step-1", LARGE)
    support.unlink(tree, "step-1")
    (kept,) = tree.snapshots.all()
    assert read(tree, "step-1", kept) == LARGE
    assert support.paths(tree) == []


def test_a_removal_of_a_save_of_several_files_makes_all_of_it_a_version(tree: Tree) -> None:
    """However small the file is that goes first, and wherever below its directory the large one lies."""
    for step in ("1", "2"):
        support.make_directory(tree, step)
        support.make_directory(tree, step + "/shards")
        save(tree, step + "/config", b"small")
        save(tree, step + "/shards/model", LARGE + step.encode())
    before = support.dump(tree)
    for name in ("1/config", "1/shards/model"):
        support.unlink(tree, name)
    (kept,) = tree.snapshots.all()
    assert support.dump(tree, kept.id) == before


@pytest.mark.parametrize(("missing", "kept"), [(0, 1), (1, 0)])
def test_a_removal_is_to_make_room_where_the_disk_has_less_than_was_saved(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, missing: int, kept: int
) -> None:
    save(tree, "model", random.Random(1).randbytes(SAVE_SIZE_MIN))
    monkeypatch.setattr(tree.store, "room", lambda: tree.epoch.stored_bytes - missing)
    support.unlink(tree, "model")
    assert len(tree.snapshots) == kept


def test_a_removal_of_what_belongs_to_no_save_makes_none(tree: Tree) -> None:
    save(tree, "old", LARGE)
    save(tree, "config", b"small")
    tree.take_snapshot("before")
    for directory in ("logs", "run"):
        support.make_directory(tree, directory)
    save(tree, "run/model", LARGE + b"1")
    save(tree, "logs/note", b"small")
    tree.names.link(tree.names.resolve("run/model").ino, ROOT_INO, b"best")
    for name in ("old", "config", "logs/note", "best"):
        support.unlink(tree, name)
    assert len(tree.snapshots) == 1


def test_a_database_changed_in_place_beside_a_journal_that_is_removed_makes_none(tree: Tree) -> None:
    save(tree, "database", LARGE)
    tree.take_snapshot("before")
    for _ in range(2):
        save(tree, "journal", b"small")
        file = open_path(tree, "database")
        tree.files.write(file, 100, b"changed")
        close_file(tree, file)
        support.unlink(tree, "journal")
    assert len(tree.snapshots) == 1


def test_a_small_or_a_killed_or_an_appended_save_makes_none(tree: Tree) -> None:
    for _ in range(2):
        save(tree, "small", b"x")
    save(tree, "model", LARGE)
    save(tree, "model", b"half", killed=True)
    file = open_path(tree, "model")
    tree.files.write(file, file.content.size, b"more")
    close_file(tree, file)
    assert len(tree.snapshots) == 0


def test_a_file_without_a_name_keeps_the_size_that_its_last_writer_left(tree: Tree) -> None:
    save(tree, "model", b"data")
    reader = open_path(tree, "model", writing=False)
    writer = open_path(tree, "model")
    support.unlink(tree, "model")
    tree.files.write(writer, 4, b" and more")
    close_file(tree, writer)
    assert tree.attributes(reader.ino).size == 13
    assert support.read_content(tree, reader.content) == b"data and more"
    tree.names.change_attributes(tree.names.inode(reader.ino)._replace(mode=0o100600))
    assert tree.attributes(reader.ino).size == 13
    tree.files.release(reader, writing=False)


def test_an_unlinked_file_lives_until_it_is_closed(tree: Tree) -> None:
    file = create(tree, "scratch")
    tree.files.write(file, 0, b"data")
    support.unlink(tree, "scratch")
    tree.files.write(file, 4, b"more")
    assert support.read_content(tree, file.content) == b"datamore"
    attributes = tree.attributes(file.ino)
    assert (attributes.nlink, attributes.size) == (0, 8)
    close_file(tree, file)
    assert support.paths(tree) == []
    with pytest.raises(OSError) as caught:
        tree.attributes(file.ino)
    assert caught.value.errno == errno.ESTALE


def replace_model(tree: Tree) -> Inode:
    """Replace a file that the kernel knows; return what it was."""
    tree.names.users.append(lambda ino: True)
    found = save(tree, "model", b"first")
    save(tree, "new", b"second")
    renaming.rename(tree.names, ROOT_INO, b"new", ROOT_INO, b"model")
    return found


def test_a_file_that_was_found_before_it_was_replaced_is_opened_until_a_collection_looks(tree: Tree) -> None:
    found = replace_model(tree)
    for _ in range(2):
        file = tree.files.open(tree.attributes(found.ino), writing=False)
        assert support.read_content(tree, file.content) == b"first"
        close_file(tree, file, writing=False)
    file = tree.files.open(tree.attributes(found.ino), writing=False)
    assert collect(tree).chunks == 0
    assert support.read_content(tree, file.content) == b"first"
    close_file(tree, file, writing=False)
    with pytest.raises(OSError) as caught:
        tree.files.open(tree.attributes(found.ino), writing=False)
    assert caught.value.errno == errno.ESTALE
    del file, caught  # whose frames have the content
    assert collect(tree).chunks == 1
    assert read(tree, "model") == b"second"


def test_a_file_that_was_written_to_without_a_name_is_not_opened_again(tree: Tree) -> None:
    found = replace_model(tree)
    file = tree.files.open(tree.attributes(found.ino), writing=True)
    tree.files.write(file, 0, b"other")
    close_file(tree, file)
    with pytest.raises(OSError) as caught:
        tree.files.open(tree.attributes(found.ino), writing=False)
    assert caught.value.errno == errno.ESTALE


def test_a_detached_file_stays_readable_and_commits_nothing(tree: Tree) -> None:
    inode = save(tree, "model", b"data")
    file = open_path(tree, "model")
    tree.files.detach(inode.ino)
    tree.files.write(file, 0, b"DATA")
    assert support.read_content(tree, file.content) == b"DATA"
    close_file(tree, file)
    assert tree.names.resolve("model") == inode
    tree.files.detach(inode.ino)


def test_the_largest_size_is_refused(tree: Tree) -> None:
    file = create(tree, "model")
    with pytest.raises(OSError) as caught:
        tree.files.write(file, (1 << 63) - 1, b"x")
    assert caught.value.errno == errno.EFBIG
    close_file(tree, file)


def test_times_of_an_open_file_are_those_of_its_last_write(tree: Tree) -> None:
    inode = save(tree, "model", b"data")
    file = open_path(tree, "model")
    assert tree.attributes(inode.ino) == inode
    tree.files.write(file, 0, b"DATA")
    seen = tree.attributes(inode.ino)
    assert seen.mtime_ns == seen.ctime_ns > inode.mtime_ns
    close_file(tree, file)
    assert tree.attributes(inode.ino).mtime_ns == seen.mtime_ns
