"""Space in the packs that nothing needs any more, given back to the disk below.

Dead is what no live record takes. A place that a metadata record names as free is punched as soon as that is durable.
All else (old metadata, the ends of places, whole packs) goes when the *condensed journal* stands for what was before:
what is dead before its mark is punched, a pack in which nothing lives is removed, and one of which a good part is dead
and cannot be punched is *rewritten*: its live records are stored anew behind all others, and when that is durable it is
removed.

A crash anywhere leaves old records, which the next time finds dead again. Works in the caller's thread, one at a time;
saves and loads go on meanwhile, and a reader that meets a place that has gone asks the index again.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from mmap import PAGESIZE
from typing import NamedTuple

from ckptfs.store.bitmap import Bitmap
from ckptfs.store.condensed import Condensed
from ckptfs.store.environment import Environment
from ckptfs.store.freed import FreedPlaces, merge, parse_row, pieces
from ckptfs.store.location import NUMBER, parse_location
from ckptfs.store.packs import Packs
from ckptfs.store.reader import View
from ckptfs.store.records import Place, Position
from ckptfs.store.reencode import Reencoder, never
from ckptfs.store.schema import Table
from ckptfs.store.state import STATE_KEY, unpack_state
from ckptfs.store.usage import Usage, pages_with_data

REWRITE_SHARE = 3
"""A pack is rewritten when one of so many parts of what it would keep is dead."""
WORTH_SHARE = 512
"""The journal is condensed for the sake of one of so many parts of a full pack, and what that takes itself."""

GROWTH_SHARE = 4
"""A new plan is due when the packs have grown by one of so many parts."""

_PUNCH_PLACES = 64
"""So many places are looked up, and those of them that touch are punched as one."""
_FAR = Position(1 << 32, 0)
_STOP_ROWS = 256
"""Rows between two looks at whether to stop."""

Stop = Callable[[], bool]


class Rewrite(NamedTuple):
    """A pack that goes, and the chunks that are stored anew before; `freed_bytes` less is taken on the disk then."""

    pack: int
    numbers: Sequence[int]
    freed_bytes: int


class Plan(NamedTuple):
    """What there is to reclaim: places with data to punch, packs to rewrite or remove.

    It needs the journal condensed before, or the last pack ended, where it says so.
    """

    punched: list[Place]
    rewrites: list[Rewrite]
    condenses: bool = False
    ends_pack: bool = False

    @property
    def freed_bytes(self) -> int:
        """How many bytes of the packs the disk below gets back, what is stored anew taken off."""
        return sum(place.size for place in self.punched) + sum(rewrite.freed_bytes for rewrite in self.rewrites)


class Reclaimer:
    """What gives the space of one store back."""

    def __init__(
        self,
        packs: Packs,
        environment: Environment,
        freed: FreedPlaces,
        condensed: Condensed,
        reencoder: Reencoder,
        end_pack: Callable[[], None],
        damaged: Callable[[], Collection[int]],
        room: Callable[[], int],
    ) -> None:
        """Take the parts of a store; `end_pack` ends the last pack, `room` is how much data the disk below takes."""
        self._packs = packs
        self._environment = environment
        self._freed = freed
        self._condensed = condensed
        self._reencoder = reencoder
        self._end_pack = end_pack
        self._damaged = damaged
        self._room = room
        self._planned_size = 0

    def punch(self, stop: Stop = never) -> int:
        """Give the places that are named free since a checkpoint back to the disk below; return their bytes.

        0 where the disk cannot. Ends early, within milliseconds, when `stop()` is true; the next call goes on.
        """
        size = 0
        while self._packs.can_punch and (places := self._freed.take(_PUNCH_PLACES)):
            for piece in chain.from_iterable(map(pieces, merge(places))):
                if stop():
                    return size
                size += self._packs.punch(piece)
            if self._packs.can_punch:  # else it was found out just now
                self._freed.punched(places)
        return size

    # Planning

    @property
    def is_due(self) -> bool:
        """Whether the packs take so much more than after the last plan that another one may be worth its time."""
        return self._taken_by_all() - self._planned_size >= self._planned_size // GROWTH_SHARE + self._worth

    def _taken_by_all(self) -> int:
        return sum(map(self._packs.stored_size, self._packs.numbers()))

    def preview(self, view: View, needed: Bitmap, end: Position) -> tuple[int, int, int]:
        """Return how many chunks are not needed, their raw bytes, and what reclaiming all would free.

        The view has the chunks and freed places as they are now, all records before `end` among them.
        """
        usage = Usage()
        freed = [parse_row(key, value) for key, value in view.scan(Table.FREED)] + self._freed.superseded()
        chunks = raw_bytes = 0
        for key, value in view.scan(Table.CHUNKS):
            number, location = NUMBER.unpack(key)[0], parse_location(value)
            if number >= needed.limit or number in needed:
                usage.add(number, location)
            else:
                freed.append(location.place(number))
                chunks, raw_bytes = chunks + 1, raw_bytes + location.raw_size
        return chunks, raw_bytes, self._plan(_Survey(usage, freed, end)).freed_bytes

    def begin(self, end: Position, stop: Stop = never) -> "Reclamation":
        """Plan to give back what is dead in the packs before `end`, and durably so; nothing where `stop()` is true."""
        survey = self._survey(end, stop)
        if survey is None:
            return Reclamation(self, Plan([], []))
        plan = self._plan(survey)
        self._planned_size = self._taken_by_all() - plan.freed_bytes
        return Reclamation(self, plan)

    def _survey(self, end: Position, stop: Stop) -> "_Survey | None":
        """Look at what the index on the disk knows; None where `stop()` became true."""
        usage = Usage()
        with self._environment.view({table: {} for table in (Table.CHUNKS, Table.FREED, Table.STORE)}) as view:
            # Behind this mark a live record may be known in memory only.
            known = unpack_state(dict(view.scan(Table.STORE))[STATE_KEY]).replay_from.position
            for count, (key, value) in enumerate(view.scan(Table.CHUNKS)):
                usage.add(NUMBER.unpack(key)[0], parse_location(value))
                if count % _STOP_ROWS == 0 and stop():
                    return None
            freed = [parse_row(key, value) for key, value in view.scan(Table.FREED)]
        return _Survey(usage, freed, min(end, known))

    def _plan(self, survey: "_Survey") -> Plan:
        """Plan with the condensed journal as it is, or with a new one where that brings enough."""
        limit = Position(0, 0) if self._condensed.mark is None else min(self._condensed.mark.position, survey.end)
        plain = self._plan_until(survey, limit, limit.pack)
        last = survey.end.pack
        ends_pack = not self._packs.can_punch and self._is_dead_for_good_part(survey, last, survey.end.offset)
        condensing = self._plan_until(survey, survey.end, last + ends_pack)
        if condensing.freed_bytes - plain.freed_bytes >= self._worth + self._condensed.stored_size:
            return condensing._replace(condenses=True, ends_pack=ends_pack)
        return plain

    @property
    def _worth(self) -> int:
        return self._packs.pack_size_max // WORTH_SHARE

    def _plan_until(self, survey: "_Survey", limit: Position, whole_until: int) -> Plan:
        """Plan for all that is dead before `limit`, and for the places that are free behind it.

        Packs before `whole_until` get no more records, and the journal in them is not needed.
        """
        plan = Plan([], [])
        damaged = set(self._damaged())
        room = self._room()
        for pack in self._packs.numbers():
            if pack > survey.end.pack:
                break
            pages = self._dead_pages(survey, pack, limit) if self._packs.can_punch else []
            taken = self._taken(survey, pack)
            kept = taken - sum(map(len, pages))
            live = survey.usage.live_size(pack)
            numbers = survey.usage.numbers(pack)
            is_worth = not live or ((kept - live) * REWRITE_SHARE >= kept and live <= room)
            if pack < whole_until and is_worth and damaged.isdisjoint(numbers):
                plan.rewrites.append(Rewrite(pack, numbers, taken - live))
            else:
                plan.punched.extend(Place(pack, run.start, len(run), 0) for run in pages)
        return plan

    def _is_dead_for_good_part(self, survey: "_Survey", pack: int, size: int) -> bool:
        dead = size - survey.usage.live_size(pack)
        return dead >= self._worth and dead * REWRITE_SHARE >= size

    def _taken(self, survey: "_Survey", pack: int) -> int:
        """Return what a pack takes on the disk below, as far as the survey goes."""
        if pack < survey.end.pack:
            return self._packs.stored_size(pack)
        ends = ((start, min(stop, survey.end.offset)) for start, stop in self._packs.data(pack))
        return sum(stop + -stop % PAGESIZE - start for start, stop in ends if start < stop)

    def _dead_pages(self, survey: "_Survey", pack: int, limit: Position) -> list[range]:
        """Return the pages of a pack that have data and nothing that is needed."""
        size = self._packs.size(pack)
        end = size if pack < limit.pack else limit.offset if pack == limit.pack else 0
        behind = (range(max(place.offset, end), place.end.offset) for place in survey.freed_in(pack))
        return list(pages_with_data(chain(survey.usage.dead(pack, end), behind), self._packs.data(pack)))

    # What a Reclamation does

    def end_pack(self) -> None:
        """Let the last pack get no more records."""
        self._end_pack()

    def list_anew(self, rewrites: Iterable[Rewrite], stop: Stop) -> list[Rewrite] | None:
        """Return rewrites with the chunks that their packs have by now, those that were the last pack included.

        None where `stop()` became true.
        """
        survey = self._survey(_FAR, stop)
        if survey is None:
            return None
        numbers = survey.usage.numbers
        return [each._replace(numbers=numbers(each.pack)) for each in rewrites if each.pack < survey.end.pack]

    def condense(self, stop: Stop) -> bool:
        """Condense the journal; False when it was stopped."""
        self._packs.punch_count += 1  # a backup that copies packs now would copy them without it
        return self._condensed.write(self._environment, stop)

    def punch_pages(self, place: Place) -> None:
        """Punch pages before the mark of the condensed journal, or of a place that is named free."""
        for piece in pieces(place):
            self._packs.punch(piece)

    def move(self, rewrite: Rewrite, stop: Stop) -> bool:
        """Store the live chunks of a pack anew; False when it was stopped, or one of them cannot be read."""
        return self._reencoder.move(rewrite.numbers, rewrite.pack, stop)

    def remove(self, rewrite: Rewrite) -> bool:
        """Remove a pack if nothing in it is needed, and durably so; False where something is."""
        mark = self._condensed.mark
        if mark is None or rewrite.pack >= mark.position.pack or self._is_needed(rewrite):
            return False
        self._packs.remove(rewrite.pack)
        self._freed.forget(rewrite.pack)
        return True

    def _is_needed(self, rewrite: Rewrite) -> bool:
        """Tell whether the index on the disk still has a chunk in the pack."""
        with self._environment.view({Table.CHUNKS: {}}) as view:
            rows = (view.get(Table.CHUNKS, NUMBER.pack(number)) for number in rewrite.numbers)
            return any(row is not None and parse_location(row).pack == rewrite.pack for row in rows)


class Reclamation:
    """A plan under way: whoever drives it calls `step` until it `is_done`, and makes the checkpoints in between."""

    def __init__(self, reclaimer: Reclaimer, plan: Plan) -> None:
        self.freed_bytes = 0
        """How many bytes of the packs the disk below got back, what was stored anew taken off."""
        self.left_bytes = plan.freed_bytes
        """How many more there are."""
        self._reclaimer = reclaimer
        self._ends_pack = plan.ends_pack
        self._is_ended = False
        self._condenses = plan.condenses
        self._places = deque(plan.punched)
        self._rewrites = deque(plan.rewrites)
        self._is_moved = False
        self._names_places = True

    @property
    def is_done(self) -> bool:
        """Whether nothing of the plan is left."""
        return not (self._ends_pack or self._condenses or self._places or self._rewrites or self._names_places)

    def step(self, stop: Stop = never) -> bool:
        """Do the next part, in any thread; return whether a checkpoint has to be made before the next one.

        Ends early, within milliseconds, when `stop()` is true; the next step then takes up what is left.
        """
        if self._ends_pack:
            self._reclaimer.end_pack()
            self._ends_pack, self._is_ended = False, True
            return True
        if self._is_ended:
            # Saves that went on appended to the last pack until it was ended.
            rewrites = self._reclaimer.list_anew(self._rewrites, stop)
            if rewrites is not None:
                self._rewrites, self._is_ended = deque(rewrites), False
        elif self._condenses:
            self._condenses = not self._reclaimer.condense(stop)
        elif self._places:
            self._punch(stop)
        elif self._rewrites:
            return self._rewrite(stop)
        else:
            self._reclaimer.punch(stop)  # places whose pages are punched by now are named no more
            self._names_places = False
        return False

    def _punch(self, stop: Stop) -> None:
        for _ in range(min(_PUNCH_PLACES, len(self._places))):
            if stop():
                return
            place = self._places.popleft()
            self._reclaimer.punch_pages(place)
            self._count(place.size)

    def _rewrite(self, stop: Stop) -> bool:
        """Move what lives in a pack; in the step behind the checkpoint, remove the pack."""
        rewrite = self._rewrites[0]
        if rewrite.numbers and not self._is_moved:
            self._is_moved = self._reclaimer.move(rewrite, stop)
            if self._is_moved or stop():
                return self._is_moved
            removed = False  # a chunk cannot be read
        else:
            removed = self._reclaimer.remove(rewrite)
        self._count(rewrite.freed_bytes if removed else 0)
        self.left_bytes -= 0 if removed else rewrite.freed_bytes
        self._rewrites.popleft()
        self._is_moved = False
        return False

    def _count(self, size: int) -> None:
        self.freed_bytes += size
        self.left_bytes -= size


class _Survey:
    """What is known of the packs before `end`: the live records, and the places that are free."""

    def __init__(self, usage: Usage, freed: Iterable[Place], end: Position) -> None:
        self.usage = usage
        self.end = end
        self._freed: dict[int, list[Place]] = defaultdict(list)
        for place in merge(freed):
            self._freed[place.pack].append(place)

    def freed_in(self, pack: int) -> Sequence[Place]:
        """Return the free places of a pack, in order, those that touch made one."""
        return self._freed.get(pack, ())
