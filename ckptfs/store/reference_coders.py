"""The definition of coded bytes, in plain Python: an entropy coder for bytes whose statistics differ by a key.

Owns which of the ways to code them is taken; with reference_coded.py, reference_few.py and reference_rans.py it is what
coder.c has to return bit for bit, which tests/unit/test_coders.py holds. What the decoder takes is format; what the
encoder chooses (how bytes are stored, which keys have a table in common) is not. It is also what runs, slowly,
where the C extension was not built. Pure functions without state: any thread may call them. The decoder raises
ValueError where the bytes are not what an encoder makes, and allocates nothing on their word.
"""

from collections import Counter
from enum import IntEnum

from ckptfs.store.reference import Buffer
from ckptfs.store.reference_coded import DAMAGED, Input, tables_of
from ckptfs.store.reference_few import few_cost, put_few, take_few
from ckptfs.store.reference_rans import LANES, put_rans, rans_cost, take_rans

LANES_SOME_FROM = 1024
LANES_MOST_FROM = 2048
FEW_FROM = 32
NOISE_PARTS = 50


class Coded(IntEnum):
    """How bytes are stored; the numbers are on the disk."""

    RAW = 0
    CONSTANT = 1
    FEW = 2
    RANS = 3


def put_bytes(data: bytes, keys: bytes, slack: int = 0) -> bytes:
    """Return bytes coded, at least one; each has a key.

    `slack` bytes more than the fewest may be spent where they make decoding faster: on more lanes, on few bytes coded
    as such, or on bytes that stay as they are.
    """
    size, filled = len(data), len(data) - data.count(0)
    raw = bytes([Coded.RAW]) + data
    if data.count(data[0]) == size:
        return bytes([Coded.CONSTANT, data[0]])
    if rans_cost(Counter(data)) >= size * 8 * 256:
        return raw
    tables = tables_of(data, keys, rans_cost)
    estimate = sum(table.cost for table in tables) // (8 * 256)
    most = estimate >= LANES_MOST_FROM or slack >= 4 * (LANES[2] - LANES[1])
    lanes = LANES[0 if size < LANES_SOME_FROM else 1 + most]
    if filled <= size // FEW_FROM:
        few = tables_of(data, keys, few_cost)
        if sum(table.cost for table in few) // (8 * 256) <= estimate + 4 * lanes + slack:
            return bytes([Coded.FEW]) + put_few(data, keys, few)
    if estimate + 4 * lanes + slack >= size - size // NOISE_PARTS:
        return raw
    coded = bytes([Coded.RANS]) + put_rans(data, keys, tables, lanes)
    return raw if len(coded) > size else coded


def take_bytes(coded: Input, keys: bytes) -> bytes:
    """Take as many bytes as there are keys, and at least one."""
    kind, size = coded.number(1), len(keys)
    if kind == Coded.RAW:
        return coded.take(size)
    if kind == Coded.CONSTANT:
        return coded.take(1) * size
    if kind == Coded.FEW:
        return take_few(coded, keys)
    if kind == Coded.RANS:
        return take_rans(coded, keys)
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
