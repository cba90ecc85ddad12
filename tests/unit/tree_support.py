"""What the tests of the tree share: small stores, a clock that tests set, short ways to save and read, and a checker.

The chunks of these stores are tiny, so that a few hundred bytes take every path that gigabytes take.
`check_tree` reads the rows themselves and says whether they agree with each other at every epoch.
"""

import errno
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ckptfs.config import FORMAT_VERSION, ChunkSizes, StoreConfig
from ckptfs.store import Alignment, ChunkStore, Disk, Table, records
from ckptfs.store.codec import Encoding
from ckptfs.store.delta import encode_delta
from ckptfs.store.location import Location
from ckptfs.store.packs import PACK_SIZE_MAX
from ckptfs.store.records import EncodedChunk
from ckptfs.tree import Tree, renaming
from ckptfs.tree.check import Check
from ckptfs.tree.content import FileContent
from ckptfs.tree.extents import load_manifest
from ckptfs.tree.files import OpenFile
from ckptfs.tree.inode import INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from ckptfs.tree.namespace import Owner
from ckptfs.tree.rows import LIVE, id_prefix
from ckptfs.tree.snapshots import Snapshot

CHUNK_SIZES = ChunkSizes(size_min=64, mean_bits=8, size_max=1024)
CONFIG = StoreConfig(FORMAT_VERSION, 0x5EED, 1_700_000_000_000_000_000, CHUNK_SIZES)
OWNER = Owner(1000, 100)
VERSIONED = (Table.INODES, Table.DIRENTS, Table.XATTRS)


class NoSyncDisk(Disk):
    """A disk that does not wait: what a power cut takes is tested with the store."""

    def fdatasync(self, fd: int, path: Path) -> None:
        """Do nothing."""


class NoPunchDisk(NoSyncDisk):
    """A disk that cannot free a part of a file."""

    def can_punch(self, fd: int) -> bool:
        """Say so."""
        return False

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        """Refuse as such a filesystem does."""
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(path))


class OwnedDisk(Disk):
    """A disk that knows the descriptors that are open; it does not close what nobody has open, and notes it."""

    def __init__(self) -> None:
        self.opened: set[int] = set()
        self.misclosed: list[int] = []

    def open_read(self, path: Path) -> int:
        return self._note(super().open_read(path))

    def open_write(self, path: Path, *, create: bool = False, empty: bool = False) -> int:
        return self._note(super().open_write(path, create=create, empty=empty))

    def open_direct(self, path: Path, mode: int) -> int | None:
        fd = super().open_direct(path, mode)
        return None if fd is None else self._note(fd)

    def _note(self, fd: int) -> int:
        self.opened.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if fd not in self.opened:
            self.misclosed.append(fd)
            return
        # First: once it is closed, another thread may be given its number.
        self.opened.remove(fd)
        super().close(fd)


