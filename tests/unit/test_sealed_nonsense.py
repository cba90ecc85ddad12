"""What is sealed as it should be and cannot be is refused, before it costs memory: each bound by itself.

`tests/faults/test_hostile.py` tries such stores as a whole, at random.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from ckptfs.config import BASES_MAX, CHUNK_SIZE_MAX, FORMAT_VERSION
from ckptfs.disk import Disk
from ckptfs.errors import DamagedError, NotAStoreError
from ckptfs.store import Bitmap, ChunkStore, Table, View, chains, composition, fetch, kernels
from ckptfs.store import condensed as condensed_module
from ckptfs.store.bitmap import LIMIT_MAX
from ckptfs.store.codec import Encoding, decode
from ckptfs.store.delta import decode_delta
from ckptfs.store.location import NUMBER, OFFSET_MAX, Location, build_location, parse_location, parse_number
from ckptfs.store.packfile import Found, Gap
from ckptfs.store.packs import FIRST_PACK, PackIdentity, Packs
from ckptfs.store.records import MAGIC, Position, RecordType, Row, build, build_pack_header, pack_bases
from ckptfs.store.state import Mark, State, Summary, pack_state, unpack_state
from ckptfs.store.tables import KEY_SIZE_MAX, Changes
from ckptfs.store.totals import Totals
from ckptfs.tree import Tree
from ckptfs.tree.dirent import decode_dirent
from ckptfs.tree.extents import HOLE_BIT, join_parts
from ckptfs.tree.inode import INODE_STRUCT, Inode, manifest_of
from ckptfs.tree.rows import LIVE, id_prefix, name_prefix, split_epoch, split_name_prefix
from ckptfs.tree.snapshots import Snapshot
from tests.faults.hostile import condense, seal_condensed
from tests.unit.tree_support import NoSyncDisk, append_delta, new_tree, open_tree, save

LOCATION = Location(1, 80, CHUNK_SIZE_MAX, CHUNK_SIZE_MAX, Encoding.ZSTD)
FIFO = Inode(7, 0o010600, 0, 0, 1)


def refused() -> "pytest.RaisesExc[DamagedError]":
    return pytest.raises(DamagedError)


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_size": CHUNK_SIZE_MAX + 1},
        {"stored_size": CHUNK_SIZE_MAX + 1},
        {"offset": OFFSET_MAX + 1},
        {"bases": (1,) * (BASES_MAX + 1)},
    ],
)
def test_a_location_is_of_a_chunk_that_can_be(changes: dict[str, Any]) -> None:
    whole = LOCATION._replace(bases=(1,) * BASES_MAX)
    assert parse_location(build_location(whole)) == whole
    with refused():
        parse_location(build_location(LOCATION._replace(**changes)))


@pytest.mark.parametrize(
    ("raw_size", "base_count", "is_found"),
    [(CHUNK_SIZE_MAX, BASES_MAX, True), (CHUNK_SIZE_MAX + 1, 0, False), (1, BASES_MAX + 1, False)],
)
def test_a_record_is_of_a_chunk_that_can_be(tmp_path: Path, raw_size: int, base_count: int, is_found: bool) -> None:
    packs = Packs(tmp_path, NoSyncDisk(), PackIdentity(7, 1))
    packs.resume(Position(FIRST_PACK, 0), Position(FIRST_PACK, 0))
    bases = pack_bases([1] * base_count)
    packs.append([build(RecordType.CHUNK, 1, bytes(16), raw_size, Encoding.ZSTD, b"payload", bases=bases)])
    (found,) = packs.scan(Position(FIRST_PACK, 0))
    assert isinstance(found, Found if is_found else Gap)
    packs.close()


def test_a_store_has_chunks_that_can_be(tmp_path: Path) -> None:
    ChunkStore.create(tmp_path / "store").close()
    path = tmp_path / "store" / "store.json"
    content = json.loads(path.read_text())
    content["chunk_sizes"]["size_max"] = CHUNK_SIZE_MAX + 1
    path.write_text(json.dumps(content))
    with pytest.raises(NotAStoreError, match="chunks of more than"):
        ChunkStore.open(tmp_path / "store")


def test_a_set_of_numbers_has_a_bound(tmp_path: Path) -> None:
    with refused():
        Bitmap(LIMIT_MAX + 1)
    numbers = Bitmap(8)
    numbers.add(7)
    with refused():
        numbers.add(8)


def test_an_index_has_no_chunk_that_no_journal_gave(tmp_path: Path) -> None:
    tree = new_tree(tmp_path / "store")
    save(tree, "file", b"content")
    tree.store.commit(checkpoint=True)
    tree.store._environment.write([(Table.CHUNKS, [((99).to_bytes(8, "big"), build_location(LOCATION))])])
    tree.store.close(commit=False)
    with pytest.raises(DamagedError, match="has a chunk 99"):
        open_tree(tmp_path / "store")


@pytest.mark.parametrize("key", [b"", bytes(KEY_SIZE_MAX + 1)])
def test_a_journal_has_keys_that_an_index_takes(tmp_path: Path, key: bytes) -> None:
    """At the end of the packs, where nothing says that it was durable, what cannot be is cut off."""
    with ChunkStore.create(tmp_path / "store") as store:
        store.append_journal(Changes(store.tables.take_changes().generation, (Row(Table.META, key, b"value"),)))
        store.close(commit=False)
    with ChunkStore.open(tmp_path / "store") as store:
        assert store.tables.row_count == 0
        store.tables.put(Table.META, b"key", b"value")
        store.commit(checkpoint=True)


@pytest.mark.parametrize("row", [None, Row(Table.META, b"", b""), Row(Table.META, bytes(600), b""), Row(99, b"k", b"")])
def test_a_condensed_journal_has_rows_that_an_index_takes(tmp_path: Path, row: Row | None) -> None:
    path = tmp_path / "store"
    tree = new_tree(path)
    save(tree, "file", b"content")
    tree.store.close()
    condensed, identity = condense(path)
    first, *rows, last = condensed.rows()
    seal_condensed(condensed, identity, [first], [*rows, *([] if row is None else [row])], [last])
    if row is None:
        open_tree(path).store.close()
        return
    with pytest.raises(DamagedError, match="a row that no journal has"):
        open_tree(path)


def part(offset: int, *extents: tuple[int, int]) -> tuple[bytes, bytes]:
    """Return a row of the manifest 1: extents of (number, length), where a number has HOLE_BIT for a hole."""
    numbers = b"".join(number.to_bytes(8, "little") for number, _ in extents)
    lengths = b"".join(length.to_bytes(4, "little") for _, length in extents)
    return id_prefix(1) + offset.to_bytes(8, "big"), numbers + lengths


LONG_HOLE = (2 * HOLE_BIT - 1, 0)


@pytest.mark.parametrize(
    "parse",
    [
        lambda: decode_dirent(b"?"),
        lambda: parse_number(bytes(7)),
        lambda: parse_location(build_location(LOCATION) + b"\0"),
        lambda: parse_location(build_location(LOCATION._replace(bases=(7,)))[:-1]),
        lambda: unpack_state(bytes(95)),
        lambda: decode_delta(memoryview(b"\4\0"), b"", 0),
        lambda: join_parts(1, [(part(0, (1, 5))[0] + b"\0", part(0, (1, 5))[1])]),
        lambda: join_parts(1, [part(1, (1, 5))]),
        lambda: join_parts(1, [part(0, (1, 5)), part(6, (1, 5))]),
        lambda: join_parts(1, [part(0, LONG_HOLE, LONG_HOLE, LONG_HOLE)]),
        lambda: split_name_prefix(name_prefix(1, b"")[:8]),
        lambda: split_epoch(b"key", b""),
        lambda: manifest_of(FIFO.encode()[:79]),
        lambda: Inode.decode(7, FIFO._replace(size=1).encode()),
        lambda: Inode.decode(7, FIFO._replace(mode=FIFO.mode | 1 << 16).encode()),
        lambda: Inode.decode(7, FIFO.encode()[: INODE_STRUCT.size - 1]),
        lambda: pack_state(State(Mark(Position(1, 0)), Position(1, 0), Summary(Totals(-1, 0, 0, 0, 0)))),
    ],
)
def test_a_row_is_what_it_is_taken_for(parse: Callable[[], object]) -> None:
    assert Inode.decode(7, FIFO.encode()) == FIFO
    assert join_parts(1, [part(0, (1, 5)), part(5, (2, 5))]).size == 10
    with refused():
        parse()


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (Table.META, b"epoch_counters", b"{"),
        (Table.META, b"epoch_counters", b"[1]"),
        (Table.META, b"epoch_counters", b'{"written_bytes": [2]}'),
        (Table.META, b"next_id", b"short"),
        (Table.SNAPSHOTS, (LIVE - 1).to_bytes(4, "big"), Snapshot(1, "n", 1, "auto", "", 0, 0, 0, ()).encode()),
        (Table.SNAPSHOTS, bytes(4), Snapshot(1, "n", 1, "auto", "", 0, 0, 0, ()).encode()),
        (Table.SNAPSHOTS, (1).to_bytes(4, "big"), Snapshot(1, "n", 1 << 70, "auto", "", 0, 0, 0, ()).encode()),
    ],
)
def test_a_tree_is_not_opened_by_rows_that_cannot_be(tmp_path: Path, table: Table, key: bytes, value: bytes) -> None:
    tree = new_tree(tmp_path / "store")
    tree.store.tables.put(table, key, value)
    with refused():
        Tree(tree.store)
    tree.store.close(commit=False)


def test_the_disk_is_not_asked_for_what_cannot_be(tmp_path: Path) -> None:
    """A record that says it has gigabytes, in a file that has them as a hole, is not read."""

    class CountingDisk(Disk):
        size_max = 0

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            self.size_max = max(self.size_max, size)
            return super().pread(fd, min(size, CHUNK_SIZE_MAX), offset)

    disk = CountingDisk()
    packs = Packs(tmp_path, disk, PackIdentity(7, 1))
    packs.resume(Position(FIRST_PACK, 0), Position(FIRST_PACK, 0))
    forged = build(RecordType.CHUNK, 1, bytes(16), 1, Encoding.RAW, memoryview(bytearray(CHUNK_SIZE_MAX + 8)))
    packs.append([forged])
    assert [type(found) for found in packs.scan(Position(FIRST_PACK, 0))] == [Gap]
    assert disk.size_max <= CHUNK_SIZE_MAX
    packs.close()


@pytest.mark.parametrize("key", [b"\0\0\0\1", b"\0\0\0\1\x09key"])
def test_what_an_epoch_changed_is_rows_with_an_epoch(tmp_path: Path, key: bytes) -> None:
    tree = new_tree(tmp_path / "store")
    tree.store.tables.put(Table.CHANGES, key, b"\1")
    with refused():
        list(tree.rows.changes(0, 1))
    tree.store.close(commit=False)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"offset": None}, {"raw_size": 1}, {"raw_size": -1}, {"stored_size": -8}, {"bases": (2,)}],
)
def test_a_chunk_is_where_the_index_says_and_what_it_says(
    tmp_path: Path, alone: bool, changes: dict[str, object]
) -> None:
    """The record holds in itself: it is that of another chunk, or has other sizes than the row of the index has."""
    with closing(new_tree(tmp_path / "store").store) as store:
        numbers = store.ingest(memoryview(bytes(range(250))), True, encode=False).numbers
        numbers += store.ingest(memoryview(bytes(range(250))[::-1]), True, encode=False).numbers
        one, two = (store._index.locate(number) for number in numbers)
        assert one is not None and two is not None and one.raw_size == two.raw_size == 250
        read = (lambda: store.read(1)) if alone else (lambda: bytes(store.read_first([1])[0].view()))
        assert read() == bytes(range(250))
        sizes = {name: one[3 if name == "raw_size" else 2] + by for name, by in changes.items() if isinstance(by, int)}
        forged = two if "offset" in changes else one._replace(**{**changes, **sizes})
        store._index.rows.newest.locations[NUMBER.pack(1)] = build_location(forged)
        with refused():
            read()


def test_a_delta_rests_on_no_more_than_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(new_tree(tmp_path / "store").store) as store:
        for number in range(3):
            store.ingest(memoryview(bytes([number]) * 1000), True)
        append_delta(store, 1, 2, 3)
        assert store.read(1) == bytes(1000)
        monkeypatch.setattr(fetch, "BASES_SIZE_MAX", 1999)
        with pytest.raises(DamagedError, match="a delta whose bases have 2000 bytes"):
            store.read(1)


@pytest.mark.parametrize("bound", ["LEVEL_SIZE_MAX", "BASES_SIZE_MAX"])
def test_deltas_that_rest_on_much_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    calls = []
    take_chains = kernels.take_chains
    monkeypatch.setattr(kernels, "take_chains", lambda *taken: calls.append(taken) or take_chains(*taken))
    with closing(new_tree(tmp_path / "store").store) as store:
        for number in range(3):
            store.ingest(memoryview(bytes([number]) * 1000), True)
        append_delta(store, 1, 2, 3)
        for size, is_chain in ((2000, True), (1999, False)):
            monkeypatch.setattr(chains, bound, size)
            calls.clear()
            assert bytes(store.read_first([1])[0].view()) == bytes(1000)
            assert bool(calls) == is_chain


def test_a_frame_of_another_size_is_not_decoded() -> None:
    """Not even one with a small window, which says little of the memory that it takes."""
    small = zstandard.ZstdCompressionParameters(window_log=zstandard.WINDOWLOG_MIN)
    frame = zstandard.ZstdCompressor(compression_params=small).compress(bytes(5000))
    assert decode(Encoding.ZSTD, frame, 5000) == bytes(5000)
    with pytest.raises(DamagedError, match="not one of 4999 bytes"):
        decode(Encoding.ZSTD, frame, 4999)


OTHER_HEAD = b"".join(build_pack_header(0, FORMAT_VERSION, 1, 7, 0).buffers)
"""The first record of a condensed journal, of another store."""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda records: [OTHER_HEAD, *records[1:]], "a record before is missing"),
        (lambda records: records[:2] + records[3:], "a record before is missing"),
        (lambda records: [*records[:3], records[1], *records[3:]], "an older record"),
        (lambda records: records[:-1], "it ends too early"),
    ],
)
def test_a_condensed_journal_is_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[bytes]], list[bytes]],
    said: str,
) -> None:
    monkeypatch.setattr(condensed_module, "_PART_SIZE", 100)
    with closing(new_tree(tmp_path / "store")) as tree:
        for number in range(5):
            save(tree, f"file-{number}", b"%d" % number)
        tree.store.mend_journal()
        condensed = tree.store._condensed
        whole = condensed.path.read_bytes()
        starts = [match.start() for match in re.finditer(MAGIC, whole)]
        records = [whole[start:stop] for start, stop in pairwise([*starts, len(whole)])]
        assert len(records) > 5 and list(condensed.rows())
        condensed.path.write_bytes(b"".join(change(records)))
        with pytest.raises(DamagedError, match=said):
            list(condensed.rows())
        losses: list[str] = []
        assert list(condensed.rows(losses)) and any(said in loss for loss in losses)


@pytest.mark.parametrize(("number", "salvage"), [(0, False), (2, False), (99, False), (1 << 30, True)])
def test_a_chunk_has_a_number_that_was_given(tmp_path: Path, number: int, salvage: bool) -> None:
    """What follows a chunk that cannot be was never durable here, and is cut off; a salvage believes in no such gap."""
    with ChunkStore.create(tmp_path / "store") as store:
        with store._end.lock:
            forged = build(RecordType.CHUNK, number, bytes(16), 3, Encoding.RAW, b"abc")
            store._end.append_chunks([forged], store.next_number)
        store.append_journal(Changes(store.tables.take_changes().generation, (Row(Table.META, b"key", b"value"),)))
        store.close(commit=False)
    with ChunkStore.open(tmp_path / "store", salvage=salvage) as store:
        assert store.next_number == 1 and store.stats().chunks == 0
        assert store.tables.get(Table.META, b"key") == (b"value" if salvage else None)
        assert bool(store.opening.losses) == salvage


def test_a_condensed_journal_points_at_the_records_of_its_chunks(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with closing(new_tree(path)) as tree:
        save(tree, "one", bytes(range(100)))
        save(tree, "two", bytes(range(100, 200)))
    condensed, identity = condense(path)
    first, *rows, last = condensed.rows()
    one, two = [row.value for row in rows if row.table == Table.CHUNKS]
    other = {one: two, two: one}
    swapped = [row._replace(value=other[row.value]) if row.table == Table.CHUNKS else row for row in rows]
    seal_condensed(condensed, identity, [first], swapped, [last])
    with pytest.raises(DamagedError, match="chunk 1 is lost, and so are 1 others"):
        open_tree(path)


class Chunks:
    """A view of chunks, numbered from 1, each of which rests on one other."""

    def __init__(self, bases: Iterable[int]) -> None:
        self._bases = bases

    def scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows."""
        for number, base in enumerate(self._bases, 1):
            yield NUMBER.pack(number), build_location(Location(1, 80, 9, 9, Encoding.DELTA, (base,), 0))


def test_the_depth_of_a_chunk_is_bounded_and_so_are_its_bases() -> None:
    shares = composition(cast(View, Chunks(range(300))), 301).depths
    assert [share.chunks for share in shares] == [0, *[1] * 254, 46]
    with refused():
        composition(cast(View, Chunks([7])), 7)
