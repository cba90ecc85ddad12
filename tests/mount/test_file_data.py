"""What is written is read, by whatever call: each test runs on ckptfs and, where it can, on the disk below."""

import ctypes
import errno
import mmap
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.running import RunningMount

KIB = 1024
MIB = 1024 * KIB
PAGE = mmap.PAGESIZE
SIZE_MAX = 2**63 - 1

_libc = ctypes.CDLL(None, use_errno=True)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_large_file_reads_back_in_any_piece(place: Path) -> None:
    content = noise(5 * MIB + 17)
    (place / "file").write_bytes(content)
    assert (place / "file").read_bytes() == content
    with open(place / "file", "rb", buffering=0) as file:
        for offset, size in [(0, 1), (4095, 2), (65535, 131_074), (5 * MIB, 100), (5 * MIB + 17, 1), (2**40, 1)]:
            assert os.pread(file.fileno(), size, offset) == content[offset : offset + size]


def test_writes_at_any_offset_and_in_any_order_land(place: Path) -> None:
    expected = bytearray(3 * MIB)
    pieces = [(offset, noise(200_000, offset)) for offset in range(0, 3 * MIB - 200_000, 150_001)]
    random.Random(1).shuffle(pieces)
    with open(place / "file", "wb", buffering=0) as file:
        for offset, piece in pieces:
            os.pwrite(file.fileno(), piece, offset)
            expected[offset : offset + len(piece)] = piece
        file.truncate(len(expected))
    assert (place / "file").read_bytes() == expected


def test_a_write_is_seen_at_once_through_another_descriptor_and_process(place: Path) -> None:
    with open(place / "file", "wb", buffering=0) as writer, open(place / "file", "rb", buffering=0) as reader:
        writer.write(b"first")
        assert reader.read() == b"first"
        writer.write(b" second")
        assert reader.read() == b" second"
        seen = subprocess.run(["cat", place / "file"], capture_output=True, check=True).stdout
        assert seen == b"first second"


def test_a_small_change_in_place_leaves_the_rest(place: Path) -> None:
    content = bytearray(noise(4 * MIB))
    (place / "file").write_bytes(content)
    with open(place / "file", "r+b", buffering=0) as file:
        for offset in (0, 1_234_567, 4 * MIB - 10):
            os.pwrite(file.fileno(), b"0123456789", offset)
            content[offset : offset + 10] = b"0123456789"
            assert (place / "file").read_bytes() == content
    assert (place / "file").read_bytes() == content


def test_appends_of_two_writers_are_all_there(place: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    one, two = os.open(place / "log", flags), os.open(place / "log", flags)
    for index in range(100):
        os.write(one, f"one {index}\n".encode())
        os.write(two, f"two {index}\n".encode())
    os.close(one)
    os.close(two)
    expected = [line for index in range(100) for line in (f"one {index}", f"two {index}")]
    assert (place / "log").read_text().splitlines() == expected


def test_truncation_cuts_and_fills_with_zeros(place: Path) -> None:
    content = noise(300_000)
    (place / "file").write_bytes(content)
    os.truncate(place / "file", 100_001)
    assert (place / "file").read_bytes() == content[:100_001]
    os.truncate(place / "file", 250_000)
    assert (place / "file").read_bytes() == content[:100_001] + bytes(149_999)
    with open(place / "file", "r+b") as file:
        file.truncate(10)
        assert os.fstat(file.fileno()).st_size == 10
        file.truncate(0)
    assert (place / "file").read_bytes() == b""


def test_opening_with_truncation_empties(place: Path) -> None:
    (place / "file").write_bytes(noise(200_000))
    os.close(os.open(place / "file", os.O_WRONLY | os.O_TRUNC))
    assert (place / "file").stat().st_size == 0
    (place / "file").write_bytes(b"new")
    assert (place / "file").read_bytes() == b"new"


def test_holes_read_as_zeros(place: Path) -> None:
    with open(place / "file", "wb") as file:
        file.seek(7 * MIB + 3)
        file.write(b"end")
    with open(place / "file", "r+b") as file:
        file.seek(2 * MIB)
        file.write(b"middle")
    expected = bytes(2 * MIB) + b"middle"
    expected += bytes(7 * MIB + 3 - len(expected)) + b"end"
    assert (place / "file").read_bytes() == expected


def test_a_sparse_file_of_8_eib_costs_nothing(mounted: Path) -> None:
    free = os.statvfs(mounted).f_bavail
    os.close(os.open(mounted / "file", os.O_WRONLY | os.O_CREAT))
    os.truncate(mounted / "file", SIZE_MAX)
    assert (mounted / "file").stat().st_size == SIZE_MAX
    with open(mounted / "file", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10, 2**62) == bytes(10)
    assert (free - os.statvfs(mounted).f_bavail) * os.statvfs(mounted).f_frsize < 64 * MIB
    os.truncate(mounted / "file", 3)
    assert (mounted / "file").read_bytes() == bytes(3)


def test_an_unlinked_file_lives_until_it_is_closed(place: Path) -> None:
    content = noise(700_000)
    with open(place / "file", "w+b") as file:
        file.write(content)
        file.flush()
        os.unlink(place / "file")
        assert os.listdir(place) == []
        file.seek(0)
        assert file.read() == content
        file.write(b"still writable")
        file.flush()
        assert os.fstat(file.fileno()).st_size == len(content) + 14


def test_direct_io_reads_and_writes(place: Path) -> None:
    descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 16 * PAGE) as aligned:
        aligned[:] = content = noise(16 * PAGE)
        assert os.pwritev(descriptor, [aligned], 4 * PAGE) == 16 * PAGE
        aligned[:] = bytes(16 * PAGE)
        assert os.preadv(descriptor, [aligned], 4 * PAGE) == 16 * PAGE
        assert aligned[:] == content
    os.close(descriptor)
    assert (place / "file").read_bytes() == bytes(4 * PAGE) + content


