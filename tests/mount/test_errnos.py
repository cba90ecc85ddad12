"""Every call does, and is refused with the errno, as on the disk below: tables that both are asked through."""

import ctypes
import fcntl
import mmap
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.calls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RW,
    Act,
    R,
    W,
    fallocate,
    libc,
    limited,
    opened,
    outcome,
    outcomes,
    renameat2,
)

LONG = "n" * 256
LONGEST = "d/" * 2048
PATHS = (
    "missing missing/below file file/ file/below new/ empty empty/ empty/. full full/. full/.. full/below full/new "
    "link link/ to-dir to-dir/ dangling dangling/ dangling/below loop loop/below fifo/below socket . "
    f"{LONG} {LONG}/below {LONGEST}"
).split()

CAPABILITIES = bytes.fromhex("0100000200200000000000000000000000000000")
"""The value of `security.capability` by which a program may do one thing that root may."""

CALLS: dict[str, Callable[[str], object]] = {
    "open": lambda path: opened(path, R),
    "write": lambda path: opened(path, W),
    "list": lambda path: sorted(os.listdir(path)),
    "stat": lambda path: stat.S_IFMT(os.stat(path).st_mode),
    "lstat": lambda path: stat.S_IFMT(os.lstat(path).st_mode),
    "statvfs": lambda path: os.statvfs(path).f_namemax,
    "locate": lambda path: opened(path, os.O_PATH),
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, os.getuid(), -1),
    "utime": lambda path: os.utime(path, (1, 1)),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "getxattr": lambda path: os.getxattr(path, "user.a"),
    "setxattr": lambda path: os.setxattr(path, "user.a", b""),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.a"),
    "rename": lambda path: os.rename(path, "new"),
    "link": lambda path: os.link(path, "new"),
    "create": lambda path: opened(path, W | os.O_CREAT),
    "create anew": lambda path: opened(path, W | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "symlink": lambda path: os.symlink("target", path),
    "link to": lambda path: os.link("file", path),
    "rename to": lambda path: os.rename("file", path),
    "rename a directory to": lambda path: os.rename("full", path),
    "rename to a free name": lambda path: renameat2("file", path, RENAME_NOREPLACE),
    "exchange with": lambda path: renameat2("file", path, RENAME_EXCHANGE),
}
"""Calls that take a path."""

RENAMES: dict[str, Act] = {
    "both flags": lambda: renameat2("file", "other", RENAME_NOREPLACE | RENAME_EXCHANGE),
    "an unknown flag": lambda: renameat2("file", "other", 8),
    "exchange with itself": lambda: renameat2("file", "file", RENAME_EXCHANGE),
    "exchange with what is below": lambda: renameat2("full", "full/below", RENAME_EXCHANGE),
    "exchange with what is above": lambda: renameat2("full/below", "full", RENAME_EXCHANGE),
    "exchange with a directory": lambda: (renameat2("link", "full", RENAME_EXCHANGE), os.readlink("full"))[1],
    "itself to a free name": lambda: renameat2("file", "file", RENAME_NOREPLACE),
    "itself": lambda: os.rename("full", "full"),
    "another name of the same file": lambda: (
        os.link("file", "name"),
        os.rename("file", "name"),
        sorted(os.listdir(".")),
    )[2],
    "a full directory over an empty one": lambda: (os.rename("full", "empty"), sorted(os.listdir("empty")))[1],
    "an empty directory over a full one": lambda: os.rename("empty", "full"),
    "a directory into itself": lambda: os.rename("full", "full/below/new"),
    "a directory over its parent": lambda: os.rename("full/below", "full"),
    "a file over its parent": lambda: os.rename("full/file", "full"),
    "a link over a directory": lambda: os.rename("link", "empty"),
    "a directory over a link": lambda: os.rename("empty", "to-dir"),
    "a FIFO over a file": lambda: (os.rename("fifo", "file"), stat.S_ISFIFO(os.stat("file").st_mode))[1],
    "the parent": lambda: os.rename("full/..", "new"),
    "to another filesystem": lambda: os.rename("file", "/dev/shm/new"),
    "link to another filesystem": lambda: os.link("file", "/dev/shm/new"),
    "link a link": lambda: (os.link("link", "new", follow_symlinks=False), os.readlink("new"))[1],
    "link what a link names": lambda: (os.link("link", "new", follow_symlinks=True), os.lstat("new").st_nlink)[1],
    "links of directories": lambda: [os.stat(path).st_nlink for path in (".", "full", "empty", "full/below")],
    "links when one moved": lambda: (os.rename("full/below", "empty/new"), os.stat("full").st_nlink),
    "links when one was replaced": lambda: (os.rename("full/below", "empty"), os.stat(".").st_nlink),
    "links when one was exchanged": lambda: (renameat2("full/below", "file", RENAME_EXCHANGE), os.stat(".").st_nlink),
}


