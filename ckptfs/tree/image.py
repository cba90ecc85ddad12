"""The image of a tree: inodes and names of all versions at once, read from one view of the rows.

Versions are told apart by their place in `versions`: the snapshots, oldest first, and then the live tree. A row is
seen by a run of them, a `Span`. Rows that cannot be read are named in `problems` and left out. An image belongs to one
thread and is as large as the names that all versions have together.
"""

import json
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from ckptfs.store import Table, View
from ckptfs.tree.dirent import DIRENT_STRUCT, decode_dirent
from ckptfs.tree.inode import INODE_STRUCT, ROOT_INO, Inode
from ckptfs.tree.rows import LIVE, split_name_prefix

LIVE_NAME = "the live tree"

_EPOCH_SIZE = 4
_INO_SIZE = 8


class Span(NamedTuple):
    """The versions that see something: from the place `start` in the list of versions to before the place `stop`."""

    start: int
    stop: int


class Name(NamedTuple):
    """A directory entry, as some versions see it. A `hidden` one is under the name of a file being created."""

    span: Span
    parent: int
    name: bytes
    file_type: int
    hidden: bool = False


class Image:
    """The inodes by number, and the names of each, of every version."""

    def __init__(self, view: View) -> None:
        self.problems: list[str] = []
        self.versions: list[str] = []
        self.inodes: dict[int, list[tuple[Span, Inode]]] = {}
        self.names: dict[int, list[Name]] = defaultdict(list)
        self._epochs: list[int] = []
        self._read_versions(view)
        self._read_inodes(view)
        self._read_names(view)

    def path(self, ino: int, version: int) -> str:
        """Return a path of an inode in a version, "" for the root; "#N" for one that no name leads to."""
        parts: list[bytes] = []
        current = ino
        passed: set[int] = set()
        while current != ROOT_INO:
            name = next((each for each in self.names.get(current, ()) if version in range(*each.span)), None)
            if name is None or current in passed:
                return f"#{ino}"
            passed.add(current)
            parts.append(name.name)
            current = name.parent
        return os.fsdecode(b"/".join(reversed(parts)))

    def seen_by(self, span: Span) -> list[str]:
        """Return the names of the versions in a span."""
        return self.versions[span.start : span.stop]

    def _read_versions(self, view: View) -> None:
        for key, value in view.scan(Table.SNAPSHOTS):
            try:
                self.versions.append(str(json.loads(value)["name"]))
                self._epochs.append(int.from_bytes(key, "big"))
            except (ValueError, KeyError, TypeError):
                self.problems.append(f"the row of snapshot {int.from_bytes(key, 'big')} cannot be read")
        self.versions.append(LIVE_NAME)
        self._epochs.append(LIVE)

    def _read_inodes(self, view: View) -> None:
        for prefix, rows in self._spans(view, Table.INODES):
            ino = int.from_bytes(prefix, "big")
            spans = []
            for span, _, value in rows:
                if value and (len(value) < INODE_STRUCT.size or len(prefix) != _INO_SIZE):
                    self.problems.append(f"the row of inode {ino} has another size than it must have")
                elif value and span.start < span.stop:
                    spans.append((span, Inode.decode(ino, value)))
            if spans:
                self.inodes[ino] = spans

    def _read_names(self, view: View) -> None:
        for prefix, rows in self._spans(view, Table.DIRENTS):
            below = b""
            if len(prefix) <= _INO_SIZE + 1:
                self.problems.append(f"the name {prefix.hex()} is malformed")
                continue
            parent, name = split_name_prefix(prefix)
            for span, epoch, value in rows:
                if value and len(value) != DIRENT_STRUCT.size:
                    self.problems.append(f"the name {os.fsdecode(name)!r} in inode {parent} cannot be read")
                    continue
                if value and span.start < span.stop:
                    entry = decode_dirent(value)
                    self.names[entry.ino].append(Name(span, parent, name, entry.file_type))
                if epoch == LIVE and below:
                    entry = decode_dirent(below)
                    self.names[entry.ino].append(Name(span, parent, name, entry.file_type, hidden=True))
                below = value

    def _spans(self, view: View, table: Table) -> Iterator[tuple[bytes, Iterable[tuple[Span, int, bytes]]]]:
        """Yield (key without epoch, its rows): the versions that see each, maybe none, its epoch, its value."""
        for prefix, group in groupby(view.scan(table), key=lambda row: row[0][:-_EPOCH_SIZE]):
            rows = [(int.from_bytes(key[-_EPOCH_SIZE:], "big"), value) for key, value in group]
            starts = [bisect_left(self._epochs, epoch) for epoch, _ in rows]
            stops = [*starts[1:], len(self._epochs)]
            spans = map(Span, starts, stops)
            yield prefix, [(span, epoch, value) for span, (epoch, value) in zip(spans, rows, strict=True)]
