"""A salvage: a store is opened whatever is lost of it, what is lost is named, and what is there is right."""

import random
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore
from ckptfs.store.freed import merge, numbers_in
from ckptfs.store.records import Place
from ckptfs.tree import Tree
from tests.unit.test_check import damaged, flip, problems
from tests.unit.tree_support import CONFIG, NoSyncDisk, make_directory, open_tree, read, save

DATA = {f"run/{name}": random.Random(name).randbytes(4000) for name in "abc"}


def make_store(path: Path) -> Path:
    """Make a store with three files, each in a snapshot, in several packs."""
    ChunkStore.create(path, disk=NoSyncDisk(), config=CONFIG).close()
    tree = Tree(ChunkStore.open(path, disk=NoSyncDisk(), pack_size_max=2000))
    make_directory(tree, "run")
    for name, data in DATA.items():
        save(tree, name, data)
        tree.take_snapshot(name.replace("/", "-"))
        tree.store.commit()
    tree.store.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a store that `make_store` made."""
    return make_store(tmp_path / "store")


def salvaged(path: Path, *, rebuild: bool = False) -> Tree:
    """Open a store as `ckptfs repair` does."""
    return Tree(ChunkStore.open(path, disk=NoSyncDisk(), salvage=True, rebuild=rebuild))


def readable(tree: Tree) -> set[str]:
    """Return the names of the files that can be read; what is read has to be right."""
    found = set()
    for name, data in DATA.items():
        try:
            assert read(tree, name) == data
            found.add(name)
        except (DamagedError, OSError):
            pass
    return found


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_whole_store_loses_nothing(path: Path, rebuild: bool) -> None:
    tree = salvaged(path, rebuild=rebuild)
    assert tree.store.opening == ([], {} if rebuild else None)
    assert readable(tree) == set(DATA)
    assert problems(tree) == []
    assert damaged(tree) == []
    tree.store.close()


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_chunk_without_its_payload_is_remembered_and_healed(path: Path, rebuild: bool) -> None:
    tree = open_tree(path)
    flip(tree, 2)
    tree.store.close()
    tree = salvaged(path, rebuild=rebuild)
    assert [number for number, _ in damaged(tree)] == tree.store.damaged() == [2]
    assert readable(tree) == {"run/b", "run/c"}
    save(tree, "again", DATA["run/a"])
    assert readable(tree) == set(DATA)
    assert problems(tree) == []
    tree.store.close()
    tree = salvaged(path, rebuild=True)
    assert readable(tree) == set(DATA)
    tree.store.close()


def test_an_index_that_has_more_than_the_packs_stays(path: Path) -> None:
    tree = open_tree(path)
    flip(tree, 2, at=10)  # the header: a rebuild cannot know the chunk's id
    tree.store.close()
    with pytest.raises(DamagedError, match="the index has, which stays"):
        salvaged(path, rebuild=True)
    tree = salvaged(path)
    assert readable(tree) == {"run/b", "run/c"}
    tree.store.close()


def test_without_an_index_all_that_is_intact_comes_back(path: Path) -> None:
    tree = open_tree(path)
    flip(tree, 2, at=10)
    tree.store.close(commit=False)
    (path / "index.lmdb").unlink()
    with pytest.raises(DamagedError, match="intact"):
        ChunkStore.open(path)
    tree = salvaged(path)
    assert any("no record begins here" in loss for loss in tree.store.opening.losses)
    assert readable(tree) == {"run/b", "run/c"}
    tree.store.close()
    tree = open_tree(path)
    assert readable(tree) == {"run/b", "run/c"}
    tree.store.close()


@pytest.mark.parametrize("lost_index", [False, True])
@pytest.mark.parametrize("pack", [1, 2, 3, -1])
@pytest.mark.parametrize("left", [0, 30, 1000, None])
def test_a_pack_that_is_lost_or_cut_short(path: Path, lost_index: bool, pack: int, left: int | None) -> None:
    packs = sorted((path / "packs").iterdir())
    lost = packs[pack - (pack > 0)]
    if left is None:
        lost.unlink()
    else:
        with lost.open("r+b") as file:
            file.truncate(min(left, lost.stat().st_size - 8))
    if lost_index:
        (path / "index.lmdb").unlink()
    tree = salvaged(path)
    if not lost_index:
        assert len(readable(tree)) >= 1
    kept = readable(tree)
    damaged(tree)
    tree.store.close()
    tree = open_tree(path)
    assert readable(tree) == kept
    for name, data in DATA.items():
        save(tree, f"again-{name[-1]}", data)
        assert read(tree, f"again-{name[-1]}") == data
    tree.store.close()
    tree = open_tree(path)
    assert all(read(tree, f"again-{name[-1]}") == data for name, data in DATA.items())
    tree.store.close()


def reencoded(path: Path) -> tuple[Tree, bytes]:
    """Make a store with a text whose chunks were stored anew, smaller; return its tree, and the text."""
    ChunkStore.create(path, disk=NoSyncDisk(), config=CONFIG).close()
    tree = open_tree(path)
    text = bytes(random.Random(1).choices(b"ab", k=20_000))
    save(tree, "text", text)
    tree.store.commit(checkpoint=True)
    assert tree.store.reencoder.encode_waiting(1 << 20).saved_bytes
    return tree, text


@pytest.mark.parametrize("at", [10, 50], ids=["header", "payload"])
@pytest.mark.parametrize("lost_index", [False, True])
def test_the_record_before_is_taken_where_a_later_one_of_a_chunk_is_damaged(
    tmp_path: Path, lost_index: bool, at: int
) -> None:
    path = tmp_path / "store"
    tree, text = reencoded(path)
    if lost_index:  # the earlier places are called free then, and they are not punched yet
        tree.store.commit(checkpoint=True)
    save(tree, "later", b"later")
    tree.store.commit()
    flip(tree, tree.store.next_number // 2, at=at)
    tree.store.close(commit=False)
    if lost_index:
        (path / "index.lmdb").unlink()
    tree = salvaged(path)
    assert tree.store.opening.losses
    assert read(tree, "text") == text
    tree.store.commit(checkpoint=True)
    assert not lost_index or tree.store.reclaimer.punch()
    tree.store.close()
    for rebuild in (False, True):
        tree = Tree(ChunkStore.open(path, disk=NoSyncDisk(), rebuild=rebuild, salvage=rebuild and at == 10))
        assert damaged(tree) == problems(tree) == []
        assert read(tree, "text") == text
        tree.store.close()


@pytest.mark.parametrize("at", [10, 50], ids=["header", "payload"])
def test_an_index_is_made_anew_with_the_record_before_where_the_one_that_it_had_is_damaged(
    tmp_path: Path, at: int
) -> None:
    path = tmp_path / "store"
    tree, text = reencoded(path)
    tree.store.commit(checkpoint=True)  # the index speaks of the later record, and nothing is punched yet
    flip(tree, tree.store.next_number // 2, at=at)
    tree.store.close()
    tree = salvaged(path, rebuild=True)
    assert tree.store.opening.losses
    assert tree.store.opening.differences == {"chunks": 1}
    assert read(tree, "text") == text
    tree.store.close()
    tree = open_tree(path)
    assert damaged(tree) == problems(tree) == []
    assert read(tree, "text") == text
    tree.store.close()


def test_chunks_in_freed_places_are_those_that_begin_in_one() -> None:
    for seed in range(300):
        generator = random.Random(seed)
        places = merge(
            Place(generator.randrange(1, 4), generator.randrange(12), generator.randrange(1, 4), 0)
            for _ in range(generator.randrange(6))
        )
        everywhere = [(pack, offset, 12 * pack + offset) for pack in range(1, 4) for offset in range(14)]
        located = generator.sample(everywhere, generator.randrange(len(everywhere)))
        expected = [
            number
            for pack, offset, number in sorted(located)
            if any(place.pack == pack and place.offset <= offset < place.offset + place.size for place in places)
        ]
        assert numbers_in(places, located) == expected, seed
