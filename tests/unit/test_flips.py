"""No read ever returns wrong bytes: every byte of a small store is flipped, every file of it cut short and removed.

What a reader gets is the bytes that were written, or an error; whichever byte it is.
"""

import mmap
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from ckptfs.disk import Disk
from ckptfs.errors import CkptfsError, DamagedError
from ckptfs.store import ChunkStore
from ckptfs.store.seal import Seal
from ckptfs.tree import Tree
from ckptfs.tree.reader import ChunkReader
from tests.faults.hostile import flips_shown, outcome, read_state
from tests.faults.workload import state_of
from tests.unit.tree_support import CONFIG, NoSyncDisk, make_directory, open_tree, read, save

NAMES = ("run/a", "run/b")
SEED = 20240607
STEP = 1 if os.environ.get("CKPTFS_TEST_LARGE") else 97
"""Of an index without a seal, which is opened anew for each of them, one in so many bytes."""
SAVE_STEP = 1990
PAGE_HEAD = range(10, 16)
"""Flags and extent of a page of LMDB."""

Files = dict[tuple[str, str], bytes]
"""The bytes of every file of every version, by the version's name and the path."""


def make(path: Path) -> Files:
    """Make a store of two files in two versions, closed; return what is in it."""
    ChunkStore.create(path, disk=NoSyncDisk(), config=CONFIG).close()
    tree = Tree(ChunkStore.open(path, disk=NoSyncDisk(), pack_size_max=2000))
    rng = random.Random(SEED)
    make_directory(tree, "run")
    for version in ("one", "two"):
        for name in NAMES:
            save(tree, name, rng.randbytes(700) + bytes(400) + b"text " * 40)
        tree.take_snapshot(version)
    tree.store.commit(checkpoint=True)
    tree.store.reencoder.encode_waiting(1 << 20)
    tree.store.commit(checkpoint=True)
    files = {(each.name, name): read(tree, name, each) for each in tree.snapshots.all() for name in NAMES}
    tree.store.close()
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    """Give a store that no test changes, and what is in it."""
    path = tmp_path_factory.mktemp("whole") / "store"
    return path, make(path)


@pytest.fixture
def store(whole: tuple[Path, Files], tmp_path: Path) -> tuple[Path, Files]:
    """Give a copy of the store to one test."""
    return shutil.copytree(whole[0], tmp_path / "store"), whole[1]


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    """Flip a bit of a file for a while."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 1 << bit]), offset)
        yield
        os.pwrite(fd, byte, offset)
    finally:
        os.close(fd)


def read_all(tree: Tree, files: Files) -> int:
    """Read every file of every version that is there, uncached, and return how many failed."""
    tree.reader = ChunkReader(tree.store)
    failed = 0
    for (version, name), data in files.items():
        snapshot = tree.snapshots.named(version)
        try:
            assert snapshot is None or read(tree, name, snapshot) == data
        except (CkptfsError, OSError):
            failed += 1
    return failed


def test_no_flipped_byte_of_a_pack_is_ever_read(store: tuple[Path, Files]) -> None:
    path, files = store
    tree = open_tree(path)
    assert read_all(tree, files) == 0
    rng = random.Random(SEED)
    caught = 0
    for pack in sorted((path / "packs").iterdir()):
        for offset in range(pack.stat().st_size):
            with flipped(pack, offset, rng.randrange(8)):
                caught += read_all(tree, files) > 0
    assert caught
    assert read_all(tree, files) == 0
    tree.store.close()


def test_no_flipped_byte_of_a_pack_gives_a_rebuilt_index_wrong_bytes(store: tuple[Path, Files], tmp_path: Path) -> None:
    path, files = store
    (path / "index.lmdb").unlink()
    rng = random.Random(SEED)
    for pack in sorted((path / "packs").iterdir()):
        for offset in range(rng.randrange(97), pack.stat().st_size, 97):
            copy = shutil.copytree(path, tmp_path / "copy")
            with flipped(copy / "packs" / pack.name, offset, rng.randrange(8)):
                for salvage in (False, True):
                    try:
                        tree = Tree(ChunkStore.open(copy, disk=NoSyncDisk(), salvage=salvage))
                    except DamagedError:
                        assert not salvage
                        continue
                    read_all(tree, files)
                    tree.store.close()
                    break
            shutil.rmtree(copy)


def test_every_flipped_byte_of_the_index_breaks_its_seal(store: tuple[Path, Files]) -> None:
    path, _ = store
    index = path / "index.lmdb"
    seal = Seal(index, Disk())
    rng = random.Random(SEED)
    for offset in range(index.stat().st_size):
        with flipped(index, offset, rng.randrange(8)):
            assert seal.damage(), offset
    assert seal.damage() is None


@pytest.mark.parametrize("read_only", [False, True])
def test_an_index_whose_seal_is_broken_is_not_opened(store: tuple[Path, Files], read_only: bool) -> None:
    path, files = store
    with flipped(path / "index.lmdb", 40_000, 3):
        for _ in range(2):
            with pytest.raises(DamagedError, match=r"index\.lmdb is not what was written"):
                open_tree(path, read_only=read_only)
    tree = open_tree(path)
    assert read_all(tree, files) == 0
    tree.store.close()


def rows_in(index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of all rows as LMDB has them: with their checks, packed rows whole as values."""
    with lmdb.open(str(index), subdir=False, readonly=True, lock=False, max_dbs=16) as plain, plain.begin() as reading:
        for name, _ in reading.cursor():
            yield from reading.cursor(plain.open_db(name, reading))


