"""The cuts of a file being written are the ends of its large tensors, however its bytes come."""

import io
import random
import time
import tracemalloc
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch

from ckptfs.config import KIB, MIB
from ckptfs.formats import TensorCuts, cuts
from ckptfs.formats.layout import add_fingerprint
from tests.unit.checkpoint_files import MAKERS, checkpoint_file, layout_of

STREAMED = [kind for kind in MAKERS if "hdf5" not in kind]


@pytest.fixture
def cut_out_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "TENSOR_SIZE_MIN", 1)


def ends(data: bytes, size_min: int = 1) -> list[int]:
    """Return where the tensors of a whole file begin and end."""
    tensors = [tensor for tensor in layout_of(data) or () if tensor.size >= size_min]
    return sorted({end for tensor in tensors for end in (tensor.offset, tensor.offset + tensor.size)})


def fed(data: bytes, places: list[int]) -> list[int]:
    """Feed a file split at `places`; return the cuts that are known in time, piece by piece."""
    finder = TensorCuts()
    found = []
    for start, stop in pairwise([0, *places, len(data)]):
        finder.feed(start, data[start:stop])
        found += finder.between(start - 1, stop)
    return found


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.usefixtures("cut_out_all")
def test_cuts_are_the_ends_of_the_tensors(kind: str) -> None:
    data = checkpoint_file(kind).data
    assert fed(data, []) == [end for end in ends(data) if end < len(data)]


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.usefixtures("cut_out_all")
def test_cuts_do_not_depend_on_how_the_file_was_fed(kind: str) -> None:
    data = checkpoint_file(kind).data
    expected = TensorCuts()
    expected.feed(0, data)
    assert expected.layout == reduce(add_fingerprint, layout_of(data) or (), 0) != 0
    bytewise = TensorCuts()
    for position in range(len(data)):
        bytewise.feed(position, data[position : position + 1])
    assert bytewise.between(0, len(data)) == expected.between(0, len(data))
    assert bytewise.layout == expected.layout
    for place in range(1, len(data), max(len(data) // 300, 1)):
        finder = TensorCuts()
        finder.feed(0, data[:place])
        finder.feed(place, memoryview(data)[place:])
        assert finder.between(0, len(data)) == expected.between(0, len(data))


@pytest.mark.usefixtures("cut_out_all")
def test_what_was_fed_before_is_passed_over() -> None:
    data = checkpoint_file("torch").data
    finder = TensorCuts()
    dice = random.Random(0)
    fed_size = 0
    while fed_size < len(data):
        start = dice.randrange(fed_size + 1)
        finder.feed(start, data[start : fed_size + 100])
        fed_size += 100
    assert finder.between(0, len(data)) == ends(data)


def test_a_gap_ends_the_search() -> None:
    data = checkpoint_file("torch").data
    finder = TensorCuts()
    finder.feed(0, data[:100])
    finder.feed(101, data[101:])
    assert finder.between(0, len(data)) == []
    assert finder.layout == 0


def test_small_tensors_are_not_cut_out() -> None:
    state = {"large": torch.ones(200, 600), "small": torch.ones(1000), "last": torch.ones(300_000, dtype=torch.uint8)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    assert len(ends(data)) == 6
    assert fed(data, []) == ends(data, size_min=cuts.TENSOR_SIZE_MIN)
    assert len(fed(data, [])) == 4


def test_an_array_whose_size_is_not_told_yet_is_found() -> None:
    """numpy writes the sizes of a zip member into its header once the member is there."""
    data = bytearray(checkpoint_file("npz").data)
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.ones(100_000, dtype=np.float32))
    data = bytearray(buffer.getvalue())
    expected = ends(bytes(data), cuts.TENSOR_SIZE_MIN)
    data[14:30] = bytes(12) + data[26:30]
    assert fed(bytes(data), []) == expected


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_long_file_costs_almost_nothing(kind: str) -> None:
    """The bytes of the tensors are passed over: memory and work follow the header, not the file."""
    data = checkpoint_file(kind).data
    finder = TensorCuts()
    finder.feed(0, data)
    piece = bytes(4 * MIB)
    tracemalloc.start()
    started = time.process_time()
    for number in range(10_000):
        finder.feed(len(data) + number * len(piece), piece)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * KIB
    assert seconds < 5
