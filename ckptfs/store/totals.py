"""What all chunks of a store amount to, counted as they come, move and go.

Pure values; the chunk index keeps them, and a checkpoint notes them in the row of the state. Any thread may call.
"""

from collections.abc import Iterable
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
    def of(cls, rows: Iterable[tuple[int, ...]]) -> Self:
        """Count locations that are given as the fields of their rows."""
        tally = cls()
        for _, _, _, raw_size, _, encoding, _ in rows:
            tally._add(raw_size, encoding, 1)
        return tally

    def _add(self, raw_size: int, encoding: int, count: int) -> None:
        self.chunks += count
        self.raw_bytes += count * raw_size
        if encoding == Encoding.WAITING:
            self.waiting_chunks += count
            self.waiting_bytes += count * raw_size
        elif encoding == Encoding.DELTA:
            self.delta_chunks += count
            self.delta_bytes += count * raw_size

    def add(self, location: Location, count: int = 1) -> None:
        """Note that there is a chunk more that is stored so; with a `count` of -1, one fewer."""
        self._add(location.raw_size, location.encoding, count)

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
