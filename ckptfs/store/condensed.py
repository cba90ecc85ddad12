"""The condensed journal: the rows of the index as a checkpoint left them, in a file that stands for the journal before.

Without it every metadata record would have to be kept for ever, since an index that is lost is made anew from them.
Condensed owns the file `journal.condensed`: written whole and durably, or not at all. What it says is true of a *mark*;
of the packs before it only the records at which its locations point are needed. It does not know what a row means.
Works in the caller's thread; one `write` at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

from ckptfs.config import FORMAT_VERSION, KIB
from ckptfs.disk import Disk
from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.environment import Environment
from ckptfs.store.location import NUMBER
from ckptfs.store.packfile import Gap, PackFile, PackWindow
from ckptfs.store.packs import FIRST_PACK, PackIdentity
from ckptfs.store.reader import View
from ckptfs.store.records import Position, Record, RecordBytes, RecordType, Row
from ckptfs.store.schema import TREE_TABLES, Table
from ckptfs.store.state import STATE_KEY, Mark, unpack_state

NAME = "journal.condensed"
TABLES = (*TREE_TABLES, Table.CHUNKS)
"""Whose rows it has, in this order, between two that are the state."""

_SELF = 0
"""The number in its header, which is that of a pack: no pack has it."""
_STATE_ROWS = 2
_PART_SIZE = 256 * KIB
"""Bytes of keys and values after which a record ends, which is what is done between two looks at whether to stop."""


class Condensed:
    """The condensed journal of one store, there or not; `mark` is what it is true of, None where nothing says so."""

    def __init__(self, directory: Path, disk: Disk, identity: PackIdentity) -> None:
        self.path = directory / NAME
        self.mark: Mark | None = None
        self._disk = disk
        self._identity = identity
        if self.path.exists():
            with suppress(DamagedError):  # a check, or whoever needs the rows, says so
                self.mark = self._read_mark()

    @property
    def first_pack(self) -> int:
        """The pack from which on none may be missing; those before are removed when nothing in them is needed."""
        return FIRST_PACK if self.mark is None else self.mark.position.pack

    @property
    def stored_size(self) -> int:
        """The bytes that it takes on the disk below."""
        return self._disk.stored_size(self.path)

    def write(self, environment: Environment, stop: Callable[[], bool]) -> bool:
        """Condense the journal up to where the index is; False when it ended early because `stop()` was true.

        Durable on return, so that what the packs have before the new mark, but for located records, may go.
        """
        making = self.path.with_name(NAME + ".new")
        with environment.view({table: {} for table in (*TABLES, Table.STORE)}) as view, ExitStack() as undo:
            state = Row(Table.STORE, STATE_KEY, dict(view.scan(Table.STORE))[STATE_KEY])
            fd = self._disk.open_write(making, create=True, empty=True)
            undo.callback(self._disk.unlink, making)
            undo.callback(self._disk.close, fd)
            offset = 0
            for record in self._records(view, state):
                if stop():
                    return False
                self._disk.pwrite(fd, record.buffers, offset, making)
                offset += record.size
            self._disk.fdatasync(fd, making)
            undo.pop_all()
            self._disk.close(fd)
        self._disk.rename(making, self.path)
        self._disk.sync_directory(self.path.parent)
        self.mark = _mark(state)
        return True

    def _records(self, view: View, state: Row) -> Iterator[RecordBytes]:
        """Yield the records of the file."""
        fingerprint, seed = self._identity
        mark = _mark(state)
        yield records.build_pack_header(_SELF, FORMAT_VERSION, fingerprint, seed, previous_size=0)
        for sequence, part in enumerate(chain([[state]], _parts(view, mark), [[state]]), 1):
            yield records.build_metadata(sequence, mark.position, part, seed)

    def rows(self, losses: list[str] | None = None, on_read: Callable[[int], None] | None = None) -> Iterator[Row]:
        """Yield all rows, and that of the state at both ends; `on_read` is told of the bytes that are read.

        Where the file is damaged: DamagedError, or, given `losses`, a sentence there, and the rows that are intact.
        """
        file = PackFile(self._disk, self.path, self._disk.open_read(self.path))
        window = PackWindow(self._disk, file, on_read=on_read)
        offset, sequence, state_rows = 0, 0, 0
        while offset < window.size:
            found = window.record(Position(_SELF, offset))
            if not isinstance(found, Gap) and found.header.number < sequence:
                found = Gap(Position(_SELF, offset), "an older record")
            if isinstance(found, Gap):
                self._lose(found.reason, losses)
                offset = window.next_magic(offset + records.ALIGNMENT)
                continue
            offset += found.header.size
            if found.header.number > sequence or (not sequence and not self._is_head(found)):
                self._lose("a record before is missing", losses)
            sequence = found.header.number + 1
            if found.header.type == RecordType.METADATA:
                try:
                    rows = records.parse_metadata(found, self._identity.seed).rows
                except DamagedError as error:
                    self._lose(str(error), losses)
                    continue
                state_rows += sum(row.table == Table.STORE for row in rows)
                yield from rows
        if state_rows != _STATE_ROWS:
            self._lose("it ends too early", losses)

    def _is_head(self, record: Record) -> bool:
        return records.is_pack_header(record, _SELF, self._identity.fingerprint)

    def _lose(self, reason: str, losses: list[str] | None) -> None:
        message = f"{self.path}: {reason}"
        if losses is None:
            raise DamagedError(message)
        losses.append(message)

    def _read_mark(self) -> Mark:
        first = next(self.rows())
        if first.table != Table.STORE or first.key != STATE_KEY:
            raise DamagedError(f"{self.path} does not begin with the state")
        return _mark(first)


def _mark(state: Row) -> Mark:
    return unpack_state(state.value or b"").replay_from


def _parts(view: View, mark: Mark) -> Iterator[list[Row]]:
    """Yield the rows of a checkpoint; chunks that are numbered behind its mark come again from the packs."""
    part: list[Row] = []
    size = 0
    for table in TABLES:
        for key, value in view.scan(table):
            if table == Table.CHUNKS and NUMBER.unpack(key)[0] >= mark.number:
                continue
            part.append(Row(table, key, value))
            size += len(key) + len(value)
            if size >= _PART_SIZE:
                yield part
                part, size = [], 0
    if part:
        yield part
