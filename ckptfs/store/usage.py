"""What live records take of the packs, and so what of them is dead.

Pure: it is told where chunks lie. A record that it was not told of counts as dead, so whoever acts on that has to have
told it of all that lie there. Belongs to one thread; 16 bytes of memory for each chunk.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ckptfs.disk import whole_pages
from ckptfs.store.location import Location
from ckptfs.store.records import ALIGNMENT, PACK_HEADER_SIZE, record_size

_SIZE_BITS = 24
_SIZE_MASK = (1 << _SIZE_BITS) - 1


class Usage:
    """The live records of a store, by pack."""

    def __init__(self) -> None:
        # Offset and size in one integer, which sorts like the offset; records are aligned, and smaller than 128 MiB.
        self._records: dict[int, array[int]] = defaultdict(lambda: array("Q"))
        self._numbers: dict[int, array[int]] = defaultdict(lambda: array("Q"))

    def add(self, number: int, location: Location) -> None:
        """Note where a chunk lies."""
        size = record_size(location.stored_size, len(location.bases))
        self._records[location.pack].append(location.offset << _SIZE_BITS | size // ALIGNMENT)
        self._numbers[location.pack].append(number)

    def numbers(self, pack: int) -> "array[int]":
        """Return the numbers of the chunks in a pack."""
        return self._numbers.get(pack, array("Q"))

    def live_size(self, pack: int) -> int:
        """Return how many bytes of a pack live records take."""
        return sum((record & _SIZE_MASK) * ALIGNMENT for record in self._records.get(pack, ()))

    def dead(self, pack: int, end: int) -> Iterator[range]:
        """Yield what of a pack, from behind its header to before `end`, no live record takes."""
        start = PACK_HEADER_SIZE
        for record in sorted(self._records.get(pack, ())):
            offset = record >> _SIZE_BITS
            if offset >= end:
                break
            if start < offset:
                yield range(start, offset)
            start = offset + (record & _SIZE_MASK) * ALIGNMENT
        if start < end:
            yield range(start, end)


def pages_with_data(dead: Iterable[range], data: Iterable[tuple[int, int]]) -> Iterator[range]:
    """Yield the whole pages of some ranges of a file, as far as there is data; both in order."""
    runs = iter(data)
    run = next(runs, None)
    for each in dead:
        pages = whole_pages(each.start, len(each))
        while run is not None and run[0] < pages.stop:
            start, stop = max(run[0], pages.start), min(run[1], pages.stop)
            if start < stop:
                yield range(start, stop)
            if run[1] > pages.stop:
                break
            run = next(runs, None)
