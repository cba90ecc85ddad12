"""The tree: the door to names, files and versions of one store.

Everything here is synchronous and belongs to one thread, except what `take_job`, `ReadPlan` and the journal hand
out for worker threads. What was done to the tree is durable once the store's journal has it (`docs/design.md`).
"""

import os
import time
from collections.abc import Callable

from ckptfs.errors import DamagedError, StoreReadOnlyError
from ckptfs.store import ChunkStore, Table
from ckptfs.tree.epoch import OpenEpoch
from ckptfs.tree.files import Files
from ckptfs.tree.history import History
from ckptfs.tree.inode import INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from ckptfs.tree.namespace import Namespace, Owner
from ckptfs.tree.reader import ChunkReader
from ckptfs.tree.rollback import Rollback, RollbackResult
from ckptfs.tree.rows import LIVE, Rows, id_prefix
from ckptfs.tree.snapshots import Snapshot, Snapshots
from ckptfs.tree.xattrs import Xattrs


class Tree:
    """A versioned tree of files in a chunk store."""

    def __init__(
        self,
        store: ChunkStore,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.wall_ns = wall_ns
        self.reader = ChunkReader(store)
        self.rows = Rows(store.tables)
        self.epoch = OpenEpoch(store, monotonic)
        self.names = Namespace(self.rows, self.epoch, wall_ns)
        self.xattrs = Xattrs(self.names)
        self.files = Files(store, self.reader, self.names, monotonic)
        self.snapshots = Snapshots(self.rows, self.epoch)
        self.history = History(self.names, self.snapshots)
        self.epoch.on_loss = self._keep_save
        if self.rows.get(Table.INODES, id_prefix(ROOT_INO)) is None:
            self._make_root()
        elif not store.read_only:
            self._mark_unfinished()
        if not store.read_only:
            self.rows.keep_numbers()
        self._knows_open_epoch = False

    def _make_root(self) -> None:
        """Make the root directory of a new tree; DamagedError where it is lost, unless all rows come from a salvage."""
        store = self.store
        if store.has_journal and not store.is_salvaged:
            raise DamagedError(
                f"the index of {store.path} has no root directory, and must have one; "
                "`ckptfs repair --rebuild-index` makes it anew from the packs"
            )
        if store.read_only:
            raise StoreReadOnlyError(f"{store.path} is an empty store; mount it writable once")
        self.names.create_root(Owner(os.geteuid(), os.getegid()), [snapshot.id for snapshot in self.snapshots.all()])
        if store.has_journal:
            store.opening.losses.append("the root directory was lost, and with it its owner and mode; it is made anew")

    def _mark_unfinished(self) -> None:
        """Mark files that were being created when the last process ended without closing them."""
        for table, prefix in list(self.rows.live_only()):
            row = self.rows.find(table, prefix)
            if table is Table.INODES and row is not None and row.epoch == LIVE:
                inode = Inode.decode(int.from_bytes(prefix, "big"), row.value)
                if inode.flags == UNCOMMITTED:
                    self.names.put_inode(inode._replace(flags=UNCOMMITTED | INTERRUPTED))

    def _keep_save(self) -> None:
        """Take the snapshot that a completed save has coming, before it is replaced or removed."""
        self.take_snapshot(trigger="auto")

    def attributes(self, ino: int, epoch: int = LIVE) -> Inode:
        """Return an inode's attributes as seen now (or by a snapshot), those of an open file included; ESTALE."""
        file = self.files.get(ino) if epoch == LIVE else None
        return self.files.attributes(file) if file else self.names.inode(ino, epoch)

    def take_snapshot(self, name: str | None = None, trigger: str = "manual", label: str = "") -> Snapshot:
        """Freeze the present state; SnapshotNameError."""
        if not self._knows_open_epoch:  # what earlier processes did in it; nobody else needs it, and it costs time
            self.history.refresh_open_epoch()
            self._knows_open_epoch = True
        return self.snapshots.take(name, trigger, label, self.wall_ns())

    def roll_back(self, target: Snapshot, path: str = "") -> tuple[Snapshot, RollbackResult]:
        """Make the live tree (or a path of it) what `target` shows; returns the snapshot of the state left behind.

        UsageError or OpenFilesError, and then nothing has changed. DamagedError where a row is damaged that is needed;
        then the snapshot may have been taken, and nothing else has changed.
        """
        rollback = Rollback(self.names, self.xattrs, self.files, target.id, path)
        rollback.check()
        saved = self.take_snapshot(None, "rollback", f"before the rollback to {target.name}")
        try:
            with self.names.all_or_none():
                result = rollback.run()
        except BaseException as error:
            self.epoch.begin()  # as the snapshot left it
            if isinstance(error, (DamagedError, OSError)):
                raise DamagedError(f"{error}; nothing was rolled back, see `ckptfs check`") from error
            raise
        self.epoch.settle()
        return saved, result

    def commit(self) -> None:
        """Make everything done so far durable; for callers without a loop."""
        self.store.commit()

    def close(self) -> None:
        """Make everything durable and close the store."""
        if not self.store.read_only:
            self.store.commit()
        self.store.close()
