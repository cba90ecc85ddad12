"""The definition of rANS: bytes by how often each is there, in a fraction of a bit where it is often.

Part of the definition that reference_coders.py has. It is Duda's (Asymmetric numeral systems, arXiv:1311.2540), with
words of 16 bits and interleaved states as in Giesen's Interleaved entropy coders (arXiv:1402.3392). Pure functions; the
decoder raises ValueError where the bytes are not what an encoder makes.
"""

from collections import Counter
from itertools import accumulate

from ckptfs.store.reference_coded import CLASSES_MOST, DAMAGED, KEYS, Input, Table, put_varint

SCALE_BITS = 11
SCALE = 1 << SCALE_BITS
STATE_LEAST = 1 << 15
WORD_BITS = 16
LANES = (1, 8, 32)
TABLE_COST = 8 * 32
SYMBOL_COST = 10

Frequencies = list[int]
"""Of each byte, with the sum SCALE."""


# Costs and frequencies


def _log2_parts(number: int) -> int:
    """Return log2 in 1/256 bits, between powers of two by a parabola."""
    exponent = number.bit_length() - 1
    fraction = (number << 8 >> exponent) & 0xFF
    return (exponent << 8) + fraction + (fraction * (256 - fraction) * 88 >> 16)


def rans_cost(counts: Counter[int]) -> int:
    """Estimate what the bytes so counted cost with one table of frequencies, in 1/256 bits."""
    size = counts.total()
    information = size * _log2_parts(size) - sum(count * _log2_parts(count) for count in counts.values())
    return information + (TABLE_COST + SYMBOL_COST * len(counts)) * 256


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


def _put_table(last_key: int, frequencies: Frequencies) -> bytes:
    """Return the last key, the least and the greatest byte, and the frequencies before that, runs of 0 as one."""
    present = [value for value, frequency in enumerate(frequencies) if frequency]
    out = bytes([last_key, present[0], present[-1]])
    before = present[0] - 1
    for value in present[:-1]:
        if value > before + 1:
            out += bytes([0, value - before - 2])
        out += put_varint(frequencies[value])
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


# Bytes


def _starts(frequencies: Frequencies) -> list[int]:
    return [0, *accumulate(frequencies)]


def put_rans(data: bytes, keys: bytes, tables: list[Table], lanes: int) -> bytes:
    """Return bytes coded with the table of each one's key, by as many interleaved states as there are lanes."""
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


def take_rans(coded: Input, keys: bytes) -> bytes:
    """Undo `put_rans`; the keys are those of the bytes that come out."""
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
