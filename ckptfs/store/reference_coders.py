"""The definition of the coders, in plain Python: planes as runs, and differences of floats.

Owns what runs.c and delta.c have to return bit for bit, which tests/unit/test_coders.py holds. What the decoders take
is format; what the encoders choose (where a run ends, how it is stored) is not. It is also what runs, slowly, where
the C extension was not built. Pure functions without state: any thread may call them.

rANS is Duda's (Asymmetric numeral systems, arXiv:1311.2540), with words of 16 bits and interleaved states as in
Giesen's Interleaved entropy coders (arXiv:1402.3392). The decoders raise ValueError where the bytes are not what an
encoder makes, and allocate nothing on their word.
"""

from collections import Counter
from enum import IntEnum
from itertools import accumulate

from ckptfs.store.reference import Buffer

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
STATE_LEAST = 1 << 15
WORD_BITS = 16
LANES = 8
LANES_FROM = 1024
SPARSE_FROM = 8
CLASS_MOST = 31
NOISE_PARTS = 100
RUN_COST = 24 * 8
SYMBOL_COST = 8
VARINT_SIZE_MOST = 5
SEGMENTS = 16
SEGMENT_LEAST = 512
DAMAGED = "the bytes are not what the encoder makes"


class Run(IntEnum):
    """How the bytes of one run are stored; the numbers are on the disk."""

    RAW = 0
    CONSTANT = 1
    RANS = 2
    SPARSE = 3


