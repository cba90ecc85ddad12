"""Two indexes of one store are compared entry by entry, and an index that was lost comes back as it was."""

import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import cast

import pytest

from ckptfs.cli.main import main
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Disk, Table, View, never
from ckptfs.store.codec import Encoding
from ckptfs.store.compare import COMPARED, differences, lacks
from ckptfs.store.environment import Environment
from ckptfs.store.location import Location, build_location
from ckptfs.store.schema import PACKED_KEY_SIZE
from ckptfs.tree import Tree
from ckptfs.tree.gc import Collection, collect
from ckptfs.tree.inode import ROOT_INO
from tests.faults.hostile import make_store, read_state
from tests.unit.tree_support import new_tree, open_tree, save, unlink

SEED = 3
WAITING = Location(1, 80, 500, 500, Encoding.WAITING)


class Rows:
    """Rows of one table, by key, as a view gives them."""

    def __init__(self, table: Table, rows: dict[bytes, bytes]) -> None:
        self._table = table
        self._rows = rows

    def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows, ascending."""
        return iter(sorted(self._rows.items()) if table == self._table else ())

    def sealed(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows with something behind their values."""
        return ((key, value + b"seal") for key, value in self.scan(table))

    def unsealed(self, table: Table, rows: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Take that off again."""
        return [(key, sealed.removesuffix(b"seal")) for key, sealed in rows]


def view(table: Table, rows: dict[bytes, bytes]) -> View:
    """Return a view that has nothing but these rows."""
    return cast(View, Rows(table, rows))


@pytest.mark.parametrize("table", COMPARED)
@pytest.mark.parametrize(
    ("other", "count"),
    [
        ({}, 0),
        ({b"b": b"changed"}, 1),
        ({b"b": None}, 1),
        ({b"a": None, b"c": None}, 2),
        ({b"aa": b"new", b"d": b"new", b"": b"new"}, 3),
        ({b"a": None, b"b": b"changed", b"d": b"new"}, 3),
    ],
)
def test_each_row_that_is_not_in_both_is_counted(table: Table, other: dict[bytes, bytes | None], count: int) -> None:
    rows = {b"a": b"1", b"b": b"2", b"c": b"3"}
    changed = {key: value for key, value in {**rows, **other}.items() if value is not None}
    expected = {table.name.lower(): count} if count else {}
    one, two = view(table, rows), view(table, changed)
    assert differences(one, two) == differences(two, one) == expected


@pytest.mark.parametrize("batch_rows", [1, 2, 7])
def test_the_same_rows_differ_however_many_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    source = random.Random(batch_rows)
    monkeypatch.setattr("ckptfs.store.compare._BATCH_ROWS", batch_rows)
    for _ in range(300):
        keys = [bytes([key]) for key in range(source.randrange(12))]
        rows = {key: b"same" for key in keys if source.random() < 0.8}
        others = {key: source.choice([b"same"] * 4 + [b"other"]) for key in keys if source.random() < 0.8}
        expected = sum(rows.get(key) != others.get(key) for key in keys)
        found = differences(view(Table.NAMES, rows), view(Table.NAMES, others))
        assert found == ({"names": expected} if expected else {}), (rows, others)


def test_a_comparison_of_rows_in_no_order_ends() -> None:
    class Unordered(Rows):
        def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
            return iter(self._rows.items() if table == self._table else ())

    rows, others = ({b"c": b"", b"b": value, b"a": b""} for value in (b"", b"other"))
    one, two = (cast(View, Unordered(Table.NAMES, each)) for each in (rows, others))
    assert differences(one, two)["names"] > 0


@pytest.mark.parametrize(
    ("location", "is_same"),
    [
        (WAITING._replace(encoding=Encoding.RAW), True),
        (WAITING._replace(height=3), True),
        (WAITING._replace(encoding=Encoding.ZSTD), False),
        (WAITING._replace(offset=88), False),
        (WAITING._replace(bases=(7,)), False),
    ],
)
def test_of_a_location_only_what_the_index_alone_knows_may_differ(location: Location, is_same: bool) -> None:
    one, two = (view(Table.CHUNKS, {b"a": build_location(each)}) for each in (WAITING, location))
    assert (differences(one, two) == {}) is is_same
    assert not lacks(one, two)


def release(tree: Tree) -> None:
    """Release the chunks that nothing needs, and journal that; the index does not hear of it yet."""
    with Collection(tree) as collection:
        collection.look()
        collection.mark()
        assert not collection.delete_rows(100)
        tree.store.commit(durable=False)
        assert collection.sweep().chunks


@pytest.mark.parametrize("condensed", [False, True])
def test_released_chunks_stay_released_when_the_index_is_made_anew(tmp_path: Path, condensed: bool) -> None:
    """Some in the index and some only journalled; and one whose bytes came in again, under another number."""
    path, before = tmp_path / "store", tmp_path / "before"
    tree = new_tree(path)
    save(tree, "kept", b"kept")
    for number in range(3):
        save(tree, "file", b"%d" % number * 500)
        unlink(tree, "file")
        collect(tree)
        if number == 1 and condensed:
            tree.store.commit(checkpoint=True)
            assert tree.store._condensed.write(tree.store._environment, never)
    save(tree, "again", b"0" * 500)
    save(tree, "last", b"last")
    unlink(tree, "last")
    release(tree)
    stats = tree.store.stats()
    assert tree.store.next_number - 1 - stats.chunks > 3 and tree.store.count(Table.CHUNKS) != stats.chunks
    tree.store.close(commit=False)
    shutil.copytree(path, before)
    ChunkStore.open(before).close()
    with ChunkStore.open(before, read_only=True) as old, ChunkStore.open(path, rebuild=True) as new:
        with old.view() as one, new.view() as two:
            assert differences(one, two) == differences(two, one) == {}
        assert old.stats()[:2] == new.stats()[:2] == stats[:2]
        assert new.count(Table.CHUNKS) == new.count(Table.CHUNK_IDS) == stats.chunks


def test_a_deleted_index_comes_back_from_the_packs_entry_by_entry(tmp_path: Path, mounts: object) -> None:
    """A store with a bit of everything, half of it in the index and half only journalled when it was left."""
    path, before = tmp_path / "store", tmp_path / "before"
    make_store(path, SEED)
    tree = open_tree(path)
    tree.xattrs.set(ROOT_INO, b"user.run", b"7")
    tree.store.close()
    shutil.copytree(path, before)
    (path / "index.lmdb").unlink()
    assert main(["repair", str(path), "--rebuild-index"]) == 0
    assert main(["check", str(path), "--read-data"]) == 0
    assert read_state(path) == read_state(before)
    assert len(read_state(path).snapshots) > 1
    with (
        ChunkStore.open(before, read_only=True) as old,
        ChunkStore.open(path, read_only=True) as new,
        old.view() as one,
        new.view() as two,
    ):
        assert differences(one, two) == {}
        assert all(any(True for _ in one.scan(table)) for table in COMPARED)


@pytest.mark.parametrize("table", [Table.META, Table.CHUNK_IDS])
@pytest.mark.parametrize("others", [{b"1": b"same"}, {b"1": b"same", b"2": b"other"}, {b"2": b"this"}])
def test_rows_that_are_not_the_same_are_held_against_their_checks(
    tmp_path: Path, table: Table, others: dict[bytes, bytes]
) -> None:
    def rows(values: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None]]:
        return [(key * PACKED_KEY_SIZE, (value * 8)[:8]) for key, value in sorted(values.items())]

    paths = [tmp_path / "one", tmp_path / "two"]
    for path, values in zip(paths, ({b"1": b"same", b"2": b"this"}, others), strict=True):
        with closing(Environment(path, Disk(), read_only=False)) as environment:
            environment.write([(table, rows(values))])
    damaged = tmp_path / "damaged"
    key, value = rows({b"2": b"this"})[0]
    damaged.write_bytes(paths[0].read_bytes().replace(key + cast(bytes, value), key + b"THISTHIS"))

    def compared(*paths: Path) -> dict[str, int]:
        with ExitStack() as stack:
            environments = [stack.enter_context(closing(Environment(path, Disk(), read_only=True))) for path in paths]
            overlays: dict[Table, dict[bytes, bytes | None]] = {each: {} for each in COMPARED}
            return differences(*(stack.enter_context(each.view(overlays)) for each in environments))

    assert compared(*paths) == {table.name.lower(): 1}
    for pair in ((damaged, paths[1]), (paths[1], damaged)):
        with pytest.raises(DamagedError, match="is not what was written"):
            compared(*pair)


def test_what_is_in_memory_only_is_not_compared_by_its_checks(tmp_path: Path) -> None:
    in_memory: dict[Table, dict[bytes, bytes | None]] = {Table.META: {b"key": b"value"}}
    with (
        closing(Environment(tmp_path / "index", Disk(), read_only=False)) as environment,
        environment.view(in_memory) as view,
        pytest.raises(ValueError, match="in memory"),
    ):
        view.sealed(Table.META)
