"""Names and inodes of the live tree, and their reading at any epoch.

Owns directory entries, attributes and link counts, and the rules that POSIX has for making and removing names;
renaming.py has those for moving them. Knows nothing of content: a file version arrives as a finished inode. A file that
was never committed has only live-only rows (its inode and its names), which `commit` turns into rows of the open epoch.
An inode that has lost its last name stays, in memory, for as long as somebody uses it. Errors are `OSError`s with the
errno of the call. Belongs to the thread that owns the tables.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from ckptfs.store import Table
from ckptfs.tree.dirent import Dirent, decode_dirent, encode_dirent
from ckptfs.tree.epoch import OpenEpoch
from ckptfs.tree.hiding import HidingNames
from ckptfs.tree.inode import INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from ckptfs.tree.places import Places
from ckptfs.tree.rows import LIVE, Rows, id_prefix, name_prefix

NAME_MAX = 255


class Owner(NamedTuple):
    """The user and group a new file gets."""

    uid: int
    gid: int


def fail(code: int, subject: object = "") -> NoReturn:
    """Raise the OSError of an errno."""
    raise OSError(code, os.strerror(code), str(subject))


class Namespace:
    """The tree of names. `on_unlinked(ino)` is called when an inode has lost its last name."""

    def __init__(self, rows: Rows, epoch: OpenEpoch, wall_ns: Callable[[], int]) -> None:
        self.rows = rows
        self.epoch = epoch
        self.now_ns = wall_ns
        self.on_unlinked: Callable[[int], None] = lambda ino: None
        self.users: list[Callable[[int], bool]] = []
        """Asked whether somebody uses an inode, with or without a name."""
        self._nameless: dict[int, Inode] = {}
        self._places = Places(rows, self.entry)
        self._hiding = HidingNames(rows)

    # Reading

    def inode(self, ino: int, epoch: int = LIVE) -> Inode:
        """Return an inode as `epoch` sees it, a live one without a name too; ESTALE where it does not exist there."""
        value = self.rows.get(Table.INODES, id_prefix(ino), epoch)
        if value is not None:
            return Inode.decode(ino, value)
        if epoch == LIVE and (nameless := self._nameless.get(ino)):
            return nameless
        fail(errno.ESTALE, ino)

    @property
    def nameless(self) -> set[int]:
        """The inodes that have no name and are used."""
        return {*self._nameless}

    def seen(self, inode: Inode) -> Inode:
        """Return an inode of the live tree with as many links as it shows there: without its hidden names."""
        hidden = self._hiding.hidden_links(inode.ino)
        return inode._replace(nlink=inode.nlink - hidden) if hidden else inode

    def named_inode(self, ino: int) -> Inode:
        """Return an inode of the live tree that has a name; ENOENT."""
        value = self.rows.get(Table.INODES, id_prefix(ino))
        if value is None:
            fail(errno.ENOENT, ino)
        return Inode.decode(ino, value)

    def entry(self, parent: int, name: bytes, epoch: int = LIVE) -> Dirent | None:
        """Return a directory's entry, None where there is none of this name."""
        value = self.rows.get(Table.DIRENTS, name_prefix(parent, name), epoch)
        return None if value is None else decode_dirent(value)

    def lookup(self, parent: int, name: bytes, epoch: int = LIVE) -> Inode:
        """Return the inode of a name; ENOENT, ENAMETOOLONG."""
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG, name)
        entry = self.entry(parent, name, epoch)
        if entry is None:
            fail(errno.ENOENT, name)
        if epoch == LIVE:
            self._places.note(entry.ino, parent, name)
        return self.inode(entry.ino, epoch)

    def entries(self, parent: int, epoch: int = LIVE) -> Iterator[tuple[bytes, Dirent]]:
        """Yield (name, entry) of a directory in a stable order."""
        for prefix, value in self.rows.scan(Table.DIRENTS, id_prefix(parent), epoch):
            yield prefix[8:-1], decode_dirent(value)

    def resolve(self, path: str, epoch: int = LIVE) -> Inode:
        """Return the inode at a path relative to the root; OSError as `lookup`, and ENOTDIR."""
        inode = self.inode(ROOT_INO, epoch)
        for name in os.fsencode(path).split(b"/"):
            if name in (b"", b"."):
                continue
            if not inode.is_dir:
                fail(errno.ENOTDIR, path)
            inode = self.lookup(inode.ino, name, epoch)
        return inode

    def path(self, ino: int) -> str:
        """Return a live path of an inode relative to the root, "" for the root; "#N" for one without a name."""
        return self._places.path(ino)

    def is_below(self, directory: int, ancestor: int) -> bool:
        """Tell whether a directory is `ancestor` or lies below it."""
        return self._places.is_below(directory, ancestor)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Leave names and attributes as they are if the body fails, which commits nothing."""
        nameless, hiding = dict(self._nameless), self._hiding.copy()
        try:
            with self.rows.tables.all_or_none():
                yield
        except BaseException:
            self._nameless, self._hiding = nameless, hiding
            raise

    # Making and removing names

    def create_root(self, owner: Owner, snapshots: Iterable[int]) -> None:
        """Make the root directory, in those snapshots (ascending) too that have none, for the names that are in it."""
        now = self.now_ns()
        root = Inode(ROOT_INO, stat.S_IFDIR | 0o755, owner.uid, owner.gid, 2, atime_ns=now, mtime_ns=now, ctime_ns=now)
        before = b""
        for epoch in (*snapshots, self.rows.open_epoch):
            if self.rows.get(Table.INODES, id_prefix(ROOT_INO), epoch) in (None, before):
                directories = sum(entry.file_type == stat.S_IFDIR for _, entry in self.entries(ROOT_INO, epoch))
                if (value := root._replace(nlink=2 + directories).encode()) != before:
                    self.rows.put(Table.INODES, id_prefix(ROOT_INO), value, epoch)
                    before = value

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        owner: Owner,
        *,
        rdev: int = 0,
        target: bytes = b"",
        committed: bool = True,
    ) -> Inode:
        """Make a new inode and its name; EEXIST, ENAMETOOLONG, ENOENT in a removed directory.

        With `committed` false the file exists in the live tree only, until `commit`.
        """
        directory = self.check_new(parent, name)
        gid = owner.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        now = self.now_ns()
        is_dir = stat.S_ISDIR(mode)
        inode = Inode(
            ino=self.rows.new_id(),
            mode=mode,
            uid=owner.uid,
            gid=gid,
            nlink=2 if is_dir else 1,
            rdev=rdev,
            size=len(target),
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            flags=0 if committed else UNCOMMITTED,
            target=target,
        )
        self.put_inode(inode)
        self.set_name(parent, name, inode, is_new=True)
        self._touch(directory, nlink=1 if is_dir else 0)
        self.note_change(inode, worthy=not is_dir)
        return inode

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Give an inode one more name; EEXIST, EPERM for directories."""
        inode = self.named_inode(ino)
        if inode.is_dir:
            fail(errno.EPERM, name)
        self.check_new(parent, name)
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=self.now_ns())
        self.put_inode(inode)
        self.set_name(parent, name, inode)
        self.touch(parent)
        self.note_change(inode)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is no directory's; ENOENT, EISDIR."""
        inode = self.lookup(parent, name)
        if inode.is_dir:
            fail(errno.EISDIR, name)
        if inode.nlink == 1:
            self.epoch.remove(inode.ino, parent)
        self.note_change(inode)
        self.drop_name(parent, name, inode)
        self.touch(parent)

    def drop_name(self, parent: int, name: bytes, inode: Inode, *, is_frozen: bool = False) -> None:
        """Take a name from an inode that is no directory, which goes with its last one; no time of `parent` changes.

        `is_frozen` says that a snapshot shows this name of this inode, which saves looking.
        """
        self.remove_name(parent, name, inode, is_frozen=is_frozen)
        self.drop_link(inode if is_frozen else self.inode(inode.ino), self.now_ns(), is_frozen=is_frozen)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; ENOENT, ENOTDIR, ENOTEMPTY."""
        inode = self.lookup(parent, name)
        if not inode.is_dir:
            fail(errno.ENOTDIR, name)
        self.check_empty(inode)
        self.note_change(inode, worthy=False)
        self.remove_name(parent, name, inode)
        self.vanish(inode)
        self.touch(parent, nlink=-1)

    # What such calls are made of

    def check_new(self, parent: int, name: bytes) -> Inode:
        """Return the directory that a new name is to be in; EEXIST, ENAMETOOLONG, ENOENT in a removed directory."""
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG, name)
        value = self.rows.get(Table.INODES, id_prefix(parent))
        if value is None:
            fail(errno.ENOENT, name)
        if self.entry(parent, name) is not None:
            fail(errno.EEXIST, name)
        return Inode.decode(parent, value)

    def check_empty(self, directory: Inode) -> None:
        """Refuse a directory that has names in it: ENOTEMPTY."""
        if next(self.entries(directory.ino), None) is not None:
            fail(errno.ENOTEMPTY)

    def set_name(self, parent: int, name: bytes, inode: Inode, *, is_new: bool = False) -> None:
        """Give an inode a name, which only the live tree has while the inode is not committed.

        `is_new` says that the live tree has none like it, which saves looking.
        """
        prefix = name_prefix(parent, name)
        value = encode_dirent(inode.ino, inode.mode)
        if inode.flags & UNCOMMITTED:
            self._hiding.put(inode.ino, prefix, value, is_new=is_new)
        else:
            self.rows.put(Table.DIRENTS, prefix, value)
        self._places.note(inode.ino, parent, name)

    def remove_name(self, parent: int, name: bytes, inode: Inode, *, is_frozen: bool = False) -> None:
        """Take a name away from an inode, whose links stay; a committed file that the name hides goes with it."""
        prefix = name_prefix(parent, name)
        if inode.flags & UNCOMMITTED:
            hidden = self._hiding.erase(inode.ino, prefix)
            if hidden is not None:
                self.rows.remove(Table.DIRENTS, prefix)
                self._drop_hidden(hidden)
        else:
            self.rows.remove(Table.DIRENTS, prefix, is_frozen=is_frozen)

    def uncover(self, parent: int, name: bytes, inode: Inode) -> None:
        """Take a name away from an uncommitted file; a committed one that it hid has it again."""
        self._hiding.erase(inode.ino, name_prefix(parent, name))

    def drop_link(self, inode: Inode, ctime_ns: int, *, is_frozen: bool = False) -> None:
        """Count one name less of an inode that is no directory, which goes with its last one."""
        inode = inode._replace(nlink=inode.nlink - 1, ctime_ns=ctime_ns)
        if inode.nlink:
            self.put_inode(inode)
        else:
            self.vanish(inode, is_frozen=is_frozen)

    def _drop_hidden(self, ino: int) -> None:
        """Take a name that was hidden from its inode, which changed when it was hidden."""
        inode = self.inode(ino)
        self.drop_link(inode, inode.ctime_ns)

    def vanish(self, inode: Inode, *, is_frozen: bool = False) -> None:
        """Remove an inode that has no name any more from the live tree."""
        prefix = id_prefix(inode.ino)
        if inode.flags:
            self.rows.erase(Table.INODES, prefix, LIVE)
        self.rows.remove(Table.INODES, prefix, is_frozen=is_frozen)
        for key, _ in list(self.rows.scan(Table.XATTRS, prefix)):
            self.rows.remove(Table.XATTRS, key)
        self._places.forget(inode.ino)
        self.rows.has_garbage = True
        if any(uses(inode.ino) for uses in self.users):
            self._nameless[inode.ino] = inode._replace(nlink=0)
        self.on_unlinked(inode.ino)

    def touch(self, directory: int, *, nlink: int = 0) -> None:
        """Note in a directory's times, and in its links, that its names changed."""
        self._touch(self.inode(directory), nlink=nlink)

    def _touch(self, directory: Inode, *, nlink: int) -> None:
        now = self.now_ns()
        self.put_inode(directory._replace(nlink=directory.nlink + nlink, mtime_ns=now, ctime_ns=now))

    def note_change(self, inode: Inode, *, worthy: bool = True) -> None:
        """Tell the epoch that an inode or its names changed; a `worthy` change asks for a snapshot."""
        self.epoch.active()
        if not inode.flags & UNCOMMITTED:
            self.epoch.committed(0 if inode.is_dir else inode.ino, self.path(inode.ino), worthy=worthy)

    def note_save(self, ino: int, *, is_new: bool) -> None:
        """Note that a completed save has written a file in the open epoch, a new one or all of it anew, or in place."""
        saves = self.epoch.saves
        saves.add(ino)
        for directory in self._places.above(ino) if is_new else ():
            if directory in saves:
                break
            saves.add(directory)

    def forget(self, ino: int) -> None:
        """Drop what is remembered of an inode unless somebody uses it: its place, and all of one without a name."""
        if not any(uses(ino) for uses in self.users):
            self._places.forget(ino)
            self._nameless.pop(ino, None)

    # Attributes and versions

    def put_inode(self, inode: Inode) -> None:
        """Write an inode's attributes: live-only while its content is, else in the open epoch.

        Over a committed version with interrupted content, both rows take what is not content.
        """
        prefix = id_prefix(inode.ino)
        self.rows.put(Table.INODES, prefix, inode.encode(), LIVE if inode.flags else None)
        if inode.flags == INTERRUPTED and (value := self.rows.get(Table.INODES, prefix, self.rows.open_epoch)):
            committed = Inode.decode(inode.ino, value)
            shared = committed._replace(mode=inode.mode, uid=inode.uid, gid=inode.gid, nlink=inode.nlink)
            if shared != committed:
                self.rows.put(Table.INODES, prefix, shared._replace(ctime_ns=inode.ctime_ns).encode())

    def change_attributes(self, inode: Inode) -> None:
        """Write an inode whose attributes a caller changed, and note it; that alone asks for no snapshot."""
        if inode.nlink == 0:
            self._nameless[inode.ino] = inode
            return
        self.put_inode(inode)
        self.note_change(inode, worthy=False)

    def commit(self, inode: Inode) -> None:
        """Make `inode`, without flags, a committed file version: it and its names become rows of the open epoch."""
        names = self._hiding.of(inode.ino)
        for _, hidden in names:
            if hidden is not None:
                self.epoch.overwrite(hidden)
        self.rows.erase(Table.INODES, id_prefix(inode.ino), LIVE)
        self.put_inode(inode)
        value = encode_dirent(inode.ino, inode.mode)
        for prefix, hidden in names:
            self._hiding.erase(inode.ino, prefix)
            self.rows.put(Table.DIRENTS, prefix, value)
            if hidden is not None:
                self._drop_hidden(hidden)

    def restore(self, parent: int, name: bytes, inode: Inode) -> None:
        """Give a free name to an inode that is not in the live tree (any more), as it is.

        Of `parent`, only the link that a directory adds changes.
        """
        self._nameless.pop(inode.ino, None)
        self.put_inode(inode)
        self.set_name(parent, name, inode)
        if inode.is_dir:
            self.touch(parent, nlink=1)

    def interrupted(self) -> Iterator[Inode]:
        """Yield the inodes whose live content is not a committed version."""
        for table, prefix in list(self.rows.live_only()):
            if table is Table.INODES and (row := self.rows.find(table, prefix)) and row.epoch == LIVE:
                inode = Inode.decode(struct.unpack(">Q", prefix)[0], row.value)
                if inode.flags & INTERRUPTED:
                    yield inode
