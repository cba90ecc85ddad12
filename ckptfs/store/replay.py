"""The replay: from the packs to the rows and chunks that LMDB does not have yet.

Replay reads the records behind the last checkpoint and decides which of them count. It writes nothing to the disk;
the store cuts off what does not count. It runs once, while the store is opened, in one thread.

A metadata record counts only when every record before it is intact; chunks behind the last one that counts are
dropped. Whether damage is the torn end of a power cut or bytes that had been durable is told by what is known to
have been synced: LMDB says it up to `kept_until`, and every metadata record says it for the time when it was built.
Damage there is a DamagedError, and nothing is cut. Damage elsewhere was never confirmed by a sync that anything
tells of, even if later records survived it (pages reach the disk in any order): the replay ends before it.
When the index was lost, every intact metadata record behind damage forbids the cut.
"""

import logging
import struct
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.index import FIRST_NUMBER, Chunk, ChunkIndex, Location
from ckptfs.store.packs import Found, Gap, Packs
from ckptfs.store.records import Journal, Position, RecordType
from ckptfs.store.tables import TREE_TABLES, Tables

logger = logging.getLogger(__name__)

STATE_KEY = b"state"
STATE = struct.Struct("<IIQQQQIIQ")
FIRST_SEQUENCE = 1


class Mark(NamedTuple):
    """A position in the packs and what comes next there; `raw_bytes` is the size of all chunks before it."""

    position: Position
    sequence: int = FIRST_SEQUENCE
    number: int = FIRST_NUMBER
    raw_bytes: int = 0


class State(NamedTuple):
    """What LMDB knows of the packs: the replay begins at a mark, and all before `kept_until` is durable and kept."""

    replay_from: Mark
    kept_until: Position


def pack_state(state: State) -> bytes:
    """Return the value of the row that a checkpoint writes last."""
    position, sequence, number, raw_bytes = state.replay_from
    kept = state.kept_until
    return STATE.pack(position.pack, 0, position.offset, sequence, number, raw_bytes, kept.pack, 0, kept.offset)


def unpack_state(packed: bytes) -> State:
    """Return the state that a checkpoint wrote."""
    if len(packed) != STATE.size:
        raise DamagedError("the state row of the index has another size than it must have; rebuild the index")
    pack, _, offset, sequence, number, raw_bytes, kept_pack, _, kept_offset = STATE.unpack(packed)
    return State(Mark(Position(pack, offset), sequence, number, raw_bytes), Position(kept_pack, kept_offset))


class Replay:
    """One replay into the tables and the chunk index of a store that is being opened."""

    def __init__(self, packs: Packs, tables: Tables, index: ChunkIndex, seed: int) -> None:
        self._packs = packs
        self._tables = tables
        self._index = index
        self._seed = seed
        self._waiting: list[Chunk] = []

    def run(self, state: State, *, index_lost: bool) -> Mark:
        """Replay the records from `state` on and return the mark behind the last one that counts."""
        good = reached = state.replay_from
        damage: Gap | None = None
        for found in self._packs.scan(good.position):
            if isinstance(found, Gap):
                damage = damage or found
            elif damage is None:
                step = self._step(found, reached)
                if isinstance(step, Gap):
                    damage = step
                    continue
                reached = step
                if found.record.header.type == RecordType.METADATA or found.end <= state.kept_until:
                    self._index.register(self._waiting)
                    self._waiting.clear()
                    good = reached
            elif self._is_evidence(found, damage, index_lost):
                raise self._damaged(damage, "records behind it are intact")
            if damage is not None and damage.position < state.kept_until:
                raise self._damaged(damage, "it was durable")
        if good.position < state.kept_until:
            raise self._damaged(Gap(good.position, "the packs end here"), "more was durable")
        if reached.position != good.position or damage is not None:
            reason = damage.reason if damage is not None else "no metadata follows"
            logger.info("%s: what follows was never confirmed (%s)", self._packs.place(good.position), reason)
        return good

    def _step(self, found: Found, mark: Mark) -> Mark | Gap:
        """Take one intact record, and return the mark behind it or why it does not continue what is before it."""
        header = found.record.header
        if header.type == RecordType.CHUNK:
            # A number already given is a chunk stored anew, in another encoding: the later record counts.
            if not FIRST_NUMBER <= header.number <= mark.number:
                return Gap(found.position, f"chunk {header.number} where {mark.number} comes next")
            location = Location(
                *found.position, header.stored_size, header.raw_size, header.base_count, header.encoding
            )
            self._waiting.append(Chunk(header.number, header.id, location))
            if header.number == mark.number:
                mark = mark._replace(number=mark.number + 1, raw_bytes=mark.raw_bytes + header.raw_size)
        elif header.type == RecordType.METADATA:
            journal = self._journal(found)
            if journal is None:
                return Gap(found.position, "the metadata is not what was written")
            if header.number != mark.sequence:
                return Gap(found.position, f"journal step {header.number} where {mark.sequence} comes next")
            self._tables.apply(journal.rows)
            mark = mark._replace(sequence=mark.sequence + 1)
        else:
            return Gap(found.position, f"a record of the unknown type {header.type}")
        return mark._replace(position=found.end)

    def _journal(self, found: Found) -> Journal | None:
        """Decode a metadata record; None when it does not hold."""
        try:
            journal = records.parse_metadata(found.record, self._seed)
        except DamagedError as error:
            logger.info("%s: %s", self._packs.place(found.position), error)
            return None
        return journal if all(row.table in TREE_TABLES for row in journal.rows) else None

    def _is_evidence(self, found: Found, damage: Gap, index_lost: bool) -> bool:
        """Tell whether a record behind damage says that the damaged place had been durable."""
        if found.record.header.type != RecordType.METADATA:
            return False
        journal = self._journal(found)
        return journal is not None and (index_lost or journal.synced > damage.position)

    def _damaged(self, gap: Gap, why: str) -> DamagedError:
        return DamagedError(f"{self._packs.place(gap.position)}: {gap.reason}, but {why}")
