"""Which filesystems are mounted where, as /proc/self/mountinfo tells it.

Owns the parsing of that file and the question "which ckptfs is this path in"; refuses to touch any mount, so it
answers also when a mount process is dead or hangs. A ckptfs is a mount of type `fuse.ckptfs`; its source is its
store. Nothing is cached: every call reads the kernel's table anew.
"""

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"
CKPTFS_TYPE = "fuse.ckptfs"

_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo; `root` is the directory of the filesystem that is seen at `mountpoint` (bind mounts)."""

    mountpoint: str
    root: str
    device: str
    fstype: str
    source: str

    @property
    def is_ckptfs(self) -> bool:
        """Tell whether this is a ckptfs."""
        return self.fstype == CKPTFS_TYPE

    def inner(self, path: str) -> str:
        """Return the path below the root of the filesystem ("" = root) of a path that lies in this mount."""
        inside = os.path.relpath(path, self.mountpoint)
        return os.path.normpath(os.path.join(self.root, inside)).lstrip("/")


def _unescape(field: bytes) -> str:
    """Undo the kernel's octal escapes (space, tab, newline, backslash, hash); any other byte passes as it is."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def parse(table: bytes) -> list[Mount]:
    """Parse the text of a mountinfo file, in mount order; see proc_pid_mountinfo(5).

    Lines that are not of that form are passed over: a kernel may add what this program does not know.
    """
    mounts = []
    for line in table.split(b"\n"):
        # The optional fields before " - " vary in number, so the line is cut there first.
        before, dash, after = line.partition(b" - ")
        left, right = before.split(b" "), after.split(b" ")
        if dash and len(left) >= 5 and len(right) >= 2:
            root, mountpoint = _unescape(left[3]), _unescape(left[4])
            mounts.append(Mount(mountpoint, root, left[2].decode(), _unescape(right[0]), _unescape(right[1])))
    return mounts


def read() -> list[Mount]:
    """Return the mounts that can be seen now; of several on one mountpoint only the topmost."""
    with open(MOUNTINFO, "rb") as file:
        table = file.read()
    return list({mount.mountpoint: mount for mount in parse(table)}.values())


def ckptfs_mounts() -> list[Mount]:
    """Return the ckptfs mounts that can be seen now."""
    return [mount for mount in read() if mount.is_ckptfs]


def mount_at(path: str) -> Mount | None:
    """Return the topmost mount whose mountpoint is exactly this absolute path."""
    return next((mount for mount in read() if mount.mountpoint == path), None)


def mount_of(path: str) -> Mount | None:
    """Return the mount that this absolute, resolved path lies in: the one with the longest mountpoint above it."""
    return max((mount for mount in read() if is_below(path, mount.mountpoint)), key=_length, default=None)


def mounts_of_store(store: str, mounts: Iterable[Mount] | None = None) -> list[Mount]:
    """Return the ckptfs mounts that show this store (an absolute, resolved path)."""
    return [mount for mount in (read() if mounts is None else mounts) if mount.is_ckptfs and mount.source == store]


def is_below(path: str, directory: str) -> bool:
    """Tell whether an absolute, normal path is the directory itself or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def resolve_mountpoint(path: str) -> str:
    """Return the absolute path of a mountpoint without a look at what is mounted there, which may be dead or hang.

    Symbolic links above it are resolved; the last component is resolved only when nothing is mounted on it.
    """
    directory, name = os.path.split(os.path.abspath(path))
    candidate = os.path.join(os.path.realpath(directory), name)
    return candidate if mount_at(candidate) else os.path.realpath(candidate)


def _length(mount: Mount) -> int:
    return len(mount.mountpoint)
