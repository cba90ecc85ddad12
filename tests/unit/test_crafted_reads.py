"""A file may lie in any number of pieces of large chunks: reading it takes bounded memory, and ends.

A manifest that somebody forged looks like that, and so does, in small, what was written, cut short and written again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ckptfs.config import BASES_MAX
from ckptfs.errors import DamagedError
from ckptfs.store import Bitmap, Decoded
from ckptfs.store import fetch as fetch_module
from ckptfs.tree import Tree
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.pairing import pair_chunks
from ckptfs.tree.reader import SLICES_MAX, ReadPlan
from tests.unit.tree_support import new_tree, save

CHUNK_SIZE = 1024
CHUNKS = 24


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a tree whose chunks, 1 to CHUNKS, have a byte each that says which one it is."""
    tree = new_tree(tmp_path / "store")
    for number in range(1, CHUNKS + 1):
        save(tree, f"file-{number}", bytes([number]) * CHUNK_SIZE)
    assert tree.store.next_number == CHUNKS + 1
    yield tree
    tree.store.close()


def extents_of(*pieces: tuple[int, int]) -> Extents:
    """Return extents of (chunk number, length)."""
    extents = Extents()
    for number, length in pieces:
        extents.append(number, length)
    return extents


def planned(extents: Extents) -> ReadPlan:
    """Return the plan of reading all of a file."""
    plan = ReadPlan(extents.size)
    plan.cover(extents, 0)
    return plan


@pytest.mark.parametrize("has_room", [False, True])
def test_large_chunks_of_few_bytes_each_are_read_some_at_a_time(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    monkeypatch.setattr(fetch_module, "READ_SIZE_MAX", 4 * CHUNK_SIZE)
    sizes = []
    read_first = tree.store.read_first

    def noting(numbers: Sequence[int], *room: Any) -> list[Decoded]:
        chunks = read_first(numbers, *room)
        sizes.append(sum({id(chunk): chunk.size for chunk in chunks}.values()))
        return chunks

    monkeypatch.setattr(tree.store, "read_first", noting)
    order = [*range(1, CHUNKS + 1), *range(CHUNKS, 0, -1), 0, 5, 5, 0, 7]
    room = bytearray(100 * CHUNK_SIZE) if has_room else None
    assert planned(extents_of(*((number, 2) for number in order))).run(tree.reader, room) == b"".join(
        bytes([number]) * 2 for number in order
    )
    assert max(sizes) == 4 * CHUNK_SIZE


def test_many_pieces_are_in_memory_some_at_a_time(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    read_first = tree.reader.read_first

    def noting(numbers: Sequence[int], *budget: Any) -> list[Decoded]:
        counts.append(len(numbers))
        return read_first(numbers, *budget)

    monkeypatch.setattr(tree.reader, "read_first", noting)
    count = 2 * SLICES_MAX + 10
    plan = planned(extents_of(*((1 + index % 2, 1) for index in range(count))))
    assert plan.run(tree.reader) == b"\1\2" * (count // 2)
    assert counts == [SLICES_MAX, SLICES_MAX, 10]
    assert tree.reader.cached(1) and not plan.in_memory(tree.reader)  # so the loop leaves it to a thread
    assert planned(extents_of((1, 1), (2, 1))).in_memory(tree.reader)


@pytest.mark.parametrize("others", [(), ((0, 1),)])
def test_a_piece_that_is_longer_than_its_chunk_is_damage(tree: Tree, others: tuple[tuple[int, int], ...]) -> None:
    assert len(planned(extents_of((1, CHUNK_SIZE), *others)).run(tree.reader)) == CHUNK_SIZE + len(others)
    with pytest.raises(DamagedError, match="a file uses more of it"):
        planned(extents_of((1, CHUNK_SIZE + 1), (2, 5), *others)).run(tree.reader)


def test_no_more_of_a_newer_version_is_looked_at_than_a_delta_can_rest_on(tree: Tree) -> None:
    class Counting(Extents):
        looked_at = 0

        def between(self, start: int, stop: int) -> Iterator[Extent]:
            for extent in super().between(start, stop):
                self.looked_at += 1
                yield extent

    newer = Counting()
    for index in range(CHUNK_SIZE):
        newer.append(2 + index % 2, 1)
    ((_, candidate),) = pair_chunks(tree.reader, extents_of((1, CHUNK_SIZE)), newer, Bitmap(CHUNKS + 1))
    assert candidate is None
    assert newer.looked_at == BASES_MAX + 1
