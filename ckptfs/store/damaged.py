"""Damaged chunks: those whose record was once found not to be what was written.

DamagedChunks remembers them, so that a chunk with the same bytes that comes in again is stored anew under the same
number, which heals every version that uses it. A chunk is damaged as long as it lies where it was found damaged; it
is healed by a later record, and forgotten when it is released. A delta that rests on a damaged chunk is as good as
damaged, and is not remembered by itself: it is whole again when that one is.
Nothing here is journalled: what is forgotten is found again by whoever reads. Every method may be called from any
thread.
"""

import threading
from collections.abc import Iterable, Sequence
from itertools import islice

from ckptfs.store.delta import DELTA_CHAIN_MAX
from ckptfs.store.environment import Environment
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import NO_CHUNK, NUMBER, Location, build_location, parse_location, parse_number
from ckptfs.store.schema import Table


class DamagedChunks:
    """The damaged chunks of a store, all of them in memory; LMDB gets what changed at a checkpoint."""

    def __init__(self, environment: Environment, index: ChunkIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._active: dict[bytes, bytes | None] = {}
        self._frozen: dict[bytes, bytes | None] = {}
        with environment.view({Table.DAMAGED: {}}) as view:
            rows = view.scan(Table.DAMAGED)
            self._places = {parse_number(key): parse_location(value) for key, value in rows}

    def __bool__(self) -> bool:
        return bool(self._places)

    def note(self, number: int, location: Location) -> None:
        """Remember that a chunk cannot be read from this location, unless what it rests on is to blame."""
        with self._lock:
            known = self._places.get(number)
            if (known is None or known.position != location.position) and not self._any_damaged(location.bases):
                self._places[number] = location
                self._active[NUMBER.pack(number)] = build_location(location)

    def heal(self) -> None:
        """Forget the chunks that were stored anew or released."""
        with self._lock:
            for number in [number for number, location in self._places.items() if self._is_gone(number, location)]:
                del self._places[number]
                self._active[NUMBER.pack(number)] = None

    def _is_gone(self, number: int, location: Location) -> bool:
        now = self._index.locate(number)
        return now is None or now.position != location.position

    def _any_damaged(self, numbers: Iterable[int]) -> bool:
        """Tell whether one of these chunks, or one that they rest on, is known to be damaged."""
        levels = islice(self._index.descend(numbers), DELTA_CHAIN_MAX + 1)
        return any(not level.isdisjoint(self._places) for level in levels)

    def numbers(self) -> list[int]:
        """Return the numbers of the chunks whose own record is damaged, ascending."""
        with self._lock:
            return sorted(self._places)

    def left_out(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers with NO_CHUNK in place of those of chunks that cannot be read."""
        with self._lock:
            return [NO_CHUNK if self._any_damaged((number,)) else number for number in numbers]

    def among(self, numbers: Iterable[int]) -> set[int]:
        """Return those of the chunks that cannot be read."""
        with self._lock:
            return {number for number in numbers if self._any_damaged((number,))}

    # Checkpoints

    @property
    def row_count(self) -> int:
        """How many rows wait for a checkpoint."""
        return len(self._active)

    def freeze(self) -> None:
        """Begin a checkpoint: later rows are not part of it."""
        with self._lock:
            self._frozen, self._active = self._active, {}

    def frozen_rows(self) -> tuple[Table, Sequence[tuple[bytes, bytes | None]]]:
        """Return the rows of the checkpoint under way, sorted."""
        return Table.DAMAGED, sorted(self._frozen.items())

    def release(self) -> None:
        """End a checkpoint that succeeded."""
        with self._lock:
            self._frozen = {}
