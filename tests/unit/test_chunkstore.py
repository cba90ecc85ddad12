"""The door of the store: chunks are stored once, read back verified, and failures are named."""

import errno
import fcntl
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptfs.config import FORMAT_VERSION, MIB, ChunkSizes
from ckptfs.errors import (
    DamagedError,
    NoSpaceError,
    NotAStoreError,
    StoreInUseError,
    StoreReadOnlyError,
    StoreVersionError,
)
from ckptfs.lock import StoreLock
from ckptfs.store import NO_CHUNK, ChunkStore, Disk, Table, chunk_rows, description
from ckptfs.store.packfile import Found
from ckptfs.store.packs import PackIdentity, Packs
from ckptfs.store.records import Position

SEED = 20240607
EVEN_SIZE = 4096


@pytest.fixture(autouse=True)
def say_seed() -> None:
    print(f"seed {SEED}")


def random_bytes(size: int, seed: int = SEED) -> bytes:
    return random.Random(seed).randbytes(size)


class FullDisk(Disk):
    """A disk that is full when told to be."""

    full = False

    def pwrite(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, path: Path) -> None:
        if self.full:
            raise NoSpaceError("full")
        super().pwrite(fd, buffers, offset, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def put(store: ChunkStore, data: bytes) -> list[int]:
    """Store data; where the store was made by `create_even`, in chunks of EVEN_SIZE."""
    return store.ingest(memoryview(data), True).numbers


def create_even(path: Path) -> ChunkStore:
    """Make a store that cuts only at the multiples of EVEN_SIZE, so that a test knows its chunks."""
    sizes = ChunkSizes(size_min=EVEN_SIZE, size_max=EVEN_SIZE)
    config = description.new_config(time.time_ns())._replace(chunk_sizes=sizes)
    return ChunkStore.create(path, config=config)


def test_chunks_come_back_from_every_layer(path: Path) -> None:
    data = random_bytes(MIB)
    store = ChunkStore.create(path)
    numbers, lengths = store.ingest(memoryview(data), True)
    assert sum(lengths) == len(data)
    assert b"".join(map(store.read, numbers)) == data
    store.close()
    with ChunkStore.open(path) as again:
        assert b"".join(map(again.read, numbers)) == data
        assert again.ingest(memoryview(data), True) == (numbers, lengths)
        assert again.appended_bytes == 0


def test_equal_chunks_are_stored_once(path: Path) -> None:
    data = random_bytes(8 * 4096)
    with create_even(path) as store:
        numbers = put(store, data + data[:4096] + bytes(4096) * 3)
        assert numbers == [1, 2, 3, 4, 5, 6, 7, 8, 1, 9, 9, 9]
        assert put(store, data) == numbers[:8]
        stats = store.stats()
        assert (stats.chunks, stats.raw_bytes) == (9, 9 * 4096)
        files = [path / "index.lmdb", *(path / "packs").iterdir()]
        assert stats.stored_bytes == sum(file.stat().st_blocks * 512 for file in files)
        assert NO_CHUNK not in numbers


def test_threads_that_put_the_same_chunks_store_each_once(path: Path) -> None:
    pieces = [random_bytes(EVEN_SIZE, SEED + number) for number in range(150)]
    threads = 4
    barrier = threading.Barrier(threads)

    def work(seed: int) -> dict[bytes, int]:
        order = random.Random(seed).sample(pieces, 120)
        seen: dict[bytes, int] = {}
        barrier.wait(10)
        for first in range(0, len(order), 8):
            batch = order[first : first + 8]
            seen.update(zip(batch, put(store, b"".join(batch)), strict=True))
        return seen

    with create_even(path) as store, ThreadPoolExecutor(threads) as pool:
        for round_ in range(3):
            results = list(pool.map(work, range(round_ * threads, (round_ + 1) * threads)))
            # A checkpoint between the rounds: the next one meets the same chunks in LMDB.
            store.commit(checkpoint=True)
        numbers: dict[bytes, int] = {}
        for result in results:
            for piece, number in result.items():
                assert numbers.setdefault(piece, number) == number
                assert store.read(number) == piece
        distinct = store.stats().chunks
    scanned = sorted(record_numbers(path))
    assert scanned == list(range(1, distinct + 1))
    assert distinct <= len(pieces)


def record_numbers(path: Path) -> list[int]:
    """Return the numbers of all records in the packs of a closed store, which holds chunks only."""
    config = description.read(path, Disk())
    packs = Packs(path / "packs", Disk(), PackIdentity(description.fingerprint(config), config.seed))
    return [found.record.header.number for found in packs.scan(Position(1, 0)) if isinstance(found, Found)]


def test_chunks_are_put_and_read_while_checkpoints_go_on(path: Path) -> None:
    pieces = [random_bytes(2000, SEED + number) for number in range(400)]
    store = ChunkStore.create(path)

    def work(part: int) -> list[tuple[int, bytes]]:
        seen = []
        for piece in pieces[part::2]:
            (number,) = put(store, piece)
            assert store.read(number) == piece
            seen.append((number, piece))
        return seen

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, part) for part in range(2)]
        step = 0
        while not all(future.done() for future in futures):
            store.tables.put(Table.META, b"step", str(step).encode())
            store.commit(checkpoint=True)
            step += 1
        seen = [each for future in futures for each in future.result()]
    # As after a kill: what was put since the last commit is not promised, so commit once more.
    store.tables.put(Table.META, b"step", b"end")
    store.commit()
    store.close(commit=False)
    with ChunkStore.open(path) as again:
        assert again.tables.get(Table.META, b"step") == b"end"
        assert all(again.read(number) == piece for number, piece in seen)
        assert sorted(number for number, _ in seen) == list(range(1, 401))


