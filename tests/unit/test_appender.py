"""A batch reaches its file whole, whichever way it takes, and a slow disk gets it through the cache."""

import errno
import mmap
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.config import KIB, MIB
from ckptfs.store import appender as appender_module
from ckptfs.store.appender import Appender
from ckptfs.store.packfile import PackFile
from ckptfs.store.records import RecordBytes
from tests.unit.tree_support import OwnedDisk


class CountingDisk(OwnedDisk):
    """Counts the bytes written directly; `refuses` them, or takes `seconds` of the clock for each write."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.direct_bytes = 0
        self._refuses = refuses
        self._direct: int | None = None

    def open_direct(self, path: Path, mode: int) -> int | None:
        self._direct = super().open_direct(path, mode)
        return self._direct

    def pwrite(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int, path: Path) -> None:
        if fd == self._direct:
            if self._refuses:
                raise OSError(errno.EINVAL, "no direct writes here")
            assert offset % mmap.PAGESIZE == 0
            self.direct_bytes += sum(map(len, buffers))
        super().pwrite(fd, buffers, offset, path)


def batch_of(sizes: Sequence[int], seed: int) -> tuple[list[RecordBytes], bytes]:
    data = random.Random(seed).randbytes(sum(sizes))
    batch, start = [], 0
    for size in sizes:
        cut = start + size // 3
        batch.append(RecordBytes((data[start:cut], memoryview(data)[cut : start + size]), size))
        start += size
    return batch, data


def new_pack(disk: CountingDisk, path: Path) -> PackFile:
    return PackFile(disk, path, disk.open_write(path, create=True), direct_mode=os.O_WRONLY)


def needs_direct_writes(file: PackFile) -> None:
    assert file.direct_fd is not None, "the tests need a temporary directory on a disk that takes direct writes"


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 900 * KIB), max_size=4), max_size=4), seed=st.integers(0, 99))
def test_what_is_appended_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], seed: int
) -> None:
    disk = CountingDisk()
    path = tmp_path_factory.mktemp("appender") / "pack"
    file = new_pack(disk, path)
    appender, expected = Appender(disk), b""
    for number, sizes in enumerate(batches):
        batch, data = batch_of(sizes, seed + number)
        appender.write(file, batch, len(expected))
        expected += data
    assert path.read_bytes() == expected
    assert disk.direct_bytes % mmap.PAGESIZE == 0


def test_large_batches_go_directly_and_small_ones_do_not(tmp_path: Path) -> None:
    disk = CountingDisk()
    file = new_pack(disk, tmp_path / "pack")
    needs_direct_writes(file)
    appender = Appender(disk)
    small, small_bytes = batch_of([1000], 1)
    appender.write(file, small, 0)
    assert disk.direct_bytes == 0
    large, large_bytes = batch_of([MIB] * 3, 2)
    appender.write(file, large, 1000)
    assert 3 * MIB - 2 * mmap.PAGESIZE < disk.direct_bytes < 3 * MIB
    huge, huge_bytes = batch_of([9 * MIB], 3)
    appender.write(file, huge, 1000 + 3 * MIB)
    assert (tmp_path / "pack").read_bytes() == small_bytes + large_bytes + huge_bytes


def test_a_disk_that_refuses_direct_writes_gets_them_through_the_cache(tmp_path: Path) -> None:
    disk = CountingDisk(refuses=True)
    file = new_pack(disk, tmp_path / "pack")
    needs_direct_writes(file)
    batch, data = batch_of([MIB, MIB], 4)
    Appender(disk).write(file, batch, 0)
    assert file.direct_fd is None
    assert (tmp_path / "pack").read_bytes() == data
    del file
    assert (disk.opened, disk.misclosed) == (set(), [])


def test_a_slow_disk_is_written_through_the_cache_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000_000))
    monkeypatch.setattr(appender_module.time, "monotonic", lambda: float(next(clock)))  # a second for each write
    monkeypatch.setattr(appender_module, "_CACHED_BYTES", 4 * MIB)
    disk = CountingDisk()
    file = new_pack(disk, tmp_path / "pack")
    needs_direct_writes(file)
    appender = Appender(disk)
    batch, _ = batch_of([MIB], 5)
    written = []
    for number in range(13):
        before = disk.direct_bytes
        appender.write(file, batch, number * MIB)
        written.append(disk.direct_bytes > before)
    assert written == [True] * 8 + [False] * 4 + [True]