class Crashes(Disk):
    """A disk that keeps a copy of the store before and after everything that it does to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Path] = []
        self.armed = False

    def snap(self) -> None:
        """Keep a copy of the store as it is."""
        if self.armed:
            image = self.path.with_name(f"image-{len(self.images)}")
            shutil.copytree(self.path, image, ignore=shutil.ignore_patterns("index.lmdb-lock", "lock"))
            self.images.append(image)

    def pwrite(self, fd: int, buffers, offset: int, path: Path) -> None:  # type: ignore[no-untyped-def]
        """Write."""
        super().pwrite(fd, buffers, offset, path)
        self.snap()

    def fdatasync(self, fd: int, path: Path) -> None:
        """Make durable."""
        self.snap()
        super().fdatasync(fd, path)
        self.snap()

    def rename(self, source: Path, target: Path) -> None:
        """Give another name."""
        self.snap()
        super().rename(source, target)
        self.snap()

    def unlink(self, path: Path) -> None:
        """Remove."""
        super().unlink(path)
        self.snap()

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        """Punch one half after the other."""
        half = size // 2
        freed = super().punch(fd, offset, half, path)
        self.snap()
        freed += super().punch(fd, offset + half, size - half, path)
        self.snap()
        return freed


class Clock:
    """Wall and monotonic time that go on only when told to, but for the wall's 1 ns a look: no two times are equal."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000_000_000
        self.now = 1000.0

    def wall_ns(self) -> int:
        """Return the wall time."""
        self.wall += 1
        return self.wall

    def monotonic(self) -> float:
        """Return the monotonic time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += int(seconds * 1e9)


def new_store(path: Path) -> ChunkStore:
    """Make a store with tiny chunks."""
    return ChunkStore.create(path, disk=NoSyncDisk(), config=CONFIG)


def new_tree(path: Path, clock: Clock | None = None) -> Tree:
    """Make a tree in a store with tiny chunks."""
    clock = clock or Clock()
    return Tree(new_store(path), wall_ns=clock.wall_ns, monotonic=clock.monotonic)


def open_tree(
    path: Path,
    clock: Clock | None = None,
    *,
    read_only: bool = False,
    disk: Disk | None = None,
    pack_size_max: int = PACK_SIZE_MAX,
) -> Tree:
    """Open the tree of a store that exists."""
    clock = clock or Clock()
    store = ChunkStore.open(path, disk=disk or NoSyncDisk(), read_only=read_only, pack_size_max=pack_size_max)
    try:
        return Tree(store, wall_ns=clock.wall_ns, monotonic=clock.monotonic)
    except BaseException:
        store.close(commit=False)
        raise


def crash(tree: Tree) -> None:
    """End as a killed process does: only what was journalled stays."""
    tree.store.close(commit=False)


def journal(tree: Tree) -> None:
    """Journal what has changed, as the mount does after a close."""
    tree.store.append_journal(tree.store.tables.take_changes())


def location(offset: int, stored_size: int) -> Location:
    """Return a place in the first pack."""
    return Location(1, offset, stored_size, stored_size, Encoding.RAW)


def append_delta(store: ChunkStore, number: int, *bases: int) -> None:
    """Store a chunk as a delta against others that have no fewer bytes, however little that saves."""
    raw, chunk_id = store._fetcher.read_with_id(number)
    payload = encode_delta(raw, b"".join(map(store.read, bases)), Alignment(0, 1, 0))
    check = records.payload_check(payload, records.pack_bases(bases))
    store._ingest.append_again([EncodedChunk(chunk_id, len(raw), Encoding.DELTA, payload, check, bases)], [number])


# Names


def split(tree: Tree, path: str) -> tuple[int, bytes]:
    """Return the inode number of a path's parent and its last name."""
    head, _, name = path.rpartition("/")
    return tree.names.resolve(head).ino, name.encode()


def make_directory(tree: Tree, path: str, mode: int = 0o755) -> Inode:
    """Make a directory."""
    return tree.names.create(*split(tree, path), stat.S_IFDIR | mode, OWNER)


def rename(tree: Tree, old: str, new: str, flags: int = 0) -> None:
    """Rename by paths."""
    renaming.rename(tree.names, *split(tree, old), *split(tree, new), flags)


def unlink(tree: Tree, path: str) -> None:
    """Unlink by path."""
    tree.names.unlink(*split(tree, path))


def link(tree: Tree, old: str, new: str) -> None:
    """Make a hard link by paths."""
    tree.names.link(tree.names.resolve(old).ino, *split(tree, new))


# Content


def drain(content: FileContent) -> None:
    """Bring every byte into chunks, as the mount's jobs do."""
    while not content.settled:
        job = content.take_job(final=True)
        assert job is not None
        job.run()
        content.finish_job()


def create(tree: Tree, path: str, *, appending: bool = False, mode: int = 0o644) -> OpenFile:
    """Create a file and open it for writing, as creat does."""
    inode = tree.names.create(*split(tree, path), stat.S_IFREG | mode, OWNER, committed=False)
    return tree.files.open(inode, writing=True, appending=appending)


def open_path(tree: Tree, path: str, *, writing: bool = True, appending: bool = False) -> OpenFile:
    """Open a file that exists."""
    return tree.files.open(tree.attributes(tree.names.resolve(path).ino), writing=writing, appending=appending)


def close_file(
    tree: Tree, file: OpenFile, *, writing: bool = True, appending: bool = False, killed: bool = False
) -> None:
    """Close one handle as the mount does: the last writer's close commits, a killed writer interrupts."""
    if killed and file.dirty:
        file.interrupted = True
    if writing and file.writers == 1:
        drain(file.content)
        tree.files.commit(file)
    tree.files.release(file, writing=writing, appending=appending)


def fsync(tree: Tree, file: OpenFile) -> None:
    """Commit an open file as fsync does."""
    drain(file.content)
    tree.files.commit(file)


