"""The replay: from the packs to the rows and chunks that LMDB does not have yet.

Replay reads the records behind the last checkpoint and decides which of them count. It writes nothing to the disk;
the store cuts off what does not count. It runs once, while the store is opened, in one thread. When the index was
lost, condensed_replay.py goes first.

A metadata record counts only when every record before it is intact; chunks behind the last one that counts are
dropped. Whether damage is the torn end of a power cut or bytes that had been durable is told by what is known to
have been synced: LMDB says it up to `kept_until`, and every metadata record says it for the time when it was built.
Damage there is a DamagedError, and nothing is cut. Damage elsewhere was never confirmed by a sync that anything
tells of, even if later records survived it (pages reach the disk in any order): the replay ends before it.
When the index was lost, every intact metadata record behind damage forbids the cut.
A salvage is a replay that takes every intact record, whatever is missing between them, and says what that is.
A freed place is no damage when metadata that counts says so; it lies behind the place, hence the look ahead.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.condensed import Condensed
from ckptfs.store.condensed_replay import CondensedReplay
from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.freed import FreedPlaces, journal_places, merge, numbers_in, parse_row
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import FIRST_NUMBER, LOCATION, NO_CHUNK, Chunk, parse_number
from ckptfs.store.packfile import Found, Gap, Run, Skipped
from ckptfs.store.packs import FIRST_PACK, Packs
from ckptfs.store.records import Journal, Place, Position, Record, RecordType, Row
from ckptfs.store.schema import TREE_TABLES, Table
from ckptfs.store.state import Mark, State
from ckptfs.store.tables import Tables, is_key

logger = logging.getLogger(__name__)

_INDEX_TABLES = (Table.CHUNKS, Table.CHUNK_IDS)
"""Their rows are made from the chunk records; the journal only says of which there is none any more."""

_LOST_NUMBERS_MAX = 1 << 24
"""A salvage believes in no gap of more chunks: a number is what the sizes of tables follow from."""


def _is_known(row: Row) -> bool:
    """Tell whether a row is one that the journal can have."""
    is_release = row.table in _INDEX_TABLES and row.value is None
    is_of_the_journal = row.table in TREE_TABLES or row.table == Table.FREED or is_release
    return is_of_the_journal and is_key(row.key)


class Salvaged(NamedTuple):
    """The mark behind all that counts, and a sentence for each thing that is lost before it.

    `endangered` are chunks whose later record is lost, and whose place is called free: they have to be stored anew
    before anything is punched.
    """

    mark: Mark
    losses: list[str]
    endangered: list[int]


class _Freed(NamedTuple):
    """A freed place, and where the metadata record that says so lies."""

    place: Place
    said_at: Position


class Replay:
    """One replay into the tables, the chunk index and the freed places of a store that is being opened."""

    def __init__(
        self,
        packs: Packs,
        condensed: Condensed,
        tables: Tables,
        index: ChunkIndex,
        freed: FreedPlaces,
        seed: int,
    ) -> None:
        self._packs = packs
        self._tables = tables
        self._index = index
        self._freed = freed
        self._seed = seed
        self._waiting: list[Run] = []
        self._reached = Mark(Position(0, 0))
        self._ahead: list[_Freed] | None = None
        self._skipped: list[Place] = []
        self._salvaging = False
        self._from_condensed = CondensedReplay(packs, condensed, tables, index)

    def run(self, state: State, *, index_lost: bool) -> Mark:
        """Replay the records from `state` on and return the mark behind the last one that counts.

        When the index was lost it begins with what the condensed journal has.
        """
        self._index.resume(state.summary)
        if index_lost:
            state = self._from_condensed.run() or state
        good = self._reached = state.replay_from
        damage: Gap | None = None
        for found in self._scan(good.position, state.kept_until):
            if isinstance(found, Gap):
                damage = damage or found
            elif isinstance(found, Skipped):
                if damage is None:
                    self._skip(found.place)
            elif damage is None:
                step = self._step(found, self._reached)
                if isinstance(step, Gap):
                    damage = step
                    continue
                self._reached = step
                if isinstance(found, Found) or found.end <= state.kept_until:
                    self._register_waiting()
                    good = self._reached
            elif self._is_evidence(found, damage, index_lost):
                raise self._damaged(damage, "records behind it are intact")
            if damage is not None and damage.position < state.kept_until:
                raise self._damaged(damage, "it was durable")
        if good.position < state.kept_until:
            raise self._damaged(Gap(good.position, "the packs end here"), "more was durable")
        if lost := self._from_condensed.lost():
            raise DamagedError(lost)
        said_at = dict(self._ahead or ())
        for place in self._skipped:
            # Nothing is punched before what says that it is free is durable: that may not be cut off.
            if said_at[place] >= good.position:
                raise self._damaged(Gap(place.position, "a freed place"), "what says so lies behind damage")
        if self._reached.position != good.position or damage is not None:
            reason = damage.reason if damage is not None else "no metadata follows"
            logger.info("%s: what follows was never confirmed (%s)", self._packs.place(good.position), reason)
        return good

    def salvage(self, state: State, damaged: DamagedChunks, *, index_lost: bool) -> Salvaged:
        """Replay every intact record from `state` on; chunks of which only the header is left are noted as damaged.

        The mark lies in a pack of its own where less is left than was durable.
        """
        self._index.resume(state.summary)
        self._salvaging = True
        condensed_losses: list[str] = []
        if index_lost:
            state = self._from_condensed.run(condensed_losses) or state
        good = self._reached = state.replay_from
        losses: list[Gap] = []
        headers: list[Chunk] = []
        useless: list[Chunk] = []
        for item in self._scan(good.position, state.kept_until):
            if isinstance(item, Skipped):
                self._skip(item.place)
                continue
            found = _left_of(item) if isinstance(item, Gap) else item
            if isinstance(item, Gap):
                losses.append(item)
            if found is None:
                continue
            if isinstance(item, Gap) and isinstance(found, Run):
                if self._has_earlier(found):
                    useless.append(found.chunk(0))
                    continue
                headers.append(found.chunk(0))
            sequence = self._reached.sequence
            step = self._step(found, self._jumped(found))
            if isinstance(step, Gap):
                losses.append(step)
                continue
            if step.sequence > sequence + 1:
                lost = step.sequence - 1 - sequence
                losses.append(Gap(found.position, f"{lost} journal steps before are lost"))
            self._reached = step
            if isinstance(found, Found) or found.end <= state.kept_until:
                self._register_waiting()
                good = self._reached
        losses = [loss for loss in losses if loss.position < max(good.position, state.kept_until)]
        sizes = self._packs.sizes()
        if good.position < state.kept_until or good.position.offset > sizes.get(good.position.pack, 0):
            losses.append(Gap(good.position, "less is left than was durable"))
            # No record may come to lie where a lost one was: by its place a chunk is told from its healed self.
            good = good._replace(position=Position(max(state.kept_until.pack, *sizes, FIRST_PACK) + 1, 0))
        for chunk in headers:
            if chunk.location.position < good.position:
                damaged.note(chunk.number, chunk.location)
        # What is left of them is called free, or the next replay would meet damage there.
        self._freed.supersede(
            chunk.location.place(chunk.number) for chunk in useless if chunk.location.position < good.position
        )
        said = condensed_losses + [f"{self._packs.place(loss.position)}: {loss.reason}" for loss in losses]
        if lost_chunks := self._from_condensed.lost():
            said.append(lost_chunks)
        return Salvaged(good, said, self._in_freed_places())

    def _has_earlier(self, left: Run) -> bool:
        """Tell whether there is an earlier record of a chunk."""
        (number,) = left.numbers
        known = self._index.locate(number)
        waiting = any(number in run.numbers for run in self._waiting)
        return waiting or (known is not None and known.position < left.position)

    def _in_freed_places(self) -> list[int]:
        """Return the chunks whose records lie in freed places, of those that were replayed."""
        rows = self._freed.rows_in_memory()[Table.FREED].items()
        places = merge(parse_row(key, value) for key, value in rows if value is not None)
        if not places:
            return []
        located = (
            (*LOCATION.unpack_from(packed)[:2], parse_number(key))
            for key, packed in self._index.rows_in_memory()[Table.CHUNKS].items()
            if packed is not None
        )
        return numbers_in(places, located)

    def _jumped(self, found: Run | Found) -> Mark:
        """Return the mark reached, moved on to the number that a step has when those before it are lost."""
        mark = self._reached
        if isinstance(found, Found) and found.record.header.type == RecordType.METADATA:
            return mark._replace(sequence=max(mark.sequence, found.record.header.number))
        return mark

    def _scan(self, start: Position, kept_until: Position) -> Iterator[Run | Found | Gap | Skipped]:
        """Scan the packs; what comes as a run lies on one side of `kept_until`, and `_step` takes all of it or none."""
        for item in self._packs.scan_runs(start, self._freed_at):
            if not isinstance(item, Run):
                yield item
                continue
            at, count, kept = 0, len(item.numbers), item.count_until(kept_until)
            while at < count:
                # Whoever gets a part moves the mark on, before the next is asked for.
                stop, _ = self._continuing(item.numbers, at, self._reached.number)
                stop = max(min(stop, kept) if at < kept else stop, at + 1)
                yield item.part(at, stop)
                at = stop

    def _continuing(self, numbers: list[int], start: int, following: int) -> tuple[int, int]:
        """Return up to which index the numbers of chunks continue those before `start`, and which one follows then.

        A number already given is a chunk stored anew, in another encoding: the later record counts.
        """
        if start == 0 and numbers == [*range(following, following + len(numbers))]:
            return len(numbers), following + len(numbers)
        for index in range(start, len(numbers)):
            number = numbers[index]
            if self._salvaging and following < number < following + _LOST_NUMBERS_MAX:
                following = number
            if not FIRST_NUMBER <= number <= following:
                return index, following
            following += number == following
        return len(numbers), following

    def _register_waiting(self) -> None:
        """Take over the chunks read so far; where one was before is superseded."""
        for run in self._waiting:
            self._freed.supersede(self._index.register_rows(run.numbers, run.ids, run.locations))
        self._waiting.clear()

    def _freed_at(self, position: Position) -> Place | None:
        """Return the freed place that a position lies in, or None; the first question looks ahead to the end."""
        if self._ahead is None:
            self._ahead = self._look_ahead(position)
        index = bisect_right(self._ahead, position, key=lambda freed: freed.place.position)
        freed = self._ahead[index - 1] if index else None
        return freed.place if freed is not None and position < freed.place.end else None

    def _look_ahead(self, start: Position) -> list[_Freed]:
        """Return the freed places that metadata from `start` on speaks of, in the order of the packs.

        What is left of a freed record may look like records itself (a pack that was stored as a file, say). Such
        metadata is older than the record around it: its sequence is never the one that comes next.
        """
        ahead: list[_Freed] = []
        sequence = self._reached.sequence
        for found in self._packs.scan_runs(start):
            if not isinstance(found, Found) or found.record.header.type != RecordType.METADATA:
                continue
            number = found.record.header.number
            is_next = number >= sequence if self._salvaging else number == sequence
            journal = self._journal(found) if is_next else None
            if journal is not None:
                sequence = number + 1
                ahead += [_Freed(place, found.position) for place in journal_places(journal)]
        return sorted(ahead)

    def _skip(self, place: Place) -> None:
        """Go on behind a freed place; the numbers in it were given, and those still in use come again later."""
        self._skipped.append(place)
        self._reached = self._reached._replace(position=place.end, number=max(self._reached.number, place.number + 1))

    def _step(self, found: Run | Found, mark: Mark) -> Mark | Gap:
        """Take intact records, and return the mark behind them or why they do not continue what is before them."""
        if isinstance(found, Run):
            count, number = self._continuing(found.numbers, 0, mark.number)
            if count < len(found.numbers):
                return Gap(found.position, f"chunk {found.numbers[0]} where {number} comes next")
            self._waiting.append(found)
            return mark._replace(position=found.end, number=number)
        header = found.record.header
        if header.type == RecordType.METADATA:
            journal = self._journal(found)
            if journal is None:
                return Gap(found.position, "the metadata is not what was written")
            if header.number != mark.sequence:
                return Gap(found.position, f"journal step {header.number} where {mark.sequence} comes next")
            self._register_waiting()
            self._tables.apply(row for row in journal.rows if row.table in TREE_TABLES)
            self._freed.supersede(self._index.drop(row for row in journal.rows if row.table in _INDEX_TABLES))
            self._from_condensed.release(journal.rows)
            self._freed.free([row for row in journal.rows if row.table == Table.FREED])
            mark = mark._replace(sequence=mark.sequence + 1)
        else:
            return Gap(found.position, f"a record of the unknown type {header.type}")
        return mark._replace(position=found.end)

    def _journal(self, found: Found) -> Journal | None:
        """Decode a metadata record; None when it does not hold."""
        try:
            journal = records.parse_metadata(found.record, self._seed)
            journal_places(journal)
        except DamagedError as error:
            logger.info("%s: %s", self._packs.place(found.position), error)
            return None
        return journal if all(_is_known(row) for row in journal.rows) else None

    def _is_evidence(self, found: Run | Found, damage: Gap, index_lost: bool) -> bool:
        """Tell whether a record behind damage says that the damaged place had been durable."""
        if isinstance(found, Run) or found.record.header.type != RecordType.METADATA:
            return False
        journal = self._journal(found)
        return journal is not None and (index_lost or journal.synced > damage.position)

    def _damaged(self, gap: Gap, why: str) -> DamagedError:
        return DamagedError(f"{self._packs.place(gap.position)}: {gap.reason}, but {why}")


def _left_of(gap: Gap) -> Run | None:
    """Return a damaged chunk record as far as it is left: without its payload."""
    if gap.header is None or gap.header.type != RecordType.CHUNK:
        return None
    end = gap.position._replace(offset=gap.position.offset + gap.header.size)
    bases = (NO_CHUNK,) * gap.header.base_count  # not known any more; the record is as long as if they were
    return Run.of(Found(gap.position, end, Record(gap.header, bases, memoryview(b""))))
