"""Garbage collection: what nothing needs comes back to the disk, and nothing that is needed ever goes."""

import random
import shutil
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import DamagedError
from ckptfs.store import Bitmap, ChunkStore, Table, checkpoint, kernels, reference
from ckptfs.store.location import Known
from ckptfs.tree import Tree
from ckptfs.tree.extents import load_manifest
from ckptfs.tree.gc import Collected, Collection, collect, preview
from tests.unit import tree_support as support
from tests.unit.second_reader import SecondReader
from tests.unit.tree_support import append_delta, check_tree, open_path, read, save

SEED = 5150


@pytest.fixture(autouse=True)
def seed() -> None:
    print(f"seed {SEED}")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(SEED + seed).randbytes(size)


def chunks_of(tree: Tree, path: str) -> set[int]:
    """Return the chunk numbers of a live file's committed version."""
    inode = tree.names.resolve(path)
    extents = load_manifest(tree.rows.tables, inode.manifest, inode.size)
    return {extent.number for extent in extents.between(0, inode.size)} - {0}


def pack_blocks(tree: Tree) -> int:
    return sum(file.stat().st_blocks * 512 for file in (tree.store.path / "packs").iterdir())


# What is needed


def test_a_deleted_snapshot_gives_its_disk_space_back(tree: Tree) -> None:
    save(tree, "model", noise(200_000))
    first = tree.take_snapshot()
    save(tree, "model", noise(200_000, 1))
    second = tree.take_snapshot()
    tree.store.commit(checkpoint=True)
    assert collect(tree).chunks == 0
    tree.snapshots.delete(first)
    chunks, before = tree.store.stats().chunks, pack_blocks(tree)
    previewed = preview(tree)
    assert tree.store.stats().chunks == chunks
    collected = collect(tree)
    assert collected == previewed
    assert collected.raw_bytes == 200_000
    assert tree.store.stats().chunks == chunks - collected.chunks
    assert collected.freed_bytes >= 200_000
    assert before - collected.freed_bytes <= pack_blocks(tree) <= before - collected.freed_bytes + 2 * 65536
    assert read(tree, "model", second) == noise(200_000, 1)
    assert collect(tree) == Collected(0, 0, 0)


def test_what_two_versions_share_stays_until_both_are_gone(tree: Tree) -> None:
    data = noise(50_000)
    save(tree, "model", data)
    first = tree.take_snapshot()
    save(tree, "model", data + noise(10_000, 1))
    second = tree.take_snapshot()
    tree.snapshots.delete(first)
    collect(tree)
    assert read(tree, "model", second) == data + noise(10_000, 1)
    support.unlink(tree, "model")
    collect(tree)
    assert read(tree, "model", second) == data + noise(10_000, 1)
    tree.snapshots.delete(second)
    collect(tree)
    assert tree.store.stats().chunks == 0
    assert not list(tree.rows.tables.scan(Table.MANIFESTS))


def test_a_deleted_live_file_that_no_snapshot_holds_goes(tree: Tree) -> None:
    save(tree, "kept", noise(3000))
    save(tree, "gone", noise(30_000, 1))
    support.unlink(tree, "gone")
    assert collect(tree).raw_bytes == 30_000
    assert read(tree, "kept") == noise(3000)


def test_a_version_whose_snapshot_was_deleted_before_it_was_replaced_goes(tree: Tree) -> None:
    save(tree, "model", noise(20_000))
    tree.snapshots.delete(tree.take_snapshot())
    save(tree, "model", noise(3000, 1))
    assert collect(tree).raw_bytes == 20_000
    tree.take_snapshot()
    support.unlink(tree, "model")
    check_tree(tree)
    assert collect(tree).chunks == 0


def test_an_interrupted_file_is_kept(tree: Tree) -> None:
    save(tree, "partial", noise(5000), killed=True)
    assert collect(tree).chunks == 0
    assert read(tree, "partial") == noise(5000)


def test_an_open_file_keeps_what_nothing_names_any_more(tree: Tree) -> None:
    save(tree, "model", noise(20_000))
    file = open_path(tree, "model", writing=False)
    support.unlink(tree, "model")
    assert collect(tree).chunks == 0
    assert support.read_content(tree, file.content) == noise(20_000)
    tree.files.release(file, writing=False)
    del file
    assert collect(tree).raw_bytes == 20_000


