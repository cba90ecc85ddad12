"""What `Check` finds: every way in which rows can disagree, and the files that damaged bytes belong to."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import Table
from ckptfs.store.location import NUMBER, Location, build_location
from ckptfs.tree import Commands, Tree
from ckptfs.tree.dirent import DIRENT_STRUCT
from ckptfs.tree.rows import id_prefix, name_prefix
from tests.unit.tree_support import (
    check_tree,
    create,
    journal,
    link,
    make_directory,
    new_tree,
    open_tree,
    read,
    rename,
    save,
    unlink,
)

SLICE_SIZE = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a tree with two snapshots, a directory, a hard link and a file that is being created."""
    tree = new_tree(tmp_path / "store")
    make_directory(tree, "run")
    save(tree, "run/a", random.Random(1).randbytes(5000))
    link(tree, "run/a", "b")
    tree.take_snapshot("first")
    save(tree, "run/a", random.Random(2).randbytes(6000))
    tree.take_snapshot("second")
    unlink(tree, "b")
    create(tree, "run/new")
    tree.store.commit(checkpoint=True)
    yield tree
    tree.store.close(commit=False)


def problems(tree: Tree) -> list[str]:
    """Return what a check of the structure finds."""
    return Commands(tree).check_structure()["problems"]


def damaged(tree: Tree) -> list[tuple[int, str]]:
    """Return what a verification of all chunks finds."""
    commands = Commands(tree)
    found = []
    number, stop = 1, commands.check_structure()["numbers_end"]
    while number < stop:
        done = commands.check_data(number, stop, SLICE_SIZE)
        number = done["next_number"]
        found += done["damaged"]
    return found


def flip(tree: Tree, number: int, at: int = 50) -> None:
    """Change one byte of a chunk's record on the disk."""
    location = tree.store._index.locate(number)
    assert location is not None
    path = tree.store._packs.path(location.pack)
    data = bytearray(path.read_bytes())
    data[location.offset + at] ^= 0x10
    path.write_bytes(data)


def test_a_whole_store_has_no_problem(tree: Tree) -> None:
    assert problems(tree) == []
    assert damaged(tree) == []
    check_tree(tree)


def test_a_file_under_the_name_of_one_being_created_has_its_link(tree: Tree) -> None:
    rename(tree, "run/new", "run/a")
    assert problems(tree) == []


def wrong_nlink(tree: Tree) -> None:
    inode = tree.names.resolve("run/a")
    tree.names.put_inode(inode._replace(nlink=7))


def lost_inode(tree: Tree) -> None:
    ino = tree.names.resolve("run/a").ino
    tree.rows.erase(Table.INODES, id_prefix(ino), 1)
    tree.rows.erase(Table.INODES, id_prefix(ino), 2)


def lost_name(tree: Tree) -> None:
    tree.rows.remove(Table.DIRENTS, name_prefix(tree.names.resolve("run").ino, b"a"))


def wrong_type(tree: Tree) -> None:
    ino = tree.names.resolve("run/a").ino
    tree.rows.put(Table.DIRENTS, name_prefix(1, b"c"), DIRENT_STRUCT.pack(ino, 0o04))


def directory_with_two_names(tree: Tree) -> None:
    ino = tree.names.resolve("run").ino
    tree.rows.put(Table.DIRENTS, name_prefix(1, b"run2"), DIRENT_STRUCT.pack(ino, 0o04))


def short_inode(tree: Tree) -> None:
    tree.rows.put(Table.INODES, id_prefix(tree.names.resolve("run").ino), b"short")


def bad_name(tree: Tree) -> None:
    tree.rows.put(Table.DIRENTS, name_prefix(1, b"c"), b"?")


def unlisted_row(tree: Tree) -> None:
    tree.rows.tables.delete(Table.CHANGES, next(iter(tree.rows.tables.scan(Table.CHANGES)))[0])


def strange_change(tree: Tree) -> None:
    tree.rows.tables.put(Table.CHANGES, b"\0\0\0\1\x09", b"\1")


def lost_snapshot_name(tree: Tree) -> None:
    tree.rows.tables.delete(Table.NAMES, b"first")