def test_a_full_disk_loses_nothing(path: Path) -> None:
    disk = FullDisk()
    store = ChunkStore.create(path, disk=disk)
    first, second = random_bytes(4096), random_bytes(4096, SEED + 1)
    put(store, first)
    store.tables.put(Table.META, b"key", b"value")
    disk.full = True
    with pytest.raises(NoSpaceError):
        put(store, second)
    with pytest.raises(NoSpaceError):
        store.commit()
    assert put(store, first) == [1]
    disk.full = False
    assert put(store, second) == [2]
    store.commit()
    store.close(commit=False)
    with ChunkStore.open(path) as again:
        assert again.tables.get(Table.META, b"key") == b"value"
        assert again.read(2) == second


def test_a_checkpoint_that_fails_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_even(path)
    data = random_bytes(40960)
    numbers = put(store, data[:20480])
    store.tables.put(Table.META, b"first", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(store._environment, "write", lambda tables: (_ for _ in ()).throw(NoSpaceError("full")))
        with pytest.raises(NoSpaceError):
            store.commit(checkpoint=True)
    numbers += put(store, data[20480:])
    store.tables.put(Table.META, b"second", b"2")
    assert store.tables.get(Table.META, b"first") == b"1"
    store.commit(checkpoint=True)
    store.close(commit=False)
    with ChunkStore.open(path) as again:
        assert [row[0] for row in again.tables.scan(Table.META)] == [b"first", b"second"]
        assert b"".join(map(again.read, numbers)) == data


@pytest.mark.parametrize("parts", [0, 1, 2, 3])
def test_a_crash_between_the_parts_of_a_checkpoint_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(chunk_rows, "_PART_ROWS", 10)
    store = create_even(path)
    first, second = random_bytes(10 * EVEN_SIZE, 1), random_bytes(40 * EVEN_SIZE, 2)
    numbers = put(store, first)
    store.commit(checkpoint=True)
    store.tables.put(Table.META, b"journalled", b"1")
    store.commit()
    numbers += put(store, second)  # chunks of a file that is not committed: no metadata record speaks of them
    write, written = store._environment.write, 0

    def torn(tables: Iterable[tuple[Table, Iterable[tuple[bytes, bytes | None]]]]) -> None:
        nonlocal written
        if written == parts:
            raise NoSpaceError("the machine goes down here")
        written += 1
        write(tables)

    monkeypatch.setattr(store._environment, "write", torn)
    with pytest.raises(NoSpaceError):
        store.checkpoint(store.tables.freeze())
    store.close(commit=False)
    with ChunkStore.open(path) as again:
        assert again.tables.get(Table.META, b"journalled") == b"1"
        third = random_bytes(40 * EVEN_SIZE, 3)
        new = put(again, third)
        assert b"".join(map(again.read, new)) == third
        known = put(again, first + second)
        assert b"".join(map(again.read, known)) == first + second
        if parts:
            assert known == numbers, "what an index speaks of is kept"


@pytest.mark.parametrize("at", [20, 100, 4000])
def test_damage_is_named_and_other_chunks_stay_readable(path: Path, at: int) -> None:
    data = random_bytes(3 * 4096)
    with create_even(path) as store:
        numbers = put(store, data)
        place = store._index.locate(2)
        assert place is not None
        pack = store._packs.path(place.pack)
        with pack.open("r+b") as file:
            file.seek(place.offset + at)
            before = file.read(1)
            file.seek(place.offset + at)
            file.write(bytes([before[0] ^ 1]))
        with pytest.raises(DamagedError, match=f"{pack} at offset {place.offset}"):
            store.read(2)
        assert store.read(numbers[0]) + store.read(numbers[2]) == data[:4096] + data[8192:]
        with pytest.raises(DamagedError, match="chunk 99"):
            store.read(99)


def test_a_second_process_is_told_who_has_the_store(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ckptfs.store import ChunkStore\n"
        "try: ChunkStore.open(Path(sys.argv[1]), read_only=sys.argv[2] == 'r')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print('opened')"
    )

    def other(mode: str) -> str:
        command = [sys.executable, "-c", code, str(path), mode]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    ChunkStore.create(path).close()
    with ChunkStore.open(path):
        for mode in "rw":
            assert f"StoreInUseError {path} is in use by process {os.getpid()}" in other(mode)
    with ChunkStore.open(path, read_only=True):
        assert other("r") == "opened\n"
        assert other("w").startswith("StoreInUseError")
    assert other("w") == "opened\n"
    with ChunkStore.open(path):
        (path / "lock").unlink()
        assert f"StoreInUseError {path} is in use by another process" in other("w")
        assert not (path / "lock").exists()


def test_a_directory_that_cannot_be_locked_leaves_it_to_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChunkStore.create(path).close()
    flock = fcntl.flock

    def flock_of_files(fd: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, "a disk that locks no directories")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_files)
    with ChunkStore.open(path), pytest.raises(StoreInUseError, match=str(os.getpid())):
        ChunkStore.open(path)


