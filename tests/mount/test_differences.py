"""The differences from ext4 that docs/design.md lists are those that there are."""

import ctypes
import fcntl
import mmap
import os
import re
import select
import stat
import struct
from pathlib import Path

import pytest

from tests.mount.calls import (
    AT_FDCWD,
    RENAME_WHITEOUT,
    RW,
    Act,
    R,
    W,
    fallocate,
    libc,
    moved_times,
    opened,
    outcomes,
    renameat2,
    wait_for_the_clock,
)
from tests.mount.running import ROOT

PUNCH_HOLE = 3
STATX_BTIME = 0x800
RWF_DONTCACHE = 0x80
FS_IOC_FIEMAP = 0xC020660B
WHOLE_FILE = struct.pack("QQIIII", 0, 1 << 62, 0, 0, 0, 0)
FIOQSIZE = 0x5460
FS_IOC_GETFLAGS = 0x80086601
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")


def atime_moves(path: str, fd: int) -> bool:
    """Return whether a read at the front of an open file, read before, moves its access time."""
    os.pread(fd, 9, 0)
    os.utime(path, (5, 6))
    wait_for_the_clock()
    os.pread(fd, 9, 0)
    return os.stat(path).st_atime != 5


def fifo_moves() -> bool:
    """Return whether what passes through a FIFO moves its times."""
    os.utime("fifo", (5, 6))
    reader, writer = os.open("fifo", R | os.O_NONBLOCK), os.open("fifo", W)
    os.write(writer, b"x")
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return os.stat("fifo").st_mtime != 6


def nameless(act: str) -> object:
    """Do something with an open or located file that has lost its name."""
    fd = os.open("file", os.O_PATH if act == "open" else R)
    try:
        os.unlink("file")
        if act == "open":
            file = Path(f"/proc/self/fd/{fd}")
            file.write_bytes(b"written without a name")
            return file.read_bytes()
        return os.setxattr(fd, "user.x", b"")
    finally:
        os.close(fd)


def read_with(flags: int) -> object:
    """Read the front of the file with flags of one read."""
    return opened("file", R, lambda fd: os.preadv(fd, [bytearray(3)], 0, flags))


def waits_for_it() -> None:
    """Have an epoll wait for the file."""
    with select.epoll() as poll:
        opened("file", R, poll.register)


def knows_creation() -> bool:
    """Return whether `statx` tells when the file was made."""
    told = ctypes.create_string_buffer(256)
    libc("statx", AT_FDCWD, b"file", 0, STATX_BTIME, told)
    return bool(struct.unpack_from("I", told)[0] & STATX_BTIME)


def mapped_behind_the_end() -> bytes:
    """Write through a mapping behind the end of the file, lengthen it, and return what is there."""
    with open("file", "r+b") as file, mmap.mmap(file.fileno(), 7) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        ctypes.memmove(address + 10, b"behind", 6)
        file.truncate(16)
        return Path("file").read_bytes()


def device() -> object:
    """Make the device node of /dev/null, and open it."""
    os.mknod("null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return opened("null", W)


def allocated_while_it_is_written() -> int:
    """Return what FIOQSIZE says of a file that has just been written, and that nobody has looked at."""
    fd = os.open("new", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, os.urandom(8192))
        os.fsync(fd)
        return int.from_bytes(fcntl.ioctl(fd, FIOQSIZE, bytes(8)), "little")
    finally:
        os.close(fd)


DIFFERENCES: dict[str, dict[str, Act]] = {
    "the largest file": {
        "seek to 8 EiB - 1": lambda: opened("file", R, lambda fd: os.lseek(fd, (1 << 63) - 1, os.SEEK_SET)),
        "write at 16 TiB": lambda: opened("file", W, lambda fd: os.pwrite(fd, b"x", 1 << 44)),
        "truncate to 8 EiB - 1": lambda: os.truncate("file", (1 << 63) - 1),
    },
    "`fallocate`": {
        "allocate": lambda: opened("file", RW, lambda fd: fallocate(fd, 0, 0, 99_999)),
        "punch": lambda: opened("file", RW, lambda fd: fallocate(fd, PUNCH_HOLE, 0, 4096)),
        "remove what is mapped": lambda: opened("file", RW, lambda fd: mmap.mmap(fd, 7).madvise(mmap.MADV_REMOVE)),
        "append": lambda: opened("file", W | os.O_APPEND, lambda fd: os.posix_fallocate(fd, 0, 99)),
    },
    "`SEEK_HOLE`, `SEEK_DATA`": {
        "hole": lambda: (os.truncate("file", 1 << 30), opened("file", R, lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)))[1],
    },
    "`O_TMPFILE`": {"open": lambda: opened(".", os.O_TMPFILE | RW)},
    "`O_DIRECT`": {"unaligned": lambda: opened("file", R | os.O_DIRECT, lambda fd: os.pread(fd, 5, 1))},
    "access times": {
        "open for writing": lambda: opened("file", RW, lambda fd: atime_moves("file", fd)),
        "empty": lambda: opened("full/file", R, lambda fd: atime_moves("full/file", fd)),
        "behind the end": lambda: moved_times("file", lambda: opened("file", R, lambda fd: os.pread(fd, 9, 99))),
    },
    "the time of creation": {"asked for": knows_creation},
    "mapped memory behind the end": {"lengthened": mapped_behind_the_end},
    "times of FIFOs": {"fifo": fifo_moves},
    "the range of times": {"in 2400": lambda: (os.utime("file", (13_569_465_600,) * 2), os.stat("file").st_mtime)[1]},
    "extended attributes": {
        "5000 bytes": lambda: os.setxattr("file", "user.x", bytes(5000)),
        "without a name": lambda: nameless("set"),
        "new and old": lambda: os.setxattr("file", "user.x", b"", os.XATTR_CREATE | os.XATTR_REPLACE),
    },
    "access control lists": {"set": lambda: os.setxattr("file", "system.posix_acl_access", ACL)},
    "`chattr`, `FIEMAP`": {
        "get": lambda: opened("file", R, lambda fd: fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)) and None),
        "map": lambda: opened("file", R, lambda fd: fcntl.ioctl(fd, FS_IOC_FIEMAP, WHOLE_FILE) and None),
    },
    "flags of one read or write": {
        "do not wait": lambda: read_with(os.RWF_NOWAIT),
        "do not cache": lambda: read_with(RWF_DONTCACHE),
    },
    "`epoll`": {"register": waits_for_it},
    "the number of links": {
        "asked for": lambda: os.pathconf(".", "PC_LINK_MAX"),
        "bits of sizes": lambda: os.pathconf(".", "PC_FILESIZEBITS"),
    },
    "`RENAME_WHITEOUT`": {"rename": lambda: renameat2("file", "new", RENAME_WHITEOUT)},
    "`st_blocks`": {"7 bytes": lambda: os.stat("file").st_blocks, "FIOQSIZE": allocated_while_it_is_written},
    "a file without a name": {"open what was located": lambda: nameless("open")},
    "devices and suid": {"device": device},
}


def listed() -> list[str]:
    """Return the first cells of the table of differences."""
    text = (ROOT / "docs" / "design.md").read_text().split("## Differences from ext4", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (?!what\b|-)(.*?) \|", text, re.MULTILINE)


def test_the_document_lists_these_differences() -> None:
    assert listed() == list(DIFFERENCES)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_listed_difference_is_one(mounted: Path, tmp_path: Path, difference: str) -> None:
    acts = DIFFERENCES[difference]
    ours, plain = outcomes(mounted, acts), outcomes(tmp_path, acts)
    assert {name for name in acts if ours[name] == plain[name]} == set()
