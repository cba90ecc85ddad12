"""Open files of the live tree, and when what is written to them becomes a committed version.

A file version is committed when its last writer closes the file, or by fsync. When a writer was killed, or the
store failed under it, the content is kept as a live-only row instead (*interrupted*), which no snapshot shows.
Data work leaves as jobs (`FileContent.take_job`), for the caller to run where it likes. Belongs to the thread that
owns the tables.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from weakref import WeakSet

from ckptfs.config import KIB
from ckptfs.store import ChunkStore
from ckptfs.tree.content import FileContent
from ckptfs.tree.epoch import SAVE_SIZE_MIN
from ckptfs.tree.extents import load_manifest, store_manifest
from ckptfs.tree.inode import INTERRUPTED, UNCOMMITTED, Inode
from ckptfs.tree.namespace import Namespace, fail
from ckptfs.tree.reader import ChunkReader, ReadPlan
from ckptfs.tree.stream import BufferPool

log = logging.getLogger(__name__)

LOG_AGE_SECONDS = 10.0
LOG_RATE = 64 * KIB
"""A file open for longer, and written more slowly (bytes per second), is taken for a log: it holds nothing back."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """One inode that somebody has open. `unlinked`: its last name is gone."""

    ino: int
    content: FileContent
    opened_at: float
    handles: int = 0
    writers: int = 0
    appenders: int = 0
    """Writers that opened the file with O_APPEND."""
    dirty: bool = False
    replaced: bool = False
    """Whether the content was thrown away to be written anew since the last commit."""
    interrupted: bool = False
    error: Exception | None = None
    mtime_ns: int = 0
    last_write: float = 0.0
    written: int = 0
    """Bytes written since the file was opened first."""
    written_before: int = 0
    """Those of them that belong to versions committed since."""
    unlinked: bool = False
    detached: Inode | None = None
    """The attributes of before, once a rollback has put another content in this file's place; it stays readable."""

    @property
    def appended(self) -> bool:
        """Whether all who may write can only append: a log."""
        return self.writers > 0 and self.appenders == self.writers

    def fail(self, error: Exception) -> None:
        """Note a failure that hit this file after a write was accepted; it is never forgotten.

        Without its traceback, whose frames have the file: a collection would keep what nobody else has any more.
        """
        self.error = copy(error).with_traceback(None)

    def raise_error(self) -> None:
        """Report the failure that was noted."""
        if self.error is not None:
            raise copy(self.error)


