"""The end of the packs: where the next record goes, and what it is called there.

PackEnd owns the mark behind everything appended, with the numbers that the next metadata record and the next chunk get,
and the lock under which it moves; and it journals rows. What chunks are, and what rows mean, is for its callers. What
was appended survives a kill of the process at once, and a power cut after the next sync of the packs; what fails leaves
the mark where it was. Every method may be called from any thread.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ckptfs.store import records
from ckptfs.store.appender import Prepared
from ckptfs.store.packs import Packs
from ckptfs.store.records import Appendable, Position, RecordBytes, Row
from ckptfs.store.reserve import Reserve
from ckptfs.store.state import Mark
from ckptfs.store.tables import Changes


class PackEnd:
    """The mark behind all records of a store, and the only way to append more.

    `lock` is held by whoever appends chunks and registers them, so that the mark and the chunk index tell the same.
    While a large batch is written, the thread whose turn is next builds its records, for the mark that is behind it.
    """

    def __init__(self, packs: Packs, reserve: Reserve, seed: int) -> None:
        self.mark = Mark(packs.position)
        self.lock = threading.Lock()
        self._turn = threading.Lock()
        self._ahead: Mark | None = None
        self._gives_turn = False
        self._packs = packs
        self._reserve = reserve
        self._seed = seed
        self._journal_lock = threading.Lock()
        self._first_marks: dict[int, Mark] = {}

    # Chunks

    @contextmanager
    def prepared(self, build: Callable[[Mark], Appendable]) -> Iterator[tuple[Mark, Prepared]]:
        """Hold `lock` for the body, with records that were built for a mark while others were appending.

        That mark is the one there is in the body, unless somebody came in between or failed: the body has to look.
        """
        self._turn.acquire()
        has_turn = True
        try:
            expected = self._ahead or self.mark
            with self._packs.prepare([build(expected)], expected.position) as prepared, self.lock:
                self._gives_turn, has_turn = True, False
                try:
                    yield expected, prepared
                finally:
                    self._give_turn()
        finally:
            if has_turn:
                self._turn.release()

    def _give_turn(self) -> None:
        if self._gives_turn:
            self._gives_turn = False
            self._turn.release()

    def append_chunks(self, batch: Sequence[Appendable], next_number: int) -> list[Position]:
        """Append records of chunks, under `lock`; the next new chunk gets at least `next_number`."""
        position = self._packs.position
        end = position._replace(offset=position.offset + sum(records.size for records in batch))
        self._ahead = self.mark._replace(position=end, number=max(self.mark.number, next_number))
        self._give_turn()
        try:
            positions = self._packs.append(batch)
        finally:
            self._ahead = None
        self.mark = self.mark._replace(position=self._packs.position, number=max(self.mark.number, next_number))
        return positions

    def begin_pack(self) -> None:
        """Let the last pack get no more records."""
        with self.lock:
            self._reserve.spend_on(self._packs.begin_next)
            self.mark = self.mark._replace(position=self._packs.position)

    # The journal

    def journal(self, changes: Changes) -> None:
        """Append rows of the tree as one metadata record, with the reserve if need be."""
        with self._journal_lock:
            record = self._metadata(changes.rows)  # before others have to wait
            with self.lock:
                before = self.mark
                self._append_metadata(record)
                self._first_marks.setdefault(changes.generation, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody append anything while the body runs, which may itself `journal_rows`."""
        with self._journal_lock, self.lock:
            yield

    def journal_rows(self, rows: Sequence[Row]) -> None:
        """Append rows of the store itself, as `journal` does, in the body of `held`."""
        self._append_metadata(self._metadata(rows))

    def _metadata(self, rows: Sequence[Row]) -> RecordBytes:
        return records.build_metadata(self.mark.sequence, self._packs.synced, rows, self._seed)

    def _append_metadata(self, record: RecordBytes) -> None:
        self._reserve.spend_on(lambda: self._packs.append([record]))
        self.mark = self.mark._replace(position=self._packs.position, sequence=self.mark.sequence + 1)

    def marks_behind(self, generation: int) -> list[Mark]:
        """Return where the journal of each generation younger than this one begins, as far as there is any."""
        return [mark for each, mark in self._first_marks.items() if each > generation]

    def forget(self, generation: int) -> None:
        """Forget where the journal of this generation and those before it begins: LMDB has their rows."""
        with self.lock:
            for each in [each for each in self._first_marks if each <= generation]:
                del self._first_marks[each]
