"""The packs: append-only files of records, the truth of a store.

Packs owns the files `packs/00000001.pack ...`: where the next record goes, what is not durable yet, and how records
are found again. It does not know what chunks or metadata mean. Every method may be called from any thread.

An appended record survives a kill of the process at once, and a power cut once a `sync` that began after the append
has returned. An append that fails leaves nothing behind: the position stays, and what was torn is cut off before
the next append. After a failed sync every later one fails too, until the store is opened again: the kernel may
have dropped the pages it could not write.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ckptfs.config import FORMAT_VERSION, MIB
from ckptfs.disk import CANNOT_PUNCH, Disk
from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.appender import Appender, Prepared
from ckptfs.store.packfile import Found, Gap, PackFile, PackWindow, PayloadWanted, Run, Skipped, pack_name, pack_numbers
from ckptfs.store.records import Appendable, Header, Place, Position, Record, RecordBytes
from ckptfs.store.scan import FreedAt, Scan, nothing_freed

logger = logging.getLogger(__name__)

PACK_SIZE_MAX = 512 * MIB
"""A pack that has reached this size gets no more records; the last append may reach beyond it."""

FIRST_PACK = 1
_OPEN_PACKS_MAX = 32


class PackIdentity(NamedTuple):
    """What the header of every pack of a store is made from."""

    fingerprint: int
    seed: int


def _no_payload(_position: Position, _header: Header) -> bool:
    return False


class Packs:
    """The packs of one store; `position` is where the next record goes."""

    def __init__(
        self, directory: Path, disk: Disk, identity: PackIdentity, *, pack_size_max: int = PACK_SIZE_MAX
    ) -> None:
        self.position = Position(FIRST_PACK, 0)
        self.synced = Position(FIRST_PACK, 0)
        self.appended_bytes = 0
        self._directory = directory
        self._disk = disk
        self.identity = identity
        self.pack_size_max = pack_size_max
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._appender = Appender(disk)
        self._writer: PackFile | None = None
        self._torn = False
        self._dirty: dict[int, PackFile] = {}
        self._directory_dirty = False
        self._sync_error: str | None = None
        self._readers: OrderedDict[int, PackFile] = OrderedDict()
        self._readers_lock = threading.Lock()
        self._can_punch: bool | None = None
        self.punch_count = 0
        """How often places were punched or packs removed."""

    def path(self, pack: int) -> Path:
        """Return the path of a pack."""
        return self._directory / pack_name(pack)

    def place(self, position: Position) -> str:
        """Name a position for a message."""
        return f"{self.path(position.pack)} at offset {position.offset}"

    def numbers(self) -> list[int]:
        """Return the numbers of the packs that exist, ascending; other names in the directory are left alone."""
        return pack_numbers(self._disk.list_names(self._directory))

    def sizes(self) -> dict[int, int]:
        """Return the size of each pack in bytes, holes included, in the order of their numbers."""
        return {pack: self.size(pack) for pack in self.numbers()}

    def size(self, pack: int) -> int:
        """Return the size of a pack in bytes, holes included; 0 when there is none."""
        path = self.path(pack)
        try:
            file = PackFile(self._disk, path, self._disk.open_read(path))
        except FileNotFoundError:
            return 0
        return self._disk.size(file.fd)

    def stored_size(self, pack: int) -> int:
        """Return the bytes that a pack takes on the disk below."""
        return self._disk.stored_size(self.path(pack))

    # Writing

    def append(self, batch: Sequence[Appendable]) -> list[Position]:
        """Append records in one write and return their positions; not durable before the next `sync`."""
        with self._lock:
            self._mend()
            pack, offset = self.position
            header: tuple[RecordBytes, ...] = ()
            if self._writer is None or offset >= self.pack_size_max:
                pack, offset, header = self._open_pack(pack, offset)
            assert self._writer is not None
            start = offset
            ends = [*accumulate((records.size for records in (*header, *batch)), initial=offset)]
            positions = [Position(pack, at) for at in ends[len(header) : -1]]
            # Dirty from here on, also when the write fails: what it leaves is cut off or overwritten, and synced.
            self._dirty[pack] = self._writer
            try:
                self._appender.write(self._writer, (*header, *batch), start)
            except BaseException:
                self._cut_torn(start)
                raise
            self.position = Position(pack, ends[-1])
            self.appended_bytes += ends[-1] - start
            return positions

    def prepare(self, batch: Sequence[Appendable], position: Position) -> AbstractContextManager[Prepared]:
        """Build records for the body to append, while others do; best at `position`, if that is reached then."""
        return self._appender.prepare(batch, position.offset)

    def _mend(self) -> None:
        """Cut off what a failed append left and could not cut off then."""
        if self._torn and self._writer is not None:
            self._disk.truncate(self._writer.fd, self.position.offset, self._writer.path)
            self._torn = False

    def _open_pack(self, pack: int, offset: int) -> tuple[int, int, tuple[RecordBytes, ...]]:
        """Open the pack to append to, a new one when it is time; return where to go on, and its header if it is new."""
        if 0 < offset < self.pack_size_max:
            self._writer = self._open_to_write(pack, direct_mode=os.O_WRONLY)
            return pack, offset, ()
        # At offset 0 a salvage goes on in a pack of its own, or the store is new.
        pack, previous_size = pack + 1 if offset else pack, offset or self.size(pack - 1)
        return pack, 0, (self._begin_pack(pack, previous_size),)

    def _begin_pack(self, pack: int, previous_size: int) -> RecordBytes:
        """Make a pack and return its header record, which goes to its beginning."""
        # Whatever has this name is what a failed append left: the position is always behind all that counts.
        self._writer = self._open_to_write(pack, create=True, direct_mode=os.O_WRONLY)
        self._directory_dirty = True
        return self._header(pack, previous_size)

    def _header(self, pack: int, previous_size: int) -> RecordBytes:
        identity = self.identity
        return records.build_pack_header(
            pack, FORMAT_VERSION, identity.fingerprint, identity.seed, previous_size=previous_size
        )

    def _cut_torn(self, size: int) -> None:
        """Cut off what a failed append left, now or, when the disk refuses, before the next append."""
        assert self._writer is not None
        writer, self._torn = self._writer, size > 0
        if size == 0:
            # A new pack that did not come to be: the next append makes it again, from nothing.
            self._writer = None
        try:
            self._disk.truncate(writer.fd, size, writer.path)
        except Exception as error:
            logger.info("%s keeps a torn end until the next append: %s", writer.path, error)
            return
        self._torn = False

    def sync(self) -> Position:
        """Make durable what was appended before this call, and return the position up to which all is."""
        with self._sync_lock:
            if self._sync_error is not None:
                raise OSError(f"an earlier sync failed, open the store again: {self._sync_error}")
            with self._lock:
                position = self.position
                dirty, self._dirty = self._dirty, {}
                directory_dirty, self._directory_dirty = self._directory_dirty, False
            try:
                for _, file in sorted(dirty.items()):
                    self._disk.fdatasync(file.fd, file.path)
                if directory_dirty:
                    self._disk.sync_directory(self._directory)
            except Exception as error:
                self._sync_error = str(error)  # without its traceback, which would keep the files open
                raise
            self.synced = position
            return position

    def resume(self, synced: Position, position: Position) -> None:
        """Go on at `position` after a replay; what lies behind `synced` may not be durable yet and is synced next."""
        with self._lock:
            self.position, self.synced = position, synced
            for pack in self.numbers():
                if synced.pack <= pack <= position.pack:
                    self._dirty[pack] = self._open_to_write(pack)
            self._directory_dirty = True

    def truncate(self, position: Position) -> None:
        """Cut off, durably, everything from `position` on; later packs are removed first, the last one first."""
        with self._lock:
            self._writer = None
            self._dirty.clear()
            with self._readers_lock:
                self._readers.clear()
            kept = position.pack if position.offset else position.pack - 1
            for pack in reversed(self.numbers()):
                if pack > kept:
                    self._disk.unlink(self.path(pack))
            self._disk.sync_directory(self._directory)
            if position.offset:
                file = self._open_to_write(position.pack)
                if self._disk.size(file.fd) > position.offset:
                    self._disk.truncate(file.fd, position.offset, file.path)
                    self._disk.fdatasync(file.fd, file.path)

    def make_missing(self, start: int, until: int) -> None:
        """Put a pack that has only its header in the place of each lost one, from `start` to before `until`."""
        sizes = self.sizes()
        for pack in range(start, until):
            if sizes.get(pack, 0) < records.HEADER_SIZE:
                header = self._header(pack, self.size(pack - 1))
                self._disk.publish(self.path(pack), b"".join(header.buffers))

    @property
    def can_punch(self) -> bool:
        """Whether the disk below can free a part of a file, as far as that is known."""
        if self._can_punch is None and (packs := self.numbers()):
            self._can_punch = self._disk.can_punch(self._open_to_write(packs[-1]).fd)
        return self._can_punch is not False

    def _open_to_write(self, pack: int, *, create: bool = False, direct_mode: int | None = None) -> PackFile:
        path = self.path(pack)
        fd = self._disk.open_write(path, create=create, empty=create)
        return PackFile(self._disk, path, fd, direct_mode=direct_mode)

    def punch(self, place: Place) -> int:
        """Free the whole pages of a place for good, and return their bytes; 0 where the disk below cannot.

        That the place is free has to be durable before: nothing but zeros is read there afterwards. A pack that was
        removed has nothing to free.
        """
        if not self.can_punch:
            return 0
        try:
            file = self._open_to_write(place.pack)
        except FileNotFoundError:
            return 0
        self.punch_count += 1  # before, so that whoever sees no change has read no hole
        try:
            return self._disk.punch(file.fd, place.offset, place.size, file.path)
        except OSError as error:
            if error.errno not in CANNOT_PUNCH:
                raise
            logger.info("%s: the disk below cannot free a part of a file", file.path)
            self._can_punch = False
            return 0

    def remove(self, pack: int) -> int:
        """Remove a pack that nothing needs, durably, and return the bytes that it took on the disk below."""
        path = self.path(pack)
        size = self._disk.stored_size(path)
        self.punch_count += 1  # as for a hole
        with self._lock, self._readers_lock:
            self._dirty.pop(pack, None)
            self._readers.pop(pack, None)
        self._disk.unlink(path)
        self._disk.sync_directory(self._directory)
        return size

    def begin_next(self) -> None:
        """Begin the next pack now: the one before gets no more records."""
        with self._lock:
            self._mend()
            pack = self.position.pack + 1
            header = self._begin_pack(pack, self.position.offset)
            assert self._writer is not None
            self._dirty[pack] = self._writer
            try:
                self._appender.write(self._writer, [header], 0)
            except BaseException:
                self._cut_torn(0)
                raise
            self.position = Position(pack, header.size)

    def data(self, pack: int) -> list[tuple[int, int]]:
        """Return where a pack has data rather than holes, as start and end of each run."""
        file = self._reader(pack)
        runs = []
        size = self._disk.size(file.fd)
        start = self._disk.next_data(file.fd, 0) if size else None
        while start is not None and start < size:
            end = min(self._disk.next_hole(file.fd, start), size)
            runs.append((start, end))
            start = self._disk.next_data(file.fd, end) if end < size else None
        return runs

    def close(self) -> None:
        """Let go of all files; nothing is synced."""
        with self._lock, self._readers_lock:
            self._writer = None
            self._dirty.clear()
            self._readers.clear()

    # Reading

    def read_record(self, position: Position, stored_size: int, base_count: int) -> Record:
        """Read one record whose sizes are known, in one call; DamagedError when its header does not hold."""
        data = memoryview(bytearray(records.HEADER_SIZE + 8 * base_count + stored_size))
        return self.parse_record(position, data[: self.read_into(position, [data])], stored_size, base_count)

    def read_headers(self, positions: Iterable[Position]) -> Iterator[Header | None]:
        """Yield the header of the record at each position, None where there is none; best in the order of the packs."""
        pack, window = 0, None
        for position in positions:
            if position.pack != pack:
                pack, window = position.pack, None
                with suppress(FileNotFoundError):
                    window = PackWindow(self._disk, self._reader(pack), _no_payload)
            yield None if window is None else window.header(position.offset)

    def read_into(self, position: Position, buffers: Sequence[memoryview]) -> int:
        """Fill buffers with the bytes of a pack from a position on, in one call, and return how many there are."""
        return self._disk.pread_into(self._existing(position.pack).fd, buffers, position.offset)

    def read_run(self, position: Position, size: int, buffer: memoryview) -> memoryview:
        """Return the bytes of a pack from a position on, as `PackFile.read`."""
        return self._existing(position.pack).read(position.offset, size, buffer)

    def _existing(self, pack: int) -> PackFile:
        try:
            return self._reader(pack)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.path(pack)} is missing") from error

    def parse_record(self, position: Position, data: memoryview, stored_size: int, base_count: int) -> Record:
        """Return the record in `data`, whose place and sizes are known; DamagedError when it is another."""
        header = records.parse_header(data)
        if header is None or len(data) != records.HEADER_SIZE + 8 * base_count + stored_size:
            raise DamagedError(f"{self.place(position)}: no intact record")
        if header.stored_size != stored_size or header.base_count != base_count:
            raise DamagedError(f"{self.place(position)}: the record has another size than the index says")
        return records.parse_body(header, data[records.HEADER_SIZE :])

    def _reader(self, pack: int) -> PackFile:
        """Return an open pack for reading; the least recently used one is let go when too many are open."""
        with self._readers_lock:
            file = self._readers.get(pack)
            if file is None:
                path = self.path(pack)
                file = PackFile(self._disk, path, self._disk.open_read(path), direct_mode=os.O_RDONLY)
                self._readers[pack] = file
                if len(self._readers) > _OPEN_PACKS_MAX:
                    self._readers.popitem(last=False)
            else:
                self._readers.move_to_end(pack)
            return file

    def scan(
        self,
        start: Position,
        freed_at: FreedAt = nothing_freed,
        *,
        payload_wanted: PayloadWanted | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> Iterator[Found | Gap | Skipped]:
        """Yield every intact record from `start` on, checksums verified, and a Gap for each place without one.

        After a Gap the scan goes on at the next header that holds. Pack headers are checked, not yielded. Where no
        intact record is, `freed_at` says whether that lies in a freed place, which is then Skipped to its end. A record
        whose payload is not wanted comes without it, unverified. `on_read` is told of the bytes that are read.
        """
        scan = Scan(self, self._disk, freed_at, payload_wanted, on_read)
        return (item for item in scan.run(start) if not isinstance(item, Run))

    def scan_runs(self, start: Position, freed_at: FreedAt = nothing_freed) -> Iterator[Run | Found | Gap | Skipped]:
        """Scan as `scan` does, a hundred times as fast where records are small: those of chunks come as Runs."""
        return Scan(self, self._disk, freed_at, in_runs=True).run(start)