class Files:
    """The open files, by inode number."""

    def __init__(
        self, store: ChunkStore, reader: ChunkReader, namespace: Namespace, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._reader = reader
        self._names = namespace
        self._monotonic = monotonic
        self._pool = BufferPool()
        self._open: dict[int, OpenFile] = {}
        self._contents: WeakSet[FileContent] = WeakSet()
        self._whole: set[int] = set()
        """Inodes that lost their last name while nobody wrote to them, and no collection has looked since."""
        namespace.on_unlinked = self._note_unlinked
        namespace.users.append(self._open.__contains__)

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(list(self._open.values()))

    def get(self, ino: int) -> OpenFile | None:
        """Return the file if it is open."""
        return self._open.get(ino)

    def load(self, inode: Inode) -> FileContent:
        """Return the content of a committed version; DamagedError where its manifest is."""
        extents = load_manifest(self._store.tables, inode.manifest, inode.size)
        content = FileContent(self._store, self._reader, self._pool, extents, inode.layout)
        self._contents.add(content)
        return content

    @property
    def contents(self) -> list[FileContent]:
        """All contents that somebody has loaded and not let go of, whatever became of their files."""
        return list(self._contents)

    def open(self, inode: Inode, *, writing: bool, appending: bool = False) -> OpenFile:
        """Open a file of the live tree once more; ESTALE where its last name is gone, and its content may be.

        Whoever has found a file that is replaced then can open it still, but not when it was written to since without a
        name, or when a collection has looked.
        """
        file = self._open.get(inode.ino)
        if file is None:
            if inode.nlink == 0 and inode.ino not in self._whole:
                fail(errno.ESTALE, inode.ino)
            file = OpenFile(inode.ino, self.load(inode), self._monotonic(), unlinked=inode.nlink == 0)
            file.dirty = inode.flags == UNCOMMITTED  # just created: even without a write, its close makes a version
            self._open[inode.ino] = file
        if writing:
            self._whole.discard(inode.ino)
        file.handles += 1
        file.writers += writing
        file.appenders += appending
        return file

    def attributes(self, file: OpenFile) -> Inode:
        """Return the attributes of an open file as its users see them now."""
        inode = file.detached or self._names.inode(file.ino)
        if not file.dirty and not file.unlinked:
            return inode
        mtime = file.mtime_ns or inode.mtime_ns
        allocated = min(inode.allocated + file.content.buffered, file.content.size)
        size = file.content.size
        return inode._replace(size=size, allocated=allocated, mtime_ns=mtime, ctime_ns=max(inode.ctime_ns, mtime))

    def write(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Place bytes in an open file; EFBIG beyond the largest size, or the sticky error."""
        file.raise_error()
        if offset + len(data) > (1 << 63) - 1:
            fail(errno.EFBIG)
        file.content.write(offset, data)
        self._mark_dirty(file, len(data))

    def truncate(self, file: OpenFile, size: int) -> None:
        """Cut or lengthen an open file; no job of it may be out."""
        file.raise_error()
        if size == 0 and not file.dirty:
            file.interrupted = False
        file.replaced = file.replaced or size == 0
        file.content.truncate(size)
        self._mark_dirty(file, 0)

    def touch(self, file: OpenFile) -> None:
        """Note a change that leaves an open file's content as it is, such as a truncation to the size that it has."""
        now = self._names.now_ns()
        if file.dirty:
            file.mtime_ns = now  # it becomes the version's when the file is committed
        else:
            self._names.change_attributes(self._names.inode(file.ino)._replace(mtime_ns=now, ctime_ns=now))

    def _mark_dirty(self, file: OpenFile, size: int) -> None:
        if not file.dirty:
            file.dirty, file.interrupted = True, False
        file.mtime_ns = self._names.now_ns()
        file.last_write = self._monotonic()
        file.written += size
        if not self.is_log(file):
            self._names.epoch.active()

    def is_log(self, file: OpenFile) -> bool:
        """Whether the file is written like a log: only appended to, or slowly and for long."""
        if file.appended:
            return True
        age = self._monotonic() - file.opened_at
        return age > LOG_AGE_SECONDS and file.written < LOG_RATE * age

    def unfinished_since(self) -> float | None:
        """Return when a half-written file that is no log was last written to, None where there is none."""
        return max(
            (file.last_write for file in self._open.values() if file.dirty and file.writers and not self.is_log(file)),
            default=None,
        )

    def plan_read(self, file: OpenFile, offset: int, size: int) -> ReadPlan:
        """Return the plan of a read of an open file as it is now."""
        return file.content.plan_read(offset, size)

    def commit(self, file: OpenFile) -> None:
        """Make the content of a dirty file, all of it in chunks, a committed version; or keep it as interrupted.

        That of a file without a name is what it is as long as somebody has it open, and no version.
        """
        if not file.dirty or file.detached:
            file.dirty = False
            return
        inode = self._names.inode(file.ino)
        failed = file.interrupted or file.error is not None
        content = file.content
        mtime = file.mtime_ns or inode.mtime_ns
        if file.unlinked:
            self._names.change_attributes(self.attributes(file))
            file.dirty, file.mtime_ns = False, 0
            return
        if file.replaced and not failed:
            self._names.epoch.overwrite(file.ino)
        committed_before = inode.predecessor if inode.flags else inode.manifest
        version = inode._replace(
            size=content.size,
            allocated=content.extents.allocated,
            manifest=self._store_extents(content),
            predecessor=committed_before or inode.predecessor,
            layout=content.layout,
            mtime_ns=mtime,
            ctime_ns=max(mtime, inode.ctime_ns),
            flags=inode.flags | INTERRUPTED if failed else 0,
        )
        is_new = file.replaced or bool(inode.flags & UNCOMMITTED)
        file.dirty = file.replaced = False
        file.mtime_ns = 0
        if inode.manifest:
            self._names.rows.has_garbage = True  # unless a snapshot holds the version that this one replaces
        if failed:
            self._names.put_inode(version)
            reason = f"the store failed: {file.error}" if file.error else "its writer was killed"
            log.warning(
                "interrupted: %s (%s; %d bytes are kept in the live tree, no snapshot shows them)",
                self._names.path(file.ino),
                reason,
                version.size,
            )
            return
        self._names.commit(version)
        written = min(file.written - file.written_before, version.size)
        file.written_before = file.written
        if version.size >= SAVE_SIZE_MIN and not file.appended:
            self._names.note_save(file.ino, is_new=is_new)
        self._names.epoch.committed(file.ino, self._names.path(file.ino), written, worthy=not file.appended)

    def _store_extents(self, content: FileContent) -> int:
        """Write the manifest of a content and return its number, 0 for an empty file."""
        extents = content.close_extents()
        if not len(extents):
            return 0
        manifest = self._names.rows.new_id()
        store_manifest(self._store.tables, manifest, extents)
        return manifest

    def release(self, file: OpenFile, *, writing: bool, appending: bool = False) -> None:
        """Drop one handle; the caller has committed the file if it was the last writer's."""
        file.handles -= 1
        file.writers -= writing
        file.appenders -= appending
        if file.handles == 0 and self._open.get(file.ino) is file:
            del self._open[file.ino]
            if file.unlinked:
                self._names.forget(file.ino)

    def detach(self, ino: int) -> None:
        """Let go of an open file whose place a rollback gives to another content."""
        file = self._open.pop(ino, None)
        if file is not None:
            file.detached = self.attributes(file)
            file.unlinked = True

    def _note_unlinked(self, ino: int) -> None:
        file = self._open.get(ino)
        if file is not None:
            file.unlinked = True
        if file is None or not (file.writers or file.dirty):
            self._whole.add(ino)

    def let_nameless_go(self) -> None:
        """Open no file without a name any more that is not open now: a collection does not keep its content."""
        self._whole.clear()
