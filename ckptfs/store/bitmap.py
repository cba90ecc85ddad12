"""A set of numbers as a bitmap: the chunks or the manifests that something needs.

Numbers are dense and sequential, so a bit each is the smallest set there is: 125 KB for a million. Belongs to one
thread at a time.
"""

from ckptfs.errors import DamagedError
from ckptfs.store import kernels
from ckptfs.store.reference import Buffer

LIMIT_MAX = 1 << 32
"""More numbers than any store gives: chunks of half a petabyte. A row that says more is damaged."""


class Bitmap:
    """A set of numbers below `limit`, empty at first; DamagedError when that is above LIMIT_MAX."""

    def __init__(self, limit: int) -> None:
        if limit > LIMIT_MAX:
            raise DamagedError(f"a row says that there are {limit} numbers; no store has so many")
        self.limit = limit
        self._bits = bytearray((limit + 7) // 8)

    def __contains__(self, number: int) -> bool:
        return number < self.limit and bool(self._bits[number >> 3] & 1 << (number & 7))

    def add(self, number: int) -> None:
        """Add a number; DamagedError when it is not below the limit: what names it, or the limit, is not right."""
        if number >= self.limit:
            raise DamagedError(f"a row names the number {number}, and there are {self.limit}")
        self._bits[number >> 3] |= 1 << (number & 7)

    def add_packed(self, numbers: Buffer) -> None:
        """Add numbers packed as little-endian u64; those that are not below the limit are left out."""
        kernels.mark(self._bits, numbers)