def save(tree: Tree, path: str, data: bytes, *, killed: bool = False) -> Inode:
    """Write a whole file, new or over the old content; returns what the live tree has then."""
    exists = True
    try:
        tree.names.resolve(path)
    except FileNotFoundError:
        exists = False
    if exists:
        file = open_path(tree, path)
        if file.content.size:
            tree.files.truncate(file, 0)
    else:
        file = create(tree, path)
    tree.files.write(file, 0, data)
    close_file(tree, file, killed=killed)
    return tree.names.inode(file.ino)


def read_content(tree: Tree, content: FileContent) -> bytes:
    """Return all bytes of a content."""
    return bytes(content.plan_read(0, content.size).run(tree.reader))


def read_ino(tree: Tree, ino: int, epoch: int = LIVE) -> bytes:
    """Return a file's bytes as an epoch sees them, those of an open file in the live tree included."""
    file = tree.files.get(ino) if epoch == LIVE else None
    return read_content(tree, file.content if file else tree.files.load(tree.names.inode(ino, epoch)))


def read(tree: Tree, path: str, at: Snapshot | None = None) -> bytes:
    """Return the bytes of a path now or in a snapshot."""
    epoch = at.id if at else LIVE
    return read_ino(tree, tree.names.resolve(path, epoch).ino, epoch)


class Seen(NamedTuple):
    """One path as a user sees it; `same_as` is the first path of the same inode, `data` a file's or link's bytes."""

    mode: int
    nlink: int
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    same_as: str


def dump(tree: Tree, epoch: int = LIVE, known: dict[tuple[int, int], bytes] | None = None) -> dict[str, Seen]:
    """Return everything that an epoch shows, by path; directories end in a slash.

    `known` has the bytes of contents that were read before, by manifest and size, and gets those of others.
    """
    known = {} if known is None else known
    found: dict[str, Seen] = {}
    first: dict[int, str] = {}

    def content(inode: Inode) -> bytes:
        if epoch == LIVE and tree.files.get(inode.ino) is not None:
            return read_ino(tree, inode.ino)
        key = (inode.manifest, inode.size)
        if key not in known:
            known[key] = read_ino(tree, inode.ino, epoch)
        return known[key]

    def visit(ino: int, path: str) -> None:
        inode = tree.attributes(ino, epoch)
        if epoch == LIVE:
            inode = tree.names.seen(inode)
        data = content(inode) if inode.is_file else inode.target
        assert inode.is_dir or len(data) == inode.size, (inode, len(data))
        names = tree.xattrs.names(ino, epoch)
        xattrs = tuple((name, tree.xattrs.get(ino, name, epoch)) for name in names)
        found[path] = Seen(inode.mode, inode.nlink, data, xattrs, first.setdefault(ino, path))
        if inode.is_dir:
            for name, entry in sorted(tree.names.entries(ino, epoch)):
                visit(entry.ino, path + name.decode() + ("/" if stat.S_ISDIR(entry.file_type) else ""))

    visit(ROOT_INO, "/")
    return found


def paths(tree: Tree, at: Snapshot | None = None) -> list[str]:
    """Return the paths of a snapshot or the live tree, without the root, directories with a slash at their end."""
    return sorted(path.removeprefix("/") for path in dump(tree, at.id if at else LIVE) if path != "/")


def raw_inodes(tree: Tree, epoch: int) -> dict[int, Inode]:
    """Return every inode that an epoch has, times and numbers included, reached by a name or not."""
    found: dict[int, Inode] = {}
    for prefix in dict.fromkeys(key[:8] for key, _ in tree.rows.tables.scan(Table.INODES)):
        if value := tree.rows.get(Table.INODES, prefix, epoch):
            ino = int.from_bytes(prefix, "big")
            found[ino] = Inode.decode(ino, value)
    return found


# Consistency


def check_tree(tree: Tree) -> None:
    """Assert that the rows agree with each other at every epoch that somebody can read."""
    with tree.store.view() as view:
        assert Check(tree.store, view).structure().problems == []
    _check_change_rows(tree)
    _check_snapshot_rows(tree)
    _check_live_only(tree)
    checked: set[tuple[int, int]] = set()
    for epoch in [*(snapshot.id for snapshot in tree.snapshots.all()), tree.rows.open_epoch, LIVE]:
        inodes = raw_inodes(tree, epoch)
        _check_links(tree, epoch, inodes)
        _check_content(tree, inodes, checked)


