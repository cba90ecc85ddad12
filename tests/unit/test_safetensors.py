"""The layout of safetensors files, against files that the library itself writes, and against mutations of them."""

import json
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save

from ckptfs.formats import Tensor, parse_safetensors

ARRAYS = {
    "embed.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "steps": np.arange(3, dtype=np.int64),
    "mask": np.zeros((2, 2), dtype=np.bool_),
    "scalar": np.array(1.5, dtype=np.float16),
    "empty": np.zeros((0, 5), dtype=np.float64),
}
FILE = save(ARRAYS, metadata={"step": "7"})


def test_every_tensor_is_found_where_its_bytes_are() -> None:
    tensors = parse_safetensors(FILE, len(FILE))
    assert tensors is not None
    assert {tensor.name for tensor in tensors} == ARRAYS.keys()
    assert [tensor.offset for tensor in tensors] == sorted(tensor.offset for tensor in tensors)
    for tensor in tensors:
        array = ARRAYS[tensor.name]
        assert FILE[tensor.offset : tensor.offset + tensor.size] == array.tobytes()
        assert (tensor.shape, tensor.element_width) == (array.shape, array.itemsize)


def test_the_header_alone_is_enough() -> None:
    (header_size,) = struct.unpack_from("<Q", FILE)
    assert parse_safetensors(FILE[: 8 + header_size], len(FILE)) == parse_safetensors(FILE, len(FILE))
    assert parse_safetensors(FILE[: 7 + header_size], len(FILE)) is None


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_a_header_that_does_not_hold_is_no_safetensors_file(entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(8)
    assert parse_safetensors(data, len(data)) is None


@given(position=st.integers(0, len(FILE) - 1), byte=st.integers(0, 255), size=st.integers(0, len(FILE)))
def test_whatever_is_changed_only_tensors_inside_the_file_come_out(position: int, byte: int, size: int) -> None:
    changed = bytearray(FILE)
    changed[position] = byte
    for tensor in parse_safetensors(bytes(changed[:size]), size) or ():
        assert isinstance(tensor, Tensor)
        assert 0 <= tensor.offset <= tensor.offset + tensor.size <= size
