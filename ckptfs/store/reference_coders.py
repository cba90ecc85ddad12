"""The definition of coded bytes, in plain Python: an entropy coder for bytes whose statistics differ by a key.

Owns what coder.c has to return bit for bit, which tests/unit/test_coders.py holds. What the decoder takes is format;
what the encoder chooses (how bytes are stored, which keys have a table in common) is not. It is also what runs, slowly,
where the C extension was not built. Pure functions without state: any thread may call them.

rANS is Duda's (Asymmetric numeral systems, arXiv:1311.2540), with words of 16 bits and interleaved states as in
Giesen's Interleaved entropy coders (arXiv:1402.3392). The decoder raises ValueError where the bytes are not what an
encoder makes, and allocates nothing on their word.
"""

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

from ckptfs.store.reference import Buffer

SCALE_BITS = 11
SCALE = 1 << SCALE_BITS
STATE_LEAST = 1 << 15
WORD_BITS = 16
LANES = (1, 8, 32)
LANES_SOME_FROM = 1024
LANES_MOST_FROM = 2048
FEW_FROM = 32
RICE_MOST = 30
RICE_NONE = 31
ORDER_MOST = 6
ORDER_NONE = 7
NOISE_PARTS = 50
TABLE_COST = 8 * 32
SYMBOL_COST = 10
VARINT_SIZE_MOST = 5
KEYS = 256
CLASSES_MOST = 32
DAMAGED = "the bytes are not what the encoder makes"


class Coded(IntEnum):
    """How bytes are stored; the numbers are on the disk."""

    RAW = 0
    CONSTANT = 1
    FEW = 2
    RANS = 3


Frequencies = list[int]
"""Of each byte, with the sum SCALE."""


class Input:
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


def _rans_cost(counts: Counter[int]) -> int:
    """Estimate what the bytes so counted cost with one table of frequencies, in 1/256 bits."""
    size = counts.total()
    information = size * _log2_parts(size) - sum(count * _log2_parts(count) for count in counts.values())
    return information + (TABLE_COST + SYMBOL_COST * len(counts)) * 256


class _Few(NamedTuple):
    """How the bytes of a table that are not zero are coded in "few".

    The gap before each is in Rice's code with the parameter `rice`. How far it lies above 1 or 2, which are one step in
    either direction, is in an exponential Golomb code of `order`.
    """

    rice: int
    order: int


