"""What the chunks of a store consist of: how they are encoded, and how many deltas each is read through.

One pass over the locations, which have all of it. Reads one view, in any thread; some 40 bytes of memory for each
delta, and one for each other chunk.
"""

from array import array
from collections import defaultdict
from dataclasses import astuple, dataclass
from itertools import islice
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store.codec import Encoding
from ckptfs.store.location import NUMBER, parse_location
from ckptfs.store.reader import View
from ckptfs.store.records import record_size
from ckptfs.store.schema import Table

_DEPTH_MAX = 255


@dataclass(slots=True)
class Share:
    """Some of the chunks: how many, their bytes when decoded, and those that their records take."""

    chunks: int = 0
    chunk_bytes: int = 0
    stored_bytes: int = 0

    def add(self, chunk_bytes: int, stored_bytes: int) -> None:
        """Note a chunk more."""
        self.chunks += 1
        self.chunk_bytes += chunk_bytes
        self.stored_bytes += stored_bytes


class Composition(NamedTuple):
    """All chunks by their encoding, and by their depth.

    A chunk that is stored by itself has the depth 0. A delta is one deeper than the deepest of its bases: it is read
    through so many deltas, itself included.
    """

    encodings: dict[int, Share]
    depths: list[Share]


def composition(view: View, chunks_end: int) -> Composition:
    """Return what the chunks of a view consist of, whose numbers are below `chunks_end`; DamagedError."""
    encodings: dict[int, Share] = {encoding: Share() for encoding in Encoding}
    deltas: dict[int, array[int]] = defaultdict(lambda: array("Q"))
    """By height, one behind the other: number, bytes, bytes of the record, count of the bases, bases."""
    for key, value in view.scan(Table.CHUNKS):
        location = parse_location(value)
        bases = location.bases
        sizes = location.raw_size, record_size(location.stored_size, len(bases))
        encodings[location.encoding].add(*sizes)
        if bases:
            deltas[location.height].extend((NUMBER.unpack(key)[0], *sizes, len(bases), *bases))
    plain = [share for encoding, share in encodings.items() if encoding != Encoding.DELTA]
    depths = [Share(*map(sum, zip(*map(astuple, plain), strict=True)))]
    depth_of = bytearray(chunks_end)
    for height in sorted(deltas, reverse=True):  # a base is higher than the deltas that rest on it
        fields = iter(deltas[height])
        for number in fields:
            chunk_bytes, stored_bytes, count = islice(fields, 3)
            bases = tuple(islice(fields, count))
            if max(bases) >= chunks_end:
                raise DamagedError(f"chunk {number} rests on chunk {max(bases)}, which is not there")
            depth = min(1 + max(depth_of[base] for base in bases), _DEPTH_MAX)
            depth_of[number] = depth
            while len(depths) <= depth:
                depths.append(Share())
            depths[depth].add(chunk_bytes, stored_bytes)
    return Composition(encodings, depths)