def test_a_file_that_is_being_written_keeps_its_chunks(tree: Tree) -> None:
    file = support.create(tree, "model")
    tree.files.write(file, 0, noise(40_000))
    support.drain(file.content)
    assert collect(tree).chunks == 0
    support.close_file(tree, file)
    assert read(tree, "model") == noise(40_000)


def test_what_was_deleted_may_be_saved_again(tree: Tree) -> None:
    save(tree, "model", noise(30_000))
    old = chunks_of(tree, "model")
    support.unlink(tree, "model")
    collect(tree)
    with pytest.raises(DamagedError, match="is not in the index"):
        tree.store.read(min(old))
    save(tree, "again", noise(30_000))
    assert read(tree, "again") == noise(30_000)
    assert old.isdisjoint(chunks_of(tree, "again"))
    assert collect(tree).chunks == 0


def test_sparse_files_and_a_store_without_any_file(tree: Tree) -> None:
    assert collect(tree) == Collected(0, 0, 0)
    file = support.create(tree, "sparse")
    tree.files.write(file, 1 << 40, noise(5000))
    support.close_file(tree, file)
    support.make_directory(tree, "run")
    save(tree, "run/gone", noise(2000, 1))
    support.unlink(tree, "run/gone")
    assert collect(tree).raw_bytes == 2000
    assert read_end(tree, "sparse", 5000) == noise(5000)


def read_end(tree: Tree, path: str, size: int) -> bytes:
    content = tree.files.load(tree.names.resolve(path))
    return bytes(content.plan_read(content.size - size, size).run(tree.reader))


def test_a_dry_run_works_on_a_store_opened_for_reading(tree: Tree) -> None:
    save(tree, "model", noise(50_000))
    support.unlink(tree, "model")
    tree.store.commit(checkpoint=True)
    crashed = tree.store.path.with_name("copy")
    shutil.copytree(tree.store.path, crashed)
    readers = support.open_tree(crashed, read_only=True)
    previewed = preview(readers)
    readers.store.close()
    assert previewed.raw_bytes == 50_000
    assert previewed == collect(tree)


# While saves go on


def test_a_chunk_found_again_before_it_is_released_stays(tree: Tree) -> None:
    """The race: a save meets the chunks of a dying version after the mark, and commits after the sweep."""
    save(tree, "old", noise(30_000))
    support.unlink(tree, "old")
    with Collection(tree) as collection:
        collection.look()
        collection.mark()
        file = support.create(tree, "new")
        tree.files.write(file, 0, noise(30_000) + noise(10_000, 1))
        job = file.content.take_job(final=True)
        assert job is not None
        job.run()
        tree.store.commit(durable=False)
        assert collection.sweep().chunks == 1, "the last one, which only the end of the old file cut short"
        file.content.finish_job()
        support.close_file(tree, file)
    assert collect(tree).chunks == 0
    assert read(tree, "new") == noise(30_000) + noise(10_000, 1)


def test_a_chunk_looked_up_while_it_is_released_is_stored_anew(tree: Tree) -> None:
    """The same race within `ingest`: its look-up comes before the release, its append after it, or the reverse."""
    data = noise(1000)
    save(tree, "old", data)
    old = chunks_of(tree, "old")
    support.unlink(tree, "old")
    index = tree.store._index
    with Collection(tree) as collection:
        collection.look()
        collection.mark()
        tree.store.commit(durable=False)
        ask, swept = index.lookup, []

        def release_first(ids: list[bytes]) -> list[int]:
            if not swept:
                swept.append(collection.sweep())
            return ask(ids)

        index.lookup = release_first  # type: ignore[method-assign, assignment]
        try:
            numbers = tree.store.ingest(memoryview(data), True).numbers
        finally:
            index.lookup = ask  # type: ignore[method-assign]
        assert swept[0].chunks == len(old)
    assert old.isdisjoint(numbers)
    assert b"".join(map(tree.store.read, numbers)) == data


