"""The definition of the kernels, in the plainest Python.

Owns what cut points, chunk ids and byte planes are: the C in kernels.c has to return the same values bit for bit, which
tests/unit/test_kernels.py holds, and a change of either is a change of format. It is also what runs, slowly, where
the C extension was not built. Pure functions without state: any thread may call them.
"""

from collections import Counter
from itertools import accumulate
from math import log, log2

import xxhash

Buffer = bytes | bytearray | memoryview
"""What the kernels take: anything C-contiguous, read as bytes."""

SIZE_MIN_LEAST = 16
MEAN_BITS_LEAST = 8
MEAN_BITS_MOST = 40
PREFILTER_TARGET = 0x5B
HASH_FACTOR_LOW = 0x9E3779B97F4A7C15
HASH_FACTOR_MIX = 0xFF51AFD7ED558CCD
WORD = (1 << 64) - 1


def is_candidate(data: bytes, position: int, mean_bits: int) -> bool:
    """Say whether a chunk may end before the byte at `position`; only the 16 bytes before it decide."""
    b0, b1, b2, b3 = data[position - 4 : position]
    if (b0 + 5 * b1 + 3 * b2 + 9 * b3) % 256 != PREFILTER_TARGET:
        return False
    low = int.from_bytes(data[position - 16 : position - 8], "little")
    high = int.from_bytes(data[position - 8 : position], "little")
    mixed = (low * HASH_FACTOR_LOW + high) & WORD
    mixed = ((mixed ^ mixed >> 32) * HASH_FACTOR_MIX) & WORD
    return mixed >> (64 - (mean_bits - MEAN_BITS_LEAST)) == 0


def cut(data: Buffer, size_min: int, mean_bits: int, size_max: int, final: bool) -> list[int]:
    """Return the lengths of the chunks at the start of `data`; see `kernels.cut`."""
    if not (SIZE_MIN_LEAST <= size_min <= size_max and MEAN_BITS_LEAST <= mean_bits <= MEAN_BITS_MOST):
        raise ValueError("need 16 <= size_min <= size_max and 8 <= mean_bits <= 40")
    rest = bytes(data)
    lengths: list[int] = []
    while len(rest) >= size_min:
        positions = range(size_min, min(size_max - 1, len(rest)) + 1)
        length = next((p for p in positions if is_candidate(rest, p, mean_bits)), size_max)
        if length > len(rest):
            break
        lengths.append(length)
        rest = rest[length:]
    if final and rest:
        lengths.append(len(rest))
    return lengths


def cut_and_hash(
    data: Buffer, size_min: int, mean_bits: int, size_max: int, final: bool, seed: int
) -> tuple[list[int], list[bytes]]:
    """Return the lengths and the ids of the chunks at the start of `data`; see `kernels.cut_and_hash`."""
    lengths = cut(data, size_min, mean_bits, size_max, final)
    return lengths, hash_chunks(memoryview(data).cast("B")[: sum(lengths)], lengths, seed)


def hash_chunks(data: Buffer, lengths: list[int], seed: int) -> list[bytes]:
    """Return the ids of chunks that lie one behind the other; see `kernels.hash_chunks`."""
    flat = bytes(data)
    if sum(lengths) != len(flat):
        raise ValueError("the lengths have to add up to the bytes")
    ends = accumulate(lengths)
    return [xxhash.xxh3_128_digest(flat[end - length : end], seed) for length, end in zip(lengths, ends, strict=True)]


def _plane(flat: bytes, width: int, plane: int, turned: bool) -> bytes:
    """Return byte `plane` of every element, of `turned` ones after they were rotated left by a bit."""
    whole = len(flat) - len(flat) % width
    straight = flat[plane:whole:width]
    if not turned:
        return straight
    below = flat[(plane - 1) % width : whole : width]
    return bytes(high << 1 & 0xFF | low >> 7 for high, low in zip(straight, below, strict=True))


def split_planes(data: Buffer, width: int, turned: bool) -> bytes:
    """Return byte 0 of every element, then byte 1 of every element, ..., then the tail; see `kernels.split_planes`."""
    if width not in (2, 4, 8):
        raise ValueError("the width of an element has to be 2, 4 or 8")
    flat = bytes(data)
    planes = [_plane(flat, width, plane, turned) for plane in range(width)]
    return b"".join(planes) + flat[len(flat) - len(flat) % width :]


def join_planes(data: Buffer, width: int, turned: bool) -> bytes:
    """Undo `split_planes`."""
    if width not in (2, 4, 8):
        raise ValueError("the width of an element has to be 2, 4 or 8")
    flat, joined = bytes(data), bytearray(data)
    count = len(joined) // width
    planes = [flat[plane * count : (plane + 1) * count] for plane in range(width)]
    if turned:
        above = [*planes[1:], planes[0]]
        planes = [
            bytes(low >> 1 | high << 7 & 0xFF for low, high in zip(*pair, strict=True))
            for pair in zip(planes, above, strict=True)
        ]
    for plane in range(width):
        joined[plane : count * width : width] = planes[plane]
    return bytes(joined)


def mark(bits: bytearray, numbers: Buffer) -> None:
    """Set the bit of each number; see `kernels.mark`."""
    packed = bytes(numbers)
    for at in range(0, len(packed) - 7, 8):
        number = int.from_bytes(packed[at : at + 8], "little")
        if number < 8 * len(bits):
            bits[number >> 3] |= 1 << (number & 7)


def plane_entropies(data: Buffer, width: int, turned: bool) -> list[float]:
    """Estimate the order-0 entropy of every plane in bits per byte; see `kernels.plane_entropies`.

    The Miller-Madow estimate: the entropy of the counted frequencies, and (distinct - 1) / 2n nats more, because n
    samples always look less random than their source. The only function here that need not be exact: it steers the
    choice of an encoding, and the encoding is written down.
    """
    if not 1 <= width <= 8:
        raise ValueError("the width of an element has to be 1 to 8")
    flat = bytes(data)
    total = len(flat) // width
    if total == 0:
        return [0.0] * width
    entropies = []
    for plane in range(width):
        counts = Counter(_plane(flat, width, plane, turned)).values()
        frequencies = log2(total) - sum(count * log2(count) for count in counts) / total
        entropies.append(frequencies + (len(counts) - 1) / (2 * total * log(2)))
    return entropies
