"""Snapshots: named epochs. Taking, finding and deleting them.

Taking one is O(1): the open epoch gets a name and the next one opens. Deleting one is O(what it changed): the rows
that only it saw go. Belongs to the thread that owns the tables.
"""

import difflib
import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from ckptfs.errors import AmbiguousSnapshotError, DamagedError, SnapshotNameError, UnknownSnapshotError
from ckptfs.store import Table
from ckptfs.tree.epoch import OpenEpoch
from ckptfs.tree.rows import LIVE, Rows

LATEST = "latest"
NAME_MAX = 255
PATHS_SHOWN = 3
ROWS_PER_STEP = 100
"""Rows that a deletion goes through in one step, which takes about a millisecond."""

_LATEST_REF = re.compile(r"latest(?:~(\d+))?")


class Snapshot(NamedTuple):
    """One snapshot. `id` is its epoch; `stored_bytes` is what the packs grew by while it came about."""

    id: int
    name: str
    created_ns: int
    trigger: str
    label: str
    changed_files: int
    written_bytes: int
    stored_bytes: int
    paths: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the row's value: JSON of everything but the id, which is the key."""
        fields = self._asdict()
        del fields["id"]
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, epoch: int, value: bytes) -> "Snapshot":
        """Return the snapshot of a row's value; DamagedError when it is none."""
        if not 0 < epoch < LIVE:
            raise DamagedError(f"the row of snapshot {epoch} has a number that no snapshot can have")
        try:
            fields = json.loads(value.decode())  # of bytes it would guess the encoding, ten thousand times
            fields["paths"] = tuple(fields["paths"])
            snapshot = cls(id=epoch, **fields)
            os.fsencode(snapshot.name)  # a name and a time that can be shown
            snapshot._moment()
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DamagedError(f"the row of snapshot {epoch} cannot be read: {error}") from error
        return snapshot

    @property
    def created(self) -> str:
        """The time it was taken, RFC 3339 in UTC with milliseconds."""
        return self._moment().isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.created_ns // 1_000_000 / 1000, UTC)


