"""Chunks of an older file find the bytes of the newer one that they are to be compared with."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ckptfs.config import BASES_MAX, KIB
from ckptfs.store import Bitmap, ChunkStore, DeltaCandidate
from ckptfs.tree import Tree
from ckptfs.tree.extents import Extents
from ckptfs.tree.pairing import pair_chunks
from tests.unit.tree_support import NoSyncDisk, save

WIDTH = 256


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with ChunkStore.create(tmp_path / "store", disk=NoSyncDisk()) as store:
        yield Tree(store)


def state(seed: int, rows: int = 512) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(rows, WIDTH, generator=random),
        "half": torch.randn(1024, WIDTH, generator=random).bfloat16(),
        "head": torch.randn(512, WIDTH, generator=random),
    }


def torch_bytes(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def compared(tree: Tree, older: bytes, newer: bytes) -> list[tuple[int, DeltaCandidate]]:
    """Save two files and return the offsets in the older one and the candidates; each of them must be sound."""
    old, new = (tree.files.load(save(tree, name, data)).extents for name, data in (("old", older), ("new", newer)))
    found = pair_chunks(tree.reader, old, new, Bitmap(tree.store.next_number))
    candidates = [(offset, candidate) for offset, candidate in found if candidate is not None]
    for offset, candidate in candidates:
        assert old[old.index_at(offset)].number == candidate.number
        assert candidate.number not in candidate.bases
    return candidates


def base_bytes(tree: Tree, candidate: DeltaCandidate) -> bytes:
    """Return the bytes that a candidate is compared with."""
    size, skip = len(tree.reader.read(candidate.number)), candidate.alignment.skip
    return b"".join(chunk.view() for chunk in tree.reader.read_first(candidate.bases))[skip : skip + size]


def shifts(tree: Tree, newer: bytes, candidates: list[tuple[int, DeltaCandidate]]) -> set[int]:
    """Return how far on the bytes lie in the newer file, for large chunks."""
    found = set()
    for offset, candidate in candidates:
        data = base_bytes(tree, candidate)
        if len(data) > KIB:
            found.add(newer.index(data) - offset)
    return found


def covered(tree: Tree, candidates: list[tuple[int, DeltaCandidate]]) -> int:
    return sum(len(tree.reader.read(candidate.number)) for _, candidate in candidates)


def test_tensors_that_moved_are_compared_with_themselves(tree: Tree) -> None:
    older = safetensors.torch.save(state(1))
    moved = state(2)
    newer = safetensors.torch.save({"before": torch.randn(300, 77), **moved})
    candidates = compared(tree, older, newer)
    assert covered(tree, candidates) > 0.9 * len(older)
    expected = {
        newer.index(moved[name].view(torch.uint8).numpy().tobytes())
        - older.index(tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in state(1).items()
    }
    assert shifts(tree, newer, candidates) <= expected


def test_elements_are_taken_at_their_width_and_from_where_they_begin(tree: Tree) -> None:
    older = torch_bytes(state(1))
    tensors = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in state(1).items()}
    candidates = compared(tree, older, torch_bytes(state(2)))
    assert covered(tree, candidates) > 0.9 * len(older)
    for offset, candidate in candidates:
        for name, data in tensors.items():
            begin = older.index(data)
            if begin <= offset and offset + len(base_bytes(tree, candidate)) <= begin + len(data):
                width = state(1)[name].element_size()
                assert candidate.alignment.width == width
                assert (offset + candidate.alignment.phase - begin) % width == 0


def test_rows_that_a_vocabulary_gains_leave_the_others_compared(tree: Tree) -> None:
    older, newer = torch_bytes(state(1)), torch_bytes(state(2, rows=700))
    assert covered(tree, compared(tree, older, newer)) > 0.9 * len(older)


def test_opaque_files_are_compared_at_the_same_offset_with_a_width_that_suits_them(tree: Tree) -> None:
    random = np.random.default_rng(1)
    older, newer = (random.standard_normal(200_000).astype(np.float32).tobytes() for _ in range(2))
    candidates = compared(tree, older, newer)
    assert covered(tree, candidates) > 0.8 * len(older)
    assert shifts(tree, newer, candidates) == {0}
    assert {candidate.alignment.width for _, candidate in candidates} == {4}


def test_what_the_newer_file_has_too_is_left_alone(tree: Tree) -> None:
    same = state(1)
    other = same | {"head": state(2)["head"]}
    candidates = compared(tree, torch_bytes(same), torch_bytes(other))
    head = same["head"].numel() * 4
    assert head <= covered(tree, candidates) < head + 64 * KIB


def test_kept_chunks_holes_and_what_meets_too_many_chunks_are_passed_over(tree: Tree) -> None:
    lengths = [100, 100, 100, 900, 100]
    older, newer = Extents(), Extents()
    numbers = []
    for index, length in enumerate(lengths):
        (number,) = tree.store.ingest(memoryview(bytes([index]) * length), final=True).numbers
        older.append(number, length)
        numbers.append(number)
    newer.append(0, 100)
    small = 900 // (BASES_MAX + 1)
    for index, length in enumerate([100, 100, *[small] * (BASES_MAX + 1), 100]):
        newer.append(1000 + index, length)
    kept = Bitmap(2000)
    kept.add(numbers[1])
    found = [candidate for _, candidate in pair_chunks(tree.reader, older, newer, kept)]
    assert [candidate and candidate.number for candidate in found] == [None, None, numbers[2], None, numbers[4]]


def test_what_lies_behind_the_end_of_the_newer_file_is_passed_over(tree: Tree) -> None:
    older, newer = (np.random.default_rng(seed).bytes(size) for seed, size in ((1, 900_000), (2, 300_000)))
    candidates = compared(tree, older, newer)
    assert candidates
    assert all(offset + len(base_bytes(tree, candidate)) <= len(newer) for offset, candidate in candidates)
