"""What each snapshot changed, and which snapshots changed a path. Reads only."""

import os
from bisect import bisect_left
from stat import S_IFDIR
from typing import NamedTuple

from ckptfs.errors import DamagedError, UsageError
from ckptfs.store import Table
from ckptfs.tree.dirent import decode_dirent
from ckptfs.tree.inode import ROOT_INO, Inode
from ckptfs.tree.namespace import Namespace
from ckptfs.tree.rows import id_prefix, name_prefix, split_name_prefix
from ckptfs.tree.snapshots import Snapshot, Snapshots


class PathChange(NamedTuple):
    """One path that differs from the snapshot before: `change` is added, modified or removed; `size` in bytes.

    Directories end in a slash and are listed when they appear or go.
    """

    path: str
    change: str
    size: int


class History:
    """Questions about the past of a tree."""

    def __init__(self, names: Namespace, snapshots: Snapshots) -> None:
        self._names = names
        self._rows = names.rows
        self._snapshots = snapshots

    def changes(self, snapshot: Snapshot) -> list[PathChange]:
        """Return what changed from the snapshot before this one, by path."""
        before = self._snapshots.before(snapshot.id)
        inos: set[int] = set()
        for _, (table, prefix) in self._rows.changes(before, snapshot.id):
            if table is Table.INODES:
                inos.add(int.from_bytes(prefix, "big"))
            elif table is Table.DIRENTS:
                inos.update(
                    decode_dirent(value).ino
                    for epoch in (before, snapshot.id)
                    if (value := self._rows.get(table, prefix, epoch)) is not None
                )
        old, new = self._paths(inos, before), self._paths(inos, snapshot.id)
        changes = []
        for path in sorted(old.keys() | new.keys()):
            was, now = old.get(path), new.get(path)
            if was is None and now is not None:
                changes.append(PathChange(path, "added", now.size))
            elif now is None and was is not None:
                changes.append(PathChange(path, "removed", was.size))
            elif was is not None and now is not None and not now.is_dir and was != now:
                changes.append(PathChange(path, "modified", now.size))
        return changes

    def _paths(self, wanted: set[int], epoch: int) -> dict[str, Inode]:
        """Return path -> inode of the wanted inodes as `epoch` sees them."""
        found: dict[str, Inode] = {}
        if epoch == 0:
            return found
        pending = [(ROOT_INO, b"")]
        walked = set()
        while pending:
            directory, path = pending.pop()
            if directory in walked:
                raise DamagedError(f"the directory {os.fsdecode(path)} is below itself, or has two names")
            walked.add(directory)
            for name, entry in self._names.entries(directory, epoch):
                inode = self._names.inode(entry.ino, epoch) if entry.ino in wanted else None
                child = path + name
                is_dir = entry.file_type == S_IFDIR
                if is_dir:
                    pending.append((entry.ino, child + b"/"))
                if inode:
                    found[os.fsdecode(child) + ("/" if is_dir else "")] = inode
        return found

    def changing(self, path: str) -> list[Snapshot]:
        """Return the snapshots that changed something at or below a path, oldest first.

        UsageError where no version, nor the live tree, ever had this path.
        """
        entries, inos = self._ever_at(path)
        ids = [snapshot.id for snapshot in self._snapshots.all()]
        hit: set[int] = set()
        for epoch, (table, prefix) in self._rows.changes(0, ids[-1] if ids else 0):
            if int.from_bytes(prefix[:8], "big") in inos or (table is Table.DIRENTS and prefix in entries):
                hit.add(ids[bisect_left(ids, epoch)])
        return [snapshot for snapshot in self._snapshots.all() if snapshot.id in hit]

    def _ever_at(self, path: str) -> tuple[set[bytes], set[int]]:
        """Return the entry prefixes that ever were this path, and the inodes that ever were at or below it."""
        entries: set[bytes] = set()
        inos = {ROOT_INO}
        for name in filter(None, os.fsencode(path).split(b"/")):
            entries = {name_prefix(ino, name) for ino in inos}
            inos = {
                decode_dirent(value).ino
                for prefix in entries
                for _, value in self._rows.tables.scan(Table.DIRENTS, prefix, prefix + b"\xff" * 5)
                if value
            }
            if not inos:
                raise UsageError(f"{path}: no version has such a file or directory")
        pending = list(inos)
        while pending:
            for prefix, row in self._rows.history(Table.DIRENTS, id_prefix(pending.pop())):
                if row.value and (child := decode_dirent(row.value).ino) not in inos:
                    inos.add(child)
                    pending.append(child)
                    entries.add(prefix)
        return entries, inos

    def refresh_open_epoch(self) -> None:
        """Find again, after a restart, which files the open epoch has changed."""
        epoch = self._rows.open_epoch
        for _, (table, prefix) in self._rows.changes(epoch - 1, epoch):
            if table is Table.INODES:
                ino = int.from_bytes(prefix, "big")
            elif table is Table.DIRENTS and (old := self._rows.get(table, prefix, epoch - 1)) is not None:
                ino = decode_dirent(old).ino
            else:
                continue
            now = self._rows.get(Table.INODES, id_prefix(ino), epoch)
            value = now or self._rows.get(Table.INODES, id_prefix(ino), epoch - 1)
            if value is None or Inode.decode(ino, value).is_dir:
                continue
            if now is not None:
                self._names.epoch.changed.setdefault(ino, self._names.path(ino))
            elif table is Table.DIRENTS:  # the inode is gone, and this is the name that it had
                parent, name = split_name_prefix(prefix)
                path = f"{self._names.path(parent)}/{os.fsdecode(name)}".removeprefix("/")
                self._names.epoch.changed.setdefault(ino, path)
