"""Where the inodes of the live tree have their names: from an inode number to a path.

Places remembers where each inode was seen last; rows only lead from a name to an inode. What it remembers is checked
against the rows before it is believed. Belongs to the thread that owns the tables.
"""

import os
from collections.abc import Callable, Iterator

from ckptfs.store import Table
from ckptfs.tree.dirent import Dirent
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.rows import Rows, split_name_prefix

DEPTH_MAX = 100_000
"""No directory lies deeper; one that a tampered store has below itself would have no end."""


class Places:
    """A name of each inode, as (parent, name); `entry` looks one up in the live tree."""

    def __init__(self, rows: Rows, entry: Callable[[int, bytes], Dirent | None]) -> None:
        self._rows = rows
        self._entry = entry
        self._seen: dict[int, tuple[int, bytes]] = {}

    def note(self, ino: int, parent: int, name: bytes) -> None:
        """Remember a name of an inode."""
        self._seen[ino] = (parent, name)

    def forget(self, ino: int) -> None:
        """Drop what is remembered of an inode."""
        self._seen.pop(ino, None)

    def path(self, ino: int) -> str:
        """Return a live path of an inode relative to the root, "" for the root; "#N" for one without a name."""
        names: list[bytes] = []
        current = ino
        while current != ROOT_INO:
            place = self.find(current)
            if place is None or len(names) == DEPTH_MAX:
                return f"#{ino}"
            current, name = place
            names.append(name)
        return os.fsdecode(b"/".join(reversed(names)))

    def find(self, ino: int) -> tuple[int, bytes] | None:
        """Return (parent, name) of an inode: the place seen last, else by a search through all entries."""
        place = self._seen.get(ino)
        if place and (entry := self._entry(*place)) and entry.ino == ino:
            return place
        self._seen.pop(ino, None)
        for key, _ in self._rows.tables.scan(Table.DIRENTS, b"", b"\xff" * 8):
            parent, name = split_name_prefix(key[:-4])
            entry = self._entry(parent, name)
            if entry:
                self._seen.setdefault(entry.ino, (parent, name))
        return self._seen.get(ino)

    def above(self, ino: int) -> Iterator[int]:
        """Yield the directories above an inode, the nearest one first."""
        for _ in range(DEPTH_MAX):
            place = self.find(ino) if ino != ROOT_INO else None
            if place is None:
                return
            ino = place[0]
            yield ino

    def is_below(self, directory: int, ancestor: int) -> bool:
        """Whether `directory` is `ancestor` or lies below it, or has no end above."""
        above = [directory, *self.above(directory)]
        return ancestor in above or len(above) > DEPTH_MAX
