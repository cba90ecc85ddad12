"""Open directories: what a listing shows while names come and go, and where it goes on.

A listing shows the names that there were when its reading began at the front, and a position in it stays good for as
long as it is open, so no name that stays is shown twice or left out. Belongs to the loop.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pyfuse3
from pyfuse3 import EntryAttributes, FileNameT

from ckptfs.mount.nodes import LATEST_NODE, SNAPSHOTS_NODE, Node, Nodes
from ckptfs.tree import Tree
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.snapshots import LATEST


@dataclass(slots=True)
class Listing:
    """One open of a directory."""

    node: Node
    entries: list[tuple[bytes, Node]] = field(default_factory=list)


class Listings:
    """The open directories of a mount."""

    def __init__(self, tree: Tree, nodes: Nodes, attributes: Callable[[Node], EntryAttributes]) -> None:
        self._tree = tree
        self._nodes = nodes
        self._attributes = attributes
        self._listings: dict[int, Listing] = {}
        self._numbers = count(1)

    def open(self, node: Node) -> int:
        """Open a directory and return the number of its listing."""
        number = next(self._numbers)
        self._listings[number] = Listing(node)
        return number

    def close(self, number: int) -> None:
        """Let go of a listing."""
        del self._listings[number]

    def node(self, number: int) -> Node:
        """Return the directory of a listing."""
        return self._listings[number].node

    def read(self, number: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Answer with as many entries from position `start` on as the kernel takes; ESTALE as `Nodes.check`."""
        listing = self._listings[number]
        self._nodes.check(listing.node)
        if start == 0:
            listing.entries = [(b".", listing.node), (b"..", listing.node), *self._entries(listing.node)]
        for index in range(start, len(listing.entries)):
            name, node = listing.entries[index]
            try:
                attributes = self._attributes(node)
            except OSError:
                continue  # gone since the reading began
            if not pyfuse3.readdir_reply(token, FileNameT(name), attributes, index + 1):
                return
            if index > 1:  # the kernel does not look up the two that name the directory itself
                self._nodes.looked_up(attributes.st_ino)

    def _entries(self, node: Node) -> list[tuple[bytes, Node]]:
        if node == SNAPSHOTS_NODE:
            snapshots = self._tree.snapshots.all()
            found = [(os.fsencode(snapshot.name), Node(ROOT_INO, snapshot.id)) for snapshot in snapshots]
            return [*found, (os.fsencode(LATEST), LATEST_NODE)] if found else []
        return [(name, Node(entry.ino, node.epoch)) for name, entry in self._tree.names.entries(node.ino, node.epoch)]