def being_written(act: Callable[[int], object]) -> Act:
    """Return an act while a new file is written, and what every name has then and when it is closed."""

    def names() -> dict[str, object]:
        return {
            path: (outcome(Path(path).read_bytes) if os.path.isfile(path) else None, os.lstat(path).st_nlink)
            for path in sorted(os.listdir("."))
            if path not in ("fifo", "socket")
        }

    def do() -> object:
        done = opened("new", RW | os.O_CREAT, lambda fd: (os.write(fd, b"half"), outcome(lambda: act(fd)), names()))
        return done, names()

    return do


WRITTEN: dict[str, Act] = {
    "exchange with a file": being_written(lambda fd: renameat2("new", "file", RENAME_EXCHANGE)),
    "be exchanged with by a file": being_written(lambda fd: renameat2("file", "new", RENAME_EXCHANGE)),
    "exchange with a directory": being_written(lambda fd: renameat2("new", "full", RENAME_EXCHANGE)),
    "exchange with a link": being_written(lambda fd: renameat2("new", "link", RENAME_EXCHANGE)),
    "exchange twice": being_written(
        lambda fd: (renameat2("new", "file", RENAME_EXCHANGE), renameat2("file", "other", RENAME_EXCHANGE))
    ),
    "exchange with another such": being_written(
        lambda fd: opened("newer", W | os.O_CREAT, lambda other: renameat2("new", "newer", RENAME_EXCHANGE))
    ),
    "exchange, and unlink": being_written(lambda fd: (renameat2("new", "file", RENAME_EXCHANGE), os.unlink("file"))),
    "exchange what it replaced": being_written(
        lambda fd: (os.rename("new", "file"), renameat2("file", "other", RENAME_EXCHANGE))
    ),
    "replace a file": being_written(lambda fd: os.rename("new", "file")),
    "replace a file that is open": being_written(
        lambda fd: opened("file", R, lambda old: (os.rename("new", "file"), os.fstat(old).st_nlink, os.read(old, 9)))
    ),
    "replace one name of two": being_written(lambda fd: (os.link("file", "name"), os.rename("new", "name"))),
    "replace both names": being_written(
        lambda fd: (
            os.link("file", "name"),
            os.link("new", "newer"),
            os.rename("new", "name"),
            os.rename("newer", "file"),
        )
    ),
    "be replaced": being_written(lambda fd: (os.rename("file", "new"), os.fstat(fd).st_nlink)),
    "be replaced by what it replaced": being_written(
        lambda fd: (os.link("file", "name"), os.rename("new", "file"), os.rename("name", "file"))
    ),
    "get another name": being_written(lambda fd: (os.link("new", "newer"), os.unlink("new"), os.write(fd, b" more"))),
    "move with its directory": being_written(
        lambda fd: (os.rename("new", "empty/new"), os.rename("empty", "moved"), os.write(fd, b" more"))
    ),
}
"""What happens to the names of a file that is still being written, and to those that it takes over."""

