"""Space that comes back: dead places are punched, packs rewritten and removed, and the journal is condensed.

Everything holds on a disk that can free a part of a file and on one that cannot.
"""

import random
import shutil
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Disk, back_up
from ckptfs.store.backup import Cut
from ckptfs.store.condensed import NAME as CONDENSED_NAME
from ckptfs.store.usage import Usage, pages_with_data
from ckptfs.tree import Tree
from ckptfs.tree.gc import collect, preview
from tests.unit import tree_support as support
from tests.unit.second_reader import SecondReader
from tests.unit.tree_support import check_tree, read, save

SEED = 1612
PACK_SIZE = 150_000


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(SEED + seed).randbytes(size)


@pytest.fixture(params=[support.NoSyncDisk, support.NoPunchDisk], ids=["punching", "not-punching"])
def disk(request: pytest.FixtureRequest) -> Disk:
    disk: Disk = request.param()
    return disk


@pytest.fixture
def tree(tmp_path: Path, disk: Disk) -> Iterator[Tree]:
    support.new_store(tmp_path / "store").close()
    tree = support.open_tree(tmp_path / "store", disk=disk, pack_size_max=PACK_SIZE)
    yield tree
    check_tree(tree)
    tree.close()


def pack_blocks(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in (path / "packs").iterdir())


def packs_of(tree: Tree) -> list[int]:
    return sorted(int(file.stem) for file in (tree.store.path / "packs").iterdir())


def replace_versions(tree: Tree, count: int, size: int, kept: int = 2000) -> None:
    """Save a file over and over, with a small file in between that stays; all versions but the last are deleted."""
    for number in range(count):
        before = tree.snapshots.latest()
        save(tree, "model", noise(size, number))
        save(tree, f"kept-{number}", noise(kept, -number - 1))
        tree.take_snapshot()
        support.journal(tree)
        if before is not None:
            tree.snapshots.delete(before)


def assert_kept(tree: Tree, count: int, size: int, kept: int = 2000) -> None:
    assert read(tree, "model") == noise(size, count - 1)
    for number in range(count):
        assert read(tree, f"kept-{number}") == noise(kept, -number - 1)


def rebuilt(tree: Tree) -> Path:
    """Return a copy of the store whose index was lost."""
    path = tree.store.path.with_name("rebuilt")
    shutil.copytree(tree.store.path, path)
    (path / "index.lmdb").unlink()
    return path


def test_packs_that_are_mostly_dead_are_rewritten_and_removed(tree: Tree, disk: Disk) -> None:
    replace_versions(tree, 12, 60_000)
    before, first = pack_blocks(tree.store.path), packs_of(tree)
    previewed = preview(tree)
    assert packs_of(tree) == first
    collected = collect(tree)
    assert collected == previewed
    assert_kept(tree, 12, 60_000)
    assert set(first) - set(packs_of(tree)), "some are gone"
    after = pack_blocks(tree.store.path)
    own_journal = 40 * collected.chunks + 16_384
    assert before - collected.freed_bytes <= after <= before - collected.freed_bytes + own_journal
    live = 60_000 + 12 * 2000
    assert after < 2 * live
    collect(tree)  # its own journal
    assert collect(tree).freed_bytes == 0
    tree.store.commit(checkpoint=True)
    path = rebuilt(tree)
    reader = SecondReader(path)
    assert reader.files(0xFFFFFFFF)["model"] == noise(60_000, 11)
    other = support.open_tree(path)
    assert_kept(other, 12, 60_000)
    assert other.store.stats()[:2] == tree.store.stats()[:2]
    assert [each.name for each in other.snapshots.all()] == [each.name for each in tree.snapshots.all()]
    check_tree(other)
    other.close()


def test_the_journal_of_very_many_saves_is_bounded(tree: Tree) -> None:
    highest = 0
    for number in range(1500):
        before = tree.snapshots.latest()
        save(tree, "state", noise(300, number))
        tree.take_snapshot()
        if before is not None:
            tree.snapshots.delete(before)
        support.journal(tree)
        if number % 100 == 99:
            collect(tree)
            highest = max(highest, pack_blocks(tree.store.path))
    assert highest < 300_000
    assert read(tree, "state") == noise(300, 1499)
    other = support.open_tree(rebuilt(tree))
    assert read(other, "state") == noise(300, 1499)
    assert len(other.snapshots) == 1
    other.close()


# Crashes


class _Crashes(support.Crashes):
    def can_punch(self, fd: int) -> bool:
        return False

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        return support.NoPunchDisk().punch(fd, offset, size, path)