def test_a_disk_that_locks_no_files_takes_no_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would keep a second writer out; a directory alone need not be locked."""
    ChunkStore.create(path).close()

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "a disk that locks nothing")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for read_only in (False, True):
        with pytest.raises(OSError, match="a disk that locks nothing"):
            ChunkStore.open(path, read_only=read_only)


def test_a_lock_names_its_writer_and_says_whether_the_last_one_came_to_its_end(path: Path) -> None:
    ChunkStore.create(path).close()
    (path / "lock").write_text("12345678901\n")
    for comes_to_its_end in (False, True):
        store = ChunkStore.open(path)
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        store.close(commit=comes_to_its_end)
        with StoreLock(path, Disk(), shared=True) as lock:
            assert lock.is_finished == comes_to_its_end


def test_a_store_without_its_lock_is_refused_to_readers_and_mended_by_a_writer(path: Path) -> None:
    ChunkStore.create(path).close()
    (path / "lock").unlink()
    with pytest.raises(NotAStoreError, match="has no file `lock`"):
        ChunkStore.open(path, read_only=True)
    ChunkStore.open(path).close()
    ChunkStore.open(path, read_only=True).close()


def test_the_lock_is_given_back_by_a_failed_open(path: Path) -> None:
    with ChunkStore.create(path) as store:
        put(store, random_bytes(4096))
    (path / "index.lmdb").write_bytes(b"no index" * 1000)
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"index\.lmdb"):
            ChunkStore.open(path)
    with ChunkStore.open(path, rebuild=True) as store:
        assert store.stats().chunks == 0


def test_a_store_open_for_reading_is_not_changed(path: Path) -> None:
    with ChunkStore.create(path) as store:
        put(store, random_bytes(4096))
        store.tables.put(Table.META, b"a", b"1")
    with ChunkStore.open(path) as store:
        store.tables.put(Table.META, b"b", b"2")
        store.commit()
        put(store, random_bytes(4096, SEED + 1))
        store.close(commit=False)
    before = {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*")}
    with ChunkStore.open(path, read_only=True) as store:
        assert [row[0] for row in store.tables.scan(Table.META)] == [b"a", b"b"]
        assert put(store, random_bytes(4096)) == [1]
        for write in (
            lambda: put(store, random_bytes(4096, SEED + 2)),
            store.sync,
            lambda: store.checkpoint(store.tables.freeze()),
        ):
            with pytest.raises(StoreReadOnlyError):
                write()
    assert {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*")} == before


def test_what_is_no_store_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(NotAStoreError):
        ChunkStore.open(tmp_path / "missing")
    with pytest.raises(NotAStoreError):
        ChunkStore.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStoreError):
        ChunkStore.open(tmp_path / "file")
    with pytest.raises(NotAStoreError, match="not empty"):
        ChunkStore.create(tmp_path)
    ChunkStore.create(path).close()
    with pytest.raises(NotAStoreError, match="not empty"):
        ChunkStore.create(path)
    good = json.loads((path / "store.json").read_text())
    for bad in ("{", "[]", json.dumps(good | {"seed": 5}), json.dumps(good | {"kind": "x"}), '{"kind": true}'):
        (path / "store.json").write_text(bad)
        with pytest.raises(NotAStoreError):
            ChunkStore.open(path)
    (path / "store.json").write_text(json.dumps(good | {"version": FORMAT_VERSION + 1}))
    with pytest.raises(StoreVersionError, match="upgrade"):
        ChunkStore.open(path)
    for version in (3, 4):
        (path / "store.json").write_text(json.dumps(good | {"version": version}))
        with pytest.raises(StoreVersionError, match="never released"):
            ChunkStore.open(path)


def test_a_creation_that_was_cut_short_is_begun_again(path: Path) -> None:
    ChunkStore.create(path).close()
    for name in ("store.json", "index.lmdb", "index.lmdb-lock", "index.lmdb.seal"):
        (path / name).unlink()
    ChunkStore.create(path).close()


def test_the_description_comes_back(path: Path) -> None:
    config = description.new_config(time.time_ns())._replace(chunk_sizes=ChunkSizes(1024, 12, 8192))
    with ChunkStore.create(path, config=config) as store:
        assert store.config == config
        assert max(store.ingest(memoryview(random_bytes(100_000)), True).lengths) <= 8192
        assert 0 < store.space().free <= store.space().total
    assert description.read(path, Disk()) == config
    assert description.fingerprint(config) != config.seed


def test_every_file_is_private_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with ChunkStore.create(path) as store:
            put(store, random_bytes(4096))
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in [path, *path.rglob("*")]}
    directories = {"store", "packs"}
    assert modes == {name: "0o700" if name in directories else "0o600" for name in modes}
    assert len(modes) == 8


def test_a_disk_that_refuses_to_write_is_named() -> None:
    # /proc refuses even root, so the test says the same for every user.
    with pytest.raises(StoreReadOnlyError, match="/proc/version"):
        Disk().unlink(Path("/proc/version"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        Disk().unlink(Path("/nowhere/at/all"))
