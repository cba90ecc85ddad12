"""The names of files that are not committed yet, which only the live tree has, and the committed names that they hide.

A hidden name is one that a save by rename is about to replace: snapshots go on showing it, and its file counts it as a
link, until the file over it is committed or its name goes. Belongs to the thread that owns the tables.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Self

from ckptfs.store import Table
from ckptfs.tree.dirent import decode_dirent
from ckptfs.tree.rows import LIVE, Rows


class HidingNames:
    """The live-only names of a tree, by the prefix of their rows, each with the file whose name it hides, or None."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._names: dict[int, dict[bytes, int | None]] = {}
        self._hidden: Counter[int] = Counter()
        for table, prefix in rows.live_only():
            if table is Table.DIRENTS and (value := rows.get(table, prefix)):
                self._note(decode_dirent(value).ino, prefix, self._committed(prefix))

    def copy(self) -> Self:
        """Return what goes on being what this is now, for whoever takes back what is done to the rows meanwhile."""
        other = copy.copy(self)
        other._names = {ino: dict(names) for ino, names in self._names.items()}
        other._hidden = self._hidden.copy()
        return other

    def of(self, ino: int) -> Sequence[tuple[bytes, int | None]]:
        """Return the names of an uncommitted file, and what they hide."""
        return tuple(self._names.get(ino, {}).items())

    def hidden_links(self, ino: int) -> int:
        """Return how many names of a committed file are hidden."""
        return self._hidden[ino]

    def put(self, ino: int, prefix: bytes, value: bytes, *, is_new: bool = False) -> None:
        """Give an uncommitted file a name; `is_new` says that it hides none, which saves looking."""
        self._rows.put(Table.DIRENTS, prefix, value, LIVE)
        self._note(ino, prefix, None if is_new else self._committed(prefix))

    def erase(self, ino: int, prefix: bytes) -> int | None:
        """Take a name from an uncommitted file; return what it hid, which shows again."""
        self._rows.erase(Table.DIRENTS, prefix, LIVE)
        names = self._names.get(ino, {})
        if prefix not in names:  # in a store that was tampered with
            return self._committed(prefix)
        hidden = names.pop(prefix)
        if not names:
            del self._names[ino]
        if hidden is not None:
            self._hidden[hidden] -= 1
            if not self._hidden[hidden]:
                del self._hidden[hidden]
        return hidden

    def _note(self, ino: int, prefix: bytes, hidden: int | None) -> None:
        self._names.setdefault(ino, {})[prefix] = hidden
        if hidden is not None:
            self._hidden[hidden] += 1

    def _committed(self, prefix: bytes) -> int | None:
        """Return the file that has this name in the open epoch."""
        value = self._rows.get(Table.DIRENTS, prefix, self._rows.open_epoch)
        return None if value is None else decode_dirent(value).ino
