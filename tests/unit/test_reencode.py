"""Raw first, encode later: chunks keep their bytes at every step of their way, and their old places come back."""

import dataclasses
import errno
import itertools
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ckptfs.store.checkpoint as checkpoints
from ckptfs.config import FORMAT_VERSION, MIB, ChunkSizes
from ckptfs.errors import DamagedError, StoreVersionError
from ckptfs.store import ChunkStore, Disk, Table, description, records
from ckptfs.store.codec import Encoding
from ckptfs.store.freed import PIECE_SIZE, build_row, merge, pieces
from ckptfs.store.packfile import Found
from ckptfs.store.records import Place, Position, RecordType

SEED = 90210
CHUNK_SIZE = 16384
ALL = 1 << 40


@pytest.fixture(autouse=True)
def say_seed() -> None:
    print(f"seed {SEED}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def create(path: Path, *, disk: Disk | None = None, pack_size_max: int = MIB) -> ChunkStore:
    """Make a store that cuts at the multiples of CHUNK_SIZE only."""
    sizes = ChunkSizes(size_min=CHUNK_SIZE, size_max=CHUNK_SIZE)
    config = description.new_config(time.time_ns())._replace(chunk_sizes=sizes)
    ChunkStore.create(path, config=config).close()
    return ChunkStore.open(path, disk=disk, pack_size_max=pack_size_max)


def floats(chunks: int, seed: int = SEED) -> bytes:
    """Return weights, which become smaller when they are encoded."""
    return np.random.default_rng(seed).normal(0, 0.02, chunks * CHUNK_SIZE // 4).astype(np.float32).tobytes()


def noise(chunks: int, seed: int = SEED) -> bytes:
    """Return bytes that do not become smaller."""
    return random.Random(seed).randbytes(chunks * CHUNK_SIZE)


def ingest(store: ChunkStore, data: bytes, *, encode: bool = False) -> dict[int, bytes]:
    """Store data, and return number -> bytes."""
    numbers = store.ingest(memoryview(data), True, encode=encode).numbers
    return {number: data[at * CHUNK_SIZE : (at + 1) * CHUNK_SIZE] for at, number in enumerate(numbers)}


def checkpoint(store: ChunkStore, step: int = 0) -> None:
    """Commit a row, as whoever puts chunks does, and bring LMDB up to it."""
    store.tables.put(Table.META, b"step", b"%d" % step)
    store.commit(checkpoint=True)


def assert_reads(store: ChunkStore, kept: dict[int, bytes]) -> None:
    assert {number for number, data in kept.items() if store.read(number) != data} == set()


def waiting(store: ChunkStore) -> tuple[int, int]:
    """Return how many chunks wait, and their bytes."""
    stats = store.stats()
    return stats.waiting_chunks, stats.waiting_bytes


def encodings(store: ChunkStore) -> set[int]:
    """Return the encodings of all chunks, as the index has them."""
    locations = [store._index.locate(number) for number in range(1, store.stats().chunks + 1)]
    return {location.encoding for location in locations if location is not None}


def pack_blocks(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in (path / "packs").iterdir())


def test_what_waits_is_encoded_and_its_place_comes_back(path: Path) -> None:
    with create(path) as store:
        kept = ingest(store, floats(64))
        assert encodings(store) == {Encoding.WAITING}
        assert waiting(store) == (64, 64 * CHUNK_SIZE)
        checkpoint(store)
        raw_blocks = pack_blocks(path)
        assert raw_blocks >= 64 * CHUNK_SIZE
        done = store.reencoder.encode_waiting(ALL)
        assert (done.chunks, done.raw_bytes) == (64, 64 * CHUNK_SIZE)
        assert done.saved_bytes > 0.1 * done.raw_bytes
        assert store.reclaimer.punch() == 0, "the new places are not durable yet"
        assert waiting(store) == (0, 0)
        assert_reads(store, kept)
        checkpoint(store)
        freed = store.reclaimer.punch()
        # Adjacent records are one place: of 64 of them, a page or two at the ends stay.
        assert 64 * CHUNK_SIZE - 8192 <= freed <= 64 * (CHUNK_SIZE + 48)
        assert pack_blocks(path) <= raw_blocks - done.saved_bytes + 3 * 8192
        assert store.reclaimer.punch() == 0
        assert store.reencoder.encode_waiting(ALL).chunks == 0
        assert_reads(store, kept)
        assert store.ingest(memoryview(floats(64)), True, encode=False).numbers == list(kept)
    with ChunkStore.open(path) as store:
        assert_reads(store, kept)
        assert store.stats()[:2] == (64, 64 * CHUNK_SIZE)
    with ChunkStore.open(path, rebuild=True) as store:
        assert_reads(store, kept)
        assert store.stats()[:2] == (64, 64 * CHUNK_SIZE)
        assert waiting(store) == (0, 0)


def test_what_is_stored_anew_is_not_counted_as_new(path: Path) -> None:
    with create(path) as store:
        ingest(store, floats(16))
        checkpoint(store)
        before = store.appended_bytes
        store.reencoder.encode_waiting(ALL)
        assert store.appended_bytes == before


def test_what_does_not_become_smaller_is_tried_once(path: Path) -> None:
    with create(path) as store:
        kept = ingest(store, noise(20))
        checkpoint(store)
        assert store.reencoder.encode_waiting(ALL) == (20, 20 * CHUNK_SIZE, 0)
        assert store.reencoder.encode_waiting(ALL).chunks == 0
        assert encodings(store) == {Encoding.RAW}
        # Nothing was appended, and yet the close has to keep what is known now.
    with ChunkStore.open(path) as store:
        assert waiting(store) == (0, 0)
        assert store.reencoder.encode_waiting(ALL).chunks == 0
        assert_reads(store, kept)


@pytest.mark.parametrize("clean", [False, True])
def test_a_restart_finds_what_waits(path: Path, clean: bool) -> None:
    store = create(path)
    kept = ingest(store, floats(40))
    checkpoint(store)
    assert store.reencoder.encode_waiting(10 * CHUNK_SIZE).chunks == 10
    checkpoint(store)
    kept |= ingest(store, noise(5))
    store.tables.put(Table.META, b"more", b"")
    store.commit()
    assert waiting(store) == (35, 35 * CHUNK_SIZE)
    store.close(commit=clean)
    with ChunkStore.open(path) as store:
        assert waiting(store) == (35, 35 * CHUNK_SIZE)
        checkpoint(store)
        assert store._index.tried_until == 11
        assert store.reencoder.encode_waiting(ALL).chunks == 35
        assert_reads(store, kept)


def test_a_chunk_that_is_all_one_byte_is_encoded_at_once(path: Path) -> None:
    with create(path) as store:
        kept = ingest(store, bytes(CHUNK_SIZE) + b"\x80" * CHUNK_SIZE + bytes(CHUNK_SIZE - 1) + b"\x01")
        assert encodings(store) == {Encoding.ZSTD, Encoding.WAITING}
        assert store.stats().waiting_chunks == 1
        kept |= ingest(store, b"tiny")
        assert_reads(store, kept)
        assert store.stats().waiting_chunks == 1, "too small for anything to be tried"


def test_the_work_stops_when_asked(path: Path) -> None:
    with create(path) as store:
        kept = ingest(store, floats(40))
        checkpoint(store)
        asked = itertools.count()
        assert store.reencoder.encode_waiting(ALL, lambda: next(asked) >= 5).chunks == 5
        assert store.stats().waiting_chunks == 35
        assert store.reencoder.encode_waiting(ALL, lambda: True).chunks == 0
        assert store.reencoder.encode_waiting(1).chunks == 1
        assert store.reencoder.encode_waiting(ALL).chunks == 34
        checkpoint(store)
        assert store.reclaimer.punch(lambda: True) == 0
        assert store.reclaimer.punch() > 0
        assert_reads(store, kept)


def test_a_damaged_chunk_is_named_and_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(path) as store:
        kept = ingest(store, floats(3))
        checkpoint(store)
        place = store._index.locate(2)
        assert place is not None
        pack = store._packs.path(place.pack)
        with pack.open("r+b") as file:
            file.seek(place.offset + 100)
            file.write(b"damage")
        with caplog.at_level(logging.WARNING):
            assert store.reencoder.encode_waiting(ALL).chunks == 3
        assert f"{pack} at offset {place.offset}" in caplog.text
        assert store.reencoder.encode_waiting(ALL).chunks == 0
        kept.pop(2)
        assert_reads(store, kept)
        with pytest.raises(DamagedError):
            store.read(2)


class NoHolesDisk(Disk):
    """A disk that cannot punch."""

    asked = 0

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        self.asked += 1
        raise OSError(errno.EOPNOTSUPP, "no holes here")


def test_a_disk_that_cannot_punch_keeps_the_places(path: Path) -> None:
    disk = NoHolesDisk()
    with create(path, disk=disk) as store:
        kept = ingest(store, floats(10))
        checkpoint(store)
        store.reencoder.encode_waiting(ALL)
        checkpoint(store)
        assert [store.reclaimer.punch(), store.reclaimer.punch()] == [0, 0]
        assert disk.asked == 1
        checkpoint(store)
        assert_reads(store, kept)
    # A disk that can, later (the store was moved), gets them.
    with ChunkStore.open(path) as store:
        assert store.reclaimer.punch() > 8 * CHUNK_SIZE
        assert_reads(store, kept)


def test_a_punch_that_fails_is_tried_again(path: Path) -> None:
    class Failing(Disk):
        def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
            raise OSError(errno.EIO, "broken")

    with create(path, disk=Failing()) as store:
        kept = ingest(store, floats(10))
        checkpoint(store)
        store.reencoder.encode_waiting(ALL)
        checkpoint(store)
        with pytest.raises(OSError, match="broken"):
            store.reclaimer.punch()
    with ChunkStore.open(path) as store:
        assert store.reclaimer.punch() > 8 * CHUNK_SIZE
        assert_reads(store, kept)


def test_a_punch_frees_whole_pages_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    page = os.sysconf("SC_PAGESIZE")
    data = random.Random(SEED).randbytes(6 * page)
    file.write_bytes(data)
    fd = os.open(file, os.O_RDWR)
    try:
        assert Disk().punch(fd, page - 1, 2, file) == 0
        assert Disk().punch(fd, page + 1, 3 * page, file) == 2 * page
        assert file.read_bytes() == data[: 2 * page] + bytes(2 * page) + data[4 * page :]
        assert Disk().punch(fd, 4 * page, page, file) == page
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            Disk().punch(-1, 0, page, file)
    finally:
        os.close(fd)


def test_places_that_touch_are_merged() -> None:
    places = [Place(2, 64, 8, 9), Place(1, 80, 16, 7), Place(1, 64, 16, 8), Place(1, 104, 8, 3), Place(1, 96, 4, 2)]
    assert merge(places) == [Place(1, 64, 36, 8), Place(1, 104, 8, 3), Place(2, 64, 8, 9)]
    assert merge([]) == []


def test_a_place_is_punched_in_parts_that_cut_no_page() -> None:
    place = Place(3, PIECE_SIZE - 100, 2 * PIECE_SIZE + 300, 5)
    assert list(pieces(place)) == [
        Place(3, PIECE_SIZE - 100, 100, 5),
        Place(3, PIECE_SIZE, PIECE_SIZE, 5),
        Place(3, 2 * PIECE_SIZE, PIECE_SIZE, 5),
        Place(3, 3 * PIECE_SIZE, 200, 5),
    ]
    assert PIECE_SIZE % os.sysconf("SC_PAGESIZE") == 0


# Crashes


@dataclasses.dataclass
class Image:
    """A store directory as a kill would leave it, and what it has to hold."""

    name: str
    path: Path
    kept: dict[int, bytes]
    step: bytes


class Crashes(Disk):
    """A disk that copies the store before and after what it does, while the test says so."""

    def __init__(self, path: Path) -> None:
        self.store = path
        self.images: list[Image] = []
        self.kept: dict[int, bytes] = {}
        self.step = b""
        self.armed = False

    def snap(self, name: str) -> None:
        if self.armed:
            target = self.store.with_name(f"{len(self.images)} {name}")
            shutil.copytree(self.store, target, ignore=shutil.ignore_patterns("index.lmdb-lock", "lock"))
            self.images.append(Image(name, target, dict(self.kept), self.step))

    def pwrite(self, fd: int, buffers, offset: int, path: Path) -> None:  # type: ignore[no-untyped-def]
        super().pwrite(fd, buffers, offset, path)
        self.snap("written")

    def fdatasync(self, fd: int, path: Path) -> None:
        self.snap("before sync")
        super().fdatasync(fd, path)
        self.snap("synced")

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        half = size // 2
        first = super().punch(fd, offset, half, path)
        self.snap("half punched")
        second = super().punch(fd, offset + half, size - half, path)
        self.snap("punched")
        return first + second


def history(path: Path) -> list[Image]:
    """Store, encode, checkpoint and punch in three rounds; return an image of the store after each step of it."""
    disk = Crashes(path)
    store = create(path, disk=disk, pack_size_max=20 * CHUNK_SIZE)
    disk.armed = True
    for step in range(3):
        disk.kept = disk.kept | ingest(store, noise(2, step) + floats(6, step) + noise(2, step + 100))
        disk.kept = disk.kept | ingest(store, floats(3, step + 50), encode=True)
        store.tables.put(Table.META, b"step", b"%d" % step)
        store.commit()
        disk.step = b"%d" % step
        disk.snap("committed")
        store.commit(checkpoint=True)
        disk.snap("first checkpoint")
        assert store.reencoder.encode_waiting(7 * CHUNK_SIZE).chunks == 7
        disk.snap("encoded")
        if step:
            checkpoint(store, step)
            disk.snap("second checkpoint")
            assert store.reclaimer.punch() > 0
    store.close(commit=False)
    disk.snap("left")
    return disk.images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    return history(tmp_path_factory.mktemp("crashes") / "store")


def kept_of(image: Image, store: ChunkStore) -> dict[int, bytes]:
    """Return what has to be there: what was committed, which is every chunk whose step the store shows."""
    shown = store.tables.get(Table.META, b"step")
    assert shown is not None or image.step == b""
    assert shown is None or shown >= image.step
    return {number: data for number, data in image.kept.items() if number <= store.stats().chunks}


@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_at_every_step_loses_no_chunk(images: list[Image], tmp_path: Path, lost: bool) -> None:
    names = {image.name for image in images}
    assert names >= {"written", "synced", "half punched", "punched", "encoded", "first checkpoint", "second checkpoint"}
    committed: dict[bytes, int] = {}
    for image in images:
        if image.name == "committed":
            committed[image.step] = len(image.kept)
    for count, image in enumerate(images):
        crashed = tmp_path / str(count)
        shutil.copytree(image.path, crashed)
        if lost:
            (crashed / "index.lmdb").unlink(missing_ok=True)
        with ChunkStore.open(crashed) as store:
            assert_reads(store, kept_of(image, store))
            assert store.stats().chunks >= committed.get(image.step, 0)
            # It goes on from there to the end, and is whole again.
            checkpoint(store, 9)
            store.reencoder.encode_waiting(ALL)
            checkpoint(store, 9)
            store.reclaimer.punch()
            kept = kept_of(image, store)
            assert_reads(store, kept)
            totals = store.stats()
            assert totals.waiting_chunks == 0
            assert totals.raw_bytes == totals.chunks * CHUNK_SIZE
        with ChunkStore.open(crashed, rebuild=True) as store:
            assert_reads(store, kept)
            assert store.stats()[:2] == totals[:2]
        with ChunkStore.open(crashed, read_only=True) as store:
            assert_reads(store, kept)
        shutil.rmtree(crashed)


def test_a_torn_end_behind_freed_places_is_cut_off(tmp_path: Path, images: list[Image]) -> None:
    image = images[-1]
    crashed = tmp_path / "crashed"
    shutil.copytree(image.path, crashed)
    last = sorted((crashed / "packs").iterdir())[-1]
    with last.open("ab") as file:
        file.write(records.MAGIC + bytes(100))
    with ChunkStore.open(crashed) as store:
        assert_reads(store, kept_of(image, store))
        assert store.tables.get(Table.META, b"step") == image.step
        kept = kept_of(image, store)
    (crashed / "index.lmdb").unlink()
    with last.open("ab") as file:
        file.write(records.MAGIC + bytes(100))
    with ChunkStore.open(crashed) as store:
        assert_reads(store, kept)


def freed_at(store: ChunkStore) -> list[tuple[Position, list[Place]]]:
    """Return where metadata speaks of freed places, and of which."""
    found = []
    for each in store._packs.scan(Position(1, 0)):
        if isinstance(each, Found) and each.record.header.type == RecordType.METADATA:
            rows = records.parse_metadata(each.record, store.config.seed).rows
            places = [Place(*parts(row.key), *values(row.value)) for row in rows if row.table == Table.FREED]
            if places:
                found.append((each.position, places))
    return found


def parts(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big")


def values(value: bytes | None) -> tuple[int, int]:
    assert value is not None
    return int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")


def punched_store(path: Path) -> tuple[dict[int, bytes], Position, list[Place]]:
    """Make a store of which the first chunks are punched; return its chunks, what says so where, and the places."""
    with create(path) as store:
        kept = ingest(store, floats(8) + noise(2))
        checkpoint(store)
        store.reencoder.encode_waiting(ALL)
        checkpoint(store)
        store.reclaimer.punch()
        ((said_at, places),) = freed_at(store)
    return kept, said_at, places


def test_many_places_are_called_free_a_few_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nobody who saves waits for all of them. `test_gc.py` cuts it short in between."""
    monkeypatch.setattr(checkpoints, "_FREED_AT_ONCE", 5)
    with create(path) as store:
        kept = ingest(store, b"".join(floats(1, seed) + noise(1, seed) for seed in range(23)))
        checkpoint(store)
        store.reencoder.encode_waiting(ALL)
        before = store._freed.superseded()
        assert len(before) == 23
        checkpoint(store)
        said = [places for _, places in freed_at(store)]
        assert [len(places) for places in said] == [5, 5, 5, 5, 3]
        assert [*itertools.chain.from_iterable(said)] == before
        assert store._freed.superseded_count == 0
        assert store._freed.take(100) == before
    (path / "index.lmdb").unlink()
    with ChunkStore.open(path) as store:
        assert_reads(store, kept)


def overwrite(path: Path, position: Position, data: bytes) -> None:
    with (path / "packs" / f"{position.pack:08d}.pack").open("r+b") as file:
        file.seek(position.offset)
        file.write(data)


def test_a_hole_that_nothing_explains_is_damage(path: Path, tmp_path: Path) -> None:
    kept, said_at, places = punched_store(path)
    for name, position, size in (
        ("what says so is gone", said_at, 64),
        ("another chunk is gone too", places[0].end, 64),
        ("the new record is gone", Position(1, said_at.offset - CHUNK_SIZE // 2), 64),
    ):
        crashed = tmp_path / name
        shutil.copytree(path, crashed)
        overwrite(crashed, position, bytes(size))
        before = [file.stat().st_size for file in (crashed / "packs").iterdir()]
        (crashed / "index.lmdb").unlink()
        with pytest.raises(DamagedError):
            ChunkStore.open(crashed)
        assert [file.stat().st_size for file in (crashed / "packs").iterdir()] == before
    (path / "index.lmdb").unlink()
    with ChunkStore.open(path) as store:
        assert_reads(store, kept)


def test_metadata_inside_a_freed_record_says_nothing(path: Path) -> None:
    """A pack that is stored as a file leaves records of its own in what a punch leaves of it."""
    with create(path) as store:
        ingest(store, floats(1, 1))
        checkpoint(store, 1)
        pack = store._packs.path(1).read_bytes()
        everything = build_row(Place(1, 64, 1 << 30, 1))
        forged = records.build_metadata(1, Position(1, 0), [everything], store.config.seed)
        # The copies lie at either end of the place, where no whole page is punched: of the pack, and of a record with
        # the store's first sequence that calls everything free.
        copy = pack[64:1024] + b"".join(bytes(part) for part in forged.buffers)
        data = copy + floats(1, 2)[: CHUNK_SIZE - 2 * len(copy)] + copy
        kept = ingest(store, data)
        assert len(kept) == 1
        checkpoint(store, 2)
        assert store.reencoder.encode_waiting(ALL).chunks == 2
        checkpoint(store, 3)
        store.reclaimer.punch()
    with ChunkStore.open(path, rebuild=True) as store:
        assert_reads(store, kept)
        assert store.tables.get(Table.META, b"step") == b"3"


def test_a_freed_place_counts_only_with_the_record_that_says_so(path: Path) -> None:
    store = create(path)
    kept = ingest(store, noise(1))
    store.tables.put(Table.META, b"a", b"")
    store.commit(durable=False)
    ingest(store, noise(1, 1))
    location = store._index.locate(1)
    assert location is not None
    damaged = store._packs.position
    row = build_row(location.place(1))
    store.append_journal(store.tables.take_changes()._replace(rows=(row,)))
    store.close(commit=False)
    intact = path.with_name("intact")
    shutil.copytree(path, intact)
    with ChunkStore.open(intact) as store:
        assert_reads(store, kept)
    overwrite(path, Position(1, location.offset + 100), bytes(CHUNK_SIZE - 100))
    overwrite(path, Position(1, damaged.offset - 100), bytes(50))
    with pytest.raises(DamagedError, match="freed place"):
        ChunkStore.open(path)


def test_a_record_that_is_replayed_over_its_own_row_is_not_superseded(path: Path) -> None:
    store = create(path)
    kept = ingest(store, floats(3))
    store.tables.put(Table.META, b"a", b"")
    store.commit()
    frozen = store.tables.freeze()
    # The replay begins at this younger row, and LMDB has the chunks behind it already.
    store.tables.put(Table.META, b"b", b"")
    store.commit()
    kept |= ingest(store, floats(3, 1))
    store.checkpoint(frozen)
    store.tables.release(frozen)
    store.close(commit=False)
    with ChunkStore.open(path) as store:
        assert store.stats()[:2] == (6, 6 * CHUNK_SIZE)
        assert store.stats().waiting_chunks == 6
        checkpoint(store)
        assert store.reclaimer.punch() == 0
        assert_reads(store, kept)


# At the same time


def test_reads_never_meet_a_hole(path: Path) -> None:
    """A read that was told the old place, and comes to it when it is punched, looks again."""
    with create(path) as store:
        kept = ingest(store, floats(8))
        checkpoint(store)
        packs_read = store._packs.read_record
        looked_up: list[Position] = []

        def late(position: Position, stored_size: int, base_count: int) -> records.Record:
            if not looked_up:
                looked_up.append(position)
                store.reencoder.encode_waiting(ALL)
                checkpoint(store)
                assert store.reclaimer.punch() > 6 * CHUNK_SIZE
                return packs_read(position, stored_size, base_count)
            looked_up.append(position)
            return packs_read(position, stored_size, base_count)

        store._packs.read_record = late  # type: ignore[method-assign]
        assert store.read(4) == kept[4]
        assert looked_up[0] != looked_up[-1]


def test_everything_at_once(path: Path) -> None:
    rounds = 12
    with create(path, pack_size_max=40 * CHUNK_SIZE) as store, ThreadPoolExecutor(4) as pool:
        kept = ingest(store, floats(8))
        done = threading.Event()

        def put() -> dict[int, bytes]:
            mine: dict[int, bytes] = {}
            for step in range(rounds):
                mine |= ingest(store, floats(4, step) + noise(1, step), encode=step % 4 == 3)
                kept.update(mine)
            return mine

        def read(seed: int) -> int:
            chance = random.Random(seed)
            count = 0
            while not done.is_set():
                number, data = chance.choice(list(kept.items()))
                assert store.read(number) == data
                count += 1
            return count

        def encode() -> int:
            freed = 0
            while not done.is_set():
                store.reencoder.encode_waiting(3 * CHUNK_SIZE)
                freed += store.reclaimer.punch()
            return freed

        putting = pool.submit(put)
        reading = [pool.submit(read, SEED + number) for number in range(2)]
        encoding = pool.submit(encode)
        try:
            step = 0
            while not putting.done() or store.stats().waiting_chunks:
                assert not any(each.done() for each in (*reading, encoding)), "one of the threads failed"
                checkpoint(store, step)
                step += 1
        finally:
            done.set()
        assert all(each.result() for each in reading)
        freed = encoding.result()
        checkpoint(store, step)
        assert freed + store.reclaimer.punch() > 30 * CHUNK_SIZE
        assert_reads(store, kept)
    with ChunkStore.open(path, rebuild=True) as store:
        assert_reads(store, kept)


# Versions of the format


def test_a_store_of_version_1_is_raised_when_it_is_written(path: Path) -> None:
    with create(path) as store:
        kept = ingest(store, floats(3), encode=True)
        store.tables.put(Table.META, b"there", b"")
    old = path / "store.json"
    old.write_text(old.read_text().replace(f'"version": {FORMAT_VERSION}', '"version": 1'))
    with pytest.raises(StoreVersionError, match="has the format 1"):
        ChunkStore.open(path, read_only=True)
    (path / "index.lmdb").write_bytes(b"of another format")  # whatever it is, it is made anew
    with ChunkStore.open(path) as store:
        assert store.config.version == FORMAT_VERSION
        assert_reads(store, kept)
    with ChunkStore.open(path, read_only=True) as store:
        assert_reads(store, kept)
    assert description.read(path, Disk()).version == FORMAT_VERSION


# Any order


@settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
class AnyOrder(RuleBasedStateMachine):
    """Whatever is done in whatever order, every committed chunk reads back."""

    directories: Iterator[Path]

    @initialize()
    def make(self) -> None:
        self.path = next(self.directories)
        self.store = create(self.path, pack_size_max=12 * CHUNK_SIZE)
        self.kept: dict[int, bytes] = {}
        self.committed: dict[int, bytes] = {}
        self.step = 0

    @rule(seed=st.integers(0, 30), kinds=st.lists(st.booleans(), min_size=1, max_size=6), encode=st.booleans())
    def ingest(self, seed: int, kinds: list[bool], encode: bool) -> None:
        data = b"".join((floats if kind else noise)(1, seed + at) for at, kind in enumerate(kinds))
        self.kept |= ingest(self.store, data, encode=encode)

    def _journal(self) -> None:
        self.step += 1
        self.store.tables.put(Table.META, b"step", b"%d" % self.step)

    @rule()
    def commit(self) -> None:
        self._journal()
        self.store.commit(durable=False)
        self.committed = dict(self.kept)

    @rule()
    def checkpoint(self) -> None:
        self._journal()
        self.store.commit(checkpoint=True)
        self.committed = dict(self.kept)

    @rule(seed=st.integers(0, 30))
    def checkpoint_with_younger_rows(self, seed: int) -> None:
        self._journal()
        self.store.commit(durable=False)
        frozen = self.store.tables.freeze()
        self._journal()
        self.store.commit(durable=False)
        self.committed = dict(self.kept)
        self.kept |= ingest(self.store, floats(2, seed))
        self.store.checkpoint(frozen)
        self.store.tables.release(frozen)

    @rule(chunks=st.integers(1, 8))
    def reencode(self, chunks: int) -> None:
        assert self.store.reencoder.encode_waiting(chunks * CHUNK_SIZE).chunks <= chunks

    @rule()
    def punch(self) -> None:
        self.store.reclaimer.punch()

    @rule(rebuild=st.booleans())
    def kill(self, rebuild: bool) -> None:
        self.store.close(commit=False)
        self._open(rebuild)

    @rule(rebuild=st.booleans())
    def reopen(self, rebuild: bool) -> None:
        self._journal()
        self.store.close()
        self.committed = dict(self.kept)
        self._open(rebuild)

    def _open(self, rebuild: bool) -> None:
        self.store = ChunkStore.open(self.path, rebuild=rebuild, pack_size_max=12 * CHUNK_SIZE)
        count = self.store.stats().chunks
        assert count >= max(self.committed, default=0)
        self.kept = {number: data for number, data in self.kept.items() if number <= count}

    @invariant()
    def everything_reads(self) -> None:
        if hasattr(self, "store"):
            assert_reads(self.store, self.kept)
            assert self.store.stats().raw_bytes == self.store.stats().chunks * CHUNK_SIZE

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_order_reads_everything(tmp_path: Path) -> None:
    AnyOrder.directories = (tmp_path / str(number) for number in itertools.count())
    AnyOrder.TestCase().runTest()
