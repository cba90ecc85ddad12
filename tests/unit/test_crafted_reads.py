"""A file may lie in any number of pieces of large chunks: reading it takes bounded memory, and ends.

A manifest that somebody forged looks like that, and so does, in small, what was written, cut short and written again.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ckptfs.config import BASES_MAX
from ckptfs.errors import DamagedError
from ckptfs.store import Bitmap, Decoded, chains
from ckptfs.store import fetch as fetch_module
from ckptfs.tree import Tree
from ckptfs.tree import reader as reader_module
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.pairing import pair_chunks
from ckptfs.tree.reader import SLICES_MAX, ChunkReader, ReadPlan
from tests.unit.tree_support import append_delta, new_tree, save

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

    def noting(numbers: Sequence[int]) -> list[Decoded]:
        counts.append(len(numbers))
        return read_first(numbers)

    monkeypatch.setattr(tree.reader, "read_first", noting)
    count = 2 * SLICES_MAX + 10
    plan = planned(extents_of(*((1 + index % 2, 1) for index in range(count))))
    assert plan.run(tree.reader) == b"\1\2" * (count // 2)
    assert counts == [SLICES_MAX, SLICES_MAX, 10]
    assert tree.reader.cached(1) and not plan.in_memory(tree.reader)  # so the loop leaves it to a thread
    assert planned(extents_of((1, 1), (2, 1))).in_memory(tree.reader)


def test_a_read_that_takes_far_more_than_it_has_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "DECODED_MAX", 10 * CHUNK_SIZE)
    monkeypatch.setattr(fetch_module, "READ_SIZE_MAX", 4 * CHUNK_SIZE)
    assert planned(extents_of(*((number, 1) for number in range(1, 11)))).run(tree.reader) == bytes(range(1, 11))
    with pytest.raises(DamagedError, match="12 bytes of a file lie in far too many bytes"):
        planned(extents_of(*((number, 1) for number in range(1, 13)))).run(ChunkReader(tree.store))
    whole = extents_of(*((number, CHUNK_SIZE) for number in range(1, CHUNKS + 1)), (0, 1))
    assert planned(whole).run(tree.reader) == b"".join(bytes([n]) * CHUNK_SIZE for n in range(1, CHUNKS + 1)) + b"\0"


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


def test_a_delta_that_rests_on_very_many_bytes_is_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded below a delta that is read alone may be decoded again and again: twice as often on each level."""
    monkeypatch.setattr(fetch_module, "MEMO_SIZE_MAX", 0)
    levels = [(number, number + 1) for number in range(1, 12, 2)]
    for above, below in pairwise(levels):
        for number in above:
            append_delta(tree.store, number, *below)
    assert tree.store.read(1) == bytes([1]) * CHUNK_SIZE
    monkeypatch.setattr(fetch_module, "BELOW_SIZE_MAX", (2**6 - 2) * CHUNK_SIZE)
    assert tree.store.read(1) == bytes([1]) * CHUNK_SIZE
    monkeypatch.setattr(fetch_module, "BELOW_SIZE_MAX", (2**6 - 3) * CHUNK_SIZE)
    with pytest.raises(DamagedError, match="rests on more than"):
        tree.store.read(1)


def test_deltas_that_each_rest_on_much_are_read_a_few_at_a_time(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 11):
        append_delta(tree.store, number, 11, 12)
    expected = b"".join(bytes([number]) for number in range(1, 11))
    plan = planned(extents_of(*((number, 1) for number in range(1, 11))))
    monkeypatch.setattr(chains, "LEVEL_SIZE_MAX", 0)  # so they are read alone
    monkeypatch.setattr(fetch_module, "BELOW_SIZE_MAX", 3 * CHUNK_SIZE)
    assert len(tree.store.read_first(list(range(1, 11)))) == 2
    monkeypatch.setattr(reader_module, "SHORT_MAX", 4)
    assert plan.run(ChunkReader(tree.store)) == expected
    monkeypatch.setattr(reader_module, "SHORT_MAX", 3)
    with pytest.raises(DamagedError, match="far too many bytes"):
        plan.run(ChunkReader(tree.store))