def lost_snapshot(tree: Tree) -> None:
    tree.rows.tables.delete(Table.SNAPSHOTS, (1).to_bytes(4, "big"))


def unreadable_snapshot(tree: Tree) -> None:
    tree.rows.tables.put(Table.SNAPSHOTS, (1).to_bytes(4, "big"), b"{")


def snapshot_of_the_future(tree: Tree) -> None:
    tree.rows.tables.put(Table.META, b"open_epoch", (2).to_bytes(8, "big"))


def lost_manifest(tree: Tree) -> None:
    manifest = tree.names.resolve("run/a").manifest
    for key, _ in list(tree.rows.tables.scan(Table.MANIFESTS, id_prefix(manifest), id_prefix(manifest + 1))):
        tree.rows.tables.delete(Table.MANIFESTS, key)


def malformed_manifest(tree: Tree) -> None:
    manifest = tree.names.resolve("run/a").manifest
    tree.rows.tables.put(Table.MANIFESTS, id_prefix(manifest) + bytes(8), bytes(13))


def short_manifest(tree: Tree) -> None:
    inode = tree.names.resolve("run/a")
    tree.names.put_inode(inode._replace(size=inode.size + 1))


def extent_without_a_chunk(tree: Tree) -> None:
    manifest = tree.names.resolve("run/a").manifest
    part = (10**6).to_bytes(8, "little") + (6000).to_bytes(4, "little")
    for key, _ in list(tree.rows.tables.scan(Table.MANIFESTS, id_prefix(manifest), id_prefix(manifest + 1))):
        tree.rows.tables.put(Table.MANIFESTS, key, part)


def extent_longer_than_its_chunk(tree: Tree) -> None:
    manifest = tree.names.resolve("run/a").manifest
    part = (1).to_bytes(8, "little") + (6000).to_bytes(4, "little")
    for key, _ in list(tree.rows.tables.scan(Table.MANIFESTS, id_prefix(manifest), id_prefix(manifest + 1))):
        tree.rows.tables.put(Table.MANIFESTS, key, part)


def chunk_behind_its_pack(tree: Tree) -> None:
    location = tree.store._index.locate(1)
    assert location is not None
    tree.store._index.rows.newest.locations[NUMBER.pack(1)] = build_location(location._replace(offset=1 << 30))


def chunk_in_another(tree: Tree) -> None:
    location = tree.store._index.locate(2)
    assert location is not None
    tree.store._index.rows.newest.locations[NUMBER.pack(1)] = build_location(location)


def chunk_in_a_freed_place(tree: Tree) -> None:
    location = tree.store._index.locate(1)
    assert location is not None
    tree.store._freed._active[location.pack.to_bytes(4, "big") + location.offset.to_bytes(8, "big")] = (64).to_bytes(
        8, "little"
    ) + (1).to_bytes(8, "little")


def malformed_freed_place(tree: Tree) -> None:
    tree.store._freed._active[b"place"] = b"?"


def chunk_without_an_id(tree: Tree) -> None:
    tree.store._index.rows.newest.locations[NUMBER.pack(0)] = build_location(Location(1, 48, 1, 1, 0))


def id_without_a_chunk(tree: Tree) -> None:
    tree.store._index.rows.newest.numbers[bytes(16)] = 10**6


def two_ids_of_a_chunk(tree: Tree) -> None:
    tree.store._index.rows.newest.numbers[bytes(16)] = 1


