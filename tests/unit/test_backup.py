"""Backups: consistent whatever happens to the source meanwhile, brought up to date cheaply, and never mixed up."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptfs.disk import Disk
from ckptfs.errors import DamagedError, NoSpaceError, NotAStoreError, StoreReadOnlyError
from ckptfs.store import ChunkStore, Cut, back_up
from ckptfs.store.backup import BackupResult
from ckptfs.tree import Tree
from tests.unit.test_check import damaged, flip, problems
from tests.unit.tree_support import NoSyncDisk, dump, journal, new_tree, open_tree, read, save

RNG_SEED = 5


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give a tree with two versions, of zeros that encode well and of noise that does not, in an open store."""
    tree = new_tree(tmp_path / "store")
    save(tree, "a", random.Random(RNG_SEED).randbytes(3000) + b"text " * 2000)
    tree.take_snapshot("first")
    save(tree, "b", b"more text " * 3000)
    tree.take_snapshot("second")
    tree.store.commit(checkpoint=True)
    return tree


def cut_of(tree: Tree, meanwhile: Callable[[], None] = lambda: None) -> Callable[[], Cut]:
    """Return what tells a backup how far it goes; `meanwhile` happens between the first answer and the copying."""
    happened: list[bool] = []

    def cut() -> Cut:
        journal(tree)
        answer = Cut(tree.store.position, tree.store.punch_count)
        if not happened:
            happened.append(True)
            meanwhile()
        return answer

    return cut


def run(tree: Tree, destination: Path, meanwhile: Callable[[], None] = lambda: None) -> BackupResult:
    """Back a store up while it is open."""
    return back_up(tree.store.path, destination, cut_of(tree, meanwhile), lambda count: None, disk=NoSyncDisk())


def assert_same(destination: Path, tree: Tree) -> None:
    """Assert that a backup shows what the tree shows, in all versions."""
    copy = open_tree(destination)
    epochs = [each.id for each in tree.snapshots.all()]
    assert [each.id for each in copy.snapshots.all()] == epochs
    assert [dump(copy, epoch) for epoch in epochs] == [dump(tree, epoch) for epoch in epochs]
    assert problems(copy) == []
    assert damaged(copy) == []
    copy.store.close(commit=False)


def reencode(tree: Tree) -> None:
    """Encode what waits, and punch the places of the old records."""
    tree.store.reencoder.encode_waiting(1 << 20)
    tree.store.commit(checkpoint=True)
    assert tree.store.reclaimer.punch()


def test_a_backup_is_a_store_with_everything(tree: Tree, tmp_path: Path) -> None:
    done = run(tree, tmp_path / "backup")
    assert done.copied_bytes == done.total_bytes > 0
    assert_same(tmp_path / "backup", tree)


def test_a_second_backup_copies_what_is_new(tree: Tree, tmp_path: Path) -> None:
    first = run(tree, tmp_path / "backup")
    save(tree, "c", random.Random(1).randbytes(500))
    tree.take_snapshot("third")
    second = run(tree, tmp_path / "backup")
    assert 500 < second.copied_bytes < 3000 < first.copied_bytes
    assert_same(tmp_path / "backup", tree)
    assert run(tree, tmp_path / "backup").copied_bytes == 0


def test_what_is_punched_while_it_is_copied_is_no_damage(tree: Tree, tmp_path: Path) -> None:
    run(tree, tmp_path / "backup", lambda: reencode(tree))
    assert_same(tmp_path / "backup", tree)


def test_a_backup_repeats_the_holes_of_its_source(tree: Tree, tmp_path: Path) -> None:
    run(tree, tmp_path / "backup")
    before = (tmp_path / "backup" / "packs" / "00000001.pack").stat().st_blocks
    reencode(tree)
    run(tree, tmp_path / "backup")
    assert (tmp_path / "backup" / "packs" / "00000001.pack").stat().st_blocks < before
    assert_same(tmp_path / "backup", tree)
    run(tree, tmp_path / "fresh")
    assert_same(tmp_path / "fresh", tree)


class FullDisk(NoSyncDisk):
    """A disk that is full after some writes and copies."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def copy_range(self, source: int, target: int, offset: int, size: int, path: Path) -> int:
        """Copy a little at a time, as long as there is room."""
        self._take(path)
        return super().copy_range(source, target, offset, min(size, 900), path)

    def publish(self, path: Path, data: bytes) -> None:
        """Write, as long as there is room."""
        self._take(path)
        super().publish(path, data)

    def _take(self, path: Path) -> None:
        if not self.calls:
            raise NoSpaceError(f"the disk below the store is full: {path}")
        self.calls -= 1


def test_a_backup_that_was_cut_short_is_taken_up_again(tree: Tree, tmp_path: Path) -> None:
    calls = 0
    while True:
        try:
            back_up(tree.store.path, tmp_path / "backup", cut_of(tree), lambda count: None, disk=FullDisk(calls))
            break
        except NoSpaceError:
            calls += 1
            if calls % 3 == 0:
                save(tree, f"meanwhile-{calls}", random.Random(calls).randbytes(300))
    assert calls > 10
    tree.take_snapshot("last")
    run(tree, tmp_path / "backup")
    assert_same(tmp_path / "backup", tree)


def test_a_backup_that_somebody_has_written_to_is_refused(tree: Tree, tmp_path: Path) -> None:
    run(tree, tmp_path / "backup")
    copy = open_tree(tmp_path / "backup")
    save(copy, "mine", b"mine")
    copy.store.close()
    with pytest.raises(StoreReadOnlyError, match="was changed since the last backup"):
        run(tree, tmp_path / "backup")


def test_what_is_no_backup_of_this_store_is_refused(tree: Tree, tmp_path: Path) -> None:
    ChunkStore.create(tmp_path / "other").close()
    with pytest.raises(NotAStoreError, match="another store"):
        run(tree, tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(NotAStoreError, match="not empty"):
        run(tree, tmp_path / "full")
    with pytest.raises(NotAStoreError, match="no directory"):
        run(tree, tmp_path / "full" / "file")
    tree.store.close()
    shutil.copytree(tree.store.path, tmp_path / "copy")
    tree = open_tree(tree.store.path)
    with pytest.raises(NotAStoreError, match="no backup"):
        run(tree, tmp_path / "copy")
    tree.store.close()


def test_damage_of_the_source_is_named_and_all_else_backed_up(tree: Tree, tmp_path: Path) -> None:
    flip(tree, 2)
    done = run(tree, tmp_path / "backup")
    assert len(done.losses) == 1 and "00000001.pack" in done.losses[0]
    copy = open_tree(tmp_path / "backup")
    assert read(copy, "b") == read(tree, "b")
    copy.store.close()
    tree.store._packs.path(1).unlink()
    with pytest.raises(DamagedError, match=r"00000001\.pack .* missing"):
        run(tree, tmp_path / "none")


def test_a_copy_of_a_range_falls_back_to_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    data = random.Random(1).randbytes(5000)
    (tmp_path / "source").write_bytes(data)
    source = disk.open_read(tmp_path / "source")
    for name, errno in (("shared", None), ("copied", 18), ("refused", 22)):
        if errno:

            def refuse(*_arguments: object, code: int = errno) -> int:
                raise OSError(code, "refused")

            monkeypatch.setattr("os.copy_file_range", refuse)
        target = disk.open_write(tmp_path / name, create=True)
        done = 0
        while count := disk.copy_range(source, target, done, 3000, tmp_path / name):
            done += count
        disk.close(target)
        assert (tmp_path / name).read_bytes() == data
    disk.close(source)
