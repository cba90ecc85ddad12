"""What all coded bytes have in common: the input of a decoder, and tables of the bytes whose keys are neighbours.

Part of the definition that reference_coders.py has. Pure but for what an Input has left.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ckptfs.store.reference import Buffer

VARINT_SIZE_MOST = 5
KEYS = 256
CLASSES_MOST = 32
DAMAGED = "the bytes are not what the encoder makes"


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


def put_varint(value: int) -> bytes:
    """Return an integer as `Input.varint` takes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Table(NamedTuple):
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


def tables_of(data: bytes, keys: bytes, cost_of: Callable[[Counter[int]], int]) -> list[Table]:
    """Return the tables: a class has one with the class before where that costs no more than one of its own."""
    ends = _classes(keys)
    class_of = [sum(end < key for end in ends) for key in range(KEYS)]
    counted = [Counter[int]() for _ in ends]
    for value, key in zip(data, keys, strict=True):
        counted[class_of[key]][value] += 1
    tables: list[Table] = []
    for end, counts in zip(ends, counted, strict=True):
        table = Table(end, counts, cost_of(counts))
        if tables:
            together = tables[-1].counts + counts
            cost = cost_of(together)
            if cost <= tables[-1].cost + table.cost:
                tables[-1] = Table(end, together, cost)
                continue
        tables.append(table)
    return tables
