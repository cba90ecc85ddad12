"""The commands that people and scripts give about versions, with JSON-able answers.

One implementation serves the running daemon and the command line on a store that is not mounted. Paths are
relative to the root of the tree, "" being the root itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import count
from typing import Any

from ckptfs.errors import UsageError
from ckptfs.retention import parse_policy
from ckptfs.store import Encoding, JournalPart, Table, View, composition
from ckptfs.tree.check import Check
from ckptfs.tree.gc import Collected, collect_in_parts, preview
from ckptfs.tree.inode import Inode
from ckptfs.tree.optimize import Optimizer, Uncompared, optimize_part
from ckptfs.tree.rollback import RollbackResult
from ckptfs.tree.sizes import exclusive_sizes, is_quick
from ckptfs.tree.snapshots import Snapshot
from ckptfs.tree.tree import Tree

Answer = dict[str, Any]

PART_SECONDS = 1.0
"""How long a call of `Commands.optimize` or `gc` works."""
_JOURNAL_CHECKS_MAX = 2
"""So many checks of the journal may be under way: one that nobody goes on with keeps a pack open."""
COUNTED_TABLES = (Table.INODES, Table.DIRENTS)
"""What the figures of `Commands.stats` are counted from."""


def describe(snapshot: Snapshot) -> Answer:
    """Return a snapshot as the JSON object that `snapshot list --json` shows."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "created": snapshot.created,
        "trigger": snapshot.trigger,
        "label": snapshot.label,
        "changed_files": snapshot.changed_files,
        "written_bytes": snapshot.written_bytes,
        "stored_bytes": snapshot.stored_bytes,
        "paths": list(snapshot.paths),
    }


