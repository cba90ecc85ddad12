"""Open files as the kernel has them: reading, writing, and when a close makes a version.

A write is placed before anything is awaited, so that the next one cannot overtake it; data work goes to `jobs`. What
a close promises is done while the kernel waits for `flush`, as far as it can be known there to be the last close;
`release`, which comes when the close has returned, catches the rest.
"""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from ckptfs.errors import CkptfsError, NoSpaceError
from ckptfs.mount import process
from ckptfs.mount.accesstimes import AccessTimes
from ckptfs.mount.committer import Committer
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.nodes import Node
from ckptfs.mount.offload import Offload
from ckptfs.mount.readahead import Ahead, ReadAhead
from ckptfs.mount.room import Room
from ckptfs.tree import Tree
from ckptfs.tree.content import FileContent
from ckptfs.tree.files import OpenFile
from ckptfs.tree.inode import Inode
from ckptfs.tree.namespace import fail
from ckptfs.tree.reader import Bytes
from ckptfs.tree.stream import PIECE_SIZE

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Handle:
    """One open of a file; `file` is None in a snapshot. `process` is the writer's, 0 if unknown.

    `moves_atime`: the next read may move the file's access time.
    """

    content: FileContent
    file: OpenFile | None
    writing: bool
    appending: bool
    process: int
    moves_atime: bool = False
    ahead: Ahead = field(default_factory=Ahead)


