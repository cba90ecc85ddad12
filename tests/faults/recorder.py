"""A small filesystem that writes down everything it is asked to change, in order: the disk below of a store under test.

It keeps files in memory and passes every write, truncation, sync and rename through to a list, those of LMDB included,
which no fake of `Disk` sees. From that list `powercut` makes the directory that a power cut at any moment may leave.
`recording` runs it in a process of its own, which pickles the list when it is unmounted. What is written to the file
`marks` in its root is no data: it tells, between the operations, what the workload had been promised by then. What is
written to `room` there is the number of bytes by which all files together may still grow; to `failing`, the number of
writes and syncs after which one fails with EIO.
"""

import errno
import os
import pickle
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyfuse3
import trio

MARKS = "marks"
ROOM = "room"
FAILING = "failing"
BLOCK_SIZE = 4096
_ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 20.0


class Write(NamedTuple):
    """Bytes written to the file `ino`."""

    ino: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """The file `ino` was cut or lengthened."""

    ino: int
    size: int


class Sync(NamedTuple):
    """The bytes of the file `ino`, or the names in the directory `ino`, are durable."""

    ino: int


class Names(NamedTuple):
    """Names of the directory `parent` that changed at once, with what they mean now (None: nothing)."""

    parent: int
    changed: tuple[tuple[str, int | None], ...]
    is_directory: bool = False


class Mark(NamedTuple):
    """What the workload had to say at this moment."""

    text: bytes


Operation = Write | Truncate | Sync | Names | Mark


