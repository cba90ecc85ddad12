"""The definition of differences, in plain Python: what a target's floats differ in from its base's, as coded bytes.

Owns what delta.c has to return bit for bit, which tests/unit/test_coders.py holds; the bytes of each plane are coded as
reference_coders.py defines. It is also what runs, slowly, where the C extension was not built. Pure functions without
state: any thread may call them. The decoder raises ValueError where the bytes are not what an encoder makes.
"""

from ckptfs.store.reference import Buffer
from ckptfs.store.reference_coded import DAMAGED, Input
from ckptfs.store.reference_coders import put_bytes, take_bytes

SLACK_PARTS = 32
"""One part in so many of what a difference takes may be spent on a plane where that makes decoding it faster."""


class _Elements:
    """Where in `size` bytes the whole elements of `width` lie, from `phase` on, and what surrounds them."""

    def __init__(self, size: int, width: int, phase: int) -> None:
        if width not in (1, 2, 4, 8) or not 0 <= phase < width:
            raise ValueError("need a width of 1, 2, 4 or 8, a smaller phase, and a base of equal size")
        self.width = width
        self.begin = min(phase, size)
        self.count = (size - self.begin) // width
        self.end = self.begin + self.count * width
        self.outside = [*range(self.begin), *range(self.end, size)]

    def numbers(self, data: bytes) -> list[int]:
        """Return the elements as unsigned integers."""
        starts = range(self.begin, self.end, self.width)
        return [int.from_bytes(data[start : start + self.width], "little") for start in starts]

    def keys(self, base: list[int]) -> bytes:
        """Return the 8 bits below the sign of each element of the base, for a width of 1 all of it."""
        shift = 0 if self.width == 1 else 8 * self.width - 9
        return bytes(element >> shift & 0xFF for element in base)


def _sortable(bits: int, width: int) -> int:
    """Map the bits of a float to an integer that sorts like it; on integers it keeps steps small as well."""
    top = 1 << (8 * width - 1)
    return bits ^ (2 * top - 1) if bits & top else bits | top


def _fold(target: int, base: int, width: int) -> int:
    """Return the step from one element to the other, modulo 2^bits, with the sign in the lowest bit."""
    top = 1 << (8 * width - 1)
    step = (_sortable(target, width) - _sortable(base, width)) % (2 * top)
    return (2 * step) % (2 * top) ^ (2 * top - 1 if step & top else 0)


def _unfold(folded: int, base: int, width: int) -> int:
    """Undo `_fold`."""
    top = 1 << (8 * width - 1)
    step = folded >> 1 ^ (2 * top - 1 if folded & 1 else 0)
    moved = (_sortable(base, width) + step) % (2 * top)
    return moved ^ top if moved & top else moved ^ (2 * top - 1)


def encode_difference(target: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Return what `target` differs in from `base`; see `kernels.encode_difference`."""
    after, before = bytes(target), bytes(base)
    elements = _Elements(len(before), width, phase)
    if len(after) != len(before):
        raise ValueError("need a width of 1, 2, 4 or 8, a smaller phase, and a base of equal size")
    olds, news = elements.numbers(before), elements.numbers(after)
    folded = [_fold(new, old, width) for new, old in zip(news, olds, strict=True)]
    coded = b""
    for plane in range(width if elements.count else 0):
        of_plane = bytes(each >> 8 * plane & 0xFF for each in folded)
        coded += put_bytes(of_plane, elements.keys(olds), len(coded) // SLACK_PARTS)
    return coded + bytes((after[at] - before[at]) % 256 for at in elements.outside)


def decode_difference(coded: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Undo `encode_difference`; see `kernels.decode_difference`."""
    before = bytes(base)
    elements = _Elements(len(before), width, phase)
    rest = Input(coded)
    olds = elements.numbers(before)
    keys = elements.keys(olds)
    planes = [take_bytes(rest, keys) for _ in range(width if elements.count else 0)]
    outside = rest.take(len(elements.outside))
    if rest.rest:
        raise ValueError(DAMAGED)
    out = bytearray(before)
    for index, old in enumerate(olds):
        folded = sum(plane[index] << 8 * k for k, plane in enumerate(planes))
        start = elements.begin + index * width
        out[start : start + width] = _unfold(folded, old, width).to_bytes(width, "little")
    for at, step in zip(elements.outside, outside, strict=True):
        out[at] = (before[at] + step) % 256
    return bytes(out)
