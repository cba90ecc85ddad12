"""The lock that keeps a store to one writer.

StoreLock owns the file `lock`: flock'ed exclusively by a writer, shared by readers, with the holder's pid as text
for the message. The kernel drops the lock with the process, so a crash leaves nothing to clean up. A pid that nobody
holds the lock for is that of a writer that did not come to its end. The directory is flock'ed too, where the disk below
can: a file called `lock` looks like something to remove when a store is in use.
It must be taken by the process that uses the store: after a fork, not before it.
"""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptfs.disk import Disk
from ckptfs.errors import NotAStoreError, StoreInUseError

LOCK_NAME = "lock"
_PID_SIZE_MAX = 20
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a disk says that it does not lock what is opened for reading only, as NFS, or no directories, or nothing."""


class StoreLock:
    """The lock of one store, held until `close`."""

    def __init__(self, directory: Path, disk: Disk, *, shared: bool) -> None:
        """Take the lock or raise StoreInUseError, which names the process that has it; a writer makes a missing one.

        NotAStoreError where a reader finds none.
        """
        self._path = path = directory / LOCK_NAME
        self._disk = disk
        self._fds: list[int] = []
        try:
            try:
                self._fds.append(disk.open_read(directory))
                self._take(shared)
                self._fds.append(disk.open_read(path) if shared else disk.open_write(path, create=True))
                self._take(shared)
            except FileNotFoundError as error:
                if not shared:
                    raise
                raise NotAStoreError(
                    f"{directory} has no file `{LOCK_NAME}`, which readers share; an empty one will do"
                ) from error
            except BlockingIOError as error:
                pid = self._pid()
                holder = f"process {pid}" if pid else "another process"
                raise StoreInUseError(f"{directory} is in use by {holder}; use its mount or stop it") from error
            if not shared:
                disk.truncate(self._fd, 0, path)
                disk.pwrite(self._fd, [f"{os.getpid()}\n".encode()], 0, path)
        except BaseException:
            self.close()
            raise

    def _take(self, shared: bool) -> None:
        """Lock what was opened last; BlockingIOError when another has it."""
        fd = self._fds[-1]
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if fd != self._fds[0] or error.errno not in _NO_LOCKS:
                raise  # only a directory may be what the disk below cannot lock

    def _pid(self) -> str:
        """Return the process id that the file has, "" where there is none."""
        try:
            fd = self._disk.open_read(self._path)
        except FileNotFoundError:
            return ""
        try:
            return self._disk.pread(fd, _PID_SIZE_MAX, 0).decode("ascii", "replace").strip()
        finally:
            self._disk.close(fd)

    @property
    def _fd(self) -> int:
        return self._fds[-1]

    def note_end(self) -> None:
        """Note that the writer has finished: everything is in the index."""
        self._disk.truncate(self._fd, 0, self._path)

    @property
    def is_finished(self) -> bool:
        """Whether the last writer had finished when it let go of the store."""
        return self._disk.size(self._fd) == 0

    def close(self) -> None:
        """Give the lock back."""
        while self._fds:
            self._disk.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
