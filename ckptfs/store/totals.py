"""What all chunks of a store amount to, counted as they come, move and go.

Pure values; the chunk index keeps them, and a checkpoint notes them in the row of the state. Any thread may call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ckptfs.store.codec import Encoding
from ckptfs.store.location import FIRST_NUMBER, Location


class Totals(NamedTuple):
    """What all chunks of the index amount to, decoded, and those of them that wait for an encoding or are deltas."""

    raw_bytes: int = 0
    waiting_chunks: int = 0
    waiting_bytes: int = 0
    delta_chunks: int = 0
    delta_bytes: int = 0


class StoreStats(NamedTuple):
    """How much a store holds, in bytes: `raw_bytes` of distinct chunks take `stored_bytes` of the disk below.

    `waiting_bytes` of them, in `waiting_chunks`, were put raw and are encoded by the `Reencoder`;
    `delta_bytes`, in `delta_chunks`, are stored as deltas.
    """

    chunks: int
    raw_bytes: int
    stored_bytes: int
    kernel: str
    waiting_chunks: int
    waiting_bytes: int
    delta_chunks: int
    delta_bytes: int


class Summary(NamedTuple):
    """What the index says beside its rows; every chunk numbered below `tried_until` has the encoding it keeps."""

    totals: Totals = Totals()
    tried_until: int = FIRST_NUMBER


@dataclass(slots=True)
class Tally:
    """What the totals have to be raised by."""

    chunks: int = 0
    raw_bytes: int = 0
    waiting_chunks: int = 0
    waiting_bytes: int = 0
    delta_chunks: int = 0
    delta_bytes: int = 0

    @classmethod
    def of(cls, raw_sizes: Sequence[int], encodings: Sequence[int]) -> Self:
        """Count chunks by their raw sizes and their encodings."""
        tally = cls()
        for encoding in set(encodings):
            chosen = [size for size, each in zip(raw_sizes, encodings, strict=True) if each == encoding]
            tally._add(encoding, len(chosen), sum(chosen))
        return tally

    def _add(self, encoding: int, chunks: int, raw_bytes: int) -> None:
        self.chunks += chunks
        self.raw_bytes += raw_bytes
        if encoding == Encoding.WAITING:
            self.waiting_chunks += chunks
            self.waiting_bytes += raw_bytes
        elif encoding == Encoding.DELTA:
            self.delta_chunks += chunks
            self.delta_bytes += raw_bytes

    def add(self, location: Location, count: int = 1) -> None:
        """Note that there is a chunk more that is stored so; with a `count` of -1, one fewer."""
        self._add(location.encoding, count, count * location.raw_size)

    def move(self, before: Location, after: Location) -> None:
        """Note that a chunk has another location."""
        self.add(before, -1)
        self.add(after)

    def added_to(self, totals: Totals) -> Totals:
        """Return the totals, raised."""
        return Totals(
            totals.raw_bytes + self.raw_bytes,
            totals.waiting_chunks + self.waiting_chunks,
            totals.waiting_bytes + self.waiting_bytes,
            totals.delta_chunks + self.delta_chunks,
            totals.delta_bytes + self.delta_bytes,
        )