class Snapshots:
    """All snapshots of a tree, kept in memory in the order of their ids and in their table."""

    def __init__(self, rows: Rows, epoch: OpenEpoch) -> None:
        self._rows = rows
        self._epoch = epoch
        self._by_id: dict[int, Snapshot] = {}
        for key, value in rows.tables.scan(Table.SNAPSHOTS, b"", b"\xff" * 9):
            snapshot = Snapshot.decode(int.from_bytes(key, "big"), value)
            self._by_id[snapshot.id] = snapshot
        self._ids = list(self._by_id)
        self._by_name = {snapshot.name: snapshot for snapshot in self._by_id.values()}

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> list[Snapshot]:
        """Return all snapshots, oldest first."""
        return list(self._by_id.values())

    def has(self, epoch: int) -> bool:
        """Whether there is a snapshot of this id."""
        return epoch in self._by_id

    def named(self, name: str) -> Snapshot | None:
        """Return the snapshot of exactly this name."""
        return self._by_name.get(name)

    def latest(self) -> Snapshot | None:
        """Return the newest snapshot."""
        return self._by_id[self._ids[-1]] if self._ids else None

    def before(self, epoch: int) -> int:
        """Return the id of the newest snapshot older than `epoch`, 0 where there is none."""
        index = bisect_left(self._ids, epoch)
        return self._ids[index - 1] if index else 0

    def after(self, epoch: int) -> int:
        """Return the id of the oldest snapshot newer than `epoch`, or `LIVE`."""
        index = bisect_left(self._ids, epoch + 1)
        return self._ids[index] if index < len(self._ids) else LIVE

    def resolve(self, ref: str) -> Snapshot:
        """Return the snapshot meant by a number, a name, a unique prefix, `latest` or `latest~N`.

        UnknownSnapshotError names the nearest ones, AmbiguousSnapshotError what the prefix could mean.
        """
        if match := _LATEST_REF.fullmatch(ref):
            back = int(match[1] or 0)
            if back < len(self._by_id):
                return self.all()[-1 - back]
            raise UnknownSnapshotError(f"{ref}: there are only {len(self._by_id)} snapshots")
        if ref in self._by_name:
            return self._by_name[ref]
        if ref.isascii() and ref.isdigit() and int(ref) in self._by_id:
            return self._by_id[int(ref)]
        matches = [name for name in self._by_name if ref and name.startswith(ref)]
        if len(matches) == 1:
            return self._by_name[matches[0]]
        if matches:
            shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise AmbiguousSnapshotError(f"{ref!r} could mean {len(matches)} snapshots: {shown}")
        near = difflib.get_close_matches(ref, [*self._by_name, LATEST], n=3, cutoff=0.3)
        hint = f"; the nearest are {', '.join(near)}" if near else "; there is none yet" if not self._by_id else ""
        raise UnknownSnapshotError(f"no snapshot {ref!r}{hint}")

    def check_name(self, name: str) -> None:
        """Refuse a name that is taken or that could not be a directory or a reference; SnapshotNameError."""
        if name in self._by_name:
            raise SnapshotNameError(f"there is already a snapshot {name!r}")
        printable = name.isprintable()  # bytes that are not UTF-8 arrive as lone surrogates, which are not
        if not printable or not name or len(os.fsencode(name)) > NAME_MAX or name in (".", "..") or "/" in name:
            raise SnapshotNameError(f"{name!r} cannot be the name of a snapshot")
        if name.isdigit() or _LATEST_REF.fullmatch(name):
            raise SnapshotNameError(f"{name!r} cannot be a snapshot's name: it would be read as a reference")

    def take(self, name: str | None, trigger: str, label: str, now_ns: int) -> Snapshot:
        """Freeze the open epoch under a name (None: the time); SnapshotNameError."""
        if name is None:
            name = self._time_name(now_ns)
        self.check_name(name)
        paths = sorted(set(self._epoch.changed.values()))
        snapshot = Snapshot(
            id=self._rows.open_epoch,
            name=name,
            created_ns=now_ns,
            trigger=trigger,
            label=label,
            changed_files=len(paths),
            written_bytes=self._epoch.written_bytes,
            stored_bytes=self._epoch.stored_bytes,
            paths=tuple(paths[:PATHS_SHOWN]),
        )
        self._rows.open_next_epoch()
        self._rows.tables.put(Table.SNAPSHOTS, snapshot.id.to_bytes(4, "big"), snapshot.encode())
        self._rows.tables.put(Table.NAMES, name.encode(), snapshot.id.to_bytes(4, "big"))
        self._by_id[snapshot.id] = self._by_name[name] = snapshot
        self._ids.append(snapshot.id)
        self._epoch.begin()
        return snapshot

    def _time_name(self, now_ns: int) -> str:
        stem = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).strftime("%Y%m%d-%H%M%S")
        name, count = stem, 1
        while name in self._by_name:
            count += 1
            name = f"{stem}-{count}"
        return name

    def in_turn(self, snapshots: Iterable[Snapshot]) -> Iterator[Snapshot]:
        """Yield snapshots that are to be deleted, as far as they are still there, newest first.

        So the rows that stay are looked at once, and not again with each snapshot behind them.
        """
        return (snapshot for snapshot in sorted(snapshots, reverse=True) if snapshot.id in self._by_id)

    def delete(self, snapshot: Snapshot) -> None:
        """Delete a snapshot and the rows that only it saw."""
        for _ in self.deletion(snapshot):
            pass

    def deletion(self, snapshot: Snapshot, *, rows_per_step: int = ROWS_PER_STEP) -> Iterator[None]:
        """Delete a snapshot in short steps: it is gone after the first one, and the tree may change between them.

        The others erase the rows that only it saw. Where they are cut short, those rows belong to the next snapshot,
        and go with it.
        """
        rows = self._rows
        previous = self.before(snapshot.id)
        rows.tables.delete(Table.SNAPSHOTS, snapshot.id.to_bytes(4, "big"))
        rows.tables.delete(Table.NAMES, snapshot.name.encode())
        rows.has_garbage = True
        del self._by_id[snapshot.id], self._by_name[snapshot.name], self._ids[bisect_left(self._ids, snapshot.id)]
        yield
        for count, (epoch, (table, prefix)) in enumerate(rows.changes(previous, snapshot.id), 1):
            self._erase_unseen(table, prefix, epoch)
            if count % rows_per_step == 0:
                yield

    def _erase_unseen(self, table: Table, prefix: bytes, epoch: int) -> None:
        """Erase a row that no snapshot sees any more, and a tombstone that has nothing to hide then."""
        rows = self._rows
        following = self.after(epoch - 1)
        seen_next = rows.find(table, prefix, following if following != LIVE else rows.open_epoch)
        own = rows.find(table, prefix, epoch)
        if own is None or own.epoch != epoch or seen_next is None:
            return  # erased meanwhile
        if seen_next.epoch > epoch or (own.value == b"" and rows.find(table, prefix, epoch - 1) is None):
            rows.erase(table, prefix, epoch)
        is_tombstone = seen_next.epoch > epoch and seen_next.value == b""
        if is_tombstone and rows.find(table, prefix, seen_next.epoch - 1) is None:
            rows.erase(table, prefix, seen_next.epoch)