def _few_of(counts: Counter[int]) -> _Few:
    filled = counts.total() - counts[0]
    excess = sum(count * (value - 1 >> 1) for value, count in counts.items() if value)
    rice = min((counts.total() // filled).bit_length() - 1, RICE_MOST) if filled else RICE_NONE
    return _Few(rice, min((excess // filled).bit_length(), ORDER_MOST) if excess else ORDER_NONE)


def _few_cost(counts: Counter[int]) -> int:
    """Tell what the bytes so counted cost in "few", in 1/256 bits."""
    rice, order = _few_of(counts)
    filled = counts.total() - counts[0]
    bits = 16 + ((filled + 1) * (rice + 1) + (counts[0] >> rice) + filled if filled else 0)
    if order != ORDER_NONE:
        for value, count in counts.items():
            if value:
                bits += count * (1 + order + 2 * (((value - 1 >> 1 >> order) + 1).bit_length() - 1))
    return bits * 256


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


# Tables


class _Table(NamedTuple):
    """What the bytes of some neighbouring classes of keys, up to `last_key`, have in common."""

    last_key: int
    counts: Counter[int]
    cost: int


def _classes(keys: bytes) -> list[int]:
    """Return the last key of each class: one for each key, or runs of neighbouring ones where there are more."""
    counts = Counter(keys)
    least = 1 if len(counts) <= CLASSES_MOST else len(keys) // CLASSES_MOST + 1
    ends, length = [], 0
    for key in range(KEYS):
        length += counts[key]
        if length >= least:
            ends.append(key)
            length = 0
    if length or not ends:
        ends.append(KEYS - 1)
    return [*ends[:-1], KEYS - 1]


def _tables(data: bytes, keys: bytes, cost_of: Callable[[Counter[int]], int]) -> list[_Table]:
    """Return the tables: a class has one with the class before where that costs no more than one of its own."""
    ends = _classes(keys)
    class_of = [sum(end < key for end in ends) for key in range(KEYS)]
    counted = [Counter[int]() for _ in ends]
    for value, key in zip(data, keys, strict=True):
        counted[class_of[key]][value] += 1
    tables: list[_Table] = []
    for end, counts in zip(ends, counted, strict=True):
        table = _Table(end, counts, cost_of(counts))
        if tables:
            together = tables[-1].counts + counts
            cost = cost_of(together)
            if cost <= tables[-1].cost + table.cost:
                tables[-1] = _Table(end, together, cost)
                continue
        tables.append(table)
    return tables


def _put_table(last_key: int, frequencies: Frequencies) -> bytes:
    """Return the last key, the least and the greatest byte, and the frequencies before that, runs of 0 as one."""
    present = [value for value, frequency in enumerate(frequencies) if frequency]
    out = bytes([last_key, present[0], present[-1]])
    before = present[0] - 1
    for value in present[:-1]:
        if value > before + 1:
            out += bytes([0, value - before - 2])
        out += _varint(frequencies[value])
        before = value
    return out + bytes([0, present[-1] - before - 2] if present[-1] > before + 1 else [])


def _take_table(coded: Input) -> tuple[int, Frequencies]:
    last_key, value, last = coded.take(3)
    frequencies, rest = [0] * 256, SCALE
    while value < last:
        frequency = coded.varint()
        if frequency >= rest:
            raise ValueError(DAMAGED)
        frequencies[value] = frequency
        rest -= frequency
        value += 1 if frequency else 1 + coded.number(1)
    if value != last:
        raise ValueError(DAMAGED)
    frequencies[last] = rest
    return last_key, frequencies


# rANS


def _starts(frequencies: Frequencies) -> list[int]:
    return [0, *accumulate(frequencies)]


def _put_rans(data: bytes, keys: bytes, tables: list[_Table], lanes: int) -> bytes:
    out = bytes([lanes])
    steps: list[tuple[Frequencies, list[int]]] = []
    for table in tables:
        frequencies = _scale_counts(table.counts)
        out += _put_table(table.last_key, frequencies)
        steps += [(frequencies, _starts(frequencies))] * (table.last_key + 1 - len(steps))
    states = [STATE_LEAST] * lanes
    words: list[int] = []
    for index in reversed(range(len(data))):
        value, (frequencies, starts) = data[index], steps[keys[index]]
        state, frequency = states[index % lanes], frequencies[value]
        if state >= (STATE_LEAST >> SCALE_BITS << WORD_BITS) * frequency:
            words.append(state & 0xFFFF)
            state >>= WORD_BITS
        states[index % lanes] = (state // frequency << SCALE_BITS) + starts[value] + state % frequency
    out += b"".join(state.to_bytes(4, "little") for state in states)
    return out + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def _take_rans(coded: Input, keys: bytes) -> bytes:
    lanes = coded.number(1)
    if lanes not in LANES:
        raise ValueError(DAMAGED)
    # For each key: the byte, its frequency, and the distance from its first slot, of every slot.
    slots: list[list[tuple[int, int, int]]] = []
    for _ in range(CLASSES_MOST):
        last_key, frequencies = _take_table(coded)
        if last_key < len(slots):
            raise ValueError(DAMAGED)
        table = [(value, each, at) for value, each in enumerate(frequencies) for at in range(each)]
        slots += [table] * (last_key + 1 - len(slots))
        if last_key == KEYS - 1:
            break
    else:
        raise ValueError(DAMAGED)
    states = [coded.number(4) for _ in range(lanes)]
    if any(state >> 31 for state in states):
        raise ValueError(DAMAGED)
    out = bytearray()
    for index, key in enumerate(keys):
        state = states[index % lanes]
        value, frequency, distance = slots[key][state % SCALE]
        state = frequency * (state >> SCALE_BITS) + distance
        if state < STATE_LEAST:
            state = state << WORD_BITS | coded.number(2)
        states[index % lanes] = state
        out.append(value)
    if any(state != STATE_LEAST for state in states):
        raise ValueError(DAMAGED)
    return bytes(out)


# Bytes


class _Bits:
    """The bits of bytes that a decoder has not taken yet, the low ones of each byte first."""

    def __init__(self, coded: Input) -> None:
        self._coded = coded
        self._waiting: list[int] = []

    def take(self, size: int) -> int:
        """Take an unsigned integer of so many bits, the low ones first."""
        while len(self._waiting) < size:
            byte = self._coded.number(1)
            self._waiting += [byte >> at & 1 for at in range(8)]
        taken, self._waiting = self._waiting[:size], self._waiting[size:]
        return sum(bit << at for at, bit in enumerate(taken))

    def zeros(self) -> int:
        """Take zeros and the one behind them, and return how many zeros there were."""
        count = 0
        while not self.take(1):
            count += 1
        return count

    def end(self) -> None:
        """Take what is left of the last byte."""
        if any(self._waiting):
            raise ValueError(DAMAGED)


def _put_few(data: bytes, keys: bytes, tables: list[_Table]) -> bytes:
    """Return the parameters of each table, then for each where its bytes that are not zero lie, and what they are."""
    head = b""
    bits: list[int] = []

    def put(number: int, size: int) -> None:
        bits.extend(number >> at & 1 for at in range(size))

    def put_zeros(count: int) -> None:
        put(1 << count, count + 1)

    def put_gap(gap: int, rice: int) -> None:
        put_zeros(gap >> rice)
        put(gap, rice)

    first_key = 0
    for table in tables:
        rice, order = _few_of(table.counts)
        head += bytes([table.last_key, rice | order << 5])
        own = bytes(value for value, key in zip(data, keys, strict=True) if first_key <= key <= table.last_key)
        first_key = table.last_key + 1
        if rice == RICE_NONE:
            continue
        before = -1
        for place, value in enumerate(own):
            if value:
                put_gap(place - before - 1, rice)
                before = place
                put(value - 1, 1)
                if order != ORDER_NONE:
                    excess = value - 1 >> 1
                    above = (excess >> order) + 1
                    put_zeros(above.bit_length() - 1)
                    put(above, above.bit_length() - 1)
                    put(excess, order)
        put_gap(len(own) - before - 1, rice)
    packed = (sum(bit << at % 8 for at, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8))
    return head + bytes(packed)


def _take_few(coded: Input, keys: bytes) -> bytes:
    out, tables = bytearray(len(keys)), [(-1, 0)]
    while tables[-1][0] < KEYS - 1:
        last_key, parameters = coded.take(2)
        if last_key <= tables[-1][0] or len(tables) > CLASSES_MOST:
            raise ValueError(DAMAGED)
        tables.append((last_key, parameters))
    bits = _Bits(coded)
    for (key_before, _), (last_key, parameters) in pairwise(tables):
        own = [place for place, key in enumerate(keys) if key_before < key <= last_key]
        rice, order = parameters & 31, parameters >> 5
        if rice == RICE_NONE:
            continue
        at = _take_gap(bits, rice)
        while at < len(own):
            out[own[at]] = _take_value(bits, order)
            at += 1 + _take_gap(bits, rice)
        if at > len(own):
            raise ValueError(DAMAGED)
    bits.end()
    return bytes(out)


def _take_gap(bits: _Bits, rice: int) -> int:
    return (bits.zeros() << rice) + bits.take(rice)


def _take_value(bits: _Bits, order: int) -> int:
    value = 1 + bits.take(1)
    if order != ORDER_NONE:
        more_bits = bits.zeros()
        if more_bits > 7:
            raise ValueError(DAMAGED)
        above = (1 << more_bits) - 1 + bits.take(more_bits)
        value += 2 * ((above << order) + bits.take(order))
    if value > 255:
        raise ValueError(DAMAGED)
    return value


def put_bytes(data: bytes, keys: bytes, slack: int = 0) -> bytes:
    """Return bytes coded, at least one; each has a key.

    `slack` bytes more than the fewest may be spent where they make decoding faster: on more lanes, on few bytes coded
    as such, or on bytes that stay as they are.
    """
    size, filled = len(data), len(data) - data.count(0)
    raw = bytes([Coded.RAW]) + data
    if data.count(data[0]) == size:
        return bytes([Coded.CONSTANT, data[0]])
    if _rans_cost(Counter(data)) >= size * 8 * 256:
        return raw
    tables = _tables(data, keys, _rans_cost)
    estimate = sum(table.cost for table in tables) // (8 * 256)
    most = estimate >= LANES_MOST_FROM or slack >= 4 * (LANES[2] - LANES[1])
    lanes = LANES[0 if size < LANES_SOME_FROM else 1 + most]
    if filled <= size // FEW_FROM:
        few = _tables(data, keys, _few_cost)
        if sum(table.cost for table in few) // (8 * 256) <= estimate + 4 * lanes + slack:
            return bytes([Coded.FEW]) + _put_few(data, keys, few)
    if estimate + 4 * lanes + slack >= size - size // NOISE_PARTS:
        return raw
    coded = bytes([Coded.RANS]) + _put_rans(data, keys, tables, lanes)
    return raw if len(coded) > size else coded


def take_bytes(coded: Input, keys: bytes) -> bytes:
    """Take as many bytes as there are keys, and at least one."""
    kind, size = coded.number(1), len(keys)
    if kind == Coded.RAW:
        return coded.take(size)
    if kind == Coded.CONSTANT:
        return coded.take(1) * size
    if kind == Coded.FEW:
        return _take_few(coded, keys)
    if kind == Coded.RANS:
        return _take_rans(coded, keys)
    raise ValueError(DAMAGED)


def encode_bytes(data: Buffer) -> bytes:
    """Return bytes entropy-coded; see `kernels.encode_bytes`."""
    return put_bytes(bytes(data), bytes(len(data))) if len(data) else b""


def decode_bytes(coded: Buffer, size: int) -> bytes:
    """Undo `encode_bytes`."""
    if size < 0:
        raise ValueError(DAMAGED)
    rest = Input(coded)
    data = take_bytes(rest, bytes(size)) if size else b""
    if rest.rest:
        raise ValueError(DAMAGED)
    return data
