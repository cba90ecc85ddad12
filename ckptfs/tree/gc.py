"""Garbage collection: which manifests and chunks nothing needs any more.

Needed is what a row of an inode names that a snapshot or the live tree sees, and what an open file has. Collection
sees both at one moment, `look`, and marks in a thread while saves and loads go on:

- A chunk that a job got from the store before the collection began is in its file's content by `look`, which waits
  for those jobs; one that it gets later, the store keeps (`Sweeper.begin`).
- A manifest written after `look` has such chunks, or those of contents and manifests that were there at `look`.

So what is not marked can never be needed again. Manifests go first, then, when that is journalled, chunks. A crash
anywhere leaves something for the next collection. Belongs to the thread that owns the tree but where it says so.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import accumulate
from operator import add
from types import TracebackType
from typing import NamedTuple, Self

from ckptfs.errors import StoreReadOnlyError
from ckptfs.store import Bitmap, Reclamation, Swept, Table, View, never
from ckptfs.tree.extents import part_numbers
from ckptfs.tree.inode import manifest_of
from ckptfs.tree.rows import LIVE, with_next
from ckptfs.tree.tree import Tree

_STOP_ROWS = 256
"""Rows between two looks at whether to stop."""
ROWS_PER_STEP = 500
"""Rows that are deleted before the loop goes on to something else."""


class Collected(NamedTuple):
    """What a collection, or a part of one, freed, or would: chunks, their bytes when decoded, and those of the packs.

    `freed_bytes` is what the disk below gets back of the packs as they were when it began; `left_bytes` more come back
    in further parts, of which this is the last one when it is `finished`.
    """

    chunks: int
    raw_bytes: int
    freed_bytes: int
    left_bytes: int = 0
    finished: bool = True

    @classmethod
    def part(cls, swept: Swept, freed_bytes: int, rest: Reclamation) -> Self:
        """Return what a part of a collection came to, of which `rest` is left."""
        return cls(*swept, freed_bytes, rest.left_bytes, rest.is_done)


class Collection:
    """One collection; a context manager, whose steps are taken in the order in which they stand here."""

    def __init__(self, tree: Tree, *, dry_run: bool = False) -> None:
        """Begin; a `dry_run` is not going to change anything. StoreReadOnlyError where another one could not."""
        self._tree = tree
        self._store = tree.store
        if self._store.read_only and not dry_run:
            raise StoreReadOnlyError(f"{self._store.path} is open for reading only")
        self.end = self._store.position
        """Up to where the packs went when it began; all that it frees lies before."""
        self._needed = self._store.sweeper.begin()
        self._resources = ExitStack()
        self._resources.callback(self._store.sweeper.end)
        self._is_complete = False
        self._out = [(content, job) for content in tree.files.contents for job in content.jobs]
        self._dead_parts: list[bytes] = []
        self._unseen: list[tuple[bytes, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        self._tree.rows.has_garbage = self._tree.rows.has_garbage or not self._is_complete

    @property
    def can_look(self) -> bool:
        """Whether the jobs that were out when the collection began have given their chunks to their files."""
        return not any(job in content.jobs for content, job in self._out)

    def look(self) -> None:
        """Take in what there is at this moment."""
        assert self.can_look
        self._tree.rows.has_garbage = False
        self._tree.files.let_nameless_go()
        for content in self._tree.files.contents:
            self._needed.add_packed(content.extents.packed_numbers)
        self._epochs = [*(snapshot.id for snapshot in self._tree.snapshots.all()), self._tree.rows.open_epoch]
        self._manifests = Bitmap(self._tree.rows.next_id)
        self._view = self._resources.enter_context(self._store.view((Table.INODES, Table.MANIFESTS), chunks=False))

    def mark(self, stop: Callable[[], bool] = never) -> bool:
        """Mark what is needed, in any thread; False when it ended early because `stop()` was true."""
        for count, (prefix, row, until) in enumerate(with_next(self._view.scan(Table.INODES))):
            if until <= LIVE and self._epochs[bisect_left(self._epochs, row.epoch)] >= until:
                self._unseen.append((prefix, row.epoch, until))
            elif row.value:
                self._manifests.add(manifest_of(row.value))
            if count % _STOP_ROWS == 0 and stop():
                return False
        for count, (key, value) in enumerate(self._view.scan(Table.MANIFESTS)):
            if int.from_bytes(key[:8], "big") in self._manifests:
                self._needed.add_packed(part_numbers(value))
            else:
                self._dead_parts.append(key)
            if count % _STOP_ROWS == 0 and stop():
                return False
        return self._store.sweeper.need_bases(self._needed, stop)

    def preview(self, view: View) -> Collected:
        """Return what the rest of the collection would free, in any thread; the view has the rows of now."""
        return Collected(*self._store.reclaimer.preview(view, self._needed, self.end))

    def delete_rows(self, count_max: int) -> bool:
        """Delete some rows of inodes that nobody sees, and of manifests; returns whether there are more."""
        rows = self._tree.rows
        for prefix, epoch, until in self._unseen[-count_max:]:
            rows.erase(Table.INODES, prefix, epoch)
            newer = rows.find(Table.INODES, prefix, until)
            if newer is not None and not newer.value and rows.find(Table.INODES, prefix, newer.epoch - 1) is None:
                rows.erase(Table.INODES, prefix, newer.epoch)  # a tombstone that has nothing to hide any more
        del self._unseen[-count_max:]
        for key in self._dead_parts[-count_max:]:
            rows.tables.delete(Table.MANIFESTS, key)
        del self._dead_parts[-count_max:]
        return bool(self._unseen or self._dead_parts)

    def sweep(self, stop: Callable[[], bool] = never) -> Swept:
        """Release the chunks that nothing needs, in any thread, once everything before is journalled."""
        swept = self._store.sweeper.sweep(self._needed, stop)
        self._is_complete = not stop()
        return swept


def preview(tree: Tree) -> Collected:
    """Return what `collect` would free; for callers without a loop."""
    with Collection(tree, dry_run=True) as collection:
        collection.look()
        collection.mark()
        with tree.store.view() as view:
            return collection.preview(view)


def collect(tree: Tree) -> Collected:
    """Collect now, from beginning to end; for callers without a loop."""
    *_, whole = accumulate(collect_in_parts(tree, never), lambda one, two: Collected(*map(add, one[:3], two[:3])))
    return whole


def collect_in_parts(tree: Tree, is_over: Callable[[], bool]) -> Iterator[Collected]:
    """Collect now, and yield what came of it whenever `is_over()` says that a part is long enough, and at the end.

    For callers without a loop, who may change the tree between two parts.
    """
    with Collection(tree) as collection:
        collection.look()
        collection.mark()
        while collection.delete_rows(ROWS_PER_STEP):
            pass
        tree.store.commit(durable=False)
        swept = collection.sweep()
    tree.store.commit(checkpoint=True)
    reclamation = tree.store.reclaimer.begin(collection.end)
    freed_bytes = 0
    while True:
        while not (reclamation.is_done or is_over()):
            if reclamation.step():
                tree.store.commit(checkpoint=True)
        yield Collected.part(swept, reclamation.freed_bytes - freed_bytes, reclamation)
        if reclamation.is_done:
            return
        swept, freed_bytes = Swept(), reclamation.freed_bytes
