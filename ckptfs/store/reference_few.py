"""The definition of "few": bytes most of which are zero, as the gaps between the others and what those are.

Part of the definition that reference_coders.py has. The gaps are in Rice's code, the bytes in an exponential Golomb
code. Pure functions; the decoder raises ValueError where the bytes are not what an encoder makes.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from ckptfs.store.reference_coded import CLASSES_MOST, DAMAGED, KEYS, Input, Table

RICE_MOST = 30
RICE_NONE = 31
ORDER_MOST = 6
ORDER_NONE = 7


class _Parameters(NamedTuple):
    """How the bytes of a table that are not zero are coded in "few".

    The gap before each is in Rice's code with the parameter `rice`. How far it lies above 1 or 2, which are one step in
    either direction, is in an exponential Golomb code of `order`.
    """

    rice: int
    order: int


def _parameters_of(counts: Counter[int]) -> _Parameters:
    filled = counts.total() - counts[0]
    excess = sum(count * (value - 1 >> 1) for value, count in counts.items() if value)
    rice = min((counts.total() // filled).bit_length() - 1, RICE_MOST) if filled else RICE_NONE
    return _Parameters(rice, min((excess // filled).bit_length(), ORDER_MOST) if excess else ORDER_NONE)


def few_cost(counts: Counter[int]) -> int:
    """Tell what the bytes so counted cost in "few", in 1/256 bits."""
    rice, order = _parameters_of(counts)
    filled = counts.total() - counts[0]
    bits = 16 + ((filled + 1) * (rice + 1) + (counts[0] >> rice) + filled if filled else 0)
    if order != ORDER_NONE:
        for value, count in counts.items():
            if value:
                bits += count * (1 + order + 2 * (((value - 1 >> 1 >> order) + 1).bit_length() - 1))
    return bits * 256


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


def put_few(data: bytes, keys: bytes, tables: list[Table]) -> bytes:
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
        rice, order = _parameters_of(table.counts)
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


def take_few(coded: Input, keys: bytes) -> bytes:
    """Undo `put_few`; the keys are those of the bytes that come out."""
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
