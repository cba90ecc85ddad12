"""What a check says of deltas and of what a collection leaves, and what heals a chunk that others rest on."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import DELTA_CHAIN_MAX, ChunkStore
from ckptfs.store.codec import Encoding
from ckptfs.store.location import NUMBER, Location, build_location
from ckptfs.store.packfile import Found
from ckptfs.store.records import Position
from ckptfs.tree import Commands, Tree
from ckptfs.tree.gc import collect
from tests.unit.test_check import damaged, flip, problems
from tests.unit.tree_support import (
    CONFIG,
    NoSyncDisk,
    append_delta,
    check_tree,
    new_tree,
    open_tree,
    read,
    save,
    unlink,
)

NAMES = ("oldest", "older", "newest")
DATA = {name: random.Random(name).randbytes(60) for name in NAMES}
"""Each of the files is one chunk, and each chunk rests on the next one."""
OLDEST, OLDER, NEWEST = 1, 2, 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def tree(path: Path) -> Iterator[Tree]:
    tree = new_tree(path)
    for name, data in DATA.items():
        save(tree, name, data)
    for number, base in pairwise((OLDEST, OLDER, NEWEST)):
        append_delta(tree.store, number, base)
    check_tree(tree)
    tree.store.close()
    tree = open_tree(path)  # nothing is cached
    yield tree
    tree.store.close(commit=False)


def known(tree: Tree) -> list[int]:
    """Return the chunks that a check calls damaged without reading them."""
    return [number for number, _ in Commands(tree).check_structure()["damaged"]]


def unreadable(tree: Tree) -> set[str]:
    """Return the files that cannot be read; what is read has to be right."""
    found = set()
    for name, data in DATA.items():
        try:
            assert read(tree, name) == data
        except DamagedError:
            found.add(name)
    return found


def test_a_base_alone_is_to_blame_for_the_deltas_that_rest_on_it(tree: Tree) -> None:
    flip(tree, NEWEST)
    assert unreadable(tree) == set(NAMES)
    assert tree.store.damaged() == [NEWEST]
    assert known(tree) == [OLDEST, OLDER, NEWEST]
    assert problems(tree) == []
    found = damaged(tree)
    assert sorted(number for number, _ in found) == [OLDEST, OLDER, NEWEST]
    assert {each["path"] for each in Commands(tree).check_files(found)} == set(NAMES)
    assert tree.store.damaged() == [NEWEST]


def test_a_base_saved_again_heals_the_deltas_as_well(tree: Tree) -> None:
    flip(tree, NEWEST)
    damaged(tree)
    save(tree, "again", DATA["newest"])
    assert unreadable(tree) == set()
    assert tree.store.damaged() == known(tree) == damaged(tree) == []
    check_tree(tree)


@pytest.mark.parametrize(("saved", "left"), [("oldest", {"older", "newest"}), ("older", {"newest"})])
def test_a_delta_saved_again_is_whole_without_its_base(tree: Tree, saved: str, left: set[str]) -> None:
    flip(tree, NEWEST)
    damaged(tree)
    save(tree, "again", DATA[saved])
    assert unreadable(tree) == left
    assert tree.store.damaged() == [NEWEST]
    assert problems(tree) == []


def test_a_damaged_delta_leaves_its_base_whole(tree: Tree) -> None:
    flip(tree, OLDER, at=70)
    assert unreadable(tree) == {"oldest", "older"}
    assert tree.store.damaged() == [OLDER]
    assert known(tree) == [OLDEST, OLDER]


def test_a_damaged_chunk_that_is_released_is_forgotten(tree: Tree, path: Path) -> None:
    flip(tree, OLDEST, at=70)
    damaged(tree)
    tree.store.commit(checkpoint=True)
    assert tree.store.damaged() == [OLDEST]
    unlink(tree, "oldest")
    assert collect(tree).chunks == 1
    assert tree.store.damaged() == known(tree) == damaged(tree) == []
    tree.store.close()
    again = open_tree(path)
    assert again.store.damaged() == []
    check_tree(again)
    again.store.close()


def test_a_chunk_that_is_released_while_it_is_verified_is_not_damaged(tree: Tree) -> None:
    unlink(tree, "oldest")
    collect(tree)
    assert tree.store._fetcher.verify([OLDEST, OLDER, NEWEST]) == {}


def put(tree: Tree, number: int, **changed: object) -> None:
    """Change what the index says of a chunk."""
    location = tree.store._index.locate(number)
    assert location is not None
    tree.store._index.rows.newest.locations[NUMBER.pack(number)] = build_location(location._replace(**changed))


def lost_base(tree: Tree) -> None:
    put(tree, OLDER, bases=(99,))


def cycle(tree: Tree) -> None:
    put(tree, NEWEST, encoding=Encoding.DELTA, bases=(OLDEST,))


def delta_without_a_base(tree: Tree) -> None:
    put(tree, OLDER, bases=())


def base_of_a_chunk_that_is_no_delta(tree: Tree) -> None:
    put(tree, OLDER, encoding=Encoding.RAW)


def long_chain(tree: Tree) -> None:
    for number in range(1, DELTA_CHAIN_MAX + 3):
        bases = (number + 1,) if number < DELTA_CHAIN_MAX + 2 else ()
        location = Location(1, 1 << 20, 60, 60, Encoding.DELTA if bases else Encoding.RAW, bases, number)
        tree.store._index.rows.newest.locations[NUMBER.pack(number)] = build_location(location)
        tree.store._index.rows.newest.numbers[number.to_bytes(16, "big")] = number
    tree.store._end.mark = tree.store._end.mark._replace(number=DELTA_CHAIN_MAX + 3)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lost_base, "chunk 2 rests on chunk 99, which is not there"),
        (cycle, "chunk 3 rests on chunk 1, which is not known to be rested on"),
        (delta_without_a_base, "chunk 2 has encoding 3 and 0 bases"),
        (base_of_a_chunk_that_is_no_delta, "chunk 2 has encoding 0 and 1 bases"),
        (long_chain, "chunk 1 rests on a chain of more than 8 deltas"),
    ],
)
def test_a_chain_that_does_not_hold_is_named(tree: Tree, harm: Callable[[Tree], None], named: str) -> None:
    harm(tree)
    assert named in problems(tree)


def flip_earlier(tree: Tree, number: int) -> None:
    """Change a byte of each record of a chunk but the one that counts: a salvage without an index would take it."""
    location = tree.store._index.locate(number)
    assert location is not None
    for found in tree.store._packs.scan(Position(1, 0)):
        if isinstance(found, Found) and found.record.header.number == number and found.position != location.position:
            with tree.store._packs.path(found.position.pack).open("r+b") as pack:
                pack.seek(found.position.offset + 50)
                byte = pack.read(1)[0]
                pack.seek(found.position.offset + 50)
                pack.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_delta_of_which_only_the_header_is_left_is_healed_and_its_place_freed(
    tree: Tree, path: Path, index_lost: bool
) -> None:
    flip(tree, OLDER, at=70)
    if index_lost:
        flip_earlier(tree, OLDER)
    tree.store.close()
    if index_lost:
        (path / "index.lmdb").unlink()
    tree = Tree(ChunkStore.open(path, disk=NoSyncDisk(), salvage=True))
    assert sorted(number for number, _ in damaged(tree)) == [OLDEST, OLDER]
    assert tree.store.damaged() == [OLDER]
    save(tree, "again", DATA["older"])
    assert unreadable(tree) == set()
    save(tree, "page", random.Random(4).randbytes(200_000))
    unlink(tree, "page")
    collect(tree)
    check_tree(tree)
    tree.store.close()
    tree = Tree(ChunkStore.open(path, disk=NoSyncDisk(), rebuild=True))
    assert unreadable(tree) == set()
    check_tree(tree)
    tree.store.close()


def test_a_rebuilt_index_is_the_same_where_a_chunk_is_no_base_any_more(tree: Tree, path: Path) -> None:
    flip(tree, OLDER, at=70)
    damaged(tree)
    save(tree, "again", DATA["older"])
    location = tree.store._index.locate(NEWEST)
    assert location is not None
    assert location.height == 2
    tree.store.close()
    assert CONFIG.seed == tree.store.config.seed
    with ChunkStore.open(path, disk=NoSyncDisk(), rebuild=True, salvage=True) as store:
        assert store.opening.differences == {}
