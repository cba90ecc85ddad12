"""Chunks that are read together: what lies close together in a pack, and what comes of it.

Values and one pure function; packs and the index are the callers' business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

from ckptfs.config import KIB, MIB
from ckptfs.store.codec import Encoding
from ckptfs.store.location import Location
from ckptfs.store.records import HEADER_SIZE

SPAN_SIZE_MAX = 8 * MIB
"""Records that lie close together are read in one call of up to this many bytes."""
SPAN_GAP_MAX = 64 * KIB
"""Bytes between two records that are read and thrown away rather than making two calls."""

Room = bytearray | mmap
"""What bytes of chunks are read into."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The bytes of one chunk, `buffer[start:stop]`; of chunks that were read together often one buffer, in order."""

    buffer: bytes | Room
    start: int
    stop: int

    def __len__(self) -> int:
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
    def is_raw(self) -> bool:
        """Whether the record has the chunk's bytes as they are."""
        _, _, stored_size, raw_size, encoding, *_ = self.location
        return encoding in (Encoding.RAW, Encoding.WAITING) and stored_size == raw_size

    @property
    def payload_offset(self) -> int:
        """Where in the pack the payload of the record begins."""
        return self.location.offset + HEADER_SIZE + 8 * len(self.location.bases)

    @property
    def end(self) -> int:
        """Where in the pack the record ends, without the padding behind it."""
        return self.location.offset + self.location.read_size


def spans(chunks: Iterable[Located]) -> Iterator[list[Located]]:
    """Yield runs of chunks whose records lie close behind one another in one pack, all of them raw or none."""
    span: list[Located] = []
    for chunk in chunks:
        if span:
            first, last = span[0], span[-1]
            near = 0 <= chunk.location.offset - last.end <= SPAN_GAP_MAX
            fits = chunk.end - first.location.offset <= SPAN_SIZE_MAX
            if not (near and fits and chunk.location.pack == first.location.pack and chunk.is_raw == first.is_raw):
                yield span
                span = []
        span.append(chunk)
    if span:
        yield span