def test_a_job_that_was_out_before_the_collection_is_waited_for(tree: Tree) -> None:
    save(tree, "old", noise(30_000))
    support.unlink(tree, "old")
    file = support.create(tree, "new")
    tree.files.write(file, 0, noise(30_000))
    job = file.content.take_job(final=True)
    assert job is not None
    job.run()  # it has the old chunks, and nobody but the job knows
    with Collection(tree) as collection:
        assert not collection.can_look
        file.content.finish_job()
        assert collection.can_look
        collection.look()
        collection.mark()
        tree.store.commit(durable=False)
        assert collection.sweep().chunks == 0
    support.close_file(tree, file)
    assert read(tree, "new") == noise(30_000)


def test_a_version_brought_back_during_the_mark_stays(tree: Tree) -> None:
    """A rollback gives the live tree a manifest whose only other row then goes: the mark sees the moment before."""
    save(tree, "z", noise(20_000))
    first = tree.take_snapshot()
    save(tree, "z", noise(20_000, 1))
    tree.take_snapshot()
    with Collection(tree) as collection:
        collection.look()
        tree.roll_back(first)
        tree.snapshots.delete(first)
        tree.store.commit(checkpoint=True)
        collection.mark()
        while collection.delete_rows(1):
            pass
        tree.store.commit(durable=False)
        assert collection.sweep().chunks == 0
    assert read(tree, "z") == noise(20_000)


def test_a_version_changed_during_the_mark_stays(tree: Tree) -> None:
    save(tree, "model", noise(20_000))
    with Collection(tree) as collection:
        collection.look()
        file = open_path(tree, "model")
        tree.files.write(file, 5000, b"changed")
        support.close_file(tree, file)
        collection.mark()
        collection.sweep()
    expected = bytearray(noise(20_000))
    expected[5000:5007] = b"changed"
    assert read(tree, "model") == expected
    assert collect(tree).chunks > 0
    assert read(tree, "model") == expected


def test_the_work_stops_when_asked(tree: Tree) -> None:
    save(tree, "model", noise(20_000))
    support.unlink(tree, "model")
    with Collection(tree) as collection:
        collection.look()
        assert not collection.mark(lambda: True)
    with Collection(tree) as collection:
        collection.look()
        assert collection.mark()
        assert collection.sweep(lambda: True).chunks == 0
    assert collect(tree).raw_bytes == 20_000


def test_looking_for_bases_stops_when_asked(tree: Tree) -> None:
    save(tree, "model", noise(20_000))
    needed = tree.store.sweeper.begin()
    try:
        asked: list[bool] = []
        assert not tree.store.sweeper.need_bases(needed, lambda: bool(asked) or asked.append(True) or False)
        assert tree.store.sweeper.need_bases(needed, lambda: False)
    finally:
        tree.store.sweeper.end()


def test_what_is_needed_includes_bases(tree: Tree) -> None:
    """A chunk that something rests on stays, and so does what that one rests on."""
    store = tree.store
    numbers, lengths = store.ingest(memoryview(noise(20_000)), True)
    by_size = [number for _, number in sorted(zip(lengths, numbers, strict=True))]
    chain = by_size[:3]
    for number, base in pairwise(chain):
        append_delta(store, number, base)
    for checkpointed in (False, True):
        if checkpointed:
            store.commit(checkpoint=True)
        needed = store.sweeper.begin()
        needed.add(chain[0])
        store.sweeper.need_bases(needed)
        assert {number for number in numbers if number in needed} == set(chain)
        store.sweeper.end()


# Crashes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give a store after each step of two collections, between which a deleted file is saved again."""
    disk = support.Crashes(tmp_path_factory.mktemp("crashes") / "store")
    support.new_store(disk.path).close()
    tree = Tree(ChunkStore.open(disk.path, disk=disk, pack_size_max=60_000))
    save(tree, "kept", noise(8000))
    save(tree, "model", noise(40_000, 1))
    first = tree.take_snapshot("first")
    save(tree, "model", noise(40_000, 2))
    tree.take_snapshot("second")
    tree.store.commit(checkpoint=True)
    tree.snapshots.delete(first)
    disk.armed = True
    tree.store.commit()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "_FREED_AT_ONCE", 8)  # some times for each collection
        assert collect(tree).raw_bytes == 40_000
        save(tree, "model", noise(40_000, 1)[:20_000])
        tree.store.commit()
        save(tree, "model", noise(40_000, 2))
        tree.store.commit()
        assert collect(tree).raw_bytes == 20_000
        tree.store.close(commit=False)
    disk.snap()
    return disk.images


