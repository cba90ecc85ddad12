"""Rollback: make the live tree, or one path of it, what a snapshot shows. No data moves.

Two walks. The first removes from the live tree what the snapshot does not have at the same place; the second puts
back what is missing and gives every file its old version. Both only write rows of the open epoch, so that they are
as durable, and as undoable, as any other change. A file that has left the path since, and lives elsewhere, stays
there; the path gets a copy of its old version. What no epoch since has written is not looked at twice, unless so much
was written that this is not known: of a directory whose names are the same its names are read, of a file that is the
same nothing.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from stat import S_IFDIR, S_IFMT

from ckptfs.errors import DamagedError, OpenFilesError, UsageError
from ckptfs.store import Table
from ckptfs.tree.dirent import Dirent
from ckptfs.tree.files import Files, OpenFile
from ckptfs.tree.inode import INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from ckptfs.tree.namespace import Namespace
from ckptfs.tree.rows import LIVE, id_prefix
from ckptfs.tree.xattrs import Xattrs

FILES_NAMED = 5
CHANGES_MAX = 50_000
"""Where more was written since the snapshot, by whomever, all that is to be rolled back is looked at."""
_DEEPER = 4
"""Calls of the walks for a directory, at most."""


class _Everything(set[int]):
    """The inodes that may have changed where that is not known."""

    def __contains__(self, ino: object) -> bool:
        return True


@dataclass(slots=True)
class RollbackResult:
    """What a rollback did. `entries` are the (directory inode, name) pairs whose meaning it may have changed."""

    changed_files: set[str] = field(default_factory=set)
    removed_partial: list[str] = field(default_factory=list)
    changed_inos: set[int] = field(default_factory=set)
    entries: set[tuple[int, bytes]] = field(default_factory=set)


class Rollback:
    """One rollback of `path` ("" for the whole tree) to the epoch `epoch`."""

    def __init__(self, names: Namespace, xattrs: Xattrs, files: Files, epoch: int, path: str) -> None:
        self._names = names
        self._xattrs = xattrs
        self._files = files
        self._epoch = epoch
        self._path = path.strip("/")
        self._result = RollbackResult()
        self._restored: dict[int, int] = {}
        self._shared: set[int] = set()
        self._single: dict[int, Inode] = {}
        """Inodes that have one name, at or below the path; they do not change before that is removed."""
        self._nameless = names.nameless
        """They are others than those that get their names back; the kernel takes nothing into a directory like that."""
        self._has_xattrs = any(names.rows.tables.scan(Table.XATTRS))
        self._present: dict[int, dict[bytes, Dirent]] = {}
        """The entries of live directories that were looked at, but those that the first walk removed."""
        self._old: dict[int, dict[bytes, Dirent]] = {}
        """The entries of directories in the snapshot that were looked at."""
        changed = names.rows.changed_inodes(epoch, CHANGES_MAX)
        self._rewritten, self._renamed = changed or (_Everything(), _Everything())
        """Inodes whose attributes may differ from the snapshot's, and directories whose names may."""

    def check(self) -> None:
        """Refuse what cannot be done: a path that one of the sides lacks, or files in use.

        UsageError, or OpenFilesError that names the files which would change and are open for writing. DamagedError
        where a directory is in itself.
        """
        parent, name, old = self._locate()
        there = Dirent(ROOT_INO, S_IFDIR) if parent is None else self._names.entry(parent, name)
        deque(self._walk(old, "", self._old_entries), maxlen=0)
        below: dict[int, list[str]] = {}
        for entry, path in self._walk(there, self._path, self._entries) if there else ():
            below.setdefault(entry.ino, []).append(path)
        if parent is None:
            paths = {file.ino: [self._names.path(file.ino)] for file in self._files if not file.unlinked}
        else:
            paths = below
            self._shared = self._shared_outside(paths)
        blocking = sorted(
            path
            for file in self._files
            if file.writers
            for path in paths.get(file.ino, ())
            if self._would_change(file, path)
        )
        if blocking:
            shown = ", ".join(blocking[:FILES_NAMED]) + (", ..." if len(blocking) > FILES_NAMED else "")
            raise OpenFilesError(f"open for writing: {shown}; close them or stop the job, then roll back")

    def run(self) -> RollbackResult:
        """Carry it out; `check` has passed and a snapshot of the present has been taken."""
        before = sys.getrecursionlimit()
        # The walks go as deep as the directories. Calls of Python by Python need no stack of C.
        sys.setrecursionlimit(before + _DEEPER * (len(self._present) + len(self._old)))
        try:
            return self._run()
        finally:
            sys.setrecursionlimit(before)

    def _run(self) -> RollbackResult:
        parent, name, old = self._locate()
        if parent is None:
            self._clear(ROOT_INO, "")
            self._restore_directory(ROOT_INO, ROOT_INO, "")
            return self._result
        before = self._names.entry(parent, name)
        if before is not None:
            self._clear_entry(parent, name, old, self._path, before)
        self._restore_entry(parent, name, old, self._path, self._names.entry(parent, name))
        if self._names.entry(parent, name) != before:
            self._names.touch(parent)
        return self._result

    def _shared_outside(self, paths: dict[int, list[str]]) -> set[int]:
        """Return the inodes at and below the path that also have a name elsewhere, where their content must stay.

        Found before anything is removed: from then on a missing link says nothing.
        """
        shared = set()
        for ino, names in paths.items():
            inode = self._names.inode(ino)
            if inode.nlink > len(names):
                shared.add(ino)
            elif inode.nlink == 1:
                self._single[ino] = inode
        return shared

    def _walk(
        self, entry: Dirent, path: str, entries: Callable[[int], dict[bytes, Dirent]]
    ) -> Iterator[tuple[Dirent, str]]:
        """Yield what is no directory, at and below an entry, with its path; what is read of directories is kept.

        DamagedError where a directory comes twice, for a walk of it need not end.
        """
        pending = [(entry, path)]
        walked = set()
        while pending:
            entry, path = pending.pop()
            if entry.file_type != S_IFDIR:
                yield entry, path
                continue
            if entry.ino in walked:
                raise DamagedError(
                    f"a directory, inode {entry.ino}, is below itself or has two names: see `ckptfs check`"
                )
            walked.add(entry.ino)
            pending += [(child, _join(path, name)) for name, child in entries(entry.ino).items()]

    def _locate(self) -> tuple[int | None, bytes, Dirent]:
        """Return the live parent directory (None: the root itself), the name, and the entry in the snapshot."""
        head, _, tail = self._path.rpartition("/")
        name = os.fsencode(tail)
        if not name:
            return None, b"", Dirent(ROOT_INO, S_IFDIR)
        try:
            old = self._names.resolve(self._path, self._epoch)
        except OSError:
            raise UsageError(f"{self._path} is not in that snapshot; there is nothing to roll back to") from None
        try:
            parent = self._names.resolve(head)
        except OSError:
            raise UsageError(f"{head} does not exist any more; roll back {head} itself") from None
        if not parent.is_dir:
            raise UsageError(f"{head} is no directory any more; roll back {head} itself")
        return parent.ino, name, Dirent(old.ino, S_IFMT(old.mode))

    def _would_change(self, file: OpenFile, path: str) -> bool:
        if file.dirty or file.ino in self._shared:  # a name that is shared becomes that of a copy
            return True
        try:
            old = self._names.resolve(path, self._epoch)
        except OSError:
            return True
        return old.ino != file.ino or not self._is_same(file.ino, file.ino)

    def _is_same(self, old_ino: int, ino: int) -> bool:
        """Whether an inode is now what another was in the snapshot, but for the number of its names."""
        if old_ino == ino and ino not in self._rewritten:
            return True
        live = self._names.inode(ino)
        return self._version(old_ino, live) == live and self._xattrs.all(old_ino, self._epoch) == self._xattrs.all(ino)

    def _version(self, old_ino: int, live: Inode) -> Inode:
        """Return what an inode was in the snapshot, with the number and the names of `live`."""
        return self._names.inode(old_ino, self._epoch)._replace(ino=live.ino, nlink=live.nlink)

    def _entries(self, directory: int) -> dict[bytes, Dirent]:
        """Return the entries of a live directory."""
        entries = self._present.get(directory)
        if entries is None:
            entries = self._present[directory] = dict(self._names.entries(directory))
        return entries

    def _old_entries(self, directory: int) -> dict[bytes, Dirent]:
        """Return the entries that a directory has in the snapshot."""
        entries = self._old.get(directory)
        if entries is None:
            is_same = directory not in self._renamed
            entries = dict(self._entries(directory) if is_same else self._names.entries(directory, self._epoch))
            self._old[directory] = entries
        return entries

    # First walk: remove what the snapshot does not have

    def _clear(self, directory: int, path: str) -> None:
        old = self._old_entries(directory)
        for name, entry in list(self._entries(directory).items()):
            self._clear_entry(directory, name, old.get(name), _join(path, name), entry)

    def _clear_entry(self, parent: int, name: bytes, old: Dirent | None, path: str, entry: Dirent) -> None:
        if old != entry:
            self._remove_tree(parent, name, entry, path)
        elif entry.file_type == S_IFDIR:
            self._clear(entry.ino, path)
        elif entry.ino in self._shared:
            self._remove_tree(parent, name, entry, path)
        else:
            self._restored[entry.ino] = entry.ino  # other names that it had become links to it

    def _remove_tree(self, parent: int, name: bytes, entry: Dirent, path: str) -> None:
        self._result.entries.add((parent, name))
        self._renamed.add(parent)
        self._entries(parent).pop(name)
        if entry.file_type == S_IFDIR:
            for child, child_entry in list(self._entries(entry.ino).items()):
                self._remove_tree(entry.ino, child, child_entry, _join(path, child))
            self._names.rmdir(parent, name)
            return
        inode = self._single.get(entry.ino) or self._names.inode(entry.ino)
        if inode.nlink == 1:  # with another name it stays what it is, for those who have it open too
            self._changed(entry.ino, path)
            if inode.flags & INTERRUPTED:
                self._result.removed_partial.append(path)
        self._result.changed_files.add(path)
        is_frozen = not inode.flags & UNCOMMITTED  # in the snapshot of the present
        if is_frozen:
            self._names.epoch.restored(inode.ino, path)
        self._names.drop_name(parent, name, inode, is_frozen=is_frozen)

    def _changed(self, ino: int, path: str) -> None:
        self._result.changed_files.add(path)
        self._result.changed_inos.add(ino)
        self._files.detach(ino)

    # Second walk: put back what the snapshot has

    def _restore_directory(self, old_ino: int, ino: int, path: str) -> None:
        present = self._entries(ino)
        for name, entry in self._old_entries(old_ino).items():
            self._restore_entry(ino, name, entry, _join(path, name), present.get(name))
        self._restore_inode(old_ino, ino)

    def _restore_entry(self, parent: int, name: bytes, old: Dirent, path: str, present: Dirent | None) -> None:
        is_dir = old.file_type == S_IFDIR
        if present is None:
            self._result.entries.add((parent, name))
            ino = self._put_back(parent, name, old, path)
        else:
            ino = present.ino
            if not is_dir and (self._restore_inode(old.ino, ino) or ino in self._result.changed_inos):
                self._result.entries.add((parent, name))
                self._changed(ino, path)
                self._names.epoch.restored(ino, path)
        self._restored[old.ino] = ino
        if is_dir:
            self._restore_directory(old.ino, ino, path)

    def _put_back(self, parent: int, name: bytes, old: Dirent, path: str) -> int:
        """Give the path its inode of the snapshot back, or a copy of it where that inode is in use elsewhere."""
        names = self._names
        again = self._restored.get(old.ino)
        if again is not None and old.file_type != S_IFDIR:
            names.link(again, parent, name)
            return again
        alive = old.ino in self._nameless or names.rows.get(Table.INODES, id_prefix(old.ino)) is not None
        ino = names.rows.new_id() if alive else old.ino
        version = names.inode(old.ino, self._epoch)
        names.restore(parent, name, version._replace(ino=ino, nlink=2 if version.is_dir else 1))
        if self._has_xattrs:
            for xattr, value in self._xattrs.all(old.ino, self._epoch).items():
                self._xattrs.put(ino, xattr, value)
        if not version.is_dir:
            self._changed(ino, path)
            names.epoch.restored(ino, path)
        return ino

    def _restore_inode(self, old_ino: int, ino: int) -> bool:
        """Give an inode that is at its place its old attributes and content; returns whether that changed it."""
        if old_ino == ino and ino not in self._rewritten:
            return False
        names = self._names
        live = names.inode(ino)
        version = self._version(old_ino, live)
        old_xattrs, live_xattrs = self._xattrs.all(old_ino, self._epoch), self._xattrs.all(ino)
        if version == live and old_xattrs == live_xattrs:
            return False
        if live.flags & INTERRUPTED:
            self._result.removed_partial.append(names.path(ino))
        for name in live_xattrs.keys() - old_xattrs.keys():
            self._xattrs.drop(ino, name)
        for name, value in old_xattrs.items():
            if live_xattrs.get(name) != value:
                self._xattrs.put(ino, name, value)
        if not version.is_dir:
            self._files.detach(ino)
        names.rows.erase(Table.INODES, id_prefix(ino), LIVE)
        names.put_inode(version)
        return True


def _join(path: str, name: bytes) -> str:
    return f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
