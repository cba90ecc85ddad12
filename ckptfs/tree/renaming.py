"""Renames: a name that moves, over another one or not, and two that are exchanged.

Owns the rules that POSIX and renameat2(2) have for them, and what they mean for a file that is not committed: a name of
such a file that moves over a committed one hides it, and every snapshot goes on showing that until the file over it is
committed. Errors are `OSError`s with the errno of the call. Belongs to the thread that owns the tables.
"""

import errno
from typing import NamedTuple

from ckptfs.tree.inode import UNCOMMITTED, Inode
from ckptfs.tree.namespace import Namespace, fail

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class _Named(NamedTuple):
    """A name in a directory, and the inode that has it."""

    parent: int
    name: bytes
    inode: Inode

    @property
    def is_uncommitted(self) -> bool:
        return bool(self.inode.flags & UNCOMMITTED)


def rename(names: Namespace, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
    """Move a name, over an existing one unless `RENAME_NOREPLACE`, or exchange two (`RENAME_EXCHANGE`).

    Of two names of one file neither moves. ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, ENAMETOOLONG, EINVAL for unknown
    flags and for a directory moved into itself.
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        fail(errno.EINVAL, flags)
    moved = names.lookup(parent, name)
    other = names.entry(new_parent, new_name)
    if other is not None and other.ino == moved.ino and flags != RENAME_NOREPLACE:
        return
    if flags & RENAME_EXCHANGE:
        if other is None:
            fail(errno.ENOENT, new_name)
        _exchange(names, _Named(parent, name, moved), _Named(new_parent, new_name, names.inode(other.ino)))
        return
    if other is None:
        names.check_new(new_parent, new_name)
    elif flags & RENAME_NOREPLACE:
        fail(errno.EEXIST, new_name)
    if moved.is_dir and names.is_below(new_parent, moved.ino):
        fail(errno.EINVAL, new_name)
    if other is not None:
        if not moved.flags & UNCOMMITTED:
            names.epoch.overwrite(other.ino)
        moved = _make_way(names, moved, _Named(new_parent, new_name, names.inode(other.ino)))
    names.note_change(moved)
    names.remove_name(parent, name, moved)
    moved = moved._replace(ctime_ns=names.now_ns())
    names.put_inode(moved)
    names.set_name(new_parent, new_name, moved)
    step = 1 if moved.is_dir and parent != new_parent else 0
    names.touch(parent, nlink=-step)
    names.touch(new_parent, nlink=step)
    names.note_change(moved)


def _make_way(names: Namespace, moved: Inode, target: _Named) -> Inode:
    """Make way for `moved` under a name that is taken; returns it as the successor of what was there."""
    replaced = target.inode
    if replaced.is_dir:
        if not moved.is_dir:
            fail(errno.EISDIR, target.name)
        names.check_empty(replaced)
        names.remove_name(*target)
        names.vanish(replaced)
        names.touch(target.parent, nlink=-1)
        return moved
    if moved.is_dir:
        fail(errno.ENOTDIR, target.name)
    if not moved.flags & UNCOMMITTED:
        names.remove_name(*target)
        names.drop_link(names.inode(replaced.ino), names.now_ns())
    elif target.is_uncommitted:
        names.uncover(*target)
        names.drop_link(names.inode(replaced.ino), names.now_ns())
    else:  # it stays in the open epoch, below the name of an uncommitted file, until that is committed
        names.put_inode(replaced._replace(ctime_ns=names.now_ns()))
    moved = names.inode(moved.ino)  # which may have been what the name hid, and then has a link less
    if moved.predecessor == 0 and replaced.is_file:
        return moved._replace(predecessor=replaced.predecessor if replaced.flags else replaced.manifest)
    return moved


def _exchange(names: Namespace, one: _Named, two: _Named) -> None:
    for moved, place in ((one, two), (two, one)):
        if moved.inode.is_dir and names.is_below(place.parent, moved.inode.ino):
            fail(errno.EINVAL, moved.name)
    if one.is_uncommitted and two.is_uncommitted:
        names.uncover(*one)
        names.uncover(*two)
    elif one.is_uncommitted:
        _give_way(names, one, two)
    elif two.is_uncommitted:
        _give_way(names, two, one)
    now = names.now_ns()
    for moved, place in ((two, one), (one, two)):
        inode = names.inode(moved.inode.ino)._replace(ctime_ns=now)
        names.put_inode(inode)
        names.set_name(place.parent, place.name, inode)
        names.note_change(inode)
    step = one.inode.is_dir - two.inode.is_dir if one.parent != two.parent else 0
    names.touch(one.parent, nlink=-step)
    names.touch(two.parent, nlink=step)


def _give_way(names: Namespace, new: _Named, old: _Named) -> None:
    """Take its name from an uncommitted file that is exchanged with what is committed, a file or a directory.

    A file keeps its name, too, hidden by that of the uncommitted one until that is committed: every snapshot shows
    what there was, or what there is then.
    """
    names.remove_name(*new)
    if old.inode.is_dir:
        names.remove_name(*old)
    else:
        inode = names.inode(old.inode.ino)
        names.put_inode(inode._replace(nlink=inode.nlink + 1))