def test_no_flipped_byte_of_an_index_without_a_seal_shows_anything_else(store: tuple[Path, Files]) -> None:
    """As a kill leaves it: pages are looked at before LMDB meets them, and rows have checks."""
    path, _ = store
    (path / "index.lmdb.seal").unlink()
    written = read_state(path)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    size = (path / "index.lmdb").stat().st_size
    flips = [(offset, rng.randrange(8)) for offset in range(rng.randrange(STEP), size, STEP)]
    # By these LMDB knows what a page is and how many rows it has; all bits of them, for few show anything.
    heads = [page + byte for page in range(0, size, mmap.PAGESIZE) for byte in PAGE_HEAD]
    flips += [(offset, bit) for offset in heads for bit in range(8)]
    # A row whose key has changed is not found where it belongs, and an older one is, or none.
    data = (path / "index.lmdb").read_bytes()
    rows = [(len(key), re.finditer(re.escape(key + value), data)) for key, value in rows_in(path / "index.lmdb")]
    keys = [match.start() + byte for size, found in rows for match in found for byte in range(size)]
    assert len(keys) > 400
    flips += [(offset, rng.randrange(8)) for offset in keys]
    assert not flips_shown(path, written, flips)
    assert read_state(path) == written


def test_a_save_into_an_index_with_a_flipped_byte_changes_nothing_else(
    store: tuple[Path, Files], tmp_path: Path
) -> None:
    path, _ = store
    (path / "index.lmdb.seal").unlink()
    written = read_state(path)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    for offset in range(rng.randrange(SAVE_STEP), (path / "index.lmdb").stat().st_size, SAVE_STEP):
        copy = shutil.copytree(path, tmp_path / "copy")
        with flipped(copy / "index.lmdb", offset, rng.randrange(8)):
            assert outcome(copy, written=written) == "", offset
        shutil.rmtree(copy)


def test_no_value_that_is_flipped_while_the_index_is_in_use_is_believed(store: tuple[Path, Files]) -> None:
    path, files = store
    index = path / "index.lmdb"
    data = index.read_bytes()
    places = [match.span() for _, value in rows_in(index) for match in re.finditer(re.escape(value), data)]
    tree = open_tree(path, read_only=True)
    written = state_of(tree)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    caught = 0
    for start, stop in places:
        for offset in range(start, stop):
            with flipped(index, offset, rng.randrange(8)):
                try:
                    tree.reader = ChunkReader(tree.store)
                    assert state_of(tree) == written
                except CkptfsError:
                    caught += 1
    assert caught
    assert read_all(tree, files) == 0
    tree.store.close()


def test_a_seal_is_off_while_the_index_is_written(store: tuple[Path, Files]) -> None:
    path, files = store
    seal = path / "index.lmdb.seal"
    assert seal.exists()
    tree = open_tree(path)
    assert not seal.exists()
    save(tree, "more", b"more")
    tree.store.commit(checkpoint=True)
    tree.store.close(commit=False)  # a kill
    assert not seal.exists()
    tree = open_tree(path)
    assert read_all(tree, files) == 0
    tree.store.close()
    assert seal.exists()


def cut(path: Path, keep: float) -> None:
    """Cut a file to a part of its size."""
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize(
    "harm", [os.unlink, lambda path: cut(path, 0), lambda path: cut(path, 0.3), lambda path: cut(path, 0.99)]
)
@pytest.mark.parametrize("salvage", [False, True])
def test_a_store_with_a_file_removed_or_cut_short_has_no_wrong_bytes(
    whole: tuple[Path, Files], tmp_path: Path, harm: Callable[[Path], None], salvage: bool
) -> None:
    files = [each.relative_to(whole[0]) for each in sorted(whole[0].rglob("*")) if each.is_file()]
    for number, file in enumerate(files):
        copy = shutil.copytree(whole[0], tmp_path / str(number))
        harm(copy / file)
        try:
            tree = Tree(ChunkStore.open(copy, disk=NoSyncDisk(), salvage=salvage))
        except CkptfsError:
            continue
        read_all(tree, whole[1])
        save(tree, "new", b"new")
        assert read(tree, "new") == b"new"
        tree.store.close()
