"""Directory entries: what the row of a name has.

Pure; `docs/format.md`, "Directory entry", has the bytes.
"""

import stat
import struct
from typing import NamedTuple

from ckptfs.errors import DamagedError

DIRENT_STRUCT = struct.Struct("<QB")


class Dirent(NamedTuple):
    """A directory entry: the inode number and the file type (`S_IFMT` of the mode)."""

    ino: int
    file_type: int


def decode_dirent(value: bytes) -> Dirent:
    """Return the entry of a row's value; DamagedError when it is none."""
    if len(value) != DIRENT_STRUCT.size:
        raise DamagedError(f"the row of a directory entry has {len(value)} bytes, it must have {DIRENT_STRUCT.size}")
    ino, kind = DIRENT_STRUCT.unpack(value)
    return Dirent(ino, kind << 12)


def encode_dirent(ino: int, mode: int) -> bytes:
    """Return the value of the row that names an inode of this mode."""
    return DIRENT_STRUCT.pack(ino, stat.S_IFMT(mode) >> 12)
