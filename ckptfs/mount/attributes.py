"""Translation between the tree's values and the kernel interface's: attributes, times to trust them, errors."""

import errno
import logging
import traceback
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from ckptfs.errors import (
    AmbiguousSnapshotError,
    CkptfsError,
    DamagedError,
    NoSpaceError,
    OpenFilesError,
    SnapshotNameError,
    StoreReadOnlyError,
    UnknownSnapshotError,
)
from ckptfs.tree.inode import Inode

log = logging.getLogger(__name__)

VALID_SECONDS = 3600.0
"""How long the kernel may trust names and attributes: it sees every change, and rollbacks tell it."""
DIRECTORY_SIZE = 4096
BLOCK_SIZE = 4096

P = ParamSpec("P")
R = TypeVar("R")

ERRNO_OF = {
    NoSpaceError: errno.ENOSPC,
    DamagedError: errno.EIO,
    StoreReadOnlyError: errno.EROFS,
    SnapshotNameError: errno.EINVAL,
    UnknownSnapshotError: errno.ENOENT,
    AmbiguousSnapshotError: errno.ENOENT,
    OpenFilesError: errno.EBUSY,
}


def fuse_error(error: Exception) -> pyfuse3.FUSEError:
    """Return what the kernel is told of a failure; what nobody foresaw is logged with its traceback, and EIO."""
    if isinstance(error, OSError) and error.errno:
        if error.errno == errno.EIO:
            log.error("an input/output error of the disk below: %s", error)
        return pyfuse3.FUSEError(error.errno)
    code = ERRNO_OF.get(type(error)) if isinstance(error, CkptfsError) else None
    if code is None:
        log.error("a bug, or a failure nobody foresaw: %s", "".join(traceback.format_exception(error)))
        code = errno.EIO
    elif code == errno.EIO:
        log.error("%s", error)  # a full disk is logged where it was met, once, and not for every call it fails
    return pyfuse3.FUSEError(code)


def answered(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a handler fail with the errno of whatever it raises."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise fuse_error(error) from error

    return wrapper


def entry_attributes(node_id: int, inode: Inode, valid_seconds: float = VALID_SECONDS) -> pyfuse3.EntryAttributes:
    """Return the kernel's attributes of an inode."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node_id)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = valid_seconds
    entry.st_mode = pyfuse3.ModeT(inode.mode)
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    size = DIRECTORY_SIZE if inode.is_dir else inode.size
    entry.st_size = size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = (DIRECTORY_SIZE if inode.is_dir else inode.allocated + 511) // 512
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry
