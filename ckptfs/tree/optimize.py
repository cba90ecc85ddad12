"""Optimizing: store earlier versions as what they differ in from those that succeed them.

Optimizer hands out work like a file's content hands out jobs: `take` and `finish` belong to the thread that owns the
tree, the work between them may be done in any one. First the lineage of everything is planned. Then chunks of versions
in use that are deltas (a rollback, or a save that found an old chunk again, brought them back) are stored by
themselves. Then one pair of versions after the other is compared, in the order in which they came about, so that a base
is still stored by itself when it is needed. What the newest version of a lineage has stays as it was written.

No record goes before its successor is durable, which is the store's promise, so a crash anywhere loses work only: a
META row says up to where all pairs are done, and in a pair that is taken up again the deltas are passed over. Whoever
drives it checkpoints and punches when the bytes that the work returns are worth that.
"""

import logging
import os
import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from ckptfs.config import KIB, MIB
from ckptfs.errors import DamagedError, StoreReadOnlyError
from ckptfs.store import Bitmap, ChunkStore, DeltaCandidate, Table
from ckptfs.tree.dirent import decode_dirent
from ckptfs.tree.extents import has_manifest, load_manifest, part_numbers
from ckptfs.tree.inode import Inode
from ckptfs.tree.lineage import FileVersion, Pair, pairs
from ckptfs.tree.pairing import pair_chunks
from ckptfs.tree.rows import LIVE, Rows, split_epoch, split_name_prefix, with_next
from ckptfs.tree.tree import Tree

log = logging.getLogger(__name__)

Stop = Callable[[], bool]
Work = Callable[[Stop], int]
"""Bounded work; ends early, within the time of a chunk, when what it is given says so.

Returns the bytes of records that have successors now."""
Scan = Callable[[Table], Iterable[tuple[bytes, bytes]]]
State = tuple[int, int]
"""How far a tree has come: the next number of a content, and its open epoch. A later state is greater."""

NOTHING: State = (0, 0)

VERSION_SIZE_MIN = 4 * KIB
"""Smaller versions are left alone: the header of a record is a good part of them."""
PIECE_SIZE = 64 * MIB
"""Bytes of an older version, or of deltas to be stored by themselves, that one call goes through."""
BATCH_SIZE = 256 * MIB
"""Bytes of records with successors after which their places are freed: so much, and a piece more, is there twice."""

_META_DONE = b"optimized_until"
_DONE = struct.Struct(">Q")
_NUMBER = struct.Struct("<Q")
_ID_SIZE = 8
_DEPTH_MAX = 4096
"""A directory that was moved below what was once inside it must not make a path endless."""
_STOP_ROWS = 256
"""Rows between two looks at whether to stop."""


class Optimizer:
    """The optimizing of one tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._planned = NOTHING
        self._plan: _Plan | None = None
        self._pair: _Comparison | None = None
        self._checked: frozenset[int] = frozenset()
        self.done_bytes = 0
        """Bytes of older versions that were gone through."""
        self.done = NOTHING
        """The state up to which everything is done."""

    @property
    def state(self) -> State:
        """How far the tree has come."""
        return self._tree.rows.next_id, self._tree.rows.open_epoch

    @property
    def left_bytes(self) -> int:
        """The bytes of older versions that are planned and not gone through."""
        planned = sum(pair.older.size for pair in self._plan.pairs) if self._plan else 0
        return planned + (self._pair.left_bytes if self._pair else 0)

    def take(self) -> Work | None:
        """Return what is to be done next; None when nothing is, until the tree changes. StoreReadOnlyError."""
        if self._tree.store.read_only:
            raise StoreReadOnlyError(f"{self._tree.store.path} is open for reading only")
        plan = self._plan
        if plan is None:
            if self.state == self._planned:
                return None
            self._planned = self.state
            self._plan = _Plan(self._tree, self._checked)
            return self._plan.run
        if plan.restorable:
            return self._restore
        if self._pair is None:
            self._pair = self._begin(plan.pairs.popleft(), plan.kept)
        return self._compare

    def _begin(self, pair: Pair, kept: Bitmap) -> "_Comparison":
        tables = self._tree.rows.tables
        if not all(has_manifest(tables, version.manifest) for version in pair):  # collected since the plan was made
            return _Comparison(pair, iter(()))
        older = load_manifest(tables, pair.older.manifest, pair.older.size)
        newer = load_manifest(tables, pair.newer.manifest, pair.newer.size)
        return _Comparison(pair, pair_chunks(self._tree.reader, older, newer, kept))

    def finish(self) -> None:
        """Take over what the work that was taken has done, whether it came to its end or not."""
        plan = self._plan
        assert plan is not None
        plan.close()
        if not plan.is_complete:
            self._plan, self._planned = None, NOTHING
            return
        self._checked = plan.heads
        if self._pair is not None and self._pair.is_done:
            self._pair = None
        if self._pair is None:
            done = plan.pairs[0].stamp if plan.pairs else plan.limit
            if done != plan.done:
                plan.done = done
                self._tree.rows.tables.put(Table.META, _META_DONE, _DONE.pack(done))
            if not plan.pairs and not plan.restorable:
                self._plan, self.done = None, self._planned

    def _restore(self, stop: Stop) -> int:
        """Store deltas by themselves again."""
        assert self._plan is not None
        numbers = self._plan.restorable
        limit = self._tree.store.config.chunk_sizes.size_max
        piece = [numbers[index] for index in range(min(len(numbers), max(PIECE_SIZE // limit, 1)))]

        def taken() -> Iterator[int]:
            for number in piece:
                yield number
                numbers.popleft()  # it is asked for the next one, so this one is done

        return self._tree.store.reencoder.encode_plain(taken(), stop)

    def _compare(self, stop: Stop) -> int:
        """Go through a part of the older version of the pair."""
        assert self._pair is not None
        before = self._pair.left_bytes
        deltas = self._tree.store.reencoder.encode_deltas(self._pair.candidates(), stop)
        self.done_bytes += before - self._pair.left_bytes
        return deltas.before_bytes


class Progress(NamedTuple):
    """What a part of the work came to, in bytes of chunks and of older versions; `finished`: there is no more."""

    done_bytes: int
    left_bytes: int
    finished: bool


def optimize_part(optimizer: Optimizer, store: ChunkStore, stop: Stop, *, batch_size: int = BATCH_SIZE) -> Progress:
    """Encode what waits, then optimize, until `stop()` or for a batch, and free the places of what has a successor.

    For callers without a loop, in the owner's thread.
    """
    before, waiting_before = optimizer.done_bytes, store.waiting_bytes
    store.commit(checkpoint=True)
    unfreed = store.reencoder.encode_waiting(batch_size, stop).raw_bytes
    while unfreed < batch_size and not stop() and (work := optimizer.take()) is not None:
        try:
            unfreed += work(stop)
        finally:
            optimizer.finish()
    finished = unfreed < batch_size and not stop()
    store.commit(checkpoint=True)
    store.reclaimer.punch()
    encoded = waiting_before - store.waiting_bytes
    left = store.waiting_bytes + optimizer.left_bytes
    return Progress(encoded + optimizer.done_bytes - before, left, finished)


class _Comparison:
    """The comparison of one pair, as far as it has come."""

    def __init__(self, pair: Pair, chunks: Iterator[tuple[int, DeltaCandidate | None]]) -> None:
        self._pair = pair
        self._chunks = chunks
        self._waiting: DeltaCandidate | None = None
        self._offset = 0
        self.is_done = False

    @property
    def left_bytes(self) -> int:
        """The bytes of the older version that are left."""
        return 0 if self.is_done else self._pair.older.size - self._offset

    def candidates(self) -> Iterator[DeltaCandidate]:
        """Yield candidates for a piece; one counts as done when the next one is asked for."""
        stop = self._offset + PIECE_SIZE
        while self._waiting is not None or (self._offset < stop and self._advance()):
            if self._waiting is not None:
                yield self._waiting
                self._waiting = None

    def _advance(self) -> bool:
        """Go to the next chunk; False at the end."""
        following = None
        try:
            following = next(self._chunks, None)
        except DamagedError as error:
            log.warning("an earlier version of %s stays as it is: %s", os.fsdecode(self._pair.older.path), error)
        if following is None:
            self.is_done = True
            return False
        self._offset, self._waiting = following
        return True


class _StoppedError(Exception):
    """A plan was stopped before it was complete."""


class _Plan:
    """What there is to do, as of one moment; `run` finds it out, in any thread."""

    def __init__(self, tree: Tree, checked: frozenset[int]) -> None:
        self._store = tree.store
        self._checked = checked
        self._epochs = [*(snapshot.id for snapshot in tree.snapshots.all()), tree.rows.open_epoch]
        self.limit = tree.rows.next_id
        self.done = done_until(tree.rows)
        self.kept = Bitmap(tree.store.next_number)
        """Chunks of heads: they stay as they are."""
        self.heads: frozenset[int] = frozenset()
        """Manifests of versions that nothing succeeds."""
        self.restorable: deque[int] = deque()
        """Chunks of heads that are deltas."""
        self.pairs: deque[Pair] = deque()
        self.is_complete = False
        self._resources = ExitStack()
        tables = (Table.INODES, Table.DIRENTS, Table.MANIFESTS)
        self._view = self._resources.enter_context(self._store.view(tables, chunks=False))

    def close(self) -> None:
        """Let go of the rows that were looked at."""
        self._resources.close()

    def run(self, stop: Stop) -> int:
        """Fill in what there is to do; `is_complete` tells whether it was stopped before."""

        def scan(table: Table) -> Iterator[tuple[bytes, bytes]]:
            for count, row in enumerate(self._view.scan(table)):
                if count % _STOP_ROWS == 0 and stop():
                    raise _StoppedError
                yield row

        with suppress(_StoppedError):
            versions = file_versions(scan, self._epochs)
            found = pairs(versions.committed)
            self.heads = frozenset(versions.manifests.difference(pair.older.manifest for pair in found))
            for key, value in scan(Table.MANIFESTS):
                if (manifest := int.from_bytes(key[:_ID_SIZE], "big")) in self.heads:
                    self._keep(manifest, part_numbers(value))
            self.pairs.extend(pair for pair in found if pair.stamp >= self.done)
            self.is_complete = True
        return 0

    def _keep(self, manifest: int, packed: memoryview) -> None:
        """Keep the chunks of a head as they are, and note those that are deltas unless an earlier plan did."""
        self.kept.add_packed(packed)
        if manifest not in self._checked:
            numbers = (number for (number,) in _NUMBER.iter_unpack(packed) if number in self.kept)
            self.restorable.extend(self._store.reencoder.deltas_among(numbers))


class Versions(NamedTuple):
    """The file versions that somebody sees, and all manifests that are in use, those of interrupted files included."""

    committed: list[FileVersion]
    manifests: set[int]


def file_versions(scan: Scan, epochs: Sequence[int]) -> Versions:
    """Return the versions that one of these epochs (ascending, the open one last) sees; `scan` gives a table's rows."""
    paths = _Paths(scan)
    committed: dict[int, FileVersion] = {}
    manifests: set[int] = set()
    for prefix, row, until in with_next(scan(Table.INODES)):
        is_seen = until > LIVE or epochs[bisect_left(epochs, row.epoch)] < until
        if not row.value or not is_seen:
            continue
        inode = Inode.decode(int.from_bytes(prefix, "big"), row.value)
        if not inode.is_file or not inode.manifest:
            continue
        manifests.add(inode.manifest)
        live = until >= LIVE
        known = committed.get(inode.manifest)
        if not inode.flags and inode.size >= VERSION_SIZE_MIN and (known is None or live > known.live):
            path = paths.path(inode.ino)
            committed[inode.manifest] = FileVersion(
                inode.manifest, inode.predecessor, path, inode.size, live, inode.layout
            )
    return Versions(list(committed.values()), manifests)


class Uncompared:
    """The older versions that no comparison has gone through yet, as of the moment when it is made."""

    def __init__(self, tree: Tree) -> None:
        self._epochs = [*(snapshot.id for snapshot in tree.snapshots.all()), tree.rows.open_epoch]
        self._done = done_until(tree.rows)

    def size(self, scan: Scan) -> int:
        """Return their bytes, in any thread; `scan` gives the rows of that moment."""
        found = pairs(file_versions(scan, self._epochs).committed)
        return sum(pair.older.size for pair in found if pair.stamp >= self._done)


def uncompared_bytes(tree: Tree) -> int:
    """Return the bytes of older versions that no comparison has gone through yet; for callers without a loop."""
    return Uncompared(tree).size(tree.rows.tables.scan)


def done_until(rows: Rows) -> int:
    """Return the stamp below which all pairs are done."""
    return rows.meta_number(_META_DONE, 0, 1 << 64)


class _Paths:
    """The last path of every inode that ever had one."""

    def __init__(self, scan: Scan) -> None:
        self._last: dict[int, tuple[int, int, bytes]] = {}  # epoch, parent, name
        for key, value in scan(Table.DIRENTS):
            prefix, row = split_epoch(key, value)
            if row.value:
                entry = (row.epoch, *split_name_prefix(prefix))
                ino = decode_dirent(row.value).ino
                self._last[ino] = max(entry, self._last.get(ino, entry))

    def path(self, ino: int) -> bytes:
        """Return the path, as far up as there is one."""
        names: list[bytes] = []
        while (entry := self._last.get(ino)) is not None and len(names) < _DEPTH_MAX:
            names.append(entry[2])
            ino = entry[1]
        return b"/".join(reversed(names))