class Commands:
    """Commands on one tree. `last_rollback` is what the latest one touched, for the kernel's caches."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.last_rollback: RollbackResult | None = None
        self._optimizer = Optimizer(tree)
        self._collecting: Iterator[Collected] | None = None
        self._part_ends = 0.0
        self._journal_checks: dict[int, Iterator[JournalPart]] = {}
        self._check_numbers = count(1)

    def snapshot_list(self, path: str = "") -> list[Answer]:
        """Return the snapshots, oldest first; those that changed `path` if one is given. UsageError."""
        return [describe(snapshot) for snapshot in self.listed(path)]

    def listed(self, path: str = "") -> list[Snapshot]:
        """Return the snapshots that `snapshot_list` describes; UsageError."""
        return self._tree.history.changing(path) if path.strip("/") else self._tree.snapshots.all()

    def snapshot_create(self, name: str | None = None, label: str = "") -> Answer:
        """Take a snapshot of the present; SnapshotNameError."""
        return describe(self._tree.take_snapshot(name, "manual", label))

    def snapshot_show(self, ref: str) -> Answer:
        """Return one snapshot and the paths it changed; UnknownSnapshotError, AmbiguousSnapshotError."""
        snapshot = self._tree.snapshots.resolve(ref)
        return describe(snapshot) | {"changes": [change._asdict() for change in self._tree.history.changes(snapshot)]}

    def sizes_are_quick(self) -> bool:
        """Tell whether `snapshot_sizes` takes no more than about half a second."""
        return is_quick(self._tree.store)

    def snapshot_sizes(self, *, view: View | None = None) -> list[tuple[int, int]]:
        """Return the id of each snapshot and what deleting it would free, in bytes; for any thread, with a view."""
        with self._view(view) as view:
            sizes = exclusive_sizes(view, self._tree.rows.next_id, self._tree.store.next_number)
        return list(sizes.items())

    def composition(self, *, view: View | None = None) -> Answer:
        """Return what the chunks consist of, by encoding and by depth; for any thread, with a view."""
        with self._view(view) as view:
            encodings, depths = composition(view, self._tree.store.next_number)
        return {
            "encodings": {Encoding(encoding).name.lower(): asdict(share) for encoding, share in encodings.items()},
            "depths": [asdict(share) for share in depths],
        }

    def snapshot_rollback(self, ref: str, path: str = "") -> Answer:
        """Roll back; UnknownSnapshotError, AmbiguousSnapshotError, OpenFilesError, UsageError."""
        target = self._tree.snapshots.resolve(ref)
        saved, result = self._tree.roll_back(target, path)
        self.last_rollback = result
        return {
            "target": describe(target),
            "saved": describe(saved),
            "changed_files": len(result.changed_files),
            "removed_partial": sorted(result.removed_partial),
        }

    def snapshot_delete(self, refs: list[str]) -> list[Answer]:
        """Delete snapshots, all or none; UnknownSnapshotError, AmbiguousSnapshotError."""
        return self._delete(self.referred(refs))

    def referred(self, refs: list[str]) -> list[Snapshot]:
        """Return the snapshots that are meant, each once; UnknownSnapshotError, AmbiguousSnapshotError."""
        return list({snapshot.id: snapshot for snapshot in map(self._tree.snapshots.resolve, refs)}.values())

    def _delete(self, snapshots: list[Snapshot]) -> list[Answer]:
        for snapshot in self._tree.snapshots.in_turn(snapshots):
            self._tree.snapshots.delete(snapshot)
        return [describe(snapshot) for snapshot in snapshots]

    def prune(self, policy: str, *, dry_run: bool) -> list[Answer]:
        """Delete the snapshots that a policy (as `parse_policy` takes it) does not keep; return what they were."""
        removable = self.removable(policy)
        return [describe(snapshot) for snapshot in removable] if dry_run else self._delete(removable)

    def removable(self, policy: str) -> list[Snapshot]:
        """Return the snapshots that a policy does not keep; UsageError."""
        return parse_policy(policy).removable(self._tree.snapshots.all())

    def gc(self, *, dry_run: bool) -> Answer:
        """Free a part of what nothing needs any more, about a second's, or say what all would free."""
        if dry_run:
            return preview(self._tree)._asdict()
        if self._collecting is None:
            self._collecting = collect_in_parts(self._tree, self._is_part_over)
        self._part_ends = time.monotonic() + PART_SECONDS
        part = next(self._collecting)
        if part.finished:
            self._collecting = None
        return part._asdict()

    def _is_part_over(self) -> bool:
        return time.monotonic() >= self._part_ends

    def optimize(self) -> Answer:
        """Do a part of the work that idle time has, as much as a second takes; ask again until it is `finished`."""
        deadline = time.monotonic() + PART_SECONDS
        return optimize_part(self._optimizer, self._tree.store, lambda: time.monotonic() >= deadline)._asdict()

    # Checks, which are for any thread: one that is not the tree's owner brings a view with it.

    def check_structure(self, *, view: View | None = None) -> Answer:
        """Check the structure of the store; see `Check.structure`."""
        with self._view(view) as view:
            return Check(self._tree.store, view).structure()._asdict()

    def check_data(self, start: int, stop: int, size: int) -> Answer:
        """Verify a slice of the chunks; see `ChunkStore.verify`."""
        verified = self._tree.store.verify(start, stop, size)
        return verified._asdict() | {"damaged": list(verified.damaged.items())}

    def check_journal(self, check: int, size: int) -> Answer:
        """Do a part of a check of the journal; see `ChunkStore.check_journal`.

        A `check` of 0 begins one, and the answer has its number for the next part. UsageError where others were begun
        since, and this one was given up.
        """
        if not check:
            check = next(self._check_numbers)
            parts: Iterator[JournalPart] | None = self._tree.store.check_journal(size)
        else:
            parts = self._journal_checks.pop(check, None)
        if parts is None:
            raise UsageError("others have begun to check the journal, and this check of it was given up; try again")
        part = next(parts, None)
        if part is None:
            return {"check": check, "finished": True, **JournalPart([], 0, 0, 0)._asdict()}
        self._journal_checks[check] = parts
        for given_up in list(self._journal_checks)[:-_JOURNAL_CHECKS_MAX]:
            self._journal_checks.pop(given_up, None)
        return {"check": check, "finished": False, **part._asdict()}

    def check_files(self, damaged: list[tuple[int, str]], *, view: View | None = None) -> list[Answer]:
        """Return the ranges of files that lie in damaged chunks, given by number and reason; see `Check.files`."""
        with self._view(view) as view:
            return [found._asdict() for found in Check(self._tree.store, view).files(dict(damaged))]

    def backup_cut(self) -> Answer:
        """Return up to where a backup goes that is made now: pack, offset, and how often the packs were punched."""
        return {**self._tree.store.position._asdict(), "punch_count": self._tree.store.punch_count}

    def _view(self, view: View | None) -> AbstractContextManager[View]:
        return nullcontext(view) if view is not None else self._tree.store.view()

    def stats(self) -> Answer:
        """Return sizes and counts of the whole tree and its store."""
        with self._tree.store.view(COUNTED_TABLES, chunks=False) as view:
            return self.begin_stats()(view)

    def begin_stats(self) -> Callable[[View], Answer]:
        """Return what tells the figures of this moment, in any thread, from a view of COUNTED_TABLES taken now."""
        tree = self._tree
        stats = tree.store.stats()
        uncompared = Uncompared(tree)
        snapshots = len(tree.snapshots)
        interrupted = sorted(tree.names.path(inode.ino) for inode in tree.names.interrupted())

        def figures(view: View) -> Answer:
            live_bytes, version_bytes = _logical_bytes(view)
            return {
                "store": str(tree.store.path),
                "live_bytes": live_bytes,
                "version_bytes": version_bytes,
                "chunk_bytes": stats.raw_bytes,
                "delta_bytes": stats.delta_bytes,
                "stored_bytes": stats.stored_bytes,
                "waiting_bytes": stats.waiting_bytes,
                "uncompared_bytes": uncompared.size(view.scan),
                "chunks": stats.chunks,
                "snapshots": snapshots,
                "kernel": stats.kernel,
                "interrupted": interrupted,
            }

        return figures


def _logical_bytes(view: View) -> tuple[int, int]:
    """Return the bytes of all live files, and of all file versions that the live tree or a snapshot shows."""
    live_bytes = version_bytes = 0
    current: tuple[bytes, int, int] | None = None  # inode, live size, manifest of the row before
    for key, value in view.scan(Table.INODES):
        prefix = key[:-4]
        if current and current[0] != prefix:
            live_bytes += current[1]
            current = None
        inode = Inode.decode(0, value) if value else None
        size = inode.size if inode and inode.is_file else 0
        manifest = inode.manifest if inode else 0
        if current is None or manifest != current[2]:
            version_bytes += size
        current = (prefix, size, manifest)
    return live_bytes + (current[1] if current else 0), version_bytes
