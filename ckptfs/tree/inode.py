"""The inode: attributes of one file at one time, as a value and as the bytes of its row."""

import stat
import struct
from typing import NamedTuple

from ckptfs.errors import DamagedError

ROOT_INO = 1

UNCOMMITTED = 1
"""Flag of a live-only row: the file has never been a committed version (it is being created)."""
INTERRUPTED = 2
"""Flag of a live-only row: the writer was killed, or failed, before it closed the file."""

TIME_MIN_NS, TIME_MAX_NS = -(1 << 63), (1 << 63) - 1
"""The earliest and the latest time that a row can have, in 1677 and in 2262."""

INODE_STRUCT = struct.Struct("<IIIIIIQQQqqqQQ")
_MANIFEST = struct.Struct("<72xQ")
_FILE_TYPES = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)


def manifest_of(value: bytes) -> int:
    """Return the manifest that the value of an inode's row names, 0 for none; DamagedError when it is no such row."""
    if len(value) < _MANIFEST.size:
        raise DamagedError(f"the row of an inode has {len(value)} bytes, too few for one")
    return int(_MANIFEST.unpack_from(value)[0])


class Inode(NamedTuple):
    """Attributes of an inode, in the order of its row; times in nanoseconds since 1970.

    `size` and `allocated` are in bytes; holes are not allocated. `manifest` is the number of the extents' list (0: no
    content), `predecessor` that of the version which this content succeeds (0: none known): the lineage. `layout` is
    the fingerprint of the tensors in it (0: none known).
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    flags: int = 0
    layout: int = 0
    rdev: int = 0
    size: int = 0
    allocated: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    manifest: int = 0
    predecessor: int = 0
    target: bytes = b""

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)

    def encode(self) -> bytes:
        """Return the row's value: 88 fixed bytes and the symlink target."""
        return INODE_STRUCT.pack(*self[1:-1]) + self.target

    @classmethod
    def decode(cls, ino: int, value: bytes) -> "Inode":
        """Return the inode `ino` of a row's value; DamagedError when it is none."""
        if len(value) < INODE_STRUCT.size:
            raise DamagedError(f"the row of inode {ino} has {len(value)} bytes, too few for one")
        inode = cls._make((ino, *INODE_STRUCT.unpack_from(value), value[INODE_STRUCT.size :]))
        if stat.S_IFMT(inode.mode) not in _FILE_TYPES or inode.mode >> 16:
            raise DamagedError(f"the row of inode {ino} has the mode {inode.mode:o}, which is of no type of file")
        if not inode.is_file and inode.size != len(inode.target):
            raise DamagedError(
                f"the row of inode {ino} says that it has {inode.size} bytes, it has {len(inode.target)}"
            )
        return inode
