"""The only door to the files of a store.

Disk owns the system calls: open, read, write, sync, rename, truncate. It knows paths and descriptors, not what the
bytes mean. A test replaces it by a subclass that fails or tears. Every call may come from any thread; nothing
is durable before `fdatasync` (bytes and size of a file) and `sync_directory` (its name) have returned.
"""

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ckptfs.errors import NoSpaceError, StoreReadOnlyError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
DISK_SECTOR = 512
"""The unit of `st_blocks`, whatever the filesystem below."""

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_BEHIND_ALL = 1 << 40
CANNOT_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS)
NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""How a disk refuses what would go past the page cache."""
_PUNCH_MODE = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
# The standard library has only posix_fallocate, which punches nothing. Where off_t may be small, glibc has a wide twin.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Turn the two failures that a person can mend into their own errors; let the others pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"the disk below the store is full: {path}") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreReadOnlyError(f"{path} cannot be written: {error.strerror}") from error
        raise


def whole_pages(offset: int, size: int) -> range:
    """Return the part of a range of a file that is whole pages, which is what can be given back."""
    start = offset + -offset % mmap.PAGESIZE
    end = offset + size
    return range(start, max(end - end % mmap.PAGESIZE, start))


class Space(NamedTuple):
    """The size of a disk and what may still be written to it, in bytes."""

    total: int
    free: int


class Disk:
    """The system calls on store files. `path` arguments only name the file in errors where a descriptor is given."""

    def open_read(self, path: Path) -> int:
        """Open an existing file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def open_write(self, path: Path, *, create: bool = False, empty: bool = False) -> int:
        """Open a file for reading and writing; `create` it (0600 whatever the umask), or `empty` it, when asked."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0) | (os.O_TRUNC if empty else 0)
        with _writing(path):
            fd = os.open(path, flags, FILE_MODE)
            if create:
                os.fchmod(fd, FILE_MODE)
        return fd

    def open_direct(self, path: Path, mode: int) -> int | None:
        """Open an existing file to read (O_RDONLY) or write (O_WRONLY) whole pages past the page cache.

        None where the disk has no such thing. The memory has to begin at a page too. A call may still fail with one of
        NOT_DIRECT.
        """
        try:
            return os.open(path, mode | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
            return None

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytearray:
        """Read `size` bytes at `offset`; fewer only at the end of the file."""
        data = bytearray(size)
        with memoryview(data) as view:
            count = self.pread_into(fd, [view], offset)
        del data[count:]
        return data

    def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers one behind the other from `offset` on, and return the bytes; fewer only at the end."""
        total = 0
        pending = deque(buffer for buffer in buffers if len(buffer))
        while pending:
            count = os.preadv(fd, list(islice(pending, _BUFFERS_PER_CALL)), offset + total)
            if not count:
                break
            total += count
            while pending and count >= len(pending[0]):
                count -= len(pending.popleft())
            if count:
                pending[0] = pending[0][count:]
        return total

    def expect(self, fd: int, offset: int, size: int) -> None:
        """Have the disk begin to read a range that will be asked for soon; a hint, and nothing more."""
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)

    def pwrite(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int, path: Path) -> None:
        """Write the buffers one behind the other at `offset`; on an error an unknown part of them is written."""
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        first = 0
        with _writing(path):
            while first < len(pending):
                count = os.pwritev(fd, pending[first : first + _BUFFERS_PER_CALL], offset)
                offset += count
                while first < len(pending) and count >= len(pending[first]):
                    count -= len(pending[first])
                    first += 1
                if count:
                    pending[first] = pending[first][count:]

    def copy_range(self, source: int, target: int, offset: int, size: int, path: Path) -> int:
        """Copy up to `size` bytes at `offset` to the same place in another file; return how many, 0 at the end.

        The disk below shares them where it can.
        """
        with _writing(path):
            try:
                return os.copy_file_range(source, target, size, offset, offset)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        data = self.pread(source, size, offset)
        self.pwrite(target, [data], offset, path)
        return len(data)

    def fdatasync(self, fd: int, path: Path) -> None:
        """Make the bytes and the size of a file durable."""
        with _writing(path):
            os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _writing(path):
                os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int, path: Path) -> None:
        """Cut or extend a file to `size` bytes."""
        with _writing(path):
            os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int, path: Path) -> None:
        """Reserve the room of the first `size` bytes of a file, which reads as zeros there."""
        with _writing(path):
            os.posix_fallocate(fd, 0, size)

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        """Give the whole pages of a range back to the disk, which then read as zeros; return their bytes.

        Raises OSError with EOPNOTSUPP where the disk cannot.
        """
        pages = whole_pages(offset, size)
        if not pages:
            return 0
        with _writing(path):
            if _fallocate(fd, _PUNCH_MODE, pages.start, len(pages)):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        return len(pages)

    def can_punch(self, fd: int) -> bool:
        """Tell whether the disk can free a part of a file, by freeing nothing, far behind the end of this one."""
        return _fallocate(fd, _PUNCH_MODE, _BEHIND_ALL, mmap.PAGESIZE) == 0 or ctypes.get_errno() not in CANNOT_PUNCH

    def make_directory(self, path: Path) -> None:
        """Make a directory, 0700 whatever the umask; one that exists already is left as it is."""
        with _writing(path):
            try:
                os.mkdir(path, DIRECTORY_MODE)
            except FileExistsError:
                return
            os.chmod(path, DIRECTORY_MODE)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, replacing what had it."""
        with _writing(target):
            os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file's name; a missing one is an error."""
        with _writing(path):
            os.unlink(path)

    def publish(self, path: Path, data: bytes) -> None:
        """Write a whole small file so that a crash leaves the old or the new content, durably on return."""
        temporary = path.with_name(path.name + ".new")
        fd = self.open_write(temporary, create=True, empty=True)
        try:
            self.pwrite(fd, [data], 0, temporary)
            self.fdatasync(fd, temporary)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def list_names(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(path))

    def size(self, fd: int) -> int:
        """Return the size of an open file in bytes."""
        return os.fstat(fd).st_size

    def stored_size(self, path: Path) -> int:
        """Return the bytes that a file takes on the disk below, holes excluded; 0 for a missing file."""
        try:
            return os.stat(path).st_blocks * DISK_SECTOR
        except FileNotFoundError:
            return 0

    def next_data(self, fd: int, offset: int) -> int | None:
        """Return the first offset from `offset` on that lies in no hole, or None when only a hole follows."""
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset
            raise

    def next_hole(self, fd: int, offset: int) -> int:
        """Return the first offset from `offset`, which has data, on that lies in a hole; the size where none does."""
        try:
            return os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return self.size(fd)
            raise

    def space(self, path: Path) -> Space:
        """Return the size of the disk below, and what an unprivileged process may still write to it."""
        status = os.statvfs(path)
        return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
