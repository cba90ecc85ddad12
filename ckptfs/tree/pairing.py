"""Pairing: which bytes of a newer version each chunk of an older one is to be compared with.

Tensors of one name, type and shape belong together, wherever they lie in the two files; so do those of which only the
first dimension differs, as far as both go (a vocabulary that grows). All else is compared at the same offset. A wrong
match costs space and never content: the store keeps what does not become smaller. Reads headers, decides nothing
about chunks that others use, and works in any thread.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ckptfs.config import BASES_MAX
from ckptfs.formats import Tensor, parse
from ckptfs.store import Alignment, Bitmap, DeltaCandidate, element_width
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.reader import ChunkReader, ReadPlan


class Stretch(NamedTuple):
    """Bytes `start` to `stop` of the older file, which correspond to those `shift` further on in the newer one.

    Their elements have `width` bytes each, the first one at `start`.
    """

    start: int
    stop: int
    shift: int
    width: int


def pair_chunks(
    reader: ChunkReader, older: Extents, newer: Extents, kept: Bitmap
) -> Iterator[tuple[int, DeltaCandidate | None]]:
    """Yield for each chunk of `older` its offset, and how it may become a delta against chunks of `newer`, in order.

    None for those in `kept`, those that `newer` has as well, and those that meet a hole or more than BASES_MAX chunks.
    DamagedError where a header cannot be read.
    """
    kept_here = Bitmap(kept.limit)
    kept_here.add_packed(newer.packed_numbers)
    rest = _rest(reader, older)
    stretches = [*_match(_layout(reader, older), _layout(reader, newer), rest.width), rest]
    starts = [stretch.start for stretch in stretches[:-1]]
    for extent in older.between(0, older.size):
        free = extent.number and extent.number not in kept and extent.number not in kept_here
        yield extent.offset, _lay(extent, _main_stretch(extent, stretches, starts), newer) if free else None


def _lay(extent: Extent, stretch: Stretch, newer: Extents) -> DeltaCandidate | None:
    """Return how a chunk lies over those of `newer`, None where it does not."""
    start = extent.offset + stretch.shift
    stop = start + extent.length
    if start < 0 or stop > newer.size:
        return None
    bases = list(islice(newer.between(start, stop), BASES_MAX + 1))
    if len(bases) > BASES_MAX or not all(base.number for base in bases):
        return None
    phase = (stretch.start - extent.offset) % stretch.width
    alignment = Alignment(start - bases[0].offset, stretch.width, phase)
    return DeltaCandidate(extent.number, tuple(base.number for base in bases), alignment)


def _layout(reader: ChunkReader, extents: Extents) -> list[Tensor]:
    """Return the tensors of a version; none where it is opaque."""

    def read(offset: int, size: int) -> bytes:
        plan = ReadPlan(min(size, extents.size - offset))
        plan.cover(extents, offset)
        return bytes(plan.run(reader))

    return parse(read, extents.size) or []


def _match(older: list[Tensor], newer: list[Tensor], width: int) -> list[Stretch]:
    """Return the stretches that two layouts have in common, in the order of the older one.

    `width` is that of elements whose type is not known.
    """
    waiting: dict[tuple[str, str, tuple[int, ...]], list[Tensor]] = defaultdict(list)
    for tensor in reversed(newer):
        waiting[tensor.name, tensor.dtype, tensor.shape[1:]].append(tensor)
    stretches = []
    for tensor in older:
        found = waiting[tensor.name, tensor.dtype, tensor.shape[1:]]
        if found and tensor.size:
            other = found.pop()
            size = min(tensor.size, other.size)
            shift = other.offset - tensor.offset
            stretches.append(Stretch(tensor.offset, tensor.offset + size, shift, tensor.element_width or width))
    return stretches


def _rest(reader: ChunkReader, older: Extents) -> Stretch:
    """Return the stretch for what no tensor covers: at the same offset, elements as the middle of the file suggests."""
    middle = older[older.index_at(older.size // 2)]
    width = element_width(reader.read(middle.number)) if middle.number else 1
    return Stretch(0, older.size, 0, width)


def _main_stretch(extent: Extent, stretches: list[Stretch], starts: list[int]) -> Stretch:
    """Return the stretch that covers most of a chunk, the last one where none does."""
    end = extent.offset + extent.length
    best, most = stretches[-1], 0
    for index in range(max(bisect_right(starts, extent.offset) - 1, 0), len(starts)):
        stretch = stretches[index]
        if stretch.start >= end:
            break
        covered = min(stretch.stop, end) - max(stretch.start, extent.offset)
        if covered > most:
            best, most = stretch, covered
    return best
