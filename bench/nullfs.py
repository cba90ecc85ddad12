"""A pyfuse3 filesystem that keeps nothing: the ceiling of what any filesystem on pyfuse3 can reach here.

Names and sizes are remembered, written bytes are dropped, and reads come from a constant. Written bytes come through
the kernel's writeback cache, or with `--direct` past the page cache, as ckptfs has it. Run as
`nullfs.py MOUNTPOINT [--direct]`.
"""

import errno
import os
import stat
import sys
from itertools import count

import pyfuse3
import trio

READ_CONSTANT = bytes(1 << 20)


class NullOperations(pyfuse3.Operations):
    """One directory of files without content."""

    supports_dot_lookup = False

    def __init__(self, *, direct: bool) -> None:
        super().__init__()
        self.enable_writeback_cache = not direct
        self._direct = direct
        self._numbers = count(pyfuse3.ROOT_INODE + 1)
        self._names: dict[bytes, int] = {}
        self._sizes: dict[int, int] = {}

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        is_root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o644
        entry.st_size = self._sizes.get(inode, 0)
        return entry

    async def getattr(self, inode, ctx):
        return self._attributes(inode)

    async def lookup(self, parent, name, ctx):
        if name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(self._names[name])

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            self._sizes[inode] = attr.st_size
        return self._attributes(inode)

    async def create(self, parent, name, mode, flags, ctx):
        inode = self._names[name] = next(self._numbers)
        self._sizes[inode] = 0
        return self._opened(inode, flags), self._attributes(inode)

    def _opened(self, inode: int, flags: int) -> pyfuse3.FileInfo:
        direct = self._direct and flags & os.O_ACCMODE == os.O_WRONLY
        return pyfuse3.FileInfo(fh=inode, direct_io=direct, keep_cache=True)

    async def open(self, inode, flags, ctx):
        if flags & os.O_TRUNC:
            self._sizes[inode] = 0
        return self._opened(inode, flags)

    async def write(self, fh, offset, data):
        self._sizes[fh] = max(self._sizes[fh], offset + len(data))
        return len(data)

    async def read(self, fh, offset, size):
        size = min(size, self._sizes[fh] - offset)
        return READ_CONSTANT if size == len(READ_CONSTANT) else memoryview(READ_CONSTANT)[: max(size, 0)]

    async def flush(self, fh):
        pass

    async def fsync(self, fh, datasync):
        pass

    async def release(self, fh):
        pass

    async def unlink(self, parent, name, ctx):
        self._sizes.pop(self._names.pop(name, 0), None)

    async def rename(self, parent, name, new_parent, new_name, flags, ctx):
        self._names[new_name] = self._names.pop(name)

    async def statfs(self, ctx):
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 30
        return data


def main() -> None:
    """Mount on the directory named on the command line, and serve until it is unmounted."""
    operations = NullOperations(direct="--direct" in sys.argv[2:])
    pyfuse3.init(operations, sys.argv[1], {*pyfuse3.default_options, "fsname=null"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
