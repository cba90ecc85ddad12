"""Extended attributes of inodes, at any epoch.

Owns their rows and the rules that Linux has for their names; knows nothing of what they mean. An inode without a name
has none. Errors are `OSError`s with the errno of the call. Belongs to the thread that owns the tables.
"""

import errno

from ckptfs.store import Table
from ckptfs.tree.inode import Inode
from ckptfs.tree.namespace import NAME_MAX, Namespace, fail
from ckptfs.tree.rows import LIVE, id_prefix, name_prefix

XATTR_CREATE = 1
XATTR_REPLACE = 2
XATTR_SIZE_MAX = 65536
NAMESPACES = (b"user.", b"trusted.", b"security.")
"""Not `system.`: these are access control lists, and accepting one would be a promise to obey it."""


class Xattrs:
    """The extended attributes of a tree."""

    def __init__(self, names: Namespace) -> None:
        self._names = names
        self._rows = names.rows

    def get(self, ino: int, name: bytes, epoch: int = LIVE) -> bytes:
        """Return an extended attribute; ENODATA, EOPNOTSUPP and EINVAL for a name that none can have."""
        _check_name(name)
        value = self._rows.get(Table.XATTRS, name_prefix(ino, name), epoch) if len(name) <= NAME_MAX else None
        if value is None:
            fail(errno.ENODATA, name)
        return value[1:]

    def names(self, ino: int, epoch: int = LIVE) -> list[bytes]:
        """Return the names of an inode's extended attributes."""
        return [prefix[8:-1] for prefix, _ in self._rows.scan(Table.XATTRS, id_prefix(ino), epoch)]

    def all(self, ino: int, epoch: int = LIVE) -> dict[bytes, bytes]:
        """Return an inode's extended attributes by name."""
        return {prefix[8:-1]: value[1:] for prefix, value in self._rows.scan(Table.XATTRS, id_prefix(ino), epoch)}

    def set(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; EEXIST, ENODATA, ERANGE for a long name, E2BIG for a long value, and as `get`.

        What it already was changes nothing, no time either, as on ext4.
        """
        _check_name(name)
        if len(name) > NAME_MAX:
            fail(errno.ERANGE, name)
        if len(value) > XATTR_SIZE_MAX:
            fail(errno.E2BIG, name)
        inode = self._names.named_inode(ino)
        known = self._rows.get(Table.XATTRS, name_prefix(ino, name))
        if flags & XATTR_CREATE and known is not None:
            fail(errno.EEXIST, name)
        if flags & XATTR_REPLACE and known is None:
            fail(errno.ENODATA, name)
        if known is None or known[1:] != value:
            self.put(ino, name, value)
            self._changed(inode)

    def put(self, ino: int, name: bytes, value: bytes) -> None:
        """Write the row of an extended attribute, whatever its name, and change no time."""
        self._rows.put(Table.XATTRS, name_prefix(ino, name), b"\0" + value)

    def remove(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute; as `get`."""
        self.get(ino, name)
        self.drop(ino, name)
        self._changed(self._names.inode(ino))

    def drop(self, ino: int, name: bytes) -> None:
        """Take out the row of an extended attribute, and change no time."""
        self._rows.remove(Table.XATTRS, name_prefix(ino, name))

    def _changed(self, inode: Inode) -> None:
        self._names.change_attributes(inode._replace(ctime_ns=self._names.now_ns()))


def _check_name(name: bytes) -> None:
    if not name.startswith(NAMESPACES):
        fail(errno.EOPNOTSUPP, name)
    if name in NAMESPACES:
        fail(errno.EINVAL, name)
