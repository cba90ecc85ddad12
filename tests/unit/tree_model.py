"""The model that the tree is held against: a dict of nodes, directories as dicts of names, a snapshot as a deep copy.

A name may hide another: a file that was never committed, renamed over a committed one, is what the live tree shows,
and the committed one is what a snapshot shows, until the first is committed or the name goes.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ckptfs.tree.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit.tree_support import Seen

ROOT = 1


def fail(code: int) -> NoReturn:
    """Raise the OSError of an errno."""
    raise OSError(code, os.strerror(code))


@dataclass
class Slot:
    """What a name means: to the live tree, and to a snapshot where that is something else."""

    node: int
    hidden: int | None = None


@dataclass
class Node:
    """One inode. `committed` is a file's content that snapshots show, None before its first version."""

    mode: int
    data: bytes = b""
    committed: bytes | None = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_uncommitted(self) -> bool:
        """Whether no snapshot can show it yet."""
        return self.committed is None


class ModelTree:
    """A whole tree; `nodes` may hold some that no name leads to."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT: Node(stat.S_IFDIR | 0o755)}
        self._next = ROOT + 1

    def add(self, node: Node) -> int:
        """Keep a node and return its number."""
        self._next += 1
        self.nodes[self._next] = node
        return self._next

    # Looking

    def at(self, path: str) -> int:
        """Return the node at a path; ENOENT, ENOTDIR."""
        found = ROOT
        for name in filter(None, path.split("/")):
            if not self.nodes[found].is_dir:
                fail(errno.ENOTDIR)
            slot = self.nodes[found].slots.get(name)
            if slot is None:
                fail(errno.ENOENT)
            found = slot.node
        return found

    def place(self, path: str) -> tuple[Node, str]:
        """Return the directory of a path and its last name."""
        head, _, name = path.rpartition("/")
        return self.nodes[self.at(head)], name

    def walk(self, path: str = "", start: int = ROOT) -> Iterator[tuple[str, int]]:
        """Yield (path, node) of the live tree, the root as ""."""
        yield path, start
        for name, slot in sorted(self.nodes[start].slots.items()):
            yield from self.walk(f"{path}/{name}" if path else name, slot.node)

    def paths_of(self, node: int) -> list[str]:
        """Return the live paths of a node."""
        return [path for path, found in self.walk() if found == node]

    def links(self, *, hidden: bool = True) -> Counter[int]:
        """Count the names of each node, hidden ones included or not."""
        count: Counter[int] = Counter()
        for _, directory in self.walk():
            for slot in self.nodes[directory].slots.values():
                count[slot.node] += 1
                if hidden and slot.hidden is not None:
                    count[slot.hidden] += 1
        return count

    def seen(self, show: Callable[[int], bytes] | None = None) -> dict[str, Seen]:
        """Return what a user sees; `show` gives the bytes of a file where they are not the node's."""
        links, first = self.links(hidden=False), dict[int, str]()
        result: dict[str, Seen] = {}

        def visit(number: int, path: str) -> None:
            node = self.nodes[number]
            data = show(number) if show and stat.S_ISREG(node.mode) else node.data
            nlink = links[number]
            if node.is_dir:
                nlink = 2 + sum(self.nodes[slot.node].is_dir for slot in node.slots.values())
            xattrs = tuple(sorted(node.xattrs.items()))
            result[path] = Seen(node.mode, nlink, data, xattrs, first.setdefault(number, path))
            for name, slot in sorted(node.slots.items()):
                visit(slot.node, path + name + ("/" if self.nodes[slot.node].is_dir else ""))

        visit(ROOT, "/")
        return result

    # Changing

    def create(self, path: str, node: Node) -> int:
        """Make a new name for a new node; EEXIST."""
        directory, name = self.place(path)
        if name in directory.slots:
            fail(errno.EEXIST)
        number = self.add(node)
        directory.slots[name] = Slot(number)
        return number

    def link(self, old: str, new: str) -> None:
        """Give a node one more name; EPERM, EEXIST."""
        number = self.at(old)
        directory, name = self.place(new)
        if self.nodes[number].is_dir:
            fail(errno.EPERM)
        if name in directory.slots:
            fail(errno.EEXIST)
        directory.slots[name] = Slot(number)

    def unlink(self, path: str) -> None:
        """Remove a name, and what it hides; ENOENT, EISDIR."""
        directory, name = self.place(path)
        if self.nodes[self.at(path)].is_dir:
            fail(errno.EISDIR)
        del directory.slots[name]

    def rmdir(self, path: str) -> None:
        """Remove an empty directory; ENOENT, ENOTDIR, ENOTEMPTY."""
        directory, name = self.place(path)
        node = self.nodes[self.at(path)]
        if not node.is_dir:
            fail(errno.ENOTDIR)
        if node.slots:
            fail(errno.ENOTEMPTY)
        del directory.slots[name]

    def _is_below(self, directory: Node, ancestor: int) -> bool:
        return any(self.nodes[number] is directory for _, number in self.walk("", ancestor))

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename as renameat2 does."""
        moved = self.at(old)
        (source, name), (target, new_name) = self.place(old), self.place(new)
        other = target.slots.get(new_name)
        if flags & RENAME_EXCHANGE:
            self._exchange(old, new)
            return
        if other is not None:
            if flags & RENAME_NOREPLACE:
                fail(errno.EEXIST)
            if other.node == moved:
                return
        if self.nodes[moved].is_dir and self._is_below(target, moved):
            fail(errno.EINVAL)
        hidden = None
        if other is not None:
            self._check_replaced(self.nodes[moved], self.nodes[other.node])
            if self.nodes[moved].is_uncommitted:
                hidden = other.hidden if self.nodes[other.node].is_uncommitted else other.node
        del source.slots[name]
        target.slots[new_name] = Slot(moved, hidden)

    @staticmethod
    def _check_replaced(moved: Node, other: Node) -> None:
        if other.is_dir:
            if not moved.is_dir:
                fail(errno.EISDIR)
            if other.slots:
                fail(errno.ENOTEMPTY)
        elif moved.is_dir:
            fail(errno.ENOTDIR)

    def _exchange(self, old: str, new: str) -> None:
        (source, name), (target, new_name) = self.place(old), self.place(new)
        one, two = self.at(old), self.at(new)
        for number, directory in ((one, target), (two, source)):
            if self.nodes[number].is_dir and self._is_below(directory, number):
                fail(errno.EINVAL)
        hidden = [source.slots[name].hidden, target.slots[new_name].hidden]
        if self.nodes[one].is_uncommitted != self.nodes[two].is_uncommitted:
            hidden = [self._hidden_by(one, two), self._hidden_by(two, one)]
        source.slots[name], target.slots[new_name] = Slot(two, hidden[0]), Slot(one, hidden[1])

    def _hidden_by(self, old: int, new: int) -> int | None:
        """Return what a name hides that was that of `old` and gets that of `new`: a file until `new` is committed."""
        return old if self.nodes[new].is_uncommitted and not self.nodes[old].is_dir else None

    def commit(self, number: int, data: bytes) -> None:
        """Make a content a file's version: what its names hide is gone."""
        node = self.nodes[number]
        node.data = node.committed = data
        for _, directory in self.walk():
            for slot in self.nodes[directory].slots.values():
                if slot.node == number:
                    slot.hidden = None

    # Versions

    def snapshot(self) -> "ModelTree":
        """Return a copy of what is committed."""
        copy = ModelTree()
        copy.nodes[ROOT] = self._copied(copy, self, ROOT, {}, committed=True)
        return copy

    def put_back(self, path: str, old: "ModelTree") -> None:
        """Make a path (or all) what `old`, a snapshot, has there; `place` and `at` of both sides have passed."""
        if not path:
            self.nodes[ROOT] = self._copied(self, old, ROOT, {}, committed=False)
            return
        directory, name = self.place(path)
        directory.slots.pop(name, None)
        number = old.at(path)
        known: dict[int, int] = {}
        node = self._copied(self, old, number, known, committed=False)
        directory.slots[name] = Slot(self.add(node))

    @staticmethod
    def _copied(into: "ModelTree", source: "ModelTree", number: int, known: dict[int, int], *, committed: bool) -> Node:
        """Return a copy of a node and all below; nodes with several names stay one."""
        node = source.nodes[number]
        data = node.committed if committed and stat.S_ISREG(node.mode) else node.data
        assert data is not None
        slots = {}
        for name, slot in node.slots.items():
            child: int | None = slot.node
            if committed and source.nodes[slot.node].is_uncommitted:
                child = slot.hidden
            if child is None:
                continue
            if child not in known:
                known[child] = into.add(ModelTree._copied(into, source, child, known, committed=committed))
            slots[name] = Slot(known[child])
        return Node(node.mode, data, data, dict(node.xattrs), slots)
