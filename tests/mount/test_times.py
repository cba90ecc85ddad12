"""Which times a call moves, on the mount as on the disk below (which is mounted with relatime)."""

import ctypes
import mmap
import os
from pathlib import Path

from tests.mount.calls import (
    AT_FDCWD,
    RENAME_EXCHANGE,
    RW,
    Act,
    R,
    W,
    libc,
    moved_times,
    opened,
    outcomes,
    renameat2,
    wait_for_the_clock,
)
from tests.mount.running import RunningMount

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2


def read() -> bytes:
    """Read the file from its beginning to its end."""
    return Path("file").read_bytes()


def set_times(access_ns: int, modification_ns: int) -> None:
    """Set both times of the file, to nanoseconds or to what UTIME_NOW and UTIME_OMIT mean."""
    libc("utimensat", AT_FDCWD, b"file", (ctypes.c_long * 4)(0, access_ns, 0, modification_ns), 0)


def closing_moves(flags: int) -> str:
    """Return which times it moves to close a file that was written."""
    fd = os.open("file", flags)
    os.write(fd, b"x")
    return moved_times("file", lambda: os.close(fd))


def closing_replacement_moves() -> str:
    """Return which times of a file it moves to close what has taken one of its names."""
    os.link("other", "name")
    fd = os.open("new", W | os.O_CREAT)
    os.rename("new", "other")
    return moved_times("name", lambda: (os.close(fd), os.listdir(".")))  # by which the kernel hears of it


def replacing_moves(old: int) -> bool:
    """Return whether it moves the change time of an open file to be replaced by `new`."""
    before = os.fstat(old).st_ctime_ns
    wait_for_the_clock()
    os.rename("new", "other")
    return os.fstat(old).st_ctime_ns != before


MOVES: dict[str, Act] = {
    "read": lambda: moved_times("file", read),
    "read what is in the page cache": lambda: moved_times(
        "file", lambda: (read(), os.utime("file", ns=(5, 6)), read())
    ),
    "read with a handle that could write": lambda: moved_times(
        "file", lambda: opened("file", RW, lambda fd: os.read(fd, 9))
    ),
    "read mapped": lambda: moved_times(
        "file", lambda: opened("file", R, lambda fd: mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:])
    ),
    "read with O_NOATIME": lambda: moved_times(
        "file", lambda: opened("file", R | os.O_NOATIME, lambda fd: os.read(fd, 9))
    ),
    "open": lambda: moved_times("file", lambda: opened("file", R)),
    "stat": lambda: moved_times("file", lambda: os.stat("file")),
    "copy": lambda: moved_times(
        "file other", lambda: opened("file", R, lambda fd: opened("other", W, lambda to: os.copy_file_range(fd, to, 7)))
    ),
    "list": lambda: moved_times("full", lambda: os.listdir("full")),
    "list an empty directory": lambda: moved_times("empty", lambda: os.listdir("empty")),
    "read a link": lambda: moved_times("link", lambda: os.readlink("link")),
    "follow a link": lambda: moved_times("link file", lambda: os.stat("link")),
    "write": lambda: moved_times("file", lambda: opened("file", W, lambda fd: os.write(fd, b"x"))),
    "write nothing": lambda: moved_times("file", lambda: opened("file", W, lambda fd: os.write(fd, b""))),
    "append": lambda: moved_times("file", lambda: opened("file", W | os.O_APPEND, lambda fd: os.write(fd, b"x"))),
    "write mapped": lambda: moved_times(
        "file", lambda: opened("file", RW, lambda fd: mmap.mmap(fd, 0).__setitem__(0, 65))
    ),
    "shorten": lambda: moved_times("file", lambda: os.truncate("file", 1)),
    "lengthen": lambda: moved_times("file", lambda: os.truncate("file", 100)),
    "truncate to the size that it has": lambda: moved_times("file", lambda: os.truncate("file", 7)),
    "open truncating": lambda: moved_times("file", lambda: opened("file", W | os.O_TRUNC)),
    "open an empty file truncating": lambda: moved_times("full/file", lambda: opened("full/file", W | os.O_TRUNC)),
    "open creating what is there": lambda: moved_times("file .", lambda: opened("file", W | os.O_CREAT)),
    "fail to create": lambda: moved_times("file .", lambda: opened("file", W | os.O_CREAT | os.O_EXCL)),
    "sync": lambda: moved_times("file", lambda: opened("file", W, os.fsync)),
    "chmod": lambda: moved_times("file", lambda: os.chmod("file", 0o600)),
    "chmod to the same": lambda: moved_times("file", lambda: os.chmod("file", os.stat("file").st_mode & 0o7777)),
    "chown to the same": lambda: moved_times("file", lambda: os.chown("file", os.getuid(), os.getgid())),
    "chown to nobody": lambda: moved_times("file", lambda: os.chown("file", -1, -1)),
    "utime to the same": lambda: moved_times("file", lambda: os.utime("file", ns=(10**18, 10**18 + 5))),
    "utime": lambda: moved_times("file", lambda: os.utime("file")),
    "utime of neither time": lambda: moved_times("file", lambda: set_times(UTIME_OMIT, UTIME_OMIT)),
    "utime of one time": lambda: moved_times("file", lambda: set_times(UTIME_OMIT, UTIME_NOW)),
    "utime of the other time": lambda: moved_times("file", lambda: set_times(UTIME_NOW, UTIME_OMIT)),
    "utime of a link": lambda: moved_times("link file", lambda: os.utime("link", (5, 6), follow_symlinks=False)),
    "chown a link": lambda: moved_times("link file", lambda: os.lchown("link", 5, 6)),
    "fail to rmdir": lambda: moved_times("full .", lambda: os.rmdir("full")),
    "fail to rename": lambda: moved_times("full empty .", lambda: os.rename("empty", "full")),
    "rename over": lambda: moved_times(". full", lambda: os.rename("file", "full/file")),
    "rename over one name of two": lambda: (
        os.link("other", "new"),
        moved_times("new file", lambda: os.rename("file", "other")),
    ),
    "be replaced by what is being written": lambda: opened(
        "other", R, lambda old: opened("new", W | os.O_CREAT, lambda fd: replacing_moves(old))
    ),
    "lose a name to what is being written": lambda: (
        os.link("other", "name"),
        opened("new", W | os.O_CREAT, lambda fd: moved_times("name", lambda: os.rename("new", "other"))),
    ),
    "close what has taken a name": closing_replacement_moves,
    "unlink one name of two": lambda: (os.link("file", "new"), moved_times("new", lambda: os.unlink("file"))),
    "close what was written": lambda: closing_moves(W),
    "close what was written, reading too": lambda: closing_moves(RW),
    "removexattr": lambda: (
        os.setxattr("file", "user.x", b""),
        moved_times("file", lambda: os.removexattr("file", "user.x")),
    ),
    "setxattr": lambda: moved_times("file", lambda: os.setxattr("file", "user.x", b"")),
    "getxattr": lambda: moved_times("file", lambda: os.getxattr("file", "user.x")),
    "link": lambda: moved_times("file full .", lambda: os.link("file", "full/new")),
    "rename": lambda: moved_times("full/file full .", lambda: os.rename("file", "new")),
    "move a file": lambda: moved_times("full empty .", lambda: os.rename("full/file", "empty/new")),
    "move a directory": lambda: moved_times("full empty .", lambda: os.rename("full/below", "empty/new")),
    "be renamed": lambda: moved_times("other .", lambda: renameat2("other", "other", 0) or os.rename("file", "new")),
    "exchange": lambda: moved_times("file full/file full .", lambda: renameat2("file", "full/file", RENAME_EXCHANGE)),
    "mkdir": lambda: moved_times("full", lambda: os.mkdir("full/new")),
    "rmdir": lambda: moved_times("full", lambda: os.rmdir("full/below")),
    "symlink": lambda: moved_times("full", lambda: os.symlink("target", "full/new")),
    "create": lambda: moved_times("full", lambda: opened("full/new", W | os.O_CREAT)),
    "mkfifo": lambda: moved_times("full", lambda: os.mkfifo("full/new")),
    "unlink": lambda: moved_times("full", lambda: os.unlink("full/file")),
}


