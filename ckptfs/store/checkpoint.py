"""The checkpoint: LMDB brought up to what is journalled.

Checkpoints owns the order in which the store's own rows and those of the tree are frozen, made durable in the packs and
written to LMDB, and the state that says how far that went. A crash at any point leaves LMDB at one state or the next,
and the replay does the rest. One checkpoint runs at a time; chunks may be put and rows journalled meanwhile.
"""

import threading
from collections.abc import Collection, Sequence

from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.environment import Environment
from ckptfs.store.freed import FreedPlaces, build_row
from ckptfs.store.index import ChunkIndex
from ckptfs.store.pack_end import PackEnd
from ckptfs.store.packs import Packs
from ckptfs.store.records import Row
from ckptfs.store.reserve import Reserve
from ckptfs.store.schema import Table
from ckptfs.store.state import STATE_KEY, State, pack_state, unpack_state
from ckptfs.store.tables import Frozen

_FREED_AT_ONCE = 500
"""So many places are called free at a time: whoever saves waits for that."""


class Checkpoints:
    """The checkpoints of one store; `state` is what LMDB knows of the packs."""

    def __init__(
        self,
        end: PackEnd,
        packs: Packs,
        environment: Environment,
        index: ChunkIndex,
        freed: FreedPlaces,
        damaged: DamagedChunks,
        reserve: Reserve,
    ) -> None:
        self._end = end
        self._packs = packs
        self._environment = environment
        self._index = index
        self._freed = freed
        self._damaged = damaged
        self._reserve = reserve
        self._lock = threading.Lock()
        packed = environment.read_one(Table.STORE, STATE_KEY)
        self.index_lost = packed is None
        """Whether LMDB did not know anything of the packs when the store was opened."""
        self.state = State(end.mark, end.mark.position) if packed is None else unpack_state(packed)
        self._index_cut = end.mark

    @property
    def row_count(self) -> int:
        """How many of the store's own rows wait for a checkpoint."""
        return self._index.rows.row_count + self._freed.row_count + self._damaged.row_count

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint would bring anything to LMDB."""
        return self.state.replay_from != self._end.mark or self.row_count > 0

    def run(self, frozen: Frozen) -> None:
        """Bring LMDB up to rows that are journalled, durably; when this raises, the same rows are tried again."""
        with self._lock:
            while self._freed.superseded_count > _FREED_AT_ONCE:
                rows = self._rows_to_free(_FREED_AT_ONCE)  # outside, or a save would not get its turn in between
                with self._end.held():
                    self._free(rows)
            with self._end.held():
                if not self._index.rows.is_frozen:
                    self._freeze()
                # Rows younger than the frozen ones may be journalled already: the replay begins before them.
                replay_from = min([self._index_cut, *self._end.marks_behind(frozen.generation)])
                state = State(replay_from, self._index_cut.position, self._index.frozen_summary)
            self._packs.sync()
            *ahead, ids = self._index.rows.frozen_ids()
            for part in ahead:
                # Their chunks may not be cut off any more, or the numbers would be given again: the replay finds them.
                self.state = self.state._replace(kept_until=state.kept_until)
                self._write(self.state, [(Table.CHUNK_IDS, part)])
            tables = [(table, memtable.items()) for table, memtable in frozen.memtables.items()]
            indexed = [(Table.CHUNKS, self._index.rows.frozen_locations()), (Table.CHUNK_IDS, ids)]
            own = [self._freed.frozen_rows(), self._damaged.frozen_rows()]
            self._write(state, [*tables, *indexed, *own])
            self._reserve.hold_again()
            self._index.release()
            self._freed.release()
            self._damaged.release()
            self.state = state
            self._end.forget(frozen.generation)

    def _freeze(self) -> None:
        """Set apart what goes to LMDB of the store's own rows, while nobody appends anything."""
        self._free(self._rows_to_free())
        self._freed.freeze()
        self._damaged.freeze()
        self._index.freeze()
        self._index_cut = self._end.mark

    def _rows_to_free(self, count_max: int | None = None) -> list[Row]:
        return [build_row(place) for place in self._freed.superseded(count_max)]

    def _free(self, rows: Sequence[Row]) -> None:
        """Call superseded places free, while nobody appends anything.

        The index that does so has to have the new places, and the packs have to tell without it.
        """
        if rows:
            self._end.journal_rows(rows)
            self._freed.free(rows)

    def _write(self, state: State, tables: Sequence[tuple[Table, Collection[tuple[bytes, bytes | None]]]]) -> None:
        """Write rows, and what is true of LMDB with them, in one transaction."""
        rows = [*tables, (Table.STORE, [(STATE_KEY, pack_state(state))])]
        self._reserve.spend_on(lambda: self._environment.write(rows))
