"""The layouts of real files: every tensor is found where its bytes are, and only headers are read."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

from ckptfs.formats import Tensor, parse
from tests.unit.checkpoint_files import MAKERS, checkpoint_file, layout_of


@pytest.mark.parametrize("kind", MAKERS)
def test_every_tensor_is_found_where_its_bytes_are(kind: str) -> None:
    file = checkpoint_file(kind)
    tensors = layout_of(file.data)
    assert tensors is not None
    assert [tensor.offset for tensor in tensors] == sorted(tensor.offset for tensor in tensors)
    found = {
        (tensor.name, tensor.shape, tensor.element_width, tensor.dtype): file.data[tensor.offset :][: tensor.size]
        for tensor in tensors
    }
    assert found == file.tensors


@pytest.mark.parametrize("kind", MAKERS)
def test_the_bytes_of_tensors_are_not_read(kind: str) -> None:
    file = checkpoint_file(kind)
    read: list[range] = []

    def note(offset: int, size: int) -> bytes:
        read.append(range(offset, offset + size))
        return file.data[offset : offset + size]

    tensors = parse(note, len(file.data))
    assert tensors is not None
    largest = max(tensors, key=lambda tensor: tensor.size)
    middle = largest.offset + largest.size // 2
    assert not any(middle in span for span in read)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_that_is_cut_short_has_no_tensor_beyond_its_end(kind: str) -> None:
    data = checkpoint_file(kind).data
    for size in range(0, len(data), max(len(data) // 50, 1)):
        assert all(tensor.offset + tensor.size <= size for tensor in layout_of(data[:size]) or ())


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"a text that is no checkpoint", bytes(1000), b"\x80\x02}q\0."])
def test_a_file_that_nobody_recognises_is_opaque(data: bytes) -> None:
    assert layout_of(data) is None


def test_a_storage_is_named_after_the_first_tensor_in_it() -> None:
    weight = torch.rand(20, 10)
    buffer = io.BytesIO()
    torch.save({"head": {"part": weight[3:5]}, "tied": weight}, buffer)
    (tensor,) = layout_of(buffer.getvalue()) or ()
    assert (tensor.name, tensor.shape, tensor.dtype) == ("head.part", (200,), "float32")


def test_a_lone_tensor_has_the_name_of_its_archive() -> None:
    buffer = io.BytesIO()
    torch.save(torch.rand(5), buffer)
    (tensor,) = layout_of(buffer.getvalue()) or ()
    assert tensor.name == "0"


def test_a_whole_module_is_understood() -> None:
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(4, 3), buffer)
    assert [tensor.name for tensor in layout_of(buffer.getvalue()) or ()] == ["_parameters.weight", "_parameters.bias"]


def test_an_archive_that_tells_sizes_in_front_is_walked_too() -> None:
    source = zipfile.ZipFile(io.BytesIO(checkpoint_file("torch").data))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    repacked = layout_of(buffer.getvalue()) or []
    assert [tensor.name for tensor in repacked] == [
        tensor.name for tensor in layout_of(checkpoint_file("torch").data) or ()
    ]


def test_descriptors_with_sizes_of_eight_bytes_are_passed() -> None:
    """torch writes them behind what lies or reaches beyond 4 GiB."""
    array = checkpoint_file("npy").data
    members = struct.pack("<4s2xH18xHH", b"PK\3\4", 1 << 3, 1, 0) + b"v3\n"
    members += struct.pack("<4sIQQ", b"PK\7\x08", 0, 2, 2)
    members += struct.pack("<4s14xI4xHH", b"PK\3\4", len(array), 5, 0) + b"a.npy" + array
    assert [tensor.name for tensor in layout_of(members) or ()] == ["a"]


def test_compressed_arrays_are_opaque() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(1000))
    assert layout_of(buffer.getvalue()) is None


def test_numbers_with_the_high_byte_first_have_a_width_and_no_dtype() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(5, dtype=">f8"))
    assert layout_of(buffer.getvalue()) == [Tensor("", 128, 40, 8, (5,), "")]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1 << 62, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0] * 65, "data_offsets": [0, 0]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_a_header_that_does_not_hold_is_no_safetensors_file(entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    assert layout_of(struct.pack("<Q", len(header)) + header + bytes(8)) is None


def test_tensors_that_overlap_are_not_believed() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    assert layout_of(struct.pack("<Q", len(header)) + header + bytes(8)) is None
