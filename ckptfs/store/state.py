"""How far the index is: the marks in the packs, and the row in which a checkpoint notes them.

Pure; `docs/format.md`, "State", has the byte table. Any thread may call.
"""

import struct
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store.location import FIRST_NUMBER
from ckptfs.store.records import Position
from ckptfs.store.totals import Summary, Totals

STATE_KEY = b"state"
STATE = struct.Struct("<IIQQQQIIQQQQQQ")

FIRST_SEQUENCE = 1


class Mark(NamedTuple):
    """A position in the packs and what comes next there."""

    position: Position
    sequence: int = FIRST_SEQUENCE
    number: int = FIRST_NUMBER


class State(NamedTuple):
    """What LMDB knows of the packs: the replay begins at a mark, and all before `kept_until` is durable and kept."""

    replay_from: Mark
    kept_until: Position
    summary: Summary = Summary()


def pack_state(state: State) -> bytes:
    """Return the value of the row that a checkpoint writes last; DamagedError when the totals cannot be."""
    position, sequence, number = state.replay_from
    kept = state.kept_until
    (raw_bytes, waiting_chunks, waiting_bytes, delta_chunks, delta_bytes), tried_until = state.summary
    try:
        return STATE.pack(
            *(position.pack, 0, position.offset, sequence, number, raw_bytes, kept.pack, 0, kept.offset),
            *(waiting_chunks, waiting_bytes, tried_until, delta_chunks, delta_bytes),
        )
    except struct.error as error:
        raise DamagedError(f"the index has chunks that do not add up ({state.summary}); rebuild it") from error


def unpack_state(packed: bytes) -> State:
    """Return the state that a checkpoint wrote."""
    if len(packed) != STATE.size:
        raise DamagedError("the state row of the index has another size than it must have; rebuild the index")
    pack, _, offset, sequence, number, raw_bytes, kept_pack, _, kept_offset, *behind = STATE.unpack(packed)
    waiting_chunks, waiting_bytes, tried_until, delta_chunks, delta_bytes = behind
    totals = Totals(raw_bytes, waiting_chunks, waiting_bytes, delta_chunks, delta_bytes)
    summary = Summary(totals, max(tried_until, FIRST_NUMBER))
    return State(Mark(Position(pack, offset), sequence, number), Position(kept_pack, kept_offset), summary)