class _Recorder(pyfuse3.Operations):
    """Files in memory and the list of what happened to them."""

    supports_dot_lookup = False
    enable_writeback_cache = False  # every write comes here when it is made

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[Operation] = []
        self._files: dict[int, bytearray] = {}
        self._names: dict[int, dict[str, int]] = {pyfuse3.ROOT_INODE: {}}
        self._modes: dict[int, int] = {pyfuse3.ROOT_INODE: stat.S_IFDIR | 0o700}
        self._special: dict[int, str] = {}
        self._room = 1 << 40
        self._fails_after: int | None = None
        self._next = pyfuse3.ROOT_INODE + 1

    def _attributes(self, ino):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = self._modes[ino]
        entry.st_size = len(self._files.get(ino, b""))
        entry.st_blocks = -(-entry.st_size // 512)
        entry.attr_timeout = entry.entry_timeout = 3600
        return entry

    def _child(self, parent, name):
        try:
            return self._names[parent][os.fsdecode(name)]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _add(self, parent, name, mode):
        ino, self._next = self._next, self._next + 1
        self._names[parent][os.fsdecode(name)] = ino
        self._modes[ino] = mode
        if stat.S_ISDIR(mode):
            self._names[ino] = {}
        else:
            self._files[ino] = bytearray()
        if parent == pyfuse3.ROOT_INODE and os.fsdecode(name) in (MARKS, ROOM, FAILING):
            self._special[ino] = os.fsdecode(name)
        else:
            self.trace.append(Names(parent, ((os.fsdecode(name), ino),), stat.S_ISDIR(mode)))
        return ino

    async def lookup(self, parent, name, ctx):
        return self._attributes(self._child(parent, name))

    async def getattr(self, ino, ctx):
        return self._attributes(ino)

    async def setattr(self, ino, attr, fields, fh, ctx):
        if fields.update_size and attr.st_size != len(self._files[ino]):
            data = self._files[ino]
            del data[attr.st_size :]
            data += bytes(attr.st_size - len(data))
            self.trace.append(Truncate(ino, attr.st_size))
        if fields.update_mode:
            self._modes[ino] = attr.st_mode
        return self._attributes(ino)

    async def mkdir(self, parent, name, mode, ctx):
        return self._attributes(self._add(parent, name, stat.S_IFDIR | mode & 0o777))

    async def create(self, parent, name, mode, flags, ctx):
        ino = self._add(parent, name, stat.S_IFREG | mode & 0o777)
        return pyfuse3.FileInfo(fh=ino, keep_cache=True), self._attributes(ino)

    async def mknod(self, parent, name, mode, rdev, ctx):
        return self._attributes(self._add(parent, name, mode))  # the control socket of a mount

    async def open(self, ino, flags, ctx):
        if flags & os.O_TRUNC and self._files[ino]:
            self._files[ino].clear()
            self.trace.append(Truncate(ino, 0))
        return pyfuse3.FileInfo(fh=ino, keep_cache=True)

    async def read(self, fh, offset, size):
        return bytes(self._files[fh][offset : offset + size])

    async def write(self, fh, offset, buffer):
        if fh in self._special:
            if self._special[fh] == MARKS:
                self.trace.append(Mark(buffer))
            elif self._special[fh] == ROOM:
                self._room = self._used() + int(buffer)
            else:
                self._fails_after = int(buffer)
            return len(buffer)
        self._may_fail()
        data = self._files[fh]
        growth = max(offset + len(buffer) - len(data), 0)
        if growth > max(self._free(), 0):
            raise pyfuse3.FUSEError(errno.ENOSPC)
        data += bytes(max(offset - len(data), 0))
        data[offset : offset + len(buffer)] = buffer
        self.trace.append(Write(fh, offset, buffer))
        return len(buffer)

    def _used(self):
        return sum(map(len, self._files.values()))

    def _free(self):
        return self._room - self._used()

    def _may_fail(self):
        if self._fails_after is not None:
            self._fails_after -= 1
            if self._fails_after < 0:
                self._fails_after = None
                raise pyfuse3.FUSEError(errno.EIO)

    async def fsync(self, fh, datasync):
        self._may_fail()
        self.trace.append(Sync(fh))

    async def fsyncdir(self, fh, datasync):
        self.trace.append(Sync(fh))

    async def unlink(self, parent, name, ctx):
        self._child(parent, name)
        del self._names[parent][os.fsdecode(name)]
        self.trace.append(Names(parent, ((os.fsdecode(name), None),)))

    async def rename(self, old_parent, old_name, parent, name, flags, ctx):
        ino = self._child(old_parent, old_name)
        assert parent == old_parent
        del self._names[parent][os.fsdecode(old_name)]
        self._names[parent][os.fsdecode(name)] = ino
        self.trace.append(Names(parent, ((os.fsdecode(old_name), None), (os.fsdecode(name), ino))))

    async def opendir(self, ino, ctx):
        return ino

    async def readdir(self, fh, start, token):
        for index, (name, ino) in enumerate(sorted(self._names[fh].items())):
            if index >= start and not pyfuse3.readdir_reply(token, os.fsencode(name), self._attributes(ino), index + 1):
                return

    async def statfs(self, ctx):
        status = pyfuse3.StatvfsData()
        status.f_bsize = status.f_frsize = BLOCK_SIZE
        status.f_blocks = max(self._room, 0) // BLOCK_SIZE
        status.f_bfree = status.f_bavail = max(self._free(), 0) // BLOCK_SIZE
        return status

    async def flush(self, fh):
        pass

    async def release(self, fh):
        pass


@contextmanager
def recording(directory: Path, operations: list[Operation]) -> Iterator[Path]:
    """Give a mountpoint below `directory`; `operations` are those that happened in it when the body has ended."""
    mountpoint, trace = directory / "recorded", directory / "trace"
    mountpoint.mkdir()
    command = [sys.executable, "-c", "from tests.faults import recorder; recorder.main()", str(mountpoint), str(trace)]
    process = subprocess.Popen(command, cwd=_ROOT)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not os.path.ismount(mountpoint):
            assert process.poll() is None and time.monotonic() < deadline, "the recording filesystem does not come up"
            time.sleep(0.01)
        try:
            yield mountpoint
        finally:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            # A mount process whose store lies here may still be ending.
            while subprocess.run(["fusermount3", "-u", str(mountpoint)], capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, "the recording filesystem stays in use"
                time.sleep(0.01)
            process.wait(_PATIENCE_SECONDS)
        with trace.open("rb") as file:
            operations += pickle.load(file)
    finally:
        process.kill()
        process.wait()
        # Nothing is mounted any more, unless something of a failed test still uses it.
        subprocess.run(["fusermount3", "-uz", str(mountpoint)], capture_output=True, check=False)
        mountpoint.rmdir()


def main() -> None:
    """Mount, record until unmounted, and write the list."""
    recorder = _Recorder()
    pyfuse3.init(recorder, sys.argv[1], {*pyfuse3.default_options, "fsname=recorder"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)
    with open(sys.argv[2], "wb") as file:
        pickle.dump(recorder.trace, file)
