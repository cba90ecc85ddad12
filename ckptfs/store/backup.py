"""A backup: the packs of a store, copied into a directory that is then a store itself.

Packs only grow, so a backup that is brought up to date copies what was appended since. What is copied counts up to a
position behind which nothing of the source is taken, and is right as long as nothing was punched while it was copied:
a punched place is named by metadata that was appended before, or lies before the mark of the condensed journal, which
is copied in every round. The index is not copied but made from both, anew where that mark has moved on.

Hard links would not do: a pack that is punched later would lose bytes in the backup, too. `copy_range` shares them
where the disk below can. A backup that is cut short is taken up again; one that somebody has written to is refused.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ckptfs.config import MIB
from ckptfs.disk import Disk
from ckptfs.errors import DamagedError, NotAStoreError, StoreReadOnlyError
from ckptfs.lock import LOCK_NAME, StoreLock
from ckptfs.store import description, index_file
from ckptfs.store.chunkstore import ChunkStore
from ckptfs.store.condensed import NAME as CONDENSED_NAME
from ckptfs.store.condensed import Condensed
from ckptfs.store.directory import PACKS_NAME
from ckptfs.store.packfile import pack_name, pack_numbers
from ckptfs.store.packs import FIRST_PACK, PackIdentity
from ckptfs.store.records import Position
from ckptfs.store.seal import SUFFIX as SEAL_SUFFIX

STATE_NAME = "backup.json"
_PIECE_SIZE = 8 * MIB
_MAKING = {
    *(f"{name}{suffix}" for name in (STATE_NAME, description.NAME, CONDENSED_NAME) for suffix in ("", ".new")),
    PACKS_NAME,
    LOCK_NAME,
}
"""What there may be in a directory in which a first backup was cut short."""


class Cut(NamedTuple):
    """Up to where a backup goes, and how often the store had been punched when this was said."""

    position: Position
    punch_count: int


class BackupResult(NamedTuple):
    """What a backup has: `total_bytes` of packs, of which `copied_bytes` are new; holes do not count.

    `losses` has a sentence for each place where the source was found damaged; the backup has all else.
    """

    copied_bytes: int
    total_bytes: int
    losses: list[str]


def back_up(
    source: Path,
    destination: Path,
    cut: Callable[[], Cut],
    advance: Callable[[int], None],
    *,
    disk: Disk | None = None,
) -> BackupResult:
    """Bring the backup in `destination` up to the store in `source`, durably, and return what it has then.

    `cut` is asked before and after each round; `advance` is told of every byte that is copied. NotAStoreError when the
    destination is something else or the backup of another store, StoreReadOnlyError when it was changed since,
    StoreInUseError, NoSpaceError; DamagedError when packs of the source are missing or cut short.
    """
    disk = disk or Disk()
    backup = _Backup(source, destination, advance, disk)
    with StoreLock(destination, disk, shared=False):
        backup.begin()
        before = cut()
        while True:
            holes = backup.copy(before.position)
            backup.copy_condensed()
            after = cut()
            if after.punch_count == before.punch_count:
                break
            before = after
        backup.publish()
    # Opening it reads what was copied, so that it is known to be good, and makes its index.
    with ChunkStore.open(destination, disk=disk, salvage=True, follow=True) as store:
        position, losses = store.position, store.opening.losses
    with StoreLock(destination, disk, shared=False):
        backup.repeat_holes(holes)
        backup.remove_gone()
        backup.finish(position)
    return BackupResult(backup.copied_bytes, backup.total_bytes, losses)


class _Hole(NamedTuple):
    pack: int
    offset: int
    size: int


class _Backup:
    """One backup under way."""

    def __init__(self, source: Path, destination: Path, advance: Callable[[int], None], disk: Disk) -> None:
        self.copied_bytes = 0
        self.total_bytes = 0
        self._source = source
        self._destination = destination
        self._advance = advance
        self._disk = disk
        self._config = description.read(source, disk)
        self._done = Position(FIRST_PACK, 0)
        self._gone: list[int] = []
        if destination.exists() and not destination.is_dir():
            raise NotAStoreError(f"{destination} is no directory; a backup needs one of its own")
        disk.make_directory(destination)
        if (destination / description.NAME).exists():
            if description.read(destination, disk).seed != self._config.seed:
                raise NotAStoreError(f"{destination} is another store, not a backup of {source}")
        elif not _MAKING.issuperset(disk.list_names(destination)):
            raise NotAStoreError(f"{destination} is not empty; a backup needs a directory of its own")
        disk.make_directory(destination / PACKS_NAME)

    def begin(self) -> None:
        """Find out up to where the backup is good, and note that it is being written."""
        path = self._destination / STATE_NAME
        if path.exists():
            fd = self._disk.open_read(path)
            try:
                state = json.loads(self._disk.pread(fd, 4096, 0))
                self._done, copying = Position(*map(int, state["position"])), bool(state["copying"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise DamagedError(f"{path} cannot be read: {error!r}; make a backup in a new directory") from error
            finally:
                self._disk.close(fd)
            end = self._end()
            if copying and self._done > end:
                # What it says to have would not be copied.
                raise DamagedError(f"{path} says that the backup has more than it has; make one in a new directory")
            if not copying and end != self._done:
                raise StoreReadOnlyError(
                    f"{self._destination} was changed since the last backup; make one in a new directory"
                )
        elif (self._destination / description.NAME).exists():
            raise NotAStoreError(f"{self._destination} is a store but no backup of one")
        self._write_state(copying=True)

    def _end(self) -> Position:
        """Return the position where the backup's packs end."""
        packs = pack_numbers(self._disk.list_names(self._destination / PACKS_NAME))
        if not packs:
            return Position(FIRST_PACK, 0)
        fd = self._disk.open_read(self._destination / PACKS_NAME / pack_name(packs[-1]))
        try:
            return Position(packs[-1], self._disk.size(fd))
        finally:
            self._disk.close(fd)

    def copy(self, until: Position) -> list[_Hole]:
        """Copy the packs from where the backup is good up to a position; return the holes of the source."""
        holes: list[_Hole] = []
        self.total_bytes = 0
        self._gone = []
        for pack in range(FIRST_PACK, until.pack + 1):
            name = pack_name(pack)
            try:
                source = self._disk.open_read(self._source / PACKS_NAME / name)
            except FileNotFoundError:
                self._gone.append(pack)
                continue
            try:
                size = self._disk.size(source) if pack < until.pack else until.offset
                start = self._done.offset if pack == self._done.pack else size if pack < self._done.pack else 0
                found = list(self._data(source, size))
                self.total_bytes += sum(end - begin for begin, end in found)
                ends = [0, *(end for _, end in found)]
                begins = [*(begin for begin, _ in found), size]
                holes += [_Hole(pack, end, begin - end) for end, begin in zip(ends, begins, strict=True) if begin > end]
                if start < size:
                    self._copy_pack(source, self._destination / PACKS_NAME / name, found, start, size)
            finally:
                self._disk.close(source)
        self._disk.sync_directory(self._destination / PACKS_NAME)
        self._done = until
        return holes

    def copy_condensed(self) -> None:
        """Copy the condensed journal, durably; DamagedError where a pack is missing that it does not stand for."""
        source, target = (
            Condensed(directory, self._disk, PackIdentity(description.fingerprint(self._config), self._config.seed))
            for directory in (self._source, self._destination)
        )
        if source.path.exists() and source.mark != target.mark:
            fd = self._disk.open_read(source.path)
            try:
                self._disk.publish(target.path, bytes(self._disk.pread(fd, self._disk.size(fd), 0)))
            finally:
                self._disk.close(fd)
            # What lies between the end of the index and this mark may be gone.
            for name in (index_file.NAME, index_file.NAME + SEAL_SUFFIX):
                if (self._destination / name).exists():
                    self._disk.unlink(self._destination / name)
        for pack in self._gone:
            if source.mark is None or pack >= source.mark.position.pack:
                name = pack_name(pack)
                raise DamagedError(f"{name} of {self._source} is missing; repair the store first")

    def _data(self, fd: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield where a pack has data, as (start, end)."""
        start = self._disk.next_data(fd, 0)
        while start is not None and start < size:
            end = min(self._disk.next_hole(fd, start), size)
            yield start, end
            start = self._disk.next_data(fd, end) if end < size else None

    def _copy_pack(self, source: int, path: Path, data: list[tuple[int, int]], start: int, size: int) -> None:
        """Copy what has data from `start` on, and make it durable."""
        target = self._disk.open_write(path, create=True)
        try:
            self._disk.truncate(target, start, path)
            self._disk.truncate(target, size, path)
            for begin, end in data:
                offset = max(begin, start)
                while offset < end:
                    count = self._disk.copy_range(source, target, offset, min(_PIECE_SIZE, end - offset), path)
                    if not count:
                        raise DamagedError(f"{path.name} of {self._source} ends before its journal says so")
                    offset += count
                    self.copied_bytes += count
                    self._advance(count)
            self._disk.fdatasync(target, path)
        finally:
            self._disk.close(target)

    def publish(self) -> None:
        """Make the directory a store."""
        if not (self._destination / description.NAME).exists():
            description.write(self._destination, self._config, self._disk)
            self._disk.sync_directory(self._destination.parent)

    def repeat_holes(self, holes: list[_Hole]) -> None:
        """Give back to the disk what the source has given back; the backup knows that these places are free."""
        for hole in holes:
            path = self._destination / PACKS_NAME / pack_name(hole.pack)
            fd = self._disk.open_write(path)
            try:
                self._disk.punch(fd, hole.offset, hole.size, path)
            finally:
                self._disk.close(fd)

    def remove_gone(self) -> None:
        """Remove the packs that the source has removed; the index, made from the others, does not speak of them."""
        for pack in self._gone:
            path = self._destination / PACKS_NAME / pack_name(pack)
            if path.exists():
                self._disk.unlink(path)
        self._disk.sync_directory(self._destination / PACKS_NAME)

    def finish(self, position: Position) -> None:
        """Note durably up to where the backup is good."""
        self._done = position
        self._write_state(copying=False)

    def _write_state(self, *, copying: bool) -> None:
        state = {"position": list(self._done), "copying": copying}
        self._disk.publish(self._destination / STATE_NAME, (json.dumps(state) + "\n").encode())
