"""Recut: after any writes the bytes are right, and only the touched neighbourhood has new chunks.

The measure is a cut from scratch. It has to give the same extents from the start of the first touched chunk on, as
long as the old extents were themselves such a cut.
"""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.formats import TensorCuts
from ckptfs.store import ChunkStore
from ckptfs.tree import recut as recut_module
from ckptfs.tree.extents import Extent, Extents
from ckptfs.tree.ranges import Ranges
from ckptfs.tree.reader import ChunkReader
from ckptfs.tree.recut import recut
from tests.unit.tree_support import CHUNK_SIZES, new_store

FILE_SIZE = 20_000
FAR = 4 * CHUNK_SIZES.size_max

Write = tuple[int, bytes]

seeds = st.integers(0, 1 << 32)
writes = st.lists(st.tuples(st.integers(0, FILE_SIZE + 3000), st.integers(1, 3000), seeds), min_size=1, max_size=6)
pieces = st.lists(st.tuples(st.sampled_from(["data", "hole", "short"]), st.integers(1, 4000), seeds), max_size=6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChunkStore]:
    with new_store(tmp_path_factory.mktemp("recut") / "store") as store:
        yield store


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def append_cut(store: ChunkStore, extents: Extents, data: bytes) -> None:
    for number, length in zip(*store.ingest(memoryview(data), True), strict=True):
        extents.append(number, length)


def full_cut(store: ChunkStore, data: bytes) -> Extents:
    extents = Extents()
    append_cut(store, extents, data)
    return extents


def listed(extents: Extents) -> list[Extent]:
    return [extents[index] for index in range(len(extents))]


def content(store: ChunkStore, extents: Extents) -> bytes:
    return b"".join(
        store.read(each.number)[: each.length] if each.number else bytes(each.length) for each in listed(extents)
    )


def over(data: bytes, changes: list[Write]) -> bytes:
    """Return `data` with the writes over it."""
    result = bytearray(data)
    for offset, written in changes:
        result += bytes(max(offset - len(result), 0))
        result[offset : offset + len(written)] = written
    return bytes(result)


def merged(changes: list[Write]) -> list[tuple[int, bytearray]]:
    ranges = Ranges()
    for offset, written in changes:
        ranges.write(offset, written)
    return list(ranges)


def check_whole(extents: Extents) -> None:
    found = listed(extents)
    assert all(one.offset + one.length == two.offset for one, two in pairwise(found))
    assert not any(one.number == two.number == 0 for one, two in pairwise(found)), "two holes side by side"
    assert all(each.length for each in found)


@settings(deadline=None, max_examples=80, print_blob=True)
@given(seeds, writes, st.sampled_from([100, 700, 1 << 20]))
def test_recut_is_a_full_cut_where_it_cuts(
    store: ChunkStore, seed: int, drawn: list[tuple[int, int, int]], feed_size: int
) -> None:
    before = noise(FILE_SIZE, seed)
    old = full_cut(store, before)
    changes = [(min(offset, FILE_SIZE - 1), noise(size, each)) for offset, size, each in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recut_module, "FEED_SIZE", feed_size)
        new = recut(store, ChunkReader(store), old, merged(changes), TensorCuts())
    after = over(before, changes)
    check_whole(new)
    assert content(store, new) == after
    assert listed(new) == listed(full_cut(store, after))
    kept = set(listed(old))
    for each in listed(new):
        far = all(abs(each.offset - at) > FAR for offset, data in changes for at in (offset, offset + len(data)))
        inside = any(offset <= each.offset < offset + len(data) for offset, data in changes)
        if far and not inside and each.offset + each.length < FILE_SIZE:
            assert each in kept


@settings(deadline=None, max_examples=150, print_blob=True)
@given(pieces, writes, st.sampled_from([100, 1 << 20]))
def test_recut_is_right_over_holes_and_short_chunks(
    store: ChunkStore, drawn: list[tuple[str, int, int]], changed: list[tuple[int, int, int]], feed_size: int
) -> None:
    old = Extents()
    for kind, size, seed in drawn:
        if kind == "hole":
            old.append(0, size)
        else:
            append_cut(store, old, noise(size, seed))
            if kind == "short":
                old.truncate(old.size - min(size, CHUNK_SIZES.size_min) // 2)
    before = content(store, old)
    untouched = listed(old)
    changes = [(offset % (len(before) + 2000), noise(size, seed)) for offset, size, seed in changed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recut_module, "FEED_SIZE", feed_size)
        new = recut(store, ChunkReader(store), old, merged(changes), TensorCuts())
    check_whole(new)
    assert content(store, new) == over(before, changes)
    assert listed(old) == untouched, "the old extents belong to the caller"
    first = min(offset for offset, _ in changes)
    kept = [each for each in untouched if each.offset + each.length <= first and each.number]
    assert kept == listed(new)[: len(kept)] or any(each.number == 0 for each in untouched)
    assert {each for each in kept} <= set(listed(new))


def test_a_small_write_in_a_large_file_stores_a_few_chunks(store: ChunkStore) -> None:
    old = full_cut(store, noise(200_000, 1))
    new = recut(store, ChunkReader(store), old, [(100_000, b"x" * 40)], TensorCuts())
    assert len(set(listed(new)) - set(listed(old))) <= 4
    assert new.size == old.size


def test_the_same_bytes_again_change_nothing(store: ChunkStore) -> None:
    data = noise(20_000, 2)
    old = full_cut(store, data)
    before = store.appended_bytes
    assert listed(recut(store, ChunkReader(store), old, [(5_000, data[5_000:9_000])], TensorCuts())) == listed(old)
    assert store.appended_bytes == before


def test_holes_that_nobody_wrote_to_stay_holes(store: ChunkStore) -> None:
    old = Extents()
    append_cut(store, old, noise(1000, 3))
    old.append(0, 1 << 40)
    append_cut(store, old, noise(1000, 4))
    new = recut(store, ChunkReader(store), old, [(1 << 30, b"island"), ((1 << 40) + 5000, b"behind")], TensorCuts())
    holes = [(each.offset, each.length) for each in listed(new) if each.number == 0]
    behind = 2000 + (1 << 40)
    assert holes == [
        (1000, (1 << 30) - 1000),
        ((1 << 30) + 6, 1000 + (1 << 40) - (1 << 30) - 6),
        (behind, 5000 - 2000),
    ]
    assert new.size == (1 << 40) + 5006


def test_no_writes_give_the_old_extents(store: ChunkStore) -> None:
    old = full_cut(store, noise(5000, 5))
    assert listed(recut(store, ChunkReader(store), old, [], TensorCuts())) == listed(old)