@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_at_every_step_loses_nothing(images: list[Path], tmp_path: Path, lost: bool) -> None:
    assert len(images) > 20
    for number, image in enumerate(images):
        path = tmp_path / str(number)
        shutil.copytree(image, path)
        if lost:
            (path / "index.lmdb").unlink()
        tree = support.open_tree(path)
        assert_kept(tree)
        collect(tree)
        assert_kept(tree)
        used = set().union(*(chunks_of(tree, path) for path in ("kept", "model")))
        seconds = tree.snapshots.resolve("second")
        inode = tree.names.resolve("model", seconds.id)
        used |= {
            each.number for each in load_manifest(tree.rows.tables, inode.manifest, inode.size).between(0, 1 << 40)
        }
        assert tree.store.stats().chunks == len(used), "all that nothing needs is gone"
        totals = tree.store.stats()[:2]
        tree.close()
        with ChunkStore.open(path, rebuild=True) as store:
            assert store.stats()[:2] == totals
            assert_kept(Tree(store))
        reader = SecondReader(path)
        assert reader.files(reader.snapshots()["second"])["model"] == noise(40_000, 2)
        shutil.rmtree(path)


def assert_kept(tree: Tree) -> None:
    check_tree(tree)
    assert read(tree, "kept") == noise(8000)
    assert read(tree, "model") in (noise(40_000, 2), noise(40_000, 1)[:20_000])
    assert read(tree, "model", tree.snapshots.resolve("second")) == noise(40_000, 2)


def test_a_release_that_cannot_be_journalled_is_none(tmp_path: Path) -> None:
    class Full(support.NoSyncDisk):
        full = False

        def pwrite(self, fd: int, buffers, offset: int, path: Path) -> None:  # type: ignore[no-untyped-def]
            if self.full:
                raise OSError(5, "broken")
            super().pwrite(fd, buffers, offset, path)

    disk = Full()
    support.new_store(tmp_path / "store").close()
    tree = Tree(ChunkStore.open(tmp_path / "store", disk=disk))
    save(tree, "model", noise(20_000))
    numbers = chunks_of(tree, "model")
    support.unlink(tree, "model")
    before = tree.store.stats()
    with Collection(tree) as collection:
        collection.look()
        collection.mark()
        tree.store.commit()
        disk.full = True
        with pytest.raises(OSError, match="broken"):
            collection.sweep()
        disk.full = False
    assert tree.store.stats()[:2] == before[:2]
    assert sorted(tree.store.ingest(memoryview(noise(20_000)), True).numbers) == sorted(numbers)
    assert collect(tree).raw_bytes == 20_000
    tree.close()


# The bitmap


@given(st.integers(1, 300), st.lists(st.integers(0, 400) | st.integers(0, (1 << 64) - 1)))
def test_every_kernel_marks_as_the_reference_does(limit: int, numbers: list[int]) -> None:
    packed = b"".join(number.to_bytes(8, "little") for number in numbers)
    for kernel in kernels.available_kernels().values():
        bits, expected = bytearray((limit + 7) // 8), bytearray((limit + 7) // 8)
        kernel.mark(bits, packed + b"odd")
        reference.mark(expected, packed)
        assert bits == expected
    bitmap = Bitmap(limit)
    bitmap.add_packed(array("Q", numbers).tobytes())
    assert {number for number in range(500) if number in bitmap} == {number for number in numbers if number < limit}


def test_a_known_chunk_tells_its_rows() -> None:
    rows = Known(b"i" * 16, 7).release_rows
    assert [(row.table, row.key, row.value) for row in rows] == [(9, b"\0" * 7 + b"\7", None), (10, b"i" * 16, None)]
