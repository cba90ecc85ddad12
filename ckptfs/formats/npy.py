"""The layout of numpy's `.npy`: magic, version, a header that is the text of a Python dict, the items.

Source: the docstring of numpy.lib.format. The header is matched as the text that numpy writes and never evaluated;
structured and object arrays are not recognised.
"""

import re
from collections.abc import Generator

from ckptfs.formats.layout import ITEM_SIZES, MalformedError, Request, Tensor, Walk, checked_shape, dense, take

MAGIC = b"\x93NUMPY"
_HEADER_SIZE_MAX = 1 << 14
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?)([biufcV])(\d{1,3})', 'fortran_order': (?:True|False), 'shape': \(([\d, ]*)\), \} *\n"
)
_KINDS = {b"i": "int", b"u": "uint", b"f": "float", b"c": "complex"}
_DIGITS_MAX = 19


def walk_npy() -> Walk:
    """Yield the one array of an `.npy` file; it has no name."""
    yield (yield from npy_tensor(0, ""))


def npy_tensor(offset: int, name: str) -> Generator[Request, bytes, Tensor]:
    """Return the array of the `.npy` that begins at `offset`; MalformedError when there is none."""
    start = yield from take(offset, 12)
    if not start.startswith(MAGIC) or start[6] not in (1, 2, 3):
        raise MalformedError("no npy")
    length_size = 2 if start[6] == 1 else 4
    size = int.from_bytes(start[8 : 8 + length_size], "little")
    if size > _HEADER_SIZE_MAX:
        raise MalformedError("the header is too long")
    header = _HEADER.fullmatch((yield from take(offset + 8 + length_size, size)))
    if header is None:
        raise MalformedError("no array of numbers")
    order, kind, digits, lengths = header.groups()
    parts = [part.strip() for part in lengths.split(b",") if part.strip()]
    if not all(part.isdigit() and len(part) <= _DIGITS_MAX for part in parts):
        raise MalformedError("no shape")
    item_size = int(digits)
    if item_size == 0:
        raise MalformedError("items of no size")
    dtype = "bool" if kind == b"b" else f"{_KINDS.get(kind, '')}{8 * item_size}"
    if order == b">" or ITEM_SIZES.get(dtype) != item_size:
        dtype = ""
    shape = checked_shape([int(part) for part in parts])
    return dense(name, offset + 8 + length_size + size, shape, dtype, item_size)
