"""When files of the live tree were read: access times by the rule of relatime.

A read is no change. It makes no row, which would be in the next version and on the disk, so these times are kept in
memory, of the files read last, and end with the mount; only another change of a file's attributes takes its access
time along. Belongs to the loop.
"""

from ckptfs.tree import Tree
from ckptfs.tree.inode import Inode

FILES_MAX = 1 << 16
DAY_NS = 86400 * 1_000_000_000


class AccessTimes:
    """The access times that a mount has noted."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._noted_ns: dict[int, int] = {}

    def applied_to(self, inode: Inode) -> Inode:
        """Return a live inode with the access time that was noted for it."""
        noted_ns = self._noted_ns.get(inode.ino)
        return inode if noted_ns is None else inode._replace(atime_ns=noted_ns)

    def is_due(self, ino: int) -> bool:
        """Whether a read of this live inode now would move its access time."""
        if self._tree.store.read_only:
            return False
        inode = self.applied_to(self._tree.attributes(ino))
        return inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) or self._tree.wall_ns() - inode.atime_ns >= DAY_NS

    def note(self, ino: int) -> None:
        """Note that a live inode is read."""
        if self.is_due(ino):
            self._noted_ns.pop(ino, None)
            self._noted_ns[ino] = self._tree.wall_ns()
            if len(self._noted_ns) > FILES_MAX:
                del self._noted_ns[next(iter(self._noted_ns))]

    def forget(self, ino: int) -> None:
        """Drop what was noted: the inode itself has the time now."""
        self._noted_ns.pop(ino, None)