class _Input:
    """The bytes that a decoder has not taken yet."""

    def __init__(self, data: Buffer) -> None:
        self._data = bytes(data)
        self._at = 0

    @property
    def rest(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Take the next bytes, all of them or ValueError."""
        if self.rest < size:
            raise ValueError(DAMAGED)
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Take an unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        """Take an integer below 2^32 of 7 bits a byte, the low ones first; all bytes but the last have the top bit."""
        value = 0
        for shift in range(0, 7 * VARINT_SIZE_MOST, 7):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 32:
                    break
                return value
        raise ValueError(DAMAGED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# Costs and frequencies


def _log2_parts(number: int) -> int:
    """Return log2 in 1/256 bits, between powers of two by a parabola."""
    exponent = number.bit_length() - 1
    fraction = (number << 8 >> exponent) & 0xFF
    return (exponent << 8) + fraction + (fraction * (256 - fraction) * 88 >> 16)


def _estimate_cost(counts: Counter[int]) -> int:
    """Estimate what coding bytes so counted as one run costs, in 1/256 bits."""
    size = counts.total()
    information = size * _log2_parts(size) - sum(count * _log2_parts(count) for count in counts.values())
    return information + (RUN_COST + SYMBOL_COST * len(counts)) * 256


def _is_noise(counts: Counter[int]) -> bool:
    size = counts.total()
    return _estimate_cost(counts) >= (size - size // NOISE_PARTS) * 8 * 256


def _scale_counts(counts: Counter[int]) -> list[int]:
    """Scale counts to frequencies whose sum is SCALE, none of a byte that there is being 0."""
    size = counts.total()
    frequencies = [
        max((counts[value] * SCALE + size // 2) // size, 1) if value in counts else 0 for value in range(256)
    ]
    while rest := SCALE - sum(frequencies):
        most = frequencies.index(max(frequencies))
        step = frequencies[most] // 4 + 1
        frequencies[most] += min(rest, step) if rest > 0 else max(rest, -step)
    return frequencies


# rANS


def _put_table(frequencies: list[int]) -> bytes:
    """Return the least and the greatest byte that there is, and the frequencies between them, runs of 0 as one."""
    present = [value for value, frequency in enumerate(frequencies) if frequency]
    out = bytes([present[0], present[-1]])
    before = present[0] - 1
    for value in present:
        if value > before + 1:
            out += bytes([0, value - before - 2])
        out += _varint(frequencies[value])
        before = value
    return out


def _take_table(coded: _Input) -> list[int]:
    value, last = coded.take(2)
    frequencies = [0] * 256
    while value <= last:
        frequencies[value] = coded.varint()
        if frequencies[value] >= SCALE:
            raise ValueError(DAMAGED)
        value += 1 if frequencies[value] else 1 + coded.number(1)
    if sum(frequencies) != SCALE:
        raise ValueError(DAMAGED)
    return frequencies


def _lane_count(size: int) -> int:
    return 1 if size < LANES_FROM else LANES


def _put_rans(data: bytes, counts: Counter[int]) -> bytes:
    frequencies = _scale_counts(counts)
    starts = list(accumulate(frequencies, initial=0))
    lanes = _lane_count(len(data))
    states = [STATE_LEAST] * lanes
    words: list[bytes] = []
    for index in reversed(range(len(data))):  # what goes in last comes out first
        value, state = data[index], states[index % lanes]
        frequency = frequencies[value]
        if state >= (STATE_LEAST >> SCALE_BITS << WORD_BITS) * frequency:
            words.append((state & 0xFFFF).to_bytes(2, "little"))
            state >>= WORD_BITS
        states[index % lanes] = (state // frequency << SCALE_BITS) + starts[value] + state % frequency
    return b"".join([_put_table(frequencies), *(state.to_bytes(4, "little") for state in states), *reversed(words)])


def _take_rans(coded: _Input, size: int) -> bytes:
    frequencies = _take_table(coded)
    starts = list(accumulate(frequencies, initial=0))
    slots = [value for value, frequency in enumerate(frequencies) for _ in range(frequency)]
    lanes = _lane_count(size)
    states = [coded.number(4) for _ in range(lanes)]
    if any(state >> 31 for state in states):
        raise ValueError(DAMAGED)
    out = bytearray()
    for index in range(size):
        state = states[index % lanes]
        slot = state % SCALE
        value = slots[slot]
        state = frequencies[value] * (state >> SCALE_BITS) + slot - starts[value]
        if state < STATE_LEAST:
            state = state << WORD_BITS | coded.number(2)
        states[index % lanes] = state
        out.append(value)
    if states != [STATE_LEAST] * lanes:
        raise ValueError(DAMAGED)
    return bytes(out)


# Runs


def _put_sparse(data: bytes) -> bytes:
    """Return how many bytes are not 0, the class (bits of the length) of the gap before each, these bytes, and the bits
    of the gaps' lengths below their leading ones."""
    classes, values = bytearray(), bytearray()
    bits = bit_count = gap = 0
    for value in data:
        if not value:
            gap += 1
            continue
        classes.append(gap.bit_length())
        values.append(value)
        if gap > 1:
            bits |= (gap - (1 << (gap.bit_length() - 1))) << bit_count
            bit_count += gap.bit_length() - 1
        gap = 0
    parts = [_varint(len(values)), _put_run(bytes(classes), False), _put_run(bytes(values), False)]
    return b"".join([*parts, bits.to_bytes((bit_count + 7) // 8, "little")])


def _take_sparse(coded: _Input, size: int) -> bytes:
    filled = coded.varint()
    if not 0 < filled <= size // SPARSE_FROM:
        raise ValueError(DAMAGED)
    classes = _take_run(coded, filled, False)
    values = _take_run(coded, filled, False)
    out = bytearray(size)
    position = waiting = waiting_bits = 0
    for size_class, value in zip(classes, values, strict=True):
        if size_class > CLASS_MOST:
            raise ValueError(DAMAGED)
        if size_class:
            more = size_class - 1
            while waiting_bits < more:
                waiting |= coded.number(1) << waiting_bits
                waiting_bits += 8
            position += 1 << more | waiting & ((1 << more) - 1)
            waiting >>= more
            waiting_bits -= more
        if position >= size:
            raise ValueError(DAMAGED)
        out[position] = value
        position += 1
    if waiting:
        raise ValueError(DAMAGED)
    return bytes(out)


def _put_run(data: bytes, may_be_sparse: bool) -> bytes:
    """Return the kind of a run and its body."""
    counts = Counter(data)
    if len(counts) == 1:
        return bytes([Run.CONSTANT, data[0]])
    kind, body = Run.RAW, data
    if may_be_sparse and len(data) - counts[0] <= len(data) // SPARSE_FROM:
        kind, body = Run.SPARSE, _put_sparse(data)
    elif not _is_noise(counts):
        kind, body = Run.RANS, _put_rans(data, counts)
    return bytes([kind]) + body if len(body) < len(data) else bytes([Run.RAW]) + data


def _take_run(coded: _Input, size: int, may_be_sparse: bool) -> bytes:
    if coded.rest < 2:
        raise ValueError(DAMAGED)
    kind = coded.number(1)
    if kind == Run.RAW:
        return coded.take(size)
    if kind == Run.CONSTANT:
        return coded.take(1) * size
    if kind == Run.RANS:
        return _take_rans(coded, size)
    if kind == Run.SPARSE and may_be_sparse:
        return _take_sparse(coded, size)
    raise ValueError(DAMAGED)


def _put_segments(data: bytes, lengths: list[int]) -> bytes:
    """Return a plane as runs, each with its length before it: the segments, those alike joined with their neighbour."""
    if len(lengths) == 1 or _is_noise(Counter(data)):
        return _varint(len(data)) + _put_run(data, True)
    ends = accumulate(lengths)
    counts = [Counter(data[end - length : end]) for length, end in zip(lengths, ends, strict=True)]
    runs = [counts[0]]
    for segment in counts[1:]:
        both = runs[-1] + segment
        if _estimate_cost(both) > _estimate_cost(runs[-1]) + _estimate_cost(segment):
            runs.append(segment)
        else:
            runs[-1] = both
    sizes = [run.total() for run in runs]
    parts = (data[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))
    return b"".join(_varint(len(part)) + _put_run(part, True) for part in parts)


def _take_runs(coded: _Input, size: int) -> bytes:
    out = b""
    while len(out) < size:
        length = coded.varint()
        if not 0 < length <= size - len(out):
            raise ValueError(DAMAGED)
        out += _take_run(coded, length, True)
    return out


def encode_runs(data: Buffer) -> bytes:
    """Return bytes as one run; see `kernels.encode_runs`."""
    return _put_segments(bytes(data), [len(data)]) if len(data) else b""


def decode_runs(coded: Buffer, size: int) -> bytes:
    """Undo `encode_runs`."""
    if size < 0:
        raise ValueError(DAMAGED)
    rest = _Input(coded)
    data = _take_runs(rest, size)
    if rest.rest:
        raise ValueError(DAMAGED)
    return data


# Differences


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

    def order(self, base: list[int]) -> list[int]:
        """Return the elements' indices in the order of their keys: the 8 bits of the base below its sign."""
        shift = 0 if self.width == 1 else 8 * self.width - 9
        return sorted(range(self.count), key=lambda index: base[index] >> shift & 0xFF)

    def segments(self, base: list[int]) -> list[int]:
        """Cut the ordered elements where the key changes, into some pieces that are not too small."""
        shift = 0 if self.width == 1 else 8 * self.width - 9
        counts = Counter(element >> shift & 0xFF for element in base)
        least = SEGMENT_LEAST if self.count // SEGMENTS < SEGMENT_LEAST else self.count // SEGMENTS + 1
        lengths, length = [], 0
        for key in range(256):
            length += counts[key]
            if length >= least:
                lengths.append(length)
                length = 0
        return [*lengths, length] if length else lengths


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
    folded = [_fold(news[index], olds[index], width) for index in elements.order(olds)]
    coded = b""
    for plane in range(width if elements.count else 0):
        data = bytes(each >> 8 * plane & 0xFF for each in folded)
        coded += _put_segments(data, elements.segments(olds))
    return coded + bytes((after[at] - before[at]) % 256 for at in elements.outside)


def decode_difference(coded: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Undo `encode_difference`."""
    before = bytes(base)
    elements = _Elements(len(before), width, phase)
    rest = _Input(coded)
    planes = [_take_runs(rest, elements.count) for _ in range(width if elements.count else 0)]
    outside = rest.take(len(elements.outside))
    if rest.rest:
        raise ValueError(DAMAGED)
    olds = elements.numbers(before)
    out = bytearray(before)
    for place, index in enumerate(elements.order(olds)):
        folded = sum(plane[place] << 8 * k for k, plane in enumerate(planes))
        start = elements.begin + index * width
        out[start : start + width] = _unfold(folded, olds[index], width).to_bytes(width, "little")
    for at, step in zip(elements.outside, outside, strict=True):
        out[at] = (before[at] + step) % 256
    return bytes(out)
