"""What one read may cost: a store that was made to do harm must not keep a thread at work for long.

A Budget belongs to one read, in one thread. It knows nothing of chunks but how many there are, and of how many bytes.
"""

from ckptfs.config import GIB, KIB
from ckptfs.errors import DamagedError

DECODED_MAX = 16 * GIB
"""Bytes that are decoded for one read, besides DECODED_RATIO times its size: some ten seconds of a thread.

Whatever was written, cut short and written again, a page of 4 KiB lies in 2 GiB of chunks of up to 512 KiB at most. A
piece cut short of a chunk that is read through eight differences may take 80 MiB: eight levels that each reach over the
ends of the one above by a chunk, twice. A part of 16 MiB of a version whose small tensors lie in another order with
every save takes 8 GiB, if each chunk rests on two that are nobody else's."""
DECODED_RATIO = 32
"""A chain of eight differences takes nine times the bytes, and what its levels reach over; all is counted twice."""
CHUNK_COST = 16 * KIB
"""What a chunk counts besides its bytes, however few they are: it is looked up and its record read."""


class Budget:
    """What is left of what one read of so many bytes may cost."""

    def __init__(self, read_size: int) -> None:
        self._read_size = read_size
        self._left = DECODED_MAX + DECODED_RATIO * read_size

    def take(self, size: int, chunks: int = 0) -> None:
        """Take what some bytes, or some chunks of so many bytes, cost; DamagedError, from then on, where it is more."""
        self._left -= size + CHUNK_COST * chunks
        if self._left < 0:
            raise DamagedError(f"{self._read_size} bytes of a file rest on far too many bytes of chunks")
