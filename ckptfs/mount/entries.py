"""What the kernel gets to see of a node: its attributes, and whether it may be changed.

Entries knows the two nodes that only the mount has, `.snapshots` and `latest` in it, and what is refused there and in
snapshots. It changes nothing but what the kernel is known to have looked up. Belongs to the loop.
"""

import errno
import os
import stat

from pyfuse3 import EntryAttributes

from ckptfs.mount.accesstimes import AccessTimes
from ckptfs.mount.attributes import VALID_SECONDS, entry_attributes
from ckptfs.mount.nodes import LATEST_NODE, SNAPSHOTS_NODE, Node, Nodes
from ckptfs.tree import Tree
from ckptfs.tree.inode import ROOT_INO, Inode
from ckptfs.tree.namespace import fail
from ckptfs.tree.rows import LIVE
from ckptfs.tree.snapshots import LATEST

SNAPSHOTS_NAME = b".snapshots"


class Entries:
    """The nodes of a mount as the kernel sees them."""

    def __init__(self, tree: Tree, nodes: Nodes, access_times: AccessTimes) -> None:
        self._tree = tree
        self._nodes = nodes
        self._access_times = access_times

    def inode(self, node: Node) -> Inode:
        """Return the attributes of any node, the two that only the mount knows included."""
        if node == SNAPSHOTS_NODE:
            return self._tree.attributes(ROOT_INO)._replace(
                mode=stat.S_IFDIR | 0o755, nlink=2 + len(self._tree.snapshots)
            )
        if node == LATEST_NODE:
            latest = self._tree.snapshots.latest()
            if latest is None:
                fail(errno.ENOENT, LATEST)
            target = os.fsencode(latest.name)
            root = self._tree.attributes(ROOT_INO)
            return root._replace(mode=stat.S_IFLNK | 0o777, nlink=1, size=len(target), target=target)
        inode = self._tree.attributes(node.ino, node.epoch)
        return self._access_times.applied_to(self._tree.names.seen(inode)) if node.is_live else inode

    def note_access(self, node: Node) -> None:
        """Note that a directory or a symbolic link is read."""
        if node.is_live and node not in (SNAPSHOTS_NODE, LATEST_NODE):
            self._access_times.note(node.ino)

    def attributes(self, node: Node) -> EntryAttributes:
        """Return the attributes of a node as the kernel gets them."""
        virtual = node in (SNAPSHOTS_NODE, LATEST_NODE)
        return entry_attributes(self._nodes.node_id(node), self.inode(node), 0.0 if virtual else VALID_SECONDS)

    def entry(self, node: Node) -> EntryAttributes:
        """Return the attributes of a node as an entry, which the kernel then knows once more."""
        attributes = self.attributes(node)
        self._nodes.looked_up(attributes.st_ino)
        return attributes

    def made(self, inode: Inode) -> EntryAttributes:
        """Return the entry of an inode that was just made, as `entry`."""
        node_id = self._nodes.node_id(Node(inode.ino, LIVE))
        self._nodes.looked_up(node_id)
        return entry_attributes(node_id, inode)

    def writable(self, node_id: int) -> int:
        """Return the inode number of a node that may be changed; EROFS in snapshots, EPERM for what is virtual."""
        node = self._nodes.resolve(node_id)
        if not node.is_live:
            fail(errno.EROFS)
        if node in (SNAPSHOTS_NODE, LATEST_NODE):
            fail(errno.EPERM)
        return node.ino

    def new_name(self, parent: int, name: bytes) -> int:
        """Return the inode number of a directory that gets this name; EEXIST for the one name that is taken."""
        ino = self.writable(parent)
        if ino == ROOT_INO and name == SNAPSHOTS_NAME:
            fail(errno.EEXIST, name)
        return ino

    def old_name(self, parent: int, name: bytes) -> int:
        """Return the inode number of a directory that loses this name; EPERM for the one that stays."""
        ino = self.writable(parent)
        if ino == ROOT_INO and name == SNAPSHOTS_NAME:
            fail(errno.EPERM, name)
        return ino

    def snapshot(self, name: bytes) -> Node:
        """Return what has a name in `.snapshots`: the root of a snapshot, or the link `latest`; ENOENT."""
        if name == os.fsencode(LATEST):
            return LATEST_NODE
        snapshot = self._tree.snapshots.named(os.fsdecode(name))
        if snapshot is None:
            fail(errno.ENOENT, name)
        return Node(ROOT_INO, snapshot.id)

    def attributed(self, node_id: int) -> Node:
        """Return a node that can have extended attributes; ENODATA for what is virtual."""
        node = self._nodes.resolve(node_id)
        if node in (SNAPSHOTS_NODE, LATEST_NODE):
            fail(errno.ENODATA)
        return node
