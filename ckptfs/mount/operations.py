"""The kernel's requests, each translated to calls of the tree: a protocol adapter and nothing more.

Metadata is answered in the loop; what may touch the disk below waits in worker threads (`jobs`, `committer`).
Without the kernel's writeback cache every write arrives at once; what is mapped arrives late, page by page and in any
order, also after the last close.
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Protocol

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, InodeT, ModeT, RequestContext

from ckptfs.mount.accesstimes import AccessTimes
from ckptfs.mount.attributes import BLOCK_SIZE, answered
from ckptfs.mount.committer import Committer
from ckptfs.mount.entries import SNAPSHOTS_NAME, Entries
from ckptfs.mount.handles import Handles
from ckptfs.mount.listings import Listings
from ckptfs.mount.nodes import LATEST_NODE, ROOT_NODE, SNAPSHOTS_NODE, Node, Nodes
from ckptfs.mount.room import Room
from ckptfs.tree import Tree, renaming
from ckptfs.tree.inode import ROOT_INO, TIME_MAX_NS, TIME_MIN_NS, Inode
from ckptfs.tree.namespace import NAME_MAX, Owner, fail
from ckptfs.tree.reader import Bytes
from ckptfs.tree.rows import LIVE

FILES_MAX = 1 << 32
CAPABILITY = b"security.capability"


class Versions(Protocol):
    """What `mkdir` and `rmdir` in `.snapshots` ask of the session."""

    async def create(self, name: str) -> int:
        """Take a named snapshot of the present and return its id."""

    async def delete(self, name: str) -> None:
        """Delete the snapshot of this name."""

    def touched(self) -> None:
        """Note that the tree has changed, so that journal and automatic snapshot follow."""


def _stored_time(time_ns: int) -> int:
    """Return the nearest time that an inode can have; ext4 also takes the nearest for one beyond its range."""
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


class Operations(pyfuse3.Operations):
    """The filesystem as pyfuse3 sees it."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        tree: Tree,
        nodes: Nodes,
        handles: Handles,
        access_times: AccessTimes,
        committer: Committer,
        versions: Versions,
        room: Room,
    ) -> None:
        super().__init__()
        self._tree = tree
        self._names = tree.names
        self._files = tree.files
        self._nodes = nodes
        self._handles = handles
        self._access_times = access_times
        self._committer = committer
        self._versions = versions
        self._room = room
        self._entries = Entries(tree, nodes, access_times)
        self._listings = Listings(tree, nodes, self._entries.attributes)
        self.begun = trio.Event()
        """Set when the kernel has got to know this filesystem."""

    def init(self) -> None:
        self.begun.set()

    # Nodes and attributes

    @answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        parent = self._nodes.resolve(parent_inode)
        if parent == SNAPSHOTS_NODE:
            return self._entries.entry(self._entries.snapshot(name))
        if parent == ROOT_NODE and name == SNAPSHOTS_NAME:
            return self._entries.entry(SNAPSHOTS_NODE)
        return self._entries.entry(Node(self._names.lookup(parent.ino, name, parent.epoch).ino, parent.epoch))

    @answered
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self._nodes.forget(inode_list)

    @answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entries.attributes(self._nodes.resolve(inode))

    @answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        ino = self._entries.writable(inode)
        if fields.update_size:
            await self._handles.truncate(ino, attr.st_size)
            if not (fields.update_mode or fields.update_uid or fields.update_gid or fields.update_mtime):
                return self._entries.attributes(Node(ino, LIVE))
        else:  # a truncation can make room
            self._room.take_row()
        self._change_attributes(ino, attr, fields)
        return self._entries.attributes(Node(ino, LIVE))

    def _change_attributes(self, ino: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
        file = self._files.get(ino)
        inode = self._access_times.applied_to(self._names.inode(ino))
        mtime_ns = _stored_time(attr.st_mtime_ns) if fields.update_mtime else inode.mtime_ns
        if fields.update_mtime and file and file.dirty:
            file.mtime_ns, mtime_ns = mtime_ns, inode.mtime_ns  # it becomes the version's when the file is committed
        changed = inode._replace(
            mode=stat.S_IFMT(inode.mode) | stat.S_IMODE(attr.st_mode) if fields.update_mode else inode.mode,
            uid=attr.st_uid if fields.update_uid else inode.uid,
            gid=attr.st_gid if fields.update_gid else inode.gid,
            atime_ns=_stored_time(attr.st_atime_ns) if fields.update_atime else inode.atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=self._tree.wall_ns(),
        )
        self._access_times.forget(ino)
        self._names.change_attributes(changed)
        self._versions.touched()

    @answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        node = self._nodes.resolve(inode)
        self._entries.note_access(node)
        return FileNameT(self._entries.inode(node).target)

    # Names

    def _new_name(self, parent_inode: InodeT, name: FileNameT, size: int = 0) -> int:
        """Return the inode number of a directory that gets this name, with room for it and for `size` bytes more."""
        parent = self._entries.new_name(parent_inode, name)
        self._room.take_row(size)
        return parent

    def _made(self, inode: Inode) -> EntryAttributes:
        """Return the entry of an inode that was just made."""
        self._versions.touched()
        return self._entries.made(inode)

    @answered
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        if self._nodes.resolve(parent_inode) == SNAPSHOTS_NODE:
            if self._tree.snapshots.named(os.fsdecode(name)):
                fail(errno.EEXIST, name)
            self._room.take_row()
            return self._entries.entry(Node(ROOT_INO, await self._versions.create(os.fsdecode(name))))
        parent = self._new_name(parent_inode, name)
        return self._made(self._names.create(parent, name, stat.S_IFDIR | mode & 0o7777, Owner(ctx.uid, ctx.gid)))

    @answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if self._nodes.resolve(parent_inode) == SNAPSHOTS_NODE:
            if self._entries.snapshot(name) == LATEST_NODE:
                fail(errno.ENOTDIR, name)
            await self._versions.delete(os.fsdecode(name))
            return
        self._names.rmdir(self._entries.old_name(parent_inode, name), name)
        self._versions.touched()

    @answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._new_name(parent_inode, name)
        return self._made(self._names.create(parent, name, mode, Owner(ctx.uid, ctx.gid), rdev=rdev))

    @answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._new_name(parent_inode, name, len(target))
        owner = Owner(ctx.uid, ctx.gid)
        return self._made(self._names.create(parent, name, stat.S_IFLNK | 0o777, owner, target=target))

    @answered
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._new_name(new_parent_inode, new_name)
        linked = self._names.link(self._entries.writable(inode), parent, new_name)
        self._versions.touched()
        return self._entries.entry(Node(linked.ino, LIVE))  # it may be open, and longer than its inode says

    @answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._names.unlink(self._entries.old_name(parent_inode, name), name)
        self._versions.touched()

    @answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old = self._entries.old_name(parent_inode_old, name_old)
        self._room.take_row()
        new = self._entries.old_name(parent_inode_new, name_new)
        renaming.rename(self._names, old, name_old, new, name_new, flags)
        self._versions.touched()
        await self._committer.commit(durable=False)  # as for a close: a rename is how careful programs complete a save

    # Directories

    @answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(self._listings.open(self._nodes.resolve(inode)))

    @answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == 0:
            self._entries.note_access(self._listings.node(fh))
        self._listings.read(fh, start_id, token)

    @answered
    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.close(fh)

    @answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._committer.commit(durable=True)

    # Files

    @staticmethod
    def _goes_direct(flags: int, mode: int) -> bool:
        """Whether a handle goes past the kernel's page cache: one that only writes does, which saves a copy.

        There the kernel would leave undone the sync after each write of a handle with O_SYNC or O_DSYNC, and would not
        take from a privileged file what a write takes.
        """
        is_synced = flags & os.O_DSYNC  # a bit that O_SYNC has, too
        return flags & os.O_ACCMODE == os.O_WRONLY and not is_synced and not mode & (stat.S_ISUID | stat.S_ISGID)

    @answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._new_name(parent_inode, name)
        owner = Owner(ctx.uid, ctx.gid)
        inode = self._names.create(parent, name, stat.S_IFREG | mode & 0o7777, owner, committed=False)
        number = self._handles.open_created(inode, flags, ctx.pid)
        info = FileInfo(fh=FileHandleT(number), direct_io=self._goes_direct(flags, inode.mode), keep_cache=True)
        return info, self._made(inode)

    @answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        node = self._nodes.resolve(inode)
        moves_atime = node.is_live and not flags & os.O_NOATIME and self._access_times.is_due(node.ino)
        number = await self._handles.open(node, flags, ctx.pid)
        if flags & os.O_TRUNC and ctx.uid:
            await self._remove_privileges(node)
        direct = self._goes_direct(flags, self._tree.attributes(node.ino, node.epoch).mode)
        if direct and CAPABILITY in self._tree.xattrs.names(node.ino, node.epoch):
            direct = False  # what a file may do goes with a write, as its suid bit does
        info = FileInfo(fh=FileHandleT(number), direct_io=direct, keep_cache=True)
        if moves_atime and not info.direct_io:
            info.keep_cache = False  # of a read that the kernel answers alone nobody would hear
        return info

    async def _remove_privileges(self, node: Node) -> None:
        """Clear suid and sgid of a file that another than root has changed.

        The kernel sees to it at every write and truncate, but leaves an O_TRUNC to the filesystem, and then has to be
        told.
        """
        inode = self._tree.attributes(node.ino)
        mode = inode.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        if mode != inode.mode:
            self._names.change_attributes(self._names.inode(node.ino)._replace(mode=mode))
            self._versions.touched()
            node_id = InodeT(self._nodes.node_id(node))
            await trio.to_thread.run_sync(lambda: pyfuse3.invalidate_inode(node_id, attr_only=True))

    @answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> Bytes:  # type: ignore[override]  # any will do
        return await self._handles.read(fh, off, size)

    @answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        await self._handles.write(fh, off, buf)
        return len(buf)

    @answered
    async def flush(self, fh: FileHandleT) -> None:
        await self._handles.flush(fh)

    @answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._handles.fsync(fh)

    @answered
    async def release(self, fh: FileHandleT) -> None:
        await self._handles.release(fh)

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        space = self._tree.store.space()
        status = pyfuse3.StatvfsData()
        status.f_bsize = status.f_frsize = BLOCK_SIZE
        status.f_blocks = space.total // BLOCK_SIZE
        free = max(self._tree.store.room() - self._handles.buffered, 0) // BLOCK_SIZE
        status.f_bfree = status.f_bavail = free
        status.f_files = status.f_ffree = status.f_favail = FILES_MAX
        status.f_namemax = NAME_MAX
        return status

    # Extended attributes

    @answered
    async def getxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> bytes:
        node = self._entries.attributed(inode)
        return self._tree.xattrs.get(node.ino, name, node.epoch)

    @answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        node = self._nodes.resolve(inode)
        names = self._tree.xattrs.names(node.ino, node.epoch)
        return [pyfuse3.XAttrNameT(name) for name in names if not (ctx.uid and name.startswith(b"trusted."))]

    @answered
    async def setxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        ino = self._entries.writable(inode)
        self._room.take_row(len(value))
        self._tree.xattrs.set(ino, name, value)
        self._versions.touched()

    @answered
    async def removexattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> None:
        self._tree.xattrs.remove(self._entries.writable(inode), name)
        self._versions.touched()