class Handles:
    """The open handles of a mount; `touched` is called when the tree has changed, `busy` when data is asked for."""

    def __init__(
        self,
        tree: Tree,
        jobs: Jobs,
        committer: Committer,
        offload: Offload,
        readahead: ReadAhead,
        access_times: AccessTimes,
        room: Room,
        touched: Callable[[], None],
        busy: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._files = tree.files
        self._jobs = jobs
        self._committer = committer
        self._offload = offload
        self._readahead = readahead
        self._access_times = access_times
        self._room = room
        self._touched = touched
        self._busy = busy
        self._handles: dict[int, Handle] = {}
        self._numbers = count(1)

    @property
    def buffered(self) -> int:
        """Bytes of all files that are in no chunk yet."""
        return self._jobs.buffered

    def _add(self, handle: Handle) -> int:
        number = next(self._numbers)
        self._handles[number] = handle
        return number

    def open_created(self, inode: Inode, flags: int, thread: int) -> int:
        """Open a file that was just created, for the thread that creates it."""
        appending = bool(flags & os.O_APPEND)
        file = self._files.open(inode, writing=True, appending=appending)
        return self._add(
            Handle(file.content, file, True, appending, process.process_of_thread(thread), moves_atime=True)
        )

    async def open(self, node: Node, flags: int, thread: int) -> int:
        """Open a file; EROFS for writing in a snapshot."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if not node.is_live:
            if writing:
                fail(errno.EROFS)
            content = self._files.load(self._tree.names.inode(node.ino, node.epoch))
            return self._add(Handle(content, None, False, False, 0))
        appending = writing and bool(flags & os.O_APPEND)
        file = self._files.open(self._tree.attributes(node.ino), writing=writing, appending=appending)
        writer = process.process_of_thread(thread) if writing else 0
        if flags & os.O_TRUNC:
            try:
                await self._resize(file, 0)
            except BaseException:
                await self._close_writer(file, appending=appending)
                raise
        return self._add(Handle(file.content, file, writing, appending, writer, moves_atime=not flags & os.O_NOATIME))

    async def truncate(self, ino: int, size: int) -> None:
        """Set the size of a live file; that of a file nobody writes is a version at once."""
        inode = self._tree.attributes(ino)
        if not inode.is_file:
            fail(errno.EISDIR if inode.is_dir else errno.EINVAL)
        file = self._files.open(inode, writing=True)
        try:
            await self._resize(file, size)
        finally:
            await self._close_writer(file, appending=False)

    async def _resize(self, file: OpenFile, size: int) -> None:
        """Set the size of an open file; where it has that size already, only its times change."""
        await self._jobs.idle(file)
        if size != file.content.size:
            self._files.truncate(file, size)
        else:
            self._files.touch(file)
            self._touched()

    async def read(self, number: int, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes at `offset`; DamagedError."""
        self._busy()
        handle = self._handles[number]
        if handle.moves_atime and handle.file is not None and handle.file.detached is None:
            self._access_times.note(handle.file.ino)
            handle.moves_atime = handle.file.writers > 0  # else nothing makes it due again while this handle is open
        return await self._readahead.read(handle.ahead, handle.content, offset, size)

    async def write(self, number: int, offset: int, data: bytes) -> None:
        """Take bytes, and wait while too many are held; the sticky error of the file passes."""
        self._busy()
        handle = self._handles[number]
        if handle.file is None:
            fail(errno.EBADF)
        has_room = await self._take_room(handle.file, len(data))
        self._files.write(handle.file, offset, data)
        if not has_room:
            await self._store_known(handle.file)
        elif handle.content.buffered >= PIECE_SIZE:
            await self._jobs.accept(handle.file)

    async def _take_room(self, file: OpenFile, size: int) -> bool:
        """Take room on the disk below for `size` bytes, and make it where there is none; False where that cannot be.

        Nothing overtakes the bytes meanwhile: the kernel has one write under way for each range.
        """
        file.raise_error()
        try:
            if not self._room.take(size):
                await self._room.make(size)
        except NoSpaceError:
            return False
        except (CkptfsError, OSError) as error:
            self._fail(file, error)
            raise
        return True

    async def _store_known(self, file: OpenFile) -> None:
        """Take bytes for which there is no room if they are stored already; else NoSpaceError, sticky."""
        try:
            await self._jobs.store_known(file)
        except (CkptfsError, OSError) as error:
            self._fail(file, error)
            raise

    def _fail(self, file: OpenFile, error: Exception) -> None:
        """Note that bytes cannot be taken.

        They may come from the kernel's cache, for which nobody waits: so the error stays with the file, whose content
        is torn.
        """
        file.fail(error)
        log.error("%s cannot be written: %s", self._tree.names.path(file.ino), error)

    async def flush(self, number: int) -> None:
        """Store what was written, and commit it if the process that opened the file has it open no more."""
        handle = self._handles[number]
        file = handle.file
        if file is None or not handle.writing:
            return
        close = process.Close.UNCLEAR
        if file.dirty:
            close = process.look(handle.process, self._tree.names.path(file.ino))
            file.interrupted = file.interrupted or close is process.Close.KILLED
        await self._jobs.drain(file)
        file.raise_error()
        last = file.dirty and file.writers == 1 and not file.interrupted and not file.unlinked
        if last and close is process.Close.FINAL:
            self._files.commit(file)
            self._touched()
            await self._committer.commit(durable=False)

    async def fsync(self, number: int) -> None:
        """Store and commit what was written, and make it durable."""
        handle = self._handles[number]
        file = handle.file
        if file is None:
            return
        await self._jobs.drain(file)
        file.raise_error()
        if file.dirty:  # whoever wrote it: a close by others may have returned, and its release be under way
            self._files.commit(file)
            self._touched()
        await self._committer.commit(durable=True)

    async def release(self, number: int) -> None:
        """Close a handle; the last writer's close commits the file's version."""
        handle = self._handles.pop(number)
        self._readahead.forget(handle.ahead)
        if handle.file is None:
            return
        if handle.writing:
            await self._close_writer(handle.file, appending=handle.appending)
        else:
            self._files.release(handle.file, writing=False)

    async def _close_writer(self, file: OpenFile, *, appending: bool) -> None:
        while file.writers == 1 and not file.content.settled:
            await self._jobs.drain(file)
        if file.writers == 1:
            self._files.commit(file)
            self._touched()
        self._files.release(file, writing=True, appending=appending)
