"""What processes share: locks, appends, mapped memory and deep paths, on the mount as on the disk below."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.calls import in_child


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_a_lock_keeps_another_process_out_until_it_is_given_back(
    place: Path, lock: Callable[[int, int], object]
) -> None:
    path = place / "file"
    path.touch()

    def take() -> None:
        with path.open("r+b") as file:
            lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    with path.open("r+b") as file:
        lock(file.fileno(), fcntl.LOCK_EX)
        assert in_child(take) in (errno.EAGAIN, errno.EACCES)
        lock(file.fileno(), fcntl.LOCK_UN)
        assert in_child(take) == 0


@pytest.mark.parametrize(
    "handles", [[os.O_WRONLY] * 4, [os.O_RDWR] * 4, [os.O_WRONLY, os.O_RDWR] * 2], ids=["write", "read-write", "both"]
)
def test_appends_of_several_processes_all_arrive_whole(place: Path, handles: list[int]) -> None:
    """Past the page cache or through it, in one request to the mount process or in several."""
    path = place / "log"
    path.touch()
    sizes = [1, 5000, mmap.PAGESIZE, 200_000]
    pids = []
    for process, flags in enumerate(handles):
        pid = os.fork()
        if not pid:
            fd = os.open(path, flags | os.O_APPEND)
            for line in range(100):
                os.write(fd, b"%d %d %s\n" % (process, line, b"x" * sizes[line % len(sizes)]))
            os._exit(0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    found = [line.split() for line in path.read_bytes().splitlines()]
    lines = [(int(process), int(line), len(rest)) for process, line, rest in found]
    for process in range(len(handles)):
        expected = [(process, line, sizes[line % len(sizes)]) for line in range(100)]
        assert [line for line in lines if line[0] == process] == expected
    assert len(lines) == 100 * len(handles)


def test_mapped_memory_and_calls_see_each_other(place: Path) -> None:
    path = place / "file"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[10:14] = b"from"
        assert os.pread(file.fileno(), 4, 10) == b"from"
        os.pwrite(file.fileno(), b"call", mmap.PAGESIZE)
        assert mapped[mmap.PAGESIZE : mmap.PAGESIZE + 4] == b"call"
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, b"other", 2 * mmap.PAGESIZE)
        os.close(fd)
        assert mapped[2 * mmap.PAGESIZE : 2 * mmap.PAGESIZE + 5] == b"other"
        assert in_child(lambda: mapped.__setitem__(slice(0, 5), b"child")) == 0
        assert path.read_bytes()[:5] == b"child"


def test_a_path_may_be_as_deep_as_its_names_allow(place: Path) -> None:
    here = os.open(place, os.O_PATH)
    depth = 40
    for _ in range(depth):
        os.mkdir("d" * 255, dir_fd=here)
        below = os.open("d" * 255, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(fd, b"deep")
    os.close(fd)
    assert os.stat("file", dir_fd=here).st_size == 4
    with pytest.raises(OSError) as failed:
        os.stat(place / "/".join(["d" * 255] * depth))
    assert failed.value.errno == errno.ENAMETOOLONG
    os.close(here)