@pytest.fixture(scope="module", params=[support.Crashes, _Crashes], ids=["punching", "not-punching"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give a store after each step of two collections that rewrite and remove packs, with saves in between."""
    disk = request.param(tmp_path_factory.mktemp("crashes") / "store")
    support.new_store(disk.path).close()
    tree = support.open_tree(disk.path, disk=disk, pack_size_max=25_000)
    replace_versions(tree, 6, 10_000)
    tree.store.commit(checkpoint=True)
    disk.armed = True
    assert collect(tree).freed_bytes > 20_000
    replace_versions(tree, 6, 10_000)
    tree.store.commit()
    assert collect(tree).freed_bytes > 20_000
    tree.store.close(commit=False)
    disk.snap()
    return list(disk.images)


@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_at_every_step_loses_nothing(images: list[Path], tmp_path: Path, lost: bool) -> None:
    assert len(images) > 20
    removed = 0
    for number, image in enumerate(images):
        path = tmp_path / str(number)
        shutil.copytree(image, path)
        if lost:
            (path / "index.lmdb").unlink()
        removed += not (path / "packs" / "00000001.pack").exists()
        tree = support.open_tree(path, pack_size_max=25_000)
        check_tree(tree)
        for kept in range(6):
            assert read(tree, f"kept-{kept}") == noise(2000, -kept - 1)
        assert any(read(tree, "model") == noise(10_000, version) for version in range(6))
        collect(tree)
        check_tree(tree)
        totals = tree.store.stats()[:2]
        tree.close()
        with ChunkStore.open(path, rebuild=True) as store:
            assert store.stats()[:2] == totals
            assert store.opening.differences == {}
            check_tree(Tree(store))
        SecondReader(path)
        shutil.rmtree(path)
    assert removed


# Readers and writers meanwhile


def test_a_reader_that_knows_only_the_old_place_finds_the_new_one(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    inode = tree.names.resolve("kept-0")
    numbers = [extent.number for extent in tree.files.load(inode).extents.between(0, inode.size)]
    packs = tree.store._packs
    there = packs.read_run
    moved: list[int] = []

    def late(position, size, buffer):  # type: ignore[no-untyped-def]
        if not moved:
            moved.append(position.pack)
            collect(tree)
            assert not packs.path(position.pack).exists()
        return there(position, size, buffer)

    packs.read_run = late  # type: ignore[method-assign]
    assert b"".join(bytes(each.view()) for each in tree.store.read_first(numbers)) == noise(2000, -1)
    assert moved


def test_a_pack_that_somebody_reads_goes_when_they_are_done(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    file = tree.store._packs._existing(1)
    collect(tree)
    assert not file.path.exists()
    assert len(tree.store._disk.pread(file.fd, 64, 0)) == 64


def test_a_save_during_a_reclamation_loses_nothing(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    collect_rows(tree)
    tree.store.commit(checkpoint=True)
    reclamation = tree.store.reclaimer.begin(tree.store.position)
    count = 0
    while not reclamation.is_done:
        save(tree, f"meanwhile-{count}", noise(3000, 100 + count))
        count += 1
        if reclamation.step():
            tree.store.commit(checkpoint=True)
    assert count > 5
    assert_kept(tree, 12, 60_000)
    for number in range(count):
        assert read(tree, f"meanwhile-{number}") == noise(3000, 100 + number)


def collect_rows(tree: Tree) -> None:
    """Release what nothing needs, and reclaim nothing."""
    begin = tree.store.reclaimer.begin
    tree.store.reclaimer.begin = lambda end: begin(type(end)(0, 0))  # type: ignore[method-assign]
    collect(tree)
    tree.store.reclaimer.begin = begin  # type: ignore[method-assign]


def test_a_step_that_is_stopped_is_taken_up_again(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    collect_rows(tree)
    reclamation = tree.store.reclaimer.begin(tree.store.position)
    expected = reclamation.left_bytes
    while not reclamation.is_done:
        left = reclamation.left_bytes
        answers = chain([False], repeat(True))
        if reclamation.step(lambda answers=answers: next(answers)):  # type: ignore[misc]
            tree.store.commit(checkpoint=True)
        assert reclamation.left_bytes <= left
        if reclamation.step():
            tree.store.commit(checkpoint=True)
    assert reclamation.freed_bytes == expected
    assert_kept(tree, 12, 60_000)


def test_listing_a_pack_anew_stops_when_asked(tmp_path: Path) -> None:
    support.new_store(tmp_path / "store").close()
    tree = support.open_tree(tmp_path / "store", disk=support.NoPunchDisk(), pack_size_max=1_000_000)
    replace_versions(tree, 12, 60_000)
    collect_rows(tree)
    reclamation = tree.store.reclaimer.begin(tree.store.position)
    while not reclamation._is_ended:  # the last pack was ended, and is listed next
        assert not reclamation.is_done, "the plan ends no pack: the workload does not show what it shall"
        if reclamation.step():
            tree.store.commit(checkpoint=True)
    assert not reclamation.step(lambda: True)
    assert reclamation._is_ended
    assert not reclamation.step()
    assert not reclamation._is_ended
    while not reclamation.is_done:
        if reclamation.step():
            tree.store.commit(checkpoint=True)
    assert_kept(tree, 12, 60_000)
    tree.close()


# Damage


def test_a_pack_with_a_damaged_chunk_stays_until_that_is_healed(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    inode = tree.names.resolve("kept-0")
    number = tree.files.load(inode).extents[0].number
    location = tree.store._index.locate(number)
    assert location is not None
    with tree.store._packs.path(location.pack).open("r+b") as file:
        file.seek(location.offset + 60)
        file.write(b"damaged")
    with pytest.raises(DamagedError):
        tree.store.read(number)
    collect(tree)
    assert location.pack in packs_of(tree)
    save(tree, "again", noise(2000, -1))
    assert read(tree, "kept-0") == noise(2000, -1)
    collect(tree)
    assert location.pack not in packs_of(tree)


def test_a_condensed_journal_that_is_damaged_is_named_and_made_anew(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    collect(tree)
    path = tree.store.path / CONDENSED_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with tree.store.view() as view:
        assert any(CONDENSED_NAME in problem for problem in tree.store.check(view).problems)
    lost = rebuilt(tree)
    with pytest.raises(DamagedError, match=CONDENSED_NAME):
        ChunkStore.open(lost)
    with ChunkStore.open(lost, salvage=True) as store:
        assert any(CONDENSED_NAME in loss for loss in store.opening.losses)
    replace_versions(tree, 12, 60_000)
    collect(tree)


def test_an_index_that_is_older_than_the_condensed_journal_is_not_used(tree: Tree) -> None:
    replace_versions(tree, 3, 60_000)
    tree.store.commit(checkpoint=True)
    old = tree.store.path.with_name("old")
    shutil.copytree(tree.store.path, old)
    replace_versions(tree, 12, 60_000)
    collect(tree)
    mixed = tree.store.path.with_name("mixed")
    shutil.copytree(tree.store.path, mixed)
    shutil.copy(old / "index.lmdb", mixed / "index.lmdb")
    with pytest.raises(DamagedError, match="older than its condensed journal"):
        ChunkStore.open(mixed)
    with ChunkStore.open(mixed, rebuild=True) as store:
        assert_kept(Tree(store), 12, 60_000)


def test_a_lost_condensed_journal_is_damage(tree: Tree) -> None:
    replace_versions(tree, 12, 60_000)
    collect(tree)
    lost = rebuilt(tree)
    (lost / CONDENSED_NAME).unlink()
    with pytest.raises(DamagedError):
        ChunkStore.open(lost)


# Backups


def test_a_backup_follows_a_store_whose_packs_go(tree: Tree, tmp_path: Path) -> None:
    def cut() -> Cut:
        tree.store.commit()
        return Cut(tree.store.position, tree.store.punch_count)

    def assert_same() -> None:
        other = support.open_tree(tmp_path / "backup", read_only=True)
        assert support.dump(other) == support.dump(tree)
        assert other.store.stats()[:2] == tree.store.stats()[:2]
        other.store.close()
        assert set(packs_of(tree)) >= {int(each.stem) for each in (tmp_path / "backup" / "packs").iterdir()}

    replace_versions(tree, 6, 60_000)
    back_up(tree.store.path, tmp_path / "backup", cut, lambda count: None)
    assert_same()
    replace_versions(tree, 12, 60_000)
    collect(tree)
    result = back_up(tree.store.path, tmp_path / "backup", cut, lambda count: None)
    assert result.losses == []
    assert_same()
    save(tree, "more", noise(10_000))
    assert back_up(tree.store.path, tmp_path / "backup", cut, lambda count: None).copied_bytes < 40_000
    assert_same()
    shutil.rmtree(tmp_path / "backup")
    assert back_up(tree.store.path, tmp_path / "backup", cut, lambda count: None).losses == []
    assert_same()


# The pure parts


def test_dead_is_what_no_live_record_takes() -> None:
    usage = Usage()
    for number, offset in enumerate((64, 1000, 1112)):
        usage.add(number, support.location(offset=offset, stored_size=64))
    assert list(usage.dead(1, 2000)) == [range(176, 1000), range(1224, 2000)]
    assert list(usage.dead(1, 1100)) == [range(176, 1000)]
    assert list(usage.dead(2, 1100)) == [range(64, 1100)]
    assert usage.live_size(1) == 3 * 112
    assert list(usage.numbers(1)) == [0, 1, 2]


def test_only_whole_pages_with_data_are_punched() -> None:
    dead = [range(100, 5000), range(5000, 20_000), range(30_000, 60_000)]
    data = [(0, 12_288), (16_384, 36_864), (40_960, 60_000)]
    assert list(pages_with_data(dead, data)) == [
        range(8192, 12_288),
        range(32_768, 36_864),
        range(40_960, 57_344),
    ]
