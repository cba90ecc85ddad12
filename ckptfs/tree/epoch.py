"""What has happened in the open epoch: which files changed, how much was written, and when it was last touched.

Feeds the summary of the next snapshot and the rule that decides when an automatic one is due. The counters are
kept in a META row, so that they outlive the process.
"""

import json
from collections.abc import Callable

from ckptfs.config import KIB
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Table

_META_COUNTERS = b"epoch_counters"

HOLD_SECONDS = 30.0
"""How long steady activity, or a half-written file after its last write, may hold an automatic snapshot back."""
SAVE_SIZE_MIN = 64 * KIB
"""A file this large that is saved again before a snapshot was due is a version of its own; a small one is not."""
HOLD_SECONDS_MAX = 600.0
"""How long half-written files may hold it back in all."""


class OpenEpoch:
    """Notes on the open epoch. `pending` says whether a version worth a snapshot has been committed in it."""

    def __init__(self, store: ChunkStore, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._monotonic = monotonic
        self.changed: dict[int, str] = {}
        """Inode numbers of changed files, with the path where each change was seen last."""
        self.saves: set[int] = set()
        """Inode numbers of files that a completed save of this epoch has written, and of directories above such files.

        Not of those above a file changed in place: small ones beside it come and go all the time (SQLite)."""
        self.on_loss: Callable[[], None] = lambda: None
        """Called before a completed save of this epoch is replaced or removed; takes the snapshot due before."""
        self.last_activity = monotonic()
        self.first_commit: float | None = None
        saved = store.tables.get(Table.META, _META_COUNTERS)
        try:
            counters = json.loads(saved) if saved else {}
            self.written_bytes = int(counters.get("written_bytes", 0))
            self.pending = bool(counters.get("pending", False))
            self._stored_before = int(counters.get("stored_bytes", 0)) - store.appended_bytes
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"the counters of the open epoch cannot be read: {error}") from error
        if self.pending:
            self.first_commit = self.last_activity

    @property
    def stored_bytes(self) -> int:
        """Bytes that the packs have grown by in this epoch."""
        return self._stored_before + self._store.appended_bytes

    def active(self) -> None:
        """Note that the tree is being changed now."""
        self.last_activity = self._monotonic()

    def overwrite(self, ino: int) -> None:
        """Announce that another save takes a file's place: if this epoch holds the last one, it becomes a version."""
        if ino in self.saves:
            self.on_loss()

    def remove(self, ino: int, parent: int) -> None:
        """Announce that a file goes from a directory: if this epoch holds it and a save there, that becomes a version.

        The file may be small: whoever removes a save of several files need not begin with the large ones. Where the
        disk below has less room than this epoch has taken, files are removed to make room, and none is kept.
        """
        is_saved = ino in self.changed and (ino in self.saves or parent in self.saves)
        if is_saved and self._store.room() >= self.stored_bytes:
            self.on_loss()

    def committed(self, ino: int, path: str, written: int = 0, *, worthy: bool = True) -> None:
        """Note a committed change of a file; `worthy` ones ask for an automatic snapshot, appended logs do not."""
        if ino:
            self.changed[ino] = path
        self.written_bytes += written
        if worthy:
            self.active()
            if self.first_commit is None:
                self.first_commit = self.last_activity
            self.pending = True
        self._save()

    def restored(self, ino: int, path: str) -> None:
        """Note a file that a rollback changes; `settle` at its end keeps the counters."""
        self.changed[ino] = path

    def begin(self) -> None:
        """Start afresh for the epoch just opened."""
        self.changed.clear()
        self.saves.clear()
        self.written_bytes = 0
        self._stored_before = -self._store.appended_bytes
        self.settle()

    def settle(self) -> None:
        """Note that the state as it is needs no automatic snapshot."""
        self.pending = False
        self.first_commit = None
        self._save()

    def _save(self) -> None:
        counters = {"written_bytes": self.written_bytes, "stored_bytes": self.stored_bytes, "pending": self.pending}
        self._store.tables.put(Table.META, _META_COUNTERS, json.dumps(counters).encode())

    def due_in(self, settle: float, unfinished: float | None) -> float | None:
        """Return the seconds until an automatic snapshot is due (0: now), None where nothing asks for one.

        Due when nothing has changed for `settle` seconds. A file that is open and half written (`unfinished`: the
        time of the latest write to one) holds it back, since the save it belongs to goes on; steady activity
        without one is no single save and does so only for `HOLD_SECONDS`.
        """
        if not self.pending or self.first_commit is None:
            return None
        hold = max(HOLD_SECONDS, settle)
        if unfinished is not None:
            due = min(max(self.last_activity + settle, unfinished + hold), self.first_commit + HOLD_SECONDS_MAX)
        else:
            due = min(self.last_activity + settle, self.first_commit + hold)
        return max(due - self._monotonic(), 0.0)
