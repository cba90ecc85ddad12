"""Chunks that are read together: what lies close together in a pack, and what comes of it.

Values and one pure function; packs and the index are the callers' business.
"""

from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import NamedTuple

from ckptfs.config import KIB, MIB
from ckptfs.store.location import Location
from ckptfs.store.records import HEADER_SIZE

SPAN_SIZE_MAX = 10 * MIB
"""Records that lie close together are read in one call of up to this many bytes."""
SPAN_GAP_MAX = 64 * KIB
"""Bytes between two records that are read and thrown away rather than making two calls."""

Room = bytearray | mmap
"""What bytes of chunks are read into."""


class Decoded(NamedTuple):
    """The bytes of one chunk, `buffer[start:stop]`; of chunks that were read together often one buffer, in order."""

    buffer: bytes | Room
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.stop - self.start

    def view(self) -> memoryview:
        """Return the bytes, uncopied."""
        return memoryview(self.buffer)[self.start : self.stop]

    def continues(self, other: "Decoded") -> bool:
        """Whether these bytes lie right behind others in one buffer."""
        return self.buffer is other.buffer and self.start == other.stop


class Located(NamedTuple):
    """A chunk and where it was a moment ago."""

    number: int
    location: Location

    @property
    def payload_offset(self) -> int:
        """Where in the pack the payload of the record begins."""
        return self.location.offset + HEADER_SIZE + 8 * len(self.location.bases)

    @property
    def end(self) -> int:
        """Where in the pack the record ends, without the padding behind it."""
        return self.location.offset + self.location.read_size


def spans(chunks: Iterable[Located]) -> Iterator[list[Located]]:
    """Yield runs of chunks whose records lie close behind one another in one pack."""
    span: list[Located] = []
    first_pack = first_offset = last_end = 0
    for chunk in chunks:
        pack, offset, *_ = chunk.location
        end = chunk.end
        near = pack == first_pack and 0 <= offset - last_end <= SPAN_GAP_MAX
        if span and not (near and end - first_offset <= SPAN_SIZE_MAX):
            yield span
            span = []
        if not span:
            first_pack, first_offset = pack, offset
        span.append(chunk)
        last_end = end
    if span:
        yield span