def lost_pack(tree: Tree) -> None:
    tree.store._packs.path(1).rename(tree.store._packs.path(2))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (wrong_nlink, "run/a in the live tree says that it has 7 links, but it has 1"),
        (lost_inode, "b in first is missing"),
        (lost_name, "has no name"),
        (wrong_type, "another type"),
        (directory_with_two_names, "run in the live tree is a directory with 2 names"),
        (short_inode, "another size"),
        (bad_name, "the name 'c' in inode 1 cannot be read"),
        (unlisted_row, "changes does not list"),
        (strange_change, "malformed"),
        (lost_snapshot_name, "'first'"),
        (lost_snapshot, "b'first'"),
        (unreadable_snapshot, "snapshot 1 cannot be read"),
        (snapshot_of_the_future, "snapshot 2 is not older"),
        (lost_manifest, "b in second: its manifest"),
        (malformed_manifest, "b in second: manifest"),
        (short_manifest, "covers 6000 of 6001 bytes"),
        (extent_without_a_chunk, "chunk 1000000, which has no bytes"),
        (extent_longer_than_its_chunk, "b in second: 6000 bytes at offset 0 lie in chunk 1"),
        (chunk_behind_its_pack, "behind the end of the pack"),
        (chunk_in_another, "two chunks share"),
        (chunk_in_a_freed_place, "called free"),
        (malformed_freed_place, "freed place"),
        (chunk_without_an_id, "never given"),
        (id_without_a_chunk, "not there"),
        (two_ids_of_a_chunk, "chunk 1 has two ids"),
        (lost_pack, "00000001.pack is missing"),
    ],
)
def test_a_problem_of_the_structure_is_named(tree: Tree, harm: Callable[[Tree], None], named: str) -> None:
    harm(tree)
    found = problems(tree)
    assert any(named in problem for problem in found), found


def test_damage_is_named_by_file_versions_and_range(tree: Tree) -> None:
    flip(tree, 2)
    ((number, reason),) = damaged(tree)
    assert number == 2
    assert "00000001.pack at offset" in reason
    found = Commands(tree).check_files([(number, reason)])
    raw_size = tree.store._index.locate(2).raw_size
    first = tree.store._index.locate(1).raw_size
    paths = {(each["path"], tuple(each["versions"]), each["offset"], each["size"]) for each in found}
    assert paths <= {("run/a", ("first",), first, raw_size), ("b", ("first",), first, raw_size)}
    assert len(paths) == 1


def test_a_file_is_readable_outside_its_damage(tree: Tree) -> None:
    snapshot = tree.snapshots.resolve("first")
    flip(tree, 2)
    with pytest.raises(DamagedError):
        read(tree, "run/a", snapshot)
    content = tree.files.load(tree.names.resolve("run/a", snapshot.id))
    first = tree.store._index.locate(1).raw_size
    assert bytes(content.plan_read(0, first).run(tree.reader)) == random.Random(1).randbytes(5000)[:first]
    assert len(read(tree, "run/a")) == 6000


@pytest.mark.parametrize("reopened", [False, True])
def test_the_same_bytes_saved_again_heal_every_version(tree: Tree, tmp_path: Path, reopened: bool) -> None:
    flip(tree, 2)
    flip(tree, 3, at=8)  # in the header
    assert [number for number, _ in damaged(tree)] == [2, 3]
    if reopened:
        tree.store.close()
        tree = open_tree(tmp_path / "store")
    assert tree.store.damaged() == [2, 3]
    save(tree, "again", random.Random(1).randbytes(5000))
    assert tree.store.damaged() == []
    assert damaged(tree) == []
    assert read(tree, "b", tree.snapshots.resolve("first")) == random.Random(1).randbytes(5000)
    check_tree(tree)
    tree.store.close()
    tree = open_tree(tmp_path / "store")
    assert tree.store.damaged() == []
    assert damaged(tree) == []
    tree.store.close()


def test_healing_survives_a_kill(tree: Tree, tmp_path: Path) -> None:
    flip(tree, 2)
    damaged(tree)
    tree.store.commit(checkpoint=True)
    save(tree, "again", random.Random(1).randbytes(5000))
    journal(tree)
    tree.store.close(commit=False)
    tree = open_tree(tmp_path / "store")
    assert tree.store.damaged() == []
    assert damaged(tree) == []
    tree.store.close()


def test_a_check_sees_one_moment_while_the_tree_goes_on(tree: Tree) -> None:
    with tree.store.view() as view:
        save(tree, "later", random.Random(3).randbytes(3000))
        unlink(tree, "run/a")
        tree.store.commit(checkpoint=True)
        assert Commands(tree).check_structure(view=view)["problems"] == []
    assert problems(tree) == []
