"""The layout of a safetensors file: a little-endian u64 with the header's size, a JSON header, the tensors' bytes.

Source: the format section of the safetensors README. Every number of the header is checked against the shapes; one
that does not hold makes the file one that is not recognised.
"""

import json
from typing import Any

from ckptfs.formats.layout import MalformedError, Tensor, Walk, checked_shape, dense, take

LENGTH_SIZE = 8

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}


def walk_safetensors() -> Walk:
    """Yield the tensors in the order of their offsets, once the whole header holds."""
    header_size = int.from_bytes((yield from take(0, LENGTH_SIZE)), "little")
    text = yield from take(LENGTH_SIZE, header_size)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError("no JSON") from error
    if not isinstance(header, dict):
        raise MalformedError("the header is no object")
    header.pop("__metadata__", None)
    tensors = [_tensor(name, entry, LENGTH_SIZE + header_size) for name, entry in header.items()]
    yield from sorted(tensors, key=lambda tensor: tensor.offset)


def _tensor(name: str, entry: Any, data_offset: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": shape, "data_offsets": [int(begin), int(end)]} if dtype in DTYPES:
            tensor = dense(name, data_offset + begin, checked_shape(shape), DTYPES[dtype])
            if begin >= 0 and tensor.size == end - begin:
                return tensor
    raise MalformedError(f"{name!r} does not hold")