def _check_change_rows(tree: Tree) -> None:
    """Every versioned row is listed in `changes` exactly once, and nothing else is."""
    rows = {
        (int.from_bytes(key[-4:], "big"), table, key[:-4])
        for table in VERSIONED
        for key, _ in tree.rows.tables.scan(table)
    }
    listed = {(epoch, change.table, change.prefix) for epoch, change in tree.rows.changes(-1, LIVE)}
    assert rows == listed
    assert all(epoch <= tree.rows.open_epoch or epoch == LIVE for epoch, _, _ in rows)


def _check_snapshot_rows(tree: Tree) -> None:
    tables = tree.rows.tables
    stored = [Snapshot.decode(int.from_bytes(key, "big"), value) for key, value in tables.scan(Table.SNAPSHOTS)]
    assert stored == tree.snapshots.all()
    names = {key.decode(): int.from_bytes(value, "big") for key, value in tables.scan(Table.NAMES)}
    assert names == {snapshot.name: snapshot.id for snapshot in stored}
    assert all(snapshot.id < tree.rows.open_epoch for snapshot in stored)


def _check_live_only(tree: Tree) -> None:
    """Only what is not committed lives in live-only rows, and nothing of it anywhere else."""
    for key, value in tree.rows.tables.scan(Table.INODES):
        if value:
            flags = Inode.decode(0, value).flags
            assert bool(flags) == (int.from_bytes(key[-4:], "big") == LIVE)
            assert flags in (0, UNCOMMITTED, INTERRUPTED, UNCOMMITTED | INTERRUPTED)
    for table, prefix in tree.rows.live_only():
        value = tree.rows.get(table, prefix)
        assert value, "a live-only tombstone"
        if table is Table.INODES:
            committed = tree.rows.get(table, prefix, tree.rows.open_epoch)
            uncommitted = Inode.decode(0, value).flags & UNCOMMITTED
            assert bool(uncommitted) == (committed is None)
        else:
            assert table is Table.DIRENTS
            entry = tree.names.entry(int.from_bytes(prefix[:8], "big"), prefix[8:-1])
            assert entry is not None and tree.names.inode(entry.ino).flags & UNCOMMITTED


def _check_links(tree: Tree, epoch: int, inodes: dict[int, Inode]) -> None:
    names: Counter[int] = Counter()
    directories: Counter[int] = Counter()
    pending = [ROOT_INO]
    while pending:
        directory = pending.pop()
        entries = list(tree.names.entries(directory, epoch))
        for name, entry in entries:
            inode = tree.names.inode(entry.ino, epoch)
            assert stat.S_IFMT(inode.mode) == entry.file_type
            names[entry.ino] += 1
            if inode.is_dir:
                directories[directory] += 1
                pending.append(entry.ino)
            if epoch == LIVE:  # a committed file keeps its link below the live-only name that hides it
                below = tree.names.entry(directory, name, tree.rows.open_epoch)
                names[below.ino if below and below != entry else 0] += 1
    assert all(count == 1 for ino, count in names.items() if ino in directories)
    assert inodes.keys() - {ROOT_INO} == names.keys() - {0}
    for ino, inode in inodes.items():
        assert inode.nlink == (2 + directories[ino] if inode.is_dir else names[ino]), (epoch, tree.names.path(ino))
    if epoch == LIVE:
        owners = {int.from_bytes(key[:8], "big") for key, _ in tree.rows.tables.scan(Table.XATTRS)}
        assert all(ino in inodes or not list(tree.rows.scan(Table.XATTRS, id_prefix(ino))) for ino in owners)


def _check_content(tree: Tree, inodes: dict[int, Inode], checked: set[tuple[int, int]]) -> None:
    """Every chunk that a file names can be read and is long enough, of contents (manifest, size) not yet `checked`."""
    for inode in inodes.values():
        if inode.is_file and (inode.manifest, inode.size) not in checked:
            checked.add((inode.manifest, inode.size))
            extents = load_manifest(tree.rows.tables, inode.manifest, inode.size)
            used = [extent for extent in extents.between(0, inode.size) if extent.number]
            while used:
                chunks = tree.reader.read_first([extent.number for extent in used])
                assert all(chunk.size >= extent.length for extent, chunk in zip(used, chunks, strict=False))
                used = used[len(chunks) :]
