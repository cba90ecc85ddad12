"""The journal as it lies in the packs: whether a lost index would come back from it.

Reads the condensed journal, goes from its mark to the end of the packs and looks at every header. The bytes of chunks
that lie where the index says it leaves to `ChunkStore.verify`, all else it reads. Which places are free the journal has
to say itself, but for those of which the next checkpoint will. It changes nothing. Any thread may call; the store goes
on meanwhile.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.check import PROBLEMS_MAX
from ckptfs.store.condensed import Condensed
from ckptfs.store.freed import FreedPlaces, journal_places, merge
from ckptfs.store.index import ChunkIndex
from ckptfs.store.packfile import Found, Gap
from ckptfs.store.packs import FIRST_PACK, Packs
from ckptfs.store.records import Header, Place, Position, RecordType
from ckptfs.store.state import Mark


class _Stretch(NamedTuple):
    """Bytes without a record, and why they have none; `is_sequel` where damage that is named before explains it."""

    gap: Gap
    end: Position
    is_sequel: bool = False


class JournalPart(NamedTuple):
    """What a part of a check found and read; `done_bytes` of `total_bytes`, holes included, are gone through."""

    problems: list[str]
    read_bytes: int
    done_bytes: int
    total_bytes: int


class JournalCheck:
    """One check of the journal up to a position, before which everything is journalled."""

    def __init__(self, packs: Packs, condensed: Condensed, index: ChunkIndex, freed: FreedPlaces, seed: int) -> None:
        self._packs = packs
        self._condensed = condensed
        self._index = index
        self._freed = freed
        self._seed = seed
        self._places: list[Place] = []
        self._sequence = 0
        self._before: dict[int, int] = {}
        """How many bytes there are before each pack."""
        self._condensed_size = 0
        self._read_bytes = self._done_bytes = self._total_bytes = 0

    def parts(self, end: Position, size: int) -> Iterator[JournalPart]:
        """Look at all before `end`, and yield what was found whenever about `size` bytes were read, and at the end.

        Not more than PROBLEMS_MAX problems are looked for.
        """
        problems: list[str] = []
        left = PROBLEMS_MAX
        for problem in self._problems(end):
            if problem is not None:
                problems.append(problem)
                left -= 1
            if self._read_bytes >= size or not left:
                yield self._part(problems)
                problems = []
            if not left:
                return
        self._done_bytes = self._total_bytes
        yield self._part(problems)

    def _part(self, problems: list[str]) -> JournalPart:
        read_bytes, self._read_bytes = self._read_bytes, 0
        return JournalPart(problems, read_bytes, self._done_bytes, self._total_bytes)

    def _count(self, size: int) -> None:
        self._read_bytes += size

    def _count_condensed(self, size: int) -> None:
        self._count(size)
        self._done_bytes = min(self._done_bytes + size, self._condensed_size)  # some bytes are read twice

    def _problems(self, end: Position) -> Iterator[str | None]:
        """Yield a sentence for each place before `end` where the journal is not what was written; None in between."""
        mark = self._condensed.mark or Mark(Position(FIRST_PACK, 0))
        self._sequence = mark.sequence
        self._measure(mark.position, end)
        if self._condensed.path.exists():
            losses: list[str] = []
            for _ in self._condensed.rows(losses, self._count_condensed):
                yield None
            yield from losses
            if self._condensed.mark is None:
                return
        stretches: list[_Stretch] = []
        try:
            yield from self._walk(mark.position, end, stretches)
            if self._harmful(stretches):  # what says that a place is free may have come since, or may come
                self._places += self._freed.superseded()
                yield from self._walk(end, Position(1 << 32, 0), [])
        except FileNotFoundError:
            if self._condensed.mark == mark:
                raise
            yield from self._problems(end)  # the journal was condensed, and packs before the new mark were removed
            return
        gaps = self._harmful(stretches)
        if (size := self._packs.size(end.pack)) < end.offset:
            gaps.append(Gap(Position(end.pack, size), "the pack ends too early"))
        for gap in gaps:
            yield f"{self._packs.place(gap.position)}: the journal is damaged, {gap.reason}; `ckptfs repair` mends it"

    def _measure(self, start: Position, end: Position) -> None:
        """Note how much there is to go through: the condensed journal, and from `start` to `end`, holes included."""
        self._before = {}
        self._done_bytes = 0
        self._condensed_size = self._condensed.path.stat().st_size if self._condensed.path.exists() else 0
        self._total_bytes = self._condensed_size - start.offset
        for pack, size in self._packs.sizes().items():
            if start.pack <= pack <= end.pack:
                self._before[pack] = self._total_bytes
                self._total_bytes += size if pack < end.pack else end.offset

    def _walk(self, start: Position, end: Position, stretches: list[_Stretch]) -> Iterator[None]:
        """Add what has no record to `stretches`, and note the places that are called free; a step for each record."""
        before: Gap | None = None
        for item in self._packs.scan(start, payload_wanted=self._is_wanted, on_read=self._count):
            if item.position >= end:
                break
            self._done_bytes = self._before.get(item.position.pack, self._total_bytes) + item.position.offset
            if before is not None:
                stretches.append(self._stretch(before, item.position))
            expected = self._sequence
            before = self._look_at(item) if isinstance(item, Found) else item if isinstance(item, Gap) else None
            if self._sequence > expected + 1:
                missing = Gap(item.position, f"step {expected} is missing")
                stretches.append(_Stretch(missing, item.position, is_sequel=True))
            yield
        if before is not None:
            stretches.append(self._stretch(before, end))

    def _stretch(self, gap: Gap, stop: Position) -> _Stretch:
        pack = gap.position.pack
        return _Stretch(gap, stop if stop.pack == pack else Position(pack, self._packs.size(pack)))

    def _is_wanted(self, position: Position, header: Header) -> bool:
        """Tell whether a record is to be read, because nobody else does."""
        if header.type != RecordType.CHUNK:
            return True
        location = self._index.locate(header.number)
        return location is None or location.position != position

    def _look_at(self, found: Found) -> Gap | None:
        """Take the freed places of a metadata record; a Gap where it is none, or is older than the one before."""
        header = found.record.header
        if header.type != RecordType.METADATA:
            return None
        try:
            places = journal_places(records.parse_metadata(found.record, self._seed))
        except DamagedError as error:
            return Gap(found.position, str(error))
        if header.number < self._sequence:
            return Gap(found.position, "an older record")  # left over in a freed place, if all is well
        self._sequence = header.number + 1
        self._places += places
        return None

    def _harmful(self, stretches: list[_Stretch]) -> list[Gap]:
        """Return the gaps that do not lie in freed places, and behind what is condensed by now."""
        places = merge(self._places)
        mark = self._condensed.mark
        harmful: list[Gap] = []
        for gap, end, is_sequel in stretches:
            if is_sequel and harmful:
                continue
            start = gap.position
            index = bisect_right(places, gap.position, key=lambda place: place.position)
            if index and start < places[index - 1].end:
                if places[index - 1].end >= end:
                    continue
                start = places[index - 1].end
            if mark is None or start >= mark.position:
                harmful.append(gap if start == gap.position else Gap(start, "no record begins here"))
        return harmful