DATA: dict[str, Act] = {
    "a link not followed": lambda: opened("link", R | os.O_NOFOLLOW),
    "a link not followed, creating": lambda: opened("link", W | os.O_NOFOLLOW | os.O_CREAT),
    "a directory, creating": lambda: opened("full", R | os.O_CREAT),
    "a directory, truncating": lambda: opened("full", R | os.O_TRUNC),
    "for reading, truncating": lambda: (opened("file", R | os.O_TRUNC), os.stat("file").st_size)[1],
    "a socket": lambda: opened("socket", R),
    "a FIFO nobody reads": lambda: opened("fifo", W | os.O_NONBLOCK),
    "truncate a FIFO": lambda: os.truncate("fifo", 0),
    "truncate a directory": lambda: os.truncate("full", 0),
    "truncate to less than nothing": lambda: os.truncate("file", -1),
    "truncate what is read": lambda: opened("file", R, lambda fd: os.ftruncate(fd, 0)),
    "write what is read": lambda: opened("file", R, lambda fd: os.write(fd, b"x")),
    "read what is written": lambda: opened("file", W, lambda fd: os.read(fd, 1)),
    "read a directory": lambda: opened("full", R, lambda fd: os.read(fd, 1)),
    "read what is only located": lambda: opened("file", os.O_PATH, lambda fd: os.read(fd, 1)),
    "chmod what is only located": lambda: opened("file", os.O_PATH, lambda fd: os.fchmod(fd, 0o600)),
    "write before the beginning": lambda: opened("file", RW, lambda fd: os.pwrite(fd, b"x", -1)),
    "read before the beginning": lambda: opened("file", RW, lambda fd: os.pread(fd, 1, -1)),
    "read behind the end": lambda: opened("file", RW, lambda fd: os.pread(fd, 1, 1 << 40)),
    "write at the greatest offset": lambda: opened("file", RW, lambda fd: os.pwrite(fd, b"x", (1 << 63) - 1)),
    "seek before the beginning": lambda: opened("file", R, lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
    "seek from nowhere": lambda: opened("file", R, lambda fd: os.lseek(fd, 0, 9)),
    "seek data": lambda: opened("file", R, lambda fd: os.lseek(fd, 2, os.SEEK_DATA)),
    "seek a hole": lambda: opened("file", R, lambda fd: os.lseek(fd, 2, os.SEEK_HOLE)),
    "seek data at the end": lambda: opened("file", R, lambda fd: os.lseek(fd, 7, os.SEEK_DATA)),
    "seek a hole at the end": lambda: opened("file", R, lambda fd: os.lseek(fd, 7, os.SEEK_HOLE)),
    "a large sparse file": lambda: (os.truncate("file", 1 << 43), os.stat("file").st_blocks < 100)[1],
    "allocate": lambda: opened("file", RW, lambda fd: (os.posix_fallocate(fd, 0, 99_999), os.fstat(fd).st_size)),
    "allocate before the beginning": lambda: opened("file", RW, lambda fd: fallocate(fd, 0, -1, 4096)),
    "allocate nothing": lambda: opened("file", RW, lambda fd: fallocate(fd, 0, 0, 0)),
    "allocate in what is read": lambda: opened("file", R, lambda fd: fallocate(fd, 0, 0, 10)),
    "copy a range": lambda: opened(
        "file", R, lambda fd: (opened("other", W, lambda to: os.copy_file_range(fd, to, 7)), Path("other").read_text())
    ),
    "copy into what is read": lambda: opened(
        "file", R, lambda fd: opened("other", R, lambda to: os.copy_file_range(fd, to, 7))
    ),
    "copy onto itself": lambda: opened("file", RW, lambda fd: os.copy_file_range(fd, fd, 5, 0, 2)),
    "copy from a directory": lambda: opened(
        "full", R, lambda fd: opened("other", W, lambda to: os.copy_file_range(fd, to, 7))
    ),
    "send a file": lambda: opened("file", R, lambda fd: opened("other", W, lambda to: os.sendfile(to, fd, 0, 7))),
    "clone": lambda: opened("file", R, lambda fd: opened("other", W, lambda to: fcntl.ioctl(to, 0x40049409, fd))),
    "map for writing what is read": lambda: opened("file", R, lambda fd: mmap.mmap(fd, 0, prot=mmap.PROT_WRITE)),
    "map what is written": lambda: opened("file", W, lambda fd: mmap.mmap(fd, 0)),
    "a lease": lambda: opened("file", R, lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    "run a directory": lambda: os.posix_spawn("full", ["full"], {}),
    "run what may not be run": lambda: os.posix_spawn("file", ["file"], {}),
    "make a directory by mknod": lambda: os.mknod("new", stat.S_IFDIR | 0o700),
    "make a link by mknod": lambda: os.mknod("new", stat.S_IFLNK | 0o700),
    "make an unknown kind": lambda: os.mknod("new", 0o050600),
    "make a file by mknod": lambda: (os.mknod("new", 0o640), oct(os.stat("new").st_mode))[1],
    "make a device": lambda: (
        os.mknod("new", stat.S_IFCHR | 0o600, os.makedev(4000, 1_000_000)),
        os.stat("new").st_rdev,
    )[1],
    "link to 4095 bytes": lambda: (os.symlink("x" * 4095, "new"), len(os.readlink("new")))[1],
    "link to 4096 bytes": lambda: os.symlink("x" * 4096, "new"),
    "link to nothing": lambda: os.symlink("", "new"),
}

ATTRIBUTES: dict[str, Act] = {
    "an unknown namespace": lambda: os.setxattr("file", "other.x", b""),
    "get from an unknown namespace": lambda: os.getxattr("file", "other.x"),
    "remove from an unknown namespace": lambda: os.removexattr("file", "other.x"),
    "no namespace": lambda: os.setxattr("file", "x", b""),
    "nothing but a namespace": lambda: os.setxattr("file", "user.", b""),
    "no name": lambda: os.setxattr("file", "", b""),
    "a name of 255 bytes": lambda: (os.setxattr("file", "user." + "x" * 250, b""), len(os.listxattr("file")[0]))[1],
    "a name of 256 bytes": lambda: os.setxattr("file", "user." + "x" * 251, b""),
    "get a name of 256 bytes": lambda: os.getxattr("file", "user." + "x" * 251),
    "a value of more than 64 KiB": lambda: os.setxattr("file", "user.x", bytes(65537)),
    "of a link": lambda: os.setxattr("link", "user.x", b"", follow_symlinks=False),
    "of a FIFO": lambda: os.setxattr("fifo", "user.x", b""),
    "of a directory": lambda: (os.setxattr("full", "user.x", b"1"), os.listxattr("full"))[1],
    "trusted": lambda: (os.setxattr("file", "trusted.x", b"1"), os.listxattr("file"))[1],
    "security": lambda: (os.setxattr("file", "security.x", b"1"), os.listxattr("file"))[1],
    "anew": lambda: [os.setxattr("file", "user.x", b"1", os.XATTR_CREATE) for _ in range(2)],
    "over nothing": lambda: os.setxattr("file", "user.x", b"1", os.XATTR_REPLACE),
    "an unknown flag": lambda: os.setxattr("file", "user.x", b"1", 4),
    "into too little room": lambda: (
        os.setxattr("file", "user.x", b"12345"),
        libc("getxattr", b"file", b"user.x", ctypes.create_string_buffer(2), 2),
    ),
    "list into too little room": lambda: (
        os.setxattr("file", "user.x", b"12345"),
        libc("listxattr", b"file", ctypes.create_string_buffer(2), 2),
    ),
    "mode of a link": lambda: oct(os.lstat("link").st_mode),
    "chown of a link": lambda: (os.lchown("link", 5, 6), os.lstat("link").st_uid, os.stat("file").st_uid),
    "all bits of a mode": lambda: (os.chmod("full", 0o7777), oct(os.stat("full").st_mode))[1],
    "a new owner of a suid file": lambda: (
        os.chmod("file", 0o6755),
        os.chown("file", 1, 1),
        oct(os.stat("file").st_mode),
    ),
    "a write of root to a suid file": lambda: (
        os.chmod("file", 0o6755),
        opened("file", W, lambda fd: os.write(fd, b"x")),
        oct(os.stat("file").st_mode),
    ),
    "a write to what has capabilities": lambda: (
        os.setxattr("file", "security.capability", CAPABILITIES),
        opened("file", W, lambda fd: os.write(fd, b"x")),
        os.listxattr("file"),
    ),
    "only the other time": lambda: (
        os.utime("file", ns=(5, 6)),
        libc("utimensat", AT_FDCWD, b"file", (ctypes.c_long * 4)(0, (1 << 30) - 2, 7, 8), 0),
        os.stat("file").st_atime_ns,
        os.stat("file").st_mtime_ns,
    ),
    "a time that is none": lambda: libc("utimensat", AT_FDCWD, b"file", (ctypes.c_long * 4)(0, 1_000_000_000, 7, 8), 0),
    "a time before 1970": lambda: (os.utime("file", ns=(-5, -(10**18))), os.stat("file").st_atime_ns),
    "a time after 2106": lambda: (os.utime("file", (1 << 33, 1 << 33)), os.stat("file").st_mtime),
    "a time while it is written": lambda: (
        opened("file", W, lambda fd: (os.write(fd, b"x"), os.utime(fd, (5, 6)), os.fstat(fd).st_mtime)),
        os.stat("file").st_mtime,
    ),
}


def appending(flags: int, act: Callable[[int], object]) -> Act:
    """Return an act that writes somewhere with such a handle, and tells its position and what the file has then."""
    return lambda: (
        opened("file", flags, lambda fd: (act(fd), os.lseek(fd, 0, os.SEEK_CUR))),
        Path("file").read_bytes(),
    )


def through_a_pipe(flags: int) -> object:
    """Splice from a pipe into a file."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"piped")
        return opened("file", flags, lambda fd: os.splice(reading, fd, 4)), Path("file").read_bytes()
    finally:
        os.close(reading)
        os.close(writing)


def run_while_open(flags: int) -> object:
    """Run a program that somebody has open."""
    shutil.copy("/bin/true", "program")
    return opened("program", flags, lambda fd: os.waitpid(os.posix_spawn("program", ["program"], {}), 0)[1])


WRITES: dict[str, Act] = {
    "append": appending(W | os.O_APPEND, lambda fd: os.write(fd, b"xyz")),
    "append at an offset": appending(W | os.O_APPEND, lambda fd: os.pwrite(fd, b"xyz", 0)),
    "append at an offset, reading too": appending(RW | os.O_APPEND, lambda fd: os.pwrite(fd, b"xyz", 0)),
    "append one write": appending(W, lambda fd: os.pwritev(fd, [b"xyz"], 0, os.RWF_APPEND)),
    "append to what another has lengthened": appending(
        W | os.O_APPEND, lambda fd: (os.truncate("file", 9), os.write(fd, b"xyz"))
    ),
    "append from now on": appending(W, lambda fd: (fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND), os.write(fd, b"xyz"))),
    "append no more": appending(W | os.O_APPEND, lambda fd: (fcntl.fcntl(fd, fcntl.F_SETFL, 0), os.write(fd, b"xyz"))),
    "append by splicing": lambda: through_a_pipe(W | os.O_APPEND),
    "splice": lambda: through_a_pipe(W),
    "copy a range to an appending handle": lambda: opened(
        "file", R, lambda fd: opened("other", W | os.O_APPEND, lambda to: os.copy_file_range(fd, to, 7))
    ),
    "copy a range within a file": lambda: (
        opened("file", RW, lambda fd: os.copy_file_range(fd, fd, 3, 0, 4)),
        Path("file").read_bytes(),
    ),
    "copy a range to another filesystem": lambda: opened(
        "file", R, lambda fd: opened("/dev/shm", RW | os.O_TMPFILE, lambda to: os.copy_file_range(fd, to, 7))
    ),
    "write beyond the limit": lambda: limited(5, lambda: opened("file", W, lambda fd: os.pwrite(fd, b"abc", 5))),
    "write up to the limit": lambda: (
        limited(9, lambda: opened("file", W, lambda fd: os.pwrite(fd, b"abcdef", 6))),
        os.stat("file").st_size,
    ),
    "append up to the limit": lambda: (
        limited(9, lambda: opened("file", RW | os.O_APPEND, lambda fd: os.write(fd, b"abcdef"))),
        os.stat("file").st_size,
    ),
    "truncate beyond the limit": lambda: (limited(9, lambda: os.truncate("file", 10)), os.stat("file").st_size),
    "an unknown flag": lambda: opened("file", W, lambda fd: os.pwritev(fd, [b"x"], 0, 0x1000)),
    "wait for nothing": lambda: opened("file", W, lambda fd: os.pwritev(fd, [b"x"], 0, os.RWF_NOWAIT)),
    "nothing, behind the end": lambda: (opened("file", W, lambda fd: os.pwrite(fd, b"", 99)), os.stat("file").st_size),
    "over what was cut off": lambda: (os.truncate("file", 3), os.truncate("file", 9), Path("file").read_bytes()),
    "by a handle whose file was replaced": lambda: opened(
        "other",
        W,
        lambda fd: (os.rename("file", "other"), os.write(fd, b"x"), os.fstat(fd).st_nlink, Path("other").read_bytes()),
    ),
    "by a handle one of whose names was replaced": lambda: opened(
        "other",
        W,
        lambda fd: (os.link("other", "new"), os.rename("file", "other"), os.write(fd, b"x"), Path("new").read_bytes()),
    ),
    "by a handle that may write no more": lambda: opened(
        "file", RW, lambda fd: (os.fchmod(fd, 0), os.write(fd, b"x"), os.ftruncate(fd, 1), os.fstat(fd).st_size)
    ),
    "by a handle made without the right": lambda: (
        (fd := os.open("new", W | os.O_CREAT, 0)),
        os.write(fd, b"x"),
        os.close(fd),
        os.stat("new").st_size,
    )[1:],
    "neither for reading nor for writing": lambda: opened("file", 3, lambda fd: os.write(fd, b"x")),
    "what runs": lambda: run_while_open(R),
    "what is run while it is written": lambda: run_while_open(W),
    "sync what is read": lambda: opened("file", R, os.fsync),
    "sync what is only located": lambda: opened("file", os.O_PATH, os.fsync),
    "sync a FIFO": lambda: opened("fifo", RW, os.fsync),
    "sync a range": lambda: opened("file", RW, lambda fd: libc("sync_file_range", fd, *(ctypes.c_long(0),) * 2, 7)),
    "make a directory by creating": lambda: opened("new", os.O_DIRECTORY | os.O_CREAT),
    "name what is open once more": lambda: opened(
        "file", R, lambda fd: (libc("linkat", fd, b"", AT_FDCWD, b"new", AT_EMPTY_PATH), os.fstat(fd).st_nlink)
    ),
    "lock for writing what is read": lambda: opened("file", R, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX)),
    "lock for reading what is written": lambda: opened("file", W, lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH)),
    "lock a directory": lambda: opened("full", R, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)),
    "lock what another handle has": lambda: opened(
        "file",
        R,
        lambda fd: opened(
            "file", R, lambda other: (fcntl.flock(fd, fcntl.LOCK_SH), fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
        ),
    ),
    "a chain of 40 links": lambda: (chain(40), os.stat("0").st_size)[1],
    "a chain of 41 links": lambda: (chain(41), os.stat("0").st_size)[1],
}


def chain(length: int) -> None:
    """Make links each to the next, the last of them to the file."""
    for number in range(length):
        os.symlink(str(number + 1) if number + 1 < length else "file", str(number))


def removed(act: Callable[[int], object], path: str = "file", flags: int = RW) -> Act:
    """Return an act on what is open, or only located, and has no name any more."""

    def do(fd: int) -> object:
        (os.rmdir if path == "empty" else os.unlink)(path)
        return act(fd)

    return lambda: opened(path, flags, do)


def in_removed(act: Act) -> Act:
    """Return an act in a current directory that was removed."""

    def do() -> object:
        os.chdir("empty")
        os.rmdir("../empty")
        return act()

    return do


def by_another(act: Callable[[int], object]) -> Act:
    """Return an act with another handle on what has no name; the first one is asked when that is closed."""
    return removed(
        lambda fd: (
            opened(f"/proc/self/fd/{fd}", W, act),
            os.fchmod(fd, 0o600),  # after which the kernel has nothing but what it is told
            os.fstat(fd).st_size,
            os.pread(fd, 99, 0),
        ),
        flags=R,
    )


NAMELESS: dict[str, Act] = {
    "attributes": removed(lambda fd: (os.fchmod(fd, 0o711), os.utime(fd, (3, 4)), os.fstat(fd).st_mtime)),
    "mode and links": removed(lambda fd: (os.fchmod(fd, 0o711), oct(os.fstat(fd).st_mode), os.fstat(fd).st_nlink)),
    "truncate": removed(lambda fd: (os.ftruncate(fd, 3), os.fstat(fd).st_size, os.pread(fd, 9, 0))),
    "write": removed(lambda fd: (os.pwrite(fd, b"abc", 1 << 20), os.fstat(fd).st_size, os.pread(fd, 9, (1 << 20) - 2))),
    "sync": removed(lambda fd: (os.write(fd, b"abc"), os.fsync(fd), os.fstat(fd).st_size)),
    "open again": removed(lambda fd: Path(f"/proc/self/fd/{fd}").read_bytes()),
    "open again for writing": removed(lambda fd: (Path(f"/proc/self/fd/{fd}").write_bytes(b"new"), os.pread(fd, 9, 0))),
    "write by another": by_another(lambda fd: os.pwrite(fd, b"more than there was", 5)),
    "shorten by another": by_another(lambda fd: os.ftruncate(fd, 2)),
    "sync by another": by_another(lambda fd: (os.pwrite(fd, b"more than there was", 5), os.fsync(fd))),
    "shorten by a path": removed(
        lambda fd: (
            os.truncate(f"/proc/self/fd/{fd}", 2),
            os.fchmod(fd, 0o600),
            os.fstat(fd).st_size,
            os.pread(fd, 99, 0),
        ),
        flags=R,
    ),
    "written before": lambda: opened(
        "file",
        R,
        lambda fd: (
            opened("file", W, lambda to: (os.write(to, b"more than there was"), os.unlink("file"))),
            os.fchmod(fd, 0o600),
            os.fstat(fd).st_size,
            os.pread(fd, 99, 0),
        ),
    ),
    "name again": removed(lambda fd: os.link(f"/proc/self/fd/{fd}", "again", follow_symlinks=True)),
    "located": removed(lambda fd: (os.fstat(fd).st_nlink, os.fstat(fd).st_size), flags=os.O_PATH),
    "chmod of what is located": removed(
        lambda fd: (os.chmod(f"/proc/self/fd/{fd}", 0o711), oct(os.fstat(fd).st_mode)), flags=os.O_PATH
    ),
    "a directory": removed(lambda fd: (os.fchmod(fd, 0o711), os.fstat(fd).st_nlink, os.listdir(fd)), "empty", R),
    "sync of a directory": removed(os.fsync, "empty", R),
    "list": in_removed(lambda: os.listdir(".")),
    "links": in_removed(lambda: os.stat(".").st_nlink),
    "create": in_removed(lambda: Path("new").touch()),
    "mkdir": in_removed(lambda: os.mkdir("new")),
    "the parent": in_removed(lambda: sorted(os.listdir(".."))),
    "where it was": in_removed(os.getcwd),
    "renamed over": lambda: opened(
        "file", RW, lambda fd: (os.rename("other", "file"), os.fchmod(fd, 0o711), os.fstat(fd).st_nlink, os.read(fd, 9))
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_on_any_path_does_as_on_the_disk_below(mounted: Path, tmp_path: Path, call: str) -> None:
    paths = [path for path in PATHS if not (path == "socket" and call == "create")]
    acts = {path: lambda path=path: CALLS[call](path) for path in paths}
    assert outcomes(mounted, acts) == outcomes(tmp_path, acts)


@pytest.mark.parametrize(
    "acts",
    [RENAMES, WRITTEN, DATA, WRITES, ATTRIBUTES, NAMELESS],
    ids=["names", "being written", "data", "writes", "attributes", "without a name"],
)
def test_a_call_does_as_on_the_disk_below(mounted: Path, tmp_path: Path, acts: dict[str, Act]) -> None:
    assert outcomes(mounted, acts) == outcomes(tmp_path, acts)