def with_clock(act: Act) -> bool:
    """Do something later than all before; return whether `file` has another access time than before."""
    before = os.stat("file").st_atime_ns
    wait_for_the_clock()
    act()
    return os.stat("file").st_atime_ns != before


AGAIN: dict[str, Act] = {
    "read twice": lambda: [with_clock(read) for _ in range(3)],
    "read, write and read": lambda: (read(), opened("file", W, lambda fd: os.write(fd, b"x")), with_clock(read)),
    "read, chmod and read": lambda: (read(), os.chmod("file", 0o600), with_clock(read)),
    "read, rename and read": lambda: (read(), os.rename("other", "file"), with_clock(read)),
    "read what was read yesterday": lambda: (os.utime("file", (1_000_000_000, 5)), with_clock(read)),
    "read, chmod and stat": lambda: (read(), with_clock(lambda: os.chmod("file", 0o600))),
    "a new file": lambda: (
        opened("new", W | os.O_CREAT),
        len({os.stat("new").st_atime_ns, os.stat("new").st_mtime_ns, os.stat("new").st_ctime_ns}),
    ),
}


def test_a_call_moves_the_times_that_it_moves_on_the_disk_below(mounted: Path, tmp_path: Path) -> None:
    assert outcomes(mounted, MOVES) == outcomes(tmp_path, MOVES)


def test_a_read_moves_the_access_time_once_after_each_change(mounted: Path, tmp_path: Path) -> None:
    assert outcomes(mounted, AGAIN) == outcomes(tmp_path, AGAIN)


def test_a_read_is_no_change(mounted: Path, shared_mount: RunningMount) -> None:
    (mounted / "file").write_bytes(b"data")
    version = shared_mount.snapshot("before-the-read")
    (mounted / "file").read_bytes()
    os.listdir(mounted)
    shared_mount.snapshot("after-the-read")
    assert shared_mount.json("snapshot", "show", "after-the-read")["changes"] == []
    old = shared_mount.at(version, f"{mounted.name}/file").stat()
    assert old.st_atime_ns < (mounted / "file").stat().st_atime_ns
