"""Node ids: what the kernel's number for a file means to the tree.

A node is an inode at an epoch. A live inode's node id is its inode number, until a rollback gives it another content:
whoever has the file open goes on reading the old one, from the kernel's pages too, so the old id is *retired* - it goes
on meaning the old content, in the snapshot that the rollback took - and the live inode gets a new id. Inodes of
snapshots get ids as they are looked up, and lose them when the kernel forgets.
"""

import errno
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.namespace import fail
from ckptfs.tree.rows import LIVE
from ckptfs.tree.tree import Tree

FIRST_MAPPED_ID = 1 << 48
SNAPSHOTS_ID = FIRST_MAPPED_ID - 1
LATEST_ID = FIRST_MAPPED_ID - 2


class Node(NamedTuple):
    """An inode as one epoch sees it."""

    ino: int
    epoch: int

    @property
    def is_live(self) -> bool:
        """Whether this is a node of the live tree."""
        return self.epoch == LIVE


SNAPSHOTS_NODE = Node(SNAPSHOTS_ID, LIVE)
"""The directory `.snapshots`."""
LATEST_NODE = Node(LATEST_ID, LIVE)
"""The symbolic link `.snapshots/latest`."""
ROOT_NODE = Node(ROOT_INO, LIVE)


class Nodes:
    """The node ids in use."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._nodes: dict[int, Node] = {}
        self._ids: dict[Node, int] = {}
        self._lookups: dict[int, int] = {}
        self._next_id = count(FIRST_MAPPED_ID)
        tree.names.users.append(lambda ino: self.node_id(Node(ino, LIVE)) in self._lookups)

    def resolve(self, node_id: int) -> Node:
        """Return what a node id means; ESTALE once its snapshot is deleted."""
        node = self._nodes.get(node_id)
        if node is None:
            if node_id >= FIRST_MAPPED_ID:
                fail(errno.ESTALE, node_id)
            return Node(node_id, LIVE)
        self.check(node)
        return node

    def check(self, node: Node) -> None:
        """Refuse a node of a deleted snapshot, whose rows are by now those of the one before; ESTALE."""
        if not node.is_live and not self._tree.snapshots.has(node.epoch):
            fail(errno.ESTALE, node.ino)

    def node_id(self, node: Node) -> int:
        """Return the id of a node."""
        node_id = self._ids.get(node)
        if node_id is None:
            node_id = node.ino if node.is_live else self._map(node)
        return node_id

    def _map(self, node: Node) -> int:
        node_id = next(self._next_id)
        self._nodes[node_id] = node
        self._ids[node] = node_id
        return node_id

    def looked_up(self, node_id: int) -> None:
        """Count that the kernel got this id with an entry."""
        self._lookups[node_id] = self._lookups.get(node_id, 0) + 1

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Count that the kernel dropped ids: pairs of id and number of look-ups."""
        for node_id, lookups in forgotten:
            left = self._lookups.get(node_id, 0) - lookups
            if left > 0:
                self._lookups[node_id] = left
                continue
            self._lookups.pop(node_id, None)
            node = self._nodes.get(node_id)
            if node is None:
                self._tree.names.forget(node_id)
            elif not node.is_live:
                del self._nodes[node_id]
                if self._ids.get(node) == node_id:
                    del self._ids[node]
            else:
                self._tree.names.forget(node.ino)

    def retire(self, ino: int, epoch: int) -> None:
        """Let the id of a live inode mean its content in the snapshot `epoch`, and give the live inode a new one."""
        live = Node(ino, LIVE)
        self._nodes[self.node_id(live)] = Node(ino, epoch)
        self._map(live)
