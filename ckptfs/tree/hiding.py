"""The names of files that are not committed yet, which only the live tree has, and the committed names that they hide.

A hidden name is one that a save by rename is about to replace: snapshots go on showing it, and its file counts it as a
link, until the file over it is committed or its name goes. Belongs to the thread that owns the tables.
"""

from collections import Counter
from collections.abc import Sequence

from ckptfs.store import Table
from ckptfs.tree.dirent import decode_dirent
from ckptfs.tree.rows import LIVE, Rows


class HidingNames:
    """The live-only names of a tree, by the prefix of their rows."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._names: dict[int, set[bytes]] = {}
        self._hidden: Counter[int] = Counter()
        for table, prefix in rows.live_only():
            if table is Table.DIRENTS and (value := rows.get(table, prefix)):
                self._note(decode_dirent(value).ino, prefix)

    def of(self, ino: int) -> Sequence[bytes]:
        """Return the names of an uncommitted file."""
        return tuple(self._names.get(ino, ()))

    def hidden_links(self, ino: int) -> int:
        """Return how many names of a committed file are hidden."""
        return self._hidden[ino]

    def put(self, ino: int, prefix: bytes, value: bytes) -> None:
        """Give an uncommitted file a name."""
        self._rows.put(Table.DIRENTS, prefix, value, LIVE)
        self._note(ino, prefix)

    def erase(self, ino: int, prefix: bytes) -> None:
        """Take a name from an uncommitted file; what it hid shows again."""
        self._rows.erase(Table.DIRENTS, prefix, LIVE)
        left = self._names.get(ino, set()) - {prefix}
        if left:
            self._names[ino] = left
        else:
            self._names.pop(ino, None)
        hidden = self.hidden_by(prefix)
        if hidden is not None:
            self._hidden[hidden] -= 1
            if not self._hidden[hidden]:
                del self._hidden[hidden]

    def hidden_by(self, prefix: bytes) -> int | None:
        """Return the file whose name a live-only one hides, or would hide."""
        value = self._rows.get(Table.DIRENTS, prefix, self._rows.open_epoch)
        return None if value is None else decode_dirent(value).ino

    def _note(self, ino: int, prefix: bytes) -> None:
        self._names.setdefault(ino, set()).add(prefix)
        hidden = self.hidden_by(prefix)
        if hidden is not None:
            self._hidden[hidden] += 1
