"""Extents and manifests: no gaps, holes join, and what is stored comes back or is called damaged."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.errors import DamagedError
from ckptfs.store import Table
from ckptfs.tree import extents as extents_module
from ckptfs.tree.extents import Extent, Extents, load_manifest, store_manifest
from tests.unit.tree_support import new_store

Pieces = list[tuple[int, int]]

SPARSE_SIZE = (1 << 63) - 1
pieces = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 1 << 40), st.integers(1, 300)),
        st.tuples(st.just(0), st.integers(1, SPARSE_SIZE // 64)),
    ),
    max_size=40,
)


def build(what: Pieces) -> Extents:
    extents = Extents()
    for number, length in what:
        extents.append(number, length)
    return extents


def contents(extents: Extents) -> list[Extent]:
    return [extents[index] for index in range(len(extents))]


def joined(what: Pieces) -> Pieces:
    """Return the pieces with neighbouring holes as one."""
    result: Pieces = []
    for number, length in what:
        if number == 0 and result and result[-1][0] == 0:
            result[-1] = (0, result[-1][1] + length)
        else:
            result.append((number, length))
    return result


class Parts(dict[bytes, bytes]):
    """The one table that manifests need."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        assert table is Table.MANIFESTS
        self[key] = value

    def scan(self, table: Table, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for key, value in self.items() if start <= key < stop)


@given(pieces)
def test_extents_have_no_gaps_and_join_holes(what: Pieces) -> None:
    extents = build(what)
    found = contents(extents)
    assert [(extent.number, extent.length) for extent in found] == joined(what)
    assert all(one.offset + one.length == two.offset for one, two in pairwise(found))
    assert extents.size == sum(length for _, length in what)
    assert extents.allocated == sum(length for number, length in what if number)


def test_an_empty_extent_is_none() -> None:
    extents = build([(0, 0), (5, 10), (6, 0), (0, 0)])
    assert contents(extents) == [Extent(0, 5, 10)]


@given(pieces, st.integers(0, 400), st.integers(1, 400))
def test_between_yields_what_overlaps(what: Pieces, start: int, length: int) -> None:
    extents = build(what)
    stop = start + length
    expected = [each for each in contents(extents) if each.offset < stop and each.offset + each.length > start]
    assert list(extents.between(start, stop)) == expected


@given(pieces, st.integers(0, 2000))
def test_truncate_keeps_the_first_bytes(what: Pieces, size: int) -> None:
    extents = build(what)
    before = contents(extents)
    extents.truncate(size)
    kept = [each._replace(length=min(each.length, size - each.offset)) for each in before if each.offset < size]
    assert contents(extents) == kept


@given(pieces, pieces, st.data())
def test_extend_moves_extents_to_the_end(what: Pieces, more: Pieces, data: st.DataObject) -> None:
    other = build(more)
    start = data.draw(st.integers(0, len(other)))
    stop = data.draw(st.integers(0, len(other)))
    if stop > start and other[start].number == 0:
        what = [*what, (1, 1)]  # two holes are joined by append only; recut never extends a hole by a hole
    extents = build(what)
    extents.extend(other, start, stop)
    tail = [(extent.number, extent.length) for extent in contents(other)[start:stop]]
    assert [(extent.number, extent.length) for extent in contents(extents)] == joined(what) + tail
    assert extents.size == sum(length for _, length in what) + sum(length for _, length in tail)


def test_pop_returns_the_last() -> None:
    extents = build([(1, 10), (0, 7)])
    assert extents.pop() == Extent(10, 0, 7)
    assert extents.pop() == Extent(0, 1, 10)
    assert extents.size == 0


@settings(deadline=None)
@given(pieces, st.integers(1, 5))
def test_a_manifest_comes_back_whatever_its_parts(what: Pieces, part_extents: int) -> None:
    extents = build(what)
    parts = Parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents_module, "PART_EXTENTS", part_extents)
        store_manifest(parts, 7, extents)  # type: ignore[arg-type]
    parts.put(Table.MANIFESTS, (8).to_bytes(8, "big") + bytes(8), b"another's")
    assert len(parts) == -(-len(extents) // part_extents) + 1
    assert contents(load_manifest(parts, 7, extents.size)) == contents(extents)  # type: ignore[arg-type]


def test_a_manifest_survives_the_store(tmp_path: Path) -> None:
    count = 2 * extents_module.PART_EXTENTS + 1
    extents = build([(number % 5, 10 + number) for number in range(count)] + [(0, SPARSE_SIZE // 2)])
    with new_store(tmp_path / "store") as store:
        store_manifest(store.tables, 3, extents)
        store.commit(checkpoint=True)
        assert contents(load_manifest(store.tables, 3, extents.size)) == contents(extents)


def test_no_manifest_is_an_empty_file() -> None:
    assert len(load_manifest(Parts(), 0, 0)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [b"", b"\1" * 11, b"\1" * 25],
    ids=["empty part", "too short", "no whole extents"],
)
def test_a_malformed_part_is_damage(value: bytes) -> None:
    parts = Parts()
    parts.put(Table.MANIFESTS, (3).to_bytes(8, "big") + bytes(8), value)
    with pytest.raises(DamagedError, match="malformed"):
        load_manifest(parts, 3, 10)  # type: ignore[arg-type]


def test_a_missing_part_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents_module, "PART_EXTENTS", 2)
    extents = build([(number, 10) for number in range(1, 7)])
    for lost in range(3):
        parts = Parts()
        store_manifest(parts, 3, extents)  # type: ignore[arg-type]
        del parts[sorted(parts)[lost]]
        with pytest.raises(DamagedError, match="manifest 3"):
            load_manifest(parts, 3, 60)  # type: ignore[arg-type]


def test_a_manifest_of_another_size_is_damage() -> None:
    parts = Parts()
    store_manifest(parts, 3, build([(1, 10)]))  # type: ignore[arg-type]
    with pytest.raises(DamagedError, match="covers 10 of 11 bytes"):
        load_manifest(parts, 3, 11)  # type: ignore[arg-type]
