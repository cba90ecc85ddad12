"""A set of numbers as a bitmap: the chunks or the manifests that something needs.

Numbers are dense and sequential, so a bit each is the smallest set there is: 125 KB for a million. Belongs to one
thread at a time.
"""

from ckptfs.store import kernels
from ckptfs.store.reference import Buffer


class Bitmap:
    """A set of numbers below `limit`, empty at first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bits = bytearray((limit + 7) // 8)

    def __contains__(self, number: int) -> bool:
        return number < self.limit and bool(self._bits[number >> 3] & 1 << (number & 7))

    def add(self, number: int) -> None:
        """Add a number below the limit."""
        self._bits[number >> 3] |= 1 << (number & 7)

    def add_packed(self, numbers: Buffer) -> None:
        """Add numbers packed as little-endian u64; those that are not below the limit are left out."""
        kernels.mark(self._bits, numbers)
