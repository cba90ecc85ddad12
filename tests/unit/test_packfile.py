"""Runs of bytes of a pack: read past the page cache where they are large and the disk can, and the same either way."""

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptfs.config import KIB, MIB
from ckptfs.store.buffers import Buffers
from ckptfs.store.packfile import DIRECT_SIZE_MIN, READ_MARGIN, PackFile
from tests.unit.tree_support import OwnedDisk

SEED = 11
SIZE = 3 * MIB + 12_345
RUNS = [
    (0, SIZE),
    (1, DIRECT_SIZE_MIN),
    (4095, DIRECT_SIZE_MIN + 4098),
    (4096, MIB),
    (777, 100),
    (SIZE - MIB, MIB),
    (SIZE - MIB, 2 * MIB),
    (SIZE, MIB),
    (SIZE + 5, MIB),
    (SIZE + 100 * KIB, MIB),
]


class CountingDisk(OwnedDisk):
    """Counts the bytes asked for directly; has no direct reads at all, or refuses each one, when told to."""

    def __init__(self, *, has_none: bool = False, refuses: bool = False) -> None:
        super().__init__()
        self.direct_bytes = 0
        self._has_none = has_none
        self._refuses = refuses
        self._direct: int | None = None

    def open_direct(self, path: Path, mode: int) -> int | None:
        self._direct = None if self._has_none else super().open_direct(path, mode)
        return self._direct

    def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fd == self._direct:
            if self._refuses:
                raise OSError(errno.EINVAL, "no direct reads here")
            self.direct_bytes += sum(map(len, buffers))
        return super().pread_into(fd, buffers, offset)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    print(f"seed {SEED}")
    path = tmp_path / "00000001.pack"
    path.write_bytes(random.Random(SEED).randbytes(SIZE))
    return path


def opened(disk: CountingDisk, pack: Path) -> PackFile:
    return PackFile(disk, pack, disk.open_read(pack), direct_mode=os.O_RDONLY)


def read_all(file: PackFile, pack: Path) -> None:
    expected = pack.read_bytes()
    buffers = Buffers(SIZE + READ_MARGIN, 1)
    for offset, size in RUNS:
        with buffers.taken() as buffer:
            assert file.read(offset, size, buffer) == expected[offset : offset + size], (offset, size)


def test_large_runs_are_read_past_the_page_cache(pack: Path) -> None:
    disk = CountingDisk()
    file = opened(disk, pack)
    assert file.direct_fd is not None, "the tests need a temporary directory on a disk that takes direct reads"
    read_all(file, pack)
    large = sum(size for offset, size in RUNS if size >= DIRECT_SIZE_MIN)
    assert large <= disk.direct_bytes <= large + len(RUNS) * READ_MARGIN + 3 * MIB  # asked for again at the end


@pytest.mark.parametrize("kind", ["has_none", "refuses"])
def test_a_disk_without_direct_reads_is_read_through_the_cache(pack: Path, kind: str) -> None:
    disk = CountingDisk(**{kind: True})
    file = opened(disk, pack)
    read_all(file, pack)
    assert (file.direct_fd, disk.direct_bytes) == (None, 0)
    del file
    assert (disk.opened, disk.misclosed) == (set(), [])


def test_another_error_of_a_direct_read_passes(pack: Path) -> None:
    class Broken(CountingDisk):
        def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        read_all(opened(Broken(), pack), pack)


def test_a_buffer_is_used_again_but_never_by_two_at_once() -> None:
    buffers = Buffers(4096, 1)
    with buffers.taken() as first, buffers.taken() as second:
        first[:] = b"1" * 4096
        second[:] = b"2" * 4096
        assert bytes(first) == b"1" * 4096
    with buffers.taken() as again:
        assert bytes(again[:1]) in (b"1", b"2")
