"""The layout of a safetensors file: a little-endian u64 with the header's size, a JSON header, the tensors' bytes.

Source: the format section of the safetensors README. Every number of the header is checked against the file; what does
not hold makes the file one that is not recognised, never an error.
"""

import json
import math
import struct
from typing import Any

from ckptfs.config import MIB
from ckptfs.formats.layout import Tensor

HEADER_SIZE_MAX = 100 * MIB
"""The limit of the reference implementation."""
LENGTH_SIZE = 8
RANK_MAX = 64

ELEMENT_WIDTHS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


def parse_safetensors(head: bytes | memoryview, file_size: int) -> list[Tensor] | None:
    """Return the tensors of a file in the order of their offsets; None when it is no safetensors file.

    `head` is the beginning of the file, at least the whole header.
    """
    if len(head) < LENGTH_SIZE:
        return None
    (header_size,) = struct.unpack_from("<Q", head)
    data_offset = LENGTH_SIZE + header_size
    if header_size > HEADER_SIZE_MAX or data_offset > min(len(head), file_size):
        return None
    try:
        header = json.loads(bytes(head[LENGTH_SIZE:data_offset]))
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = _tensor(name, entry, data_offset, file_size)
        if tensor is None:
            return None
        tensors.append(tensor)
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _tensor(name: str, entry: Any, data_offset: int, file_size: int) -> Tensor | None:
    """Return the tensor of one header entry if all of it holds."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            width = ELEMENT_WIDTHS.get(dtype)
            if width is None or len(shape) > RANK_MAX:
                return None
            if not all(type(length) is int and 0 <= length <= file_size for length in shape):
                return None
            if not 0 <= begin <= end <= file_size - data_offset or math.prod(shape) * width != end - begin:
                return None
            return Tensor(name, data_offset + begin, end - begin, width, tuple(shape), dtype)
    return None
