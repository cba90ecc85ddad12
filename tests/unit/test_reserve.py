"""The room that is kept back: data never gets it, journal and index do."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptfs.disk import Space
from ckptfs.errors import NoSpaceError
from ckptfs.store import ChunkStore, Disk, Table
from ckptfs.store.reserve import NAME

ROOM = 64 * 1024
ROW = random.Random(1).randbytes(9000)


class SmallDisk(Disk):
    """A disk of `size` bytes, for what is written through it; what a file has reserved is counted as its size."""

    def __init__(self, size: int) -> None:
        self.size_max = size

    def _used(self, path: Path) -> int:
        base = path if path.is_dir() else path.parent
        store = base.parent if base.name == "packs" else base
        return sum(each.stat().st_size for each in (*store.glob("packs/*"), store / NAME) if each.exists())

    def _check(self, path: Path, growth: int) -> None:
        if self._used(path) + growth > self.size_max:
            raise NoSpaceError("full")

    def pwrite(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, path: Path) -> None:
        self._check(path, sum(map(len, buffers)) if path.parent.name == "packs" else 0)
        super().pwrite(fd, buffers, offset, path)

    def allocate(self, fd: int, size: int, path: Path) -> None:
        self._check(path, size - os.fstat(fd).st_size)
        super().allocate(fd, size, path)

    def space(self, path: Path) -> Space:
        return Space(64 * ROOM, max(self.size_max - self._used(path), 0))


def put(store: ChunkStore, size: int) -> None:
    store.ingest(memoryview(os.urandom(size)), True)


def fill(store: ChunkStore, size: int = 4096) -> None:
    """Put data until there is no room for `size` bytes more."""
    with pytest.raises(NoSpaceError):
        for _ in range(100):
            put(store, size)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_full_disk_takes_rows_and_no_data(tmp_path: Path, checkpoint: bool) -> None:
    disk = SmallDisk(4 * ROOM)
    with ChunkStore.create(tmp_path / "store", disk=disk) as store:
        assert store.hold_reserve()
        fill(store)
        store.tables.put(Table.NAMES, b"kept", ROW)
        store.commit(checkpoint=checkpoint)
        store.close(commit=False)
    with ChunkStore.open(tmp_path / "store") as store:
        assert store.tables.get(Table.NAMES, b"kept") == ROW


def test_a_full_disk_lets_chunks_be_released(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "store", disk=SmallDisk(4 * ROOM)) as store:
        assert store.hold_reserve()
        fill(store)
        fill(store, 64)
        chunks = store.stats().chunks
        assert store.sweeper.sweep(store.sweeper.begin()).chunks == chunks > 40
        store.sweeper.end()
        store.commit(checkpoint=True)
        assert store.reclaimer.punch() > 40 * 4096


def test_what_was_given_up_is_kept_back_again_when_there_is_room(tmp_path: Path) -> None:
    disk = SmallDisk(4 * ROOM)
    with ChunkStore.create(tmp_path / "store", disk=disk) as store:
        assert store.hold_reserve()
        held = store.room()
        fill(store)
        store.tables.put(Table.NAMES, b"kept", ROW)
        store.commit()
        assert store.room() == 0
        disk.size_max *= 2
        store.tables.put(Table.NAMES, b"more", b"")
        store.commit(checkpoint=True)
        assert (tmp_path / "store" / NAME).stat().st_size == ROOM
        assert store.room() >= held


def test_no_more_is_given_up_than_it_takes(tmp_path: Path) -> None:
    disk = SmallDisk(4 * ROOM)
    with ChunkStore.create(tmp_path / "store", disk=disk) as store:
        assert store.hold_reserve()
        fill(store)
        for number in range(3):  # each time somebody else takes what is free
            disk.size_max = disk._used(tmp_path / "store")
            store.tables.put(Table.NAMES, b"%d" % number, ROW)
            store.commit()
            assert len(ROW) * (number + 1) <= ROOM - (tmp_path / "store" / NAME).stat().st_size
        assert (tmp_path / "store" / NAME).stat().st_size >= ROOM // 8
        store.close(commit=False)


def test_without_a_reserve_a_full_disk_refuses_rows_too(tmp_path: Path) -> None:
    disk = SmallDisk(2 * ROOM)
    with ChunkStore.create(tmp_path / "store", disk=disk) as store:
        fill(store)
        store.tables.put(Table.NAMES, b"kept", ROW)
        with pytest.raises(NoSpaceError):
            store.commit()
        store.close(commit=False)
