"""Names and inodes of the live tree, and their reading at any epoch.

Owns directory entries, attributes and link counts, and the rules that POSIX has for them. Knows nothing of content: a
file version arrives as a finished inode. A file that was never committed has only live-only rows (its inode and its
names), which `commit` turns into rows of the open epoch. An inode that has lost its last name stays, in memory, for as
long as somebody uses it. Errors are `OSError`s with the errno of the call. Belongs to the thread that owns the tables.
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
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


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
        directory = self._check_new(parent, name)
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
        self._set_name(parent, name, inode)
        self.touch(parent, nlink=1 if is_dir else 0)
        self._note(inode, worthy=not is_dir)
        return inode

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Give an inode one more name; EEXIST, EPERM for directories."""
        inode = self.named_inode(ino)
        if inode.is_dir:
            fail(errno.EPERM, name)
        self._check_new(parent, name)
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=self.now_ns())
        self.put_inode(inode)
        self._set_name(parent, name, inode)
        self.touch(parent)
        self._note(inode)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is no directory's; ENOENT, EISDIR."""
        inode = self.lookup(parent, name)
        if inode.is_dir:
            fail(errno.EISDIR, name)
        self._note(inode)
        self.drop_name(parent, name, inode)
        self.touch(parent)

    def drop_name(self, parent: int, name: bytes, inode: Inode, *, is_frozen: bool = False) -> None:
        """Take a name from an inode that is no directory, which goes with its last one; no time of `parent` changes.

        `is_frozen` says that a snapshot shows this name of this inode, which saves looking.
        """
        self._remove_name(parent, name, inode, is_frozen=is_frozen)
        self._drop_link(inode if is_frozen else self.inode(inode.ino), self.now_ns(), is_frozen=is_frozen)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; ENOENT, ENOTDIR, ENOTEMPTY."""
        inode = self.lookup(parent, name)
        if not inode.is_dir:
            fail(errno.ENOTDIR, name)
        self._check_empty(inode)
        self._note(inode, worthy=False)
        self._remove_name(parent, name, inode)
        self._vanish(inode)
        self.touch(parent, nlink=-1)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Move a name, over an existing one unless `RENAME_NOREPLACE`, or exchange two (`RENAME_EXCHANGE`).

        ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, ENAMETOOLONG, EINVAL for unknown flags and for a directory
        moved into itself.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            fail(errno.EINVAL, flags)
        moved = self.lookup(parent, name)
        other = self.entry(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            if other is None:
                fail(errno.ENOENT, new_name)
            self._exchange((parent, name, moved), (new_parent, new_name, self.inode(other.ino)))
            return
        if other is None:
            self._check_new(new_parent, new_name)
        elif flags & RENAME_NOREPLACE:
            fail(errno.EEXIST, new_name)
        elif other.ino == moved.ino:
            return
        if moved.is_dir and self._places.is_below(new_parent, moved.ino):
            fail(errno.EINVAL, new_name)
        if other is not None:
            if not moved.flags & UNCOMMITTED:
                self.epoch.overwrite(other.ino)
            moved = self._replace_target(moved, new_parent, new_name, self.inode(other.ino))
        self._note(moved)
        self._remove_name(parent, name, moved)
        moved = moved._replace(ctime_ns=self.now_ns())
        self.put_inode(moved)
        self._set_name(new_parent, new_name, moved)
        step = 1 if moved.is_dir and parent != new_parent else 0
        self.touch(parent, nlink=-step)
        self.touch(new_parent, nlink=step)
        self._note(moved)

    def _replace_target(self, moved: Inode, parent: int, name: bytes, target: Inode) -> Inode:
        """Make way for `moved` under a name that is taken; returns it as the successor of what was there."""
        if target.is_dir:
            if not moved.is_dir:
                fail(errno.EISDIR, name)
            self._check_empty(target)
            self._remove_name(parent, name, target)
            self._vanish(target)
            self.touch(parent, nlink=-1)
            return moved
        if moved.is_dir:
            fail(errno.ENOTDIR, name)
        if not moved.flags & UNCOMMITTED:
            self._remove_name(parent, name, target)
            self._drop_link(self.inode(target.ino), self.now_ns())
        elif target.flags & UNCOMMITTED:
            self._hiding.erase(target.ino, name_prefix(parent, name))
            self._drop_link(self.inode(target.ino), self.now_ns())
        else:  # it stays in the open epoch, below the name of an uncommitted file, until that is committed
            self.put_inode(target._replace(ctime_ns=self.now_ns()))
        moved = self.inode(moved.ino)  # which may have been what the name hid, and then has a link less
        if moved.predecessor == 0 and target.is_file:
            return moved._replace(predecessor=target.predecessor if target.flags else target.manifest)
        return moved

    def _exchange(self, one: tuple[int, bytes, Inode], two: tuple[int, bytes, Inode]) -> None:
        for _, name, inode in (one, two):
            other = two if inode is one[2] else one
            if inode.is_dir and self._places.is_below(other[0], inode.ino):
                fail(errno.EINVAL, name)
        if (one[2].flags ^ two[2].flags) & UNCOMMITTED:
            self._give_way(*((one, two) if one[2].flags & UNCOMMITTED else (two, one)))
        elif one[2].flags & UNCOMMITTED:
            for parent, name, inode in (one, two):
                self._hiding.erase(inode.ino, name_prefix(parent, name))
        now = self.now_ns()
        step = one[2].is_dir - two[2].is_dir if one[0] != two[0] else 0
        for (parent, name, _), (_, _, moved) in ((one, two), (two, one)):
            inode = self.inode(moved.ino)._replace(ctime_ns=now)
            self.put_inode(inode)
            self._set_name(parent, name, inode)
            self._note(inode)
        self.touch(one[0], nlink=-step)
        self.touch(two[0], nlink=step)

    def _give_way(self, new: tuple[int, bytes, Inode], old: tuple[int, bytes, Inode]) -> None:
        """Take its name from an uncommitted file that is exchanged with what is committed, a file or a directory.

        A file keeps its name, too, hidden by that of the uncommitted one until that is committed: every snapshot shows
        what there was, or what there is then.
        """
        self._remove_name(*new)
        if old[2].is_dir:
            self._remove_name(*old)
        else:
            inode = self.inode(old[2].ino)
            self.put_inode(inode._replace(nlink=inode.nlink + 1))

    def _check_new(self, parent: int, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG, name)
        value = self.rows.get(Table.INODES, id_prefix(parent))
        if value is None:
            fail(errno.ENOENT, name)
        if self.entry(parent, name) is not None:
            fail(errno.EEXIST, name)
        return Inode.decode(parent, value)

    def _check_empty(self, directory: Inode) -> None:
        if next(self.entries(directory.ino), None) is not None:
            fail(errno.ENOTEMPTY)

    def _set_name(self, parent: int, name: bytes, inode: Inode) -> None:
        prefix = name_prefix(parent, name)
        value = encode_dirent(inode.ino, inode.mode)
        if inode.flags & UNCOMMITTED:
            self._hiding.put(inode.ino, prefix, value)
        else:
            self.rows.put(Table.DIRENTS, prefix, value)
        self._places.note(inode.ino, parent, name)

    def _remove_name(self, parent: int, name: bytes, inode: Inode, *, is_frozen: bool = False) -> None:
        """Take a name away from an inode; a committed file that an uncommitted one's name hides goes with it."""
        prefix = name_prefix(parent, name)
        if inode.flags & UNCOMMITTED:
            hidden = self._hiding.erase(inode.ino, prefix)
            if hidden is not None:
                self.rows.remove(Table.DIRENTS, prefix)
                self._drop_hidden(hidden)
        else:
            self.rows.remove(Table.DIRENTS, prefix, is_frozen=is_frozen)

    def _drop_link(self, inode: Inode, ctime_ns: int, *, is_frozen: bool = False) -> None:
        inode = inode._replace(nlink=inode.nlink - 1, ctime_ns=ctime_ns)
        if inode.nlink:
            self.put_inode(inode)
        else:
            self._vanish(inode, is_frozen=is_frozen)

    def _drop_hidden(self, ino: int) -> None:
        """Take a name that was hidden from its inode, which changed when it was hidden."""
        inode = self.inode(ino)
        self._drop_link(inode, inode.ctime_ns)

    def _vanish(self, inode: Inode, *, is_frozen: bool = False) -> None:
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
        now = self.now_ns()
        inode = self.inode(directory)
        self.put_inode(inode._replace(nlink=inode.nlink + nlink, mtime_ns=now, ctime_ns=now))

    def _note(self, inode: Inode, *, worthy: bool = True) -> None:
        self.epoch.active()
        if not inode.flags & UNCOMMITTED:
            self.epoch.committed(0 if inode.is_dir else inode.ino, self.path(inode.ino), worthy=worthy)

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
        self._note(inode, worthy=False)

    def commit(self, inode: Inode) -> None:
        """Make `inode` a committed file version: it and its names become rows of the open epoch."""
        inode = inode._replace(flags=0)
        names = self._hiding.of(inode.ino)
        for _, hidden in names:
            if hidden is not None:
                self.epoch.overwrite(hidden)
        self.rows.erase(Table.INODES, id_prefix(inode.ino), LIVE)
        self.put_inode(inode)
        for prefix, hidden in names:
            value = self.rows.get(Table.DIRENTS, prefix)
            assert value is not None
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
        self._set_name(parent, name, inode)
        if inode.is_dir:
            self.touch(parent, nlink=1)

    def interrupted(self) -> Iterator[Inode]:
        """Yield the inodes whose live content is not a committed version."""
        for table, prefix in list(self.rows.live_only()):
            if table is Table.INODES and (row := self.rows.find(table, prefix)) and row.epoch == LIVE:
                inode = Inode.decode(struct.unpack(">Q", prefix)[0], row.value)
                if inode.flags & INTERRUPTED:
                    yield inode