def test_a_shared_mapping_changes_the_file(place: Path) -> None:
    content = bytearray(noise(600_000))
    (place / "file").write_bytes(content)
    with open(place / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        for offset in (0, 99_999, 599_990):
            mapping[offset : offset + 10] = content[offset : offset + 10] = b"0123456789"
        assert (place / "file").read_bytes() == content
        mapping.flush()
    assert (place / "file").read_bytes() == content


@pytest.mark.parametrize("seed", range(2))
def test_overlapping_writes_in_any_order_leave_what_a_plain_file_has(
    mount: RunningMount, tmp_path: Path, seed: int
) -> None:
    paths = mount.path / "file", tmp_path / "plain"
    for path in paths:
        _overwrite_at_random(path, random.Random(seed))
    mounted, plain = (path.read_bytes() for path in paths)
    assert mounted == plain
    kept = mount.snapshot("kept")
    mount.remount()
    assert paths[0].read_bytes() == plain
    assert mount.at(kept, "file").read_bytes() == plain


def _overwrite_at_random(path: Path, source: random.Random) -> None:
    """Write 12 MiB of a file many times over: by calls and through a mapping, in pages and across, with syncs."""
    size = 12 * MIB
    with open(path, "w+b", buffering=0) as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapping:
            for _ in range(300):
                length = source.choice([1, 100, PAGE, 3 * PAGE + 5, 70_000, MIB])
                offset = source.randrange(size - length)
                if source.random() < 0.3:
                    offset -= offset % PAGE
                data = source.randbytes(length)
                if source.random() < 0.5:
                    os.pwrite(file.fileno(), data, offset)
                else:
                    mapping[offset : offset + length] = data
                what = source.random()
                if what < 0.02:
                    mapping.flush()
                elif what < 0.04:
                    os.fsync(file.fileno())
                elif what < 0.2:
                    assert os.pread(file.fileno(), length, offset) == data


def test_a_private_mapping_does_not(place: Path) -> None:
    content = noise(100_000)
    (place / "file").write_bytes(content)
    with open(place / "file", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[:5] = b"local"
        assert mapping[5:] == content[5:]
    assert (place / "file").read_bytes() == content


def test_sync_calls_succeed_and_lose_nothing(place: Path) -> None:
    with open(place / "file", "wb", buffering=0) as file:
        for index in range(5):
            file.write(noise(10_000, index))
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
    assert (place / "file").read_bytes() == b"".join(noise(10_000, index) for index in range(5))


def test_reserving_space_fails_with_the_errno_that_makes_callers_fall_back(mounted: Path) -> None:
    with open(mounted / "file", "wb") as file:
        assert _libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(MIB)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP


def test_reserving_space_and_copying_work_by_falling_back(place: Path) -> None:
    content = noise(300_000)
    (place / "file").write_bytes(content)
    with open(place / "file", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 400_000)
    assert (place / "file").read_bytes() == content + bytes(100_000)
    shutil.copy(place / "file", place / "copy")
    assert (place / "copy").read_bytes() == content + bytes(100_000)
    with open(place / "file", "rb") as source, open(place / "range", "wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 200_000, 50_000)
    assert (place / "range").read_bytes() == content[50_000 : 50_000 + copied]


def test_a_descriptor_is_read_only_or_write_only_as_it_was_opened(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    with open(place / "file", "rb") as file, pytest.raises(OSError, check=lambda error: error.errno == errno.EBADF):
        os.write(file.fileno(), b"x")
    with open(place / "file", "ab") as file, pytest.raises(OSError, check=lambda error: error.errno == errno.EBADF):
        os.read(file.fileno(), 1)


def test_many_small_files_keep_their_content(place: Path) -> None:
    for index in range(300):
        (place / f"file-{index}").write_bytes(noise(index, index))
    for index in range(300):
        assert (place / f"file-{index}").read_bytes() == noise(index, index)


def test_a_process_that_inherits_a_descriptor_can_write_through_it(place: Path) -> None:
    with open(place / "file", "wb") as file:
        subprocess.run([sys.executable, "-c", "print('from the child')"], stdout=file, check=True)
        file.seek(0, os.SEEK_END)
        file.write(b"and the parent\n")
    assert (place / "file").read_bytes() == b"from the child\nand the parent\n"
