"""docs/format.md says what the code does: byte tables, keys, and a small store whose bytes are golden."""

import json
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from ckptfs.config import FORMAT_VERSION
from ckptfs.errors import StoreVersionError
from ckptfs.formats import Tensor
from ckptfs.formats.layout import add_fingerprint
from ckptfs.store import ChunkStore, Table, codec, delta, freed, location, planes, records, reference_coders, state
from ckptfs.store.description import NAME as DESCRIPTION_NAME
from ckptfs.tree import Tree
from ckptfs.tree import extents as extents_module
from ckptfs.tree.dirent import DIRENT_STRUCT
from ckptfs.tree.extents import Extents, store_manifest
from ckptfs.tree.inode import INODE_STRUCT, INTERRUPTED, ROOT_INO, UNCOMMITTED, Inode
from ckptfs.tree.rows import LIVE
from ckptfs.tree.snapshots import Snapshot
from tests.unit import golden_store
from tests.unit.golden_store import HOLE_SIZE, NEW, OLD, PARTIAL
from tests.unit.second_reader import SecondReader

FORMAT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
WIDTH_OF = {"u8": "B", "u32": "I", "u64": "Q"}


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    return re.split(r"^#+ ", FORMAT.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its title row."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def documented(heading: str) -> list[tuple[int, int]]:
    """Return offset and size of the fixed fields in the byte table below a heading."""
    return [(int(offset), int(size)) for offset, size, *_ in rows(heading) if offset.isdigit() and size.isdigit()]


def fields(*formats: str) -> list[tuple[int, int]]:
    """Return offset and size of each field of little-endian struct formats, one behind the other."""
    found = []
    offset = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", "".join(formats)):
        repeat = 1 if code == "s" or not count else int(count)
        size = struct.calcsize("<" + (count + code if code == "s" else code))
        for _ in range(repeat):
            found.append((offset, size))
            offset += size
    return found


@pytest.mark.parametrize(
    ("heading", "structs"),
    [
        ("Record header", [records.HEADER, records.HEADER_CHECK]),
        ("Pack header payload", [records.PACK_PAYLOAD]),
        ("Metadata payload", [records.METADATA_PREFIX]),
        ("Metadata row", [records.ROW]),
        ("Planes", [planes.PLANES_HEAD]),
        ("Delta", [delta.DELTA_HEAD]),
        ("Inode", [INODE_STRUCT]),
        ("Directory entry", [DIRENT_STRUCT]),
        ("Location", [location.LOCATION]),
        ("Freed place", [freed.PLACE_VALUE]),
        ("State", [state.STATE]),
    ],
)
def test_the_documented_bytes_are_those_of_the_code(heading: str, structs: list[struct.Struct]) -> None:
    assert documented(heading) == fields(*(each.format for each in structs))
    assert all(each.format.startswith("<") for each in structs)
    last_offset, last_size = documented(heading)[-1]
    assert last_offset + last_size == sum(each.size for each in structs)


@pytest.mark.parametrize(
    ("heading", "first"),
    [("Metadata row", "8"), ("Inode", "88"), ("Planes", "1 + 5k"), ("Delta", "6"), ("Location", "24")],
)
def test_what_has_no_fixed_size_begins_behind_what_has(heading: str, first: str) -> None:
    assert next(offset for offset, size, *_ in rows(heading) if not (offset.isdigit() and size.isdigit())) == first


def test_the_documented_fields_of_a_record_header_are_those_of_the_code() -> None:
    named = [name for _, _, name, _ in rows("Record header")]
    assert named == ["magic", *records.Header._fields, "header_check"]
    assert f"`{records.MAGIC.decode()}`" in section("Record header")
    assert records.HEADER_SIZE == 48


def test_the_documented_record_types_and_encodings_are_those_of_the_code() -> None:
    meanings = {name: meaning for _, _, name, meaning in rows("Record header")}
    assert re.findall(r"\d+", meanings["type"]) == [str(kind.value) for kind in records.RecordType]
    assert [(name, int(number)) for name, number, _ in rows("Chunk payloads")] == [
        (encoding.name.lower(), encoding.value) for encoding in codec.Encoding
    ]


def test_the_documented_kinds_of_coded_bytes_and_planes_are_those_of_the_code() -> None:
    assert [(name.lower(), int(number)) for name, number, _ in rows("Coded bytes")] == [
        (kind.name.lower(), kind.value) for kind in reference_coders.Coded
    ]
    kind = next(meaning for *_, name, meaning in rows("Planes") if name == "kind")
    assert re.findall(r"(\d+) (\w+)", kind.split(":")[1]) == [
        (str(each.value), each.name.lower()) for each in planes.PlaneKind
    ]


def test_the_documented_tables_are_those_of_the_code() -> None:
    assert [(int(number), name) for number, name, *_ in rows("Tables")] == [
        (table.value, table.name.lower()) for table in Table
    ]


def test_the_documented_flags_are_those_of_the_code() -> None:
    flags = next(meaning for _, _, name, meaning in rows("Inode") if name == "flags")
    assert f"{UNCOMMITTED} never committed, {INTERRUPTED} interrupted" in flags
    assert f"0x{LIVE:X} is `LIVE`" in FORMAT


def test_the_documented_keys_of_json_are_those_of_the_code(tmp_path: Path) -> None:
    value = Snapshot(1, "n", 2, "auto", "", 3, 4, 5, ("p",)).encode()
    assert list(json.loads(value)) == [cells[0].strip("`") for cells in rows("Snapshot")]
    ChunkStore.create(tmp_path / "store").close()
    description = json.loads((tmp_path / "store" / DESCRIPTION_NAME).read_text())
    listed = re.findall(r"^\| `(\w+)` \|", section("The directory").split("one JSON object")[1], re.MULTILINE)
    assert list(description) == listed


def split_key(table: Table, key: bytes) -> dict[str, Any]:
    """Take a key apart as the table of tables says; fails where bytes are left over or missing."""
    layout = next(cells[2] for cells in rows("Tables") if int(cells[0]) == table)
    parts = [tuple(part.split()) for part in layout.split(", ")]
    fixed_behind = [struct.calcsize(WIDTH_OF.get(kind, "0s")) for _, kind in parts]
    found: dict[str, Any] = {}
    at = 0
    for position, (name, kind) in enumerate(parts):
        if kind == "bytes":
            end = len(key) - sum(fixed_behind[position + 1 :])
            found[name] = key[at:end]
        else:
            end = at + fixed_behind[position]
            (found[name],) = struct.unpack(">" + WIDTH_OF[kind], key[at:end])
        at = end
    assert at == len(key)
    return found


@pytest.fixture(params=[golden_store.GOLDEN, *golden_store.OLD_GOLDEN], ids=lambda golden: golden.stem)
def golden(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Give the golden store as its packs alone, in each version of the format."""
    golden_store.write_golden(tmp_path / "golden", request.param)
    return tmp_path / "golden"


def test_the_keys_of_a_store_are_laid_out_as_documented(golden: Path) -> None:
    with ChunkStore.open(golden) as store:
        keys = {
            table: [split_key(table, key) for key, _ in store.tables.scan(table, b"", b"\xff" * 511)]
            for table in Table
            if table <= Table.META
        }
    assert all(keys.values())
    assert {(key["ino"], key["epoch"]) for key in keys[Table.INODES]} >= {(1, 1), (1, 2), (2, 3)}
    assert LIVE in {key["epoch"] for key in keys[Table.INODES]}
    names = {(key["ino"], key["name"], key["NUL"], key["epoch"]) for key in keys[Table.DIRENTS]}
    assert names >= {(1, b"run", 0, 1), (1, b"best", 0, 1), (1, b"best", 0, 2), (2, b"killed.pt", 0, LIVE)}
    assert {(key["name"], key["epoch"]) for key in keys[Table.XATTRS]} == {(b"user.note", 1), (b"user.note", 2)}
    assert all(key["offset"] == 0 for key in keys[Table.MANIFESTS])
    assert {key["table"] for key in keys[Table.CHANGES]} == {Table.INODES, Table.DIRENTS, Table.XATTRS}
    assert [key["epoch"] for key in keys[Table.SNAPSHOTS]] == [1, 2]
    there = {key["name"] for key in keys[Table.META]}
    documented = {cells[0].strip("`").encode(): cells[1] for cells in rows("Meta")}
    assert there <= documented.keys()
    assert all("may be missing" in documented[name] for name in documented.keys() - there)


def test_every_row_with_an_epoch_is_in_changes(golden: Path) -> None:
    with ChunkStore.open(golden) as store:
        versioned = {
            (table, key)
            for table in (Table.INODES, Table.DIRENTS, Table.XATTRS)
            for key, _ in store.tables.scan(table, b"", b"\xff" * 511)
        }
        noted = {
            (key["table"], key["prefix"] + struct.pack(">I", key["epoch"]))
            for key in (split_key(Table.CHANGES, key) for key, _ in store.tables.scan(Table.CHANGES))
        }
    assert versioned == noted


def test_a_manifest_part_is_laid_out_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents_module, "PART_EXTENTS", 2)
    extents = Extents()
    for number, length in ((7, 100), (0, 1 << 40), (9, 5)):
        extents.append(number, length)
    with ChunkStore.create(tmp_path / "store") as store:
        store_manifest(store.tables, 3, extents)
        parts = list(store.tables.scan(Table.MANIFESTS))
    assert parts == [
        (struct.pack(">QQ", 3, 0), struct.pack("<QQII", 7, (1 << 63) + (1 << 40), 100, 0)),
        (struct.pack(">QQ", 3, 100 + (1 << 40)), struct.pack("<QI", 9, 5)),
    ]
    assert [offset for offset, *_ in rows("Manifest part")] == ["0", "8 n"]


def test_a_symbolic_link_has_its_target_behind_the_fixed_bytes() -> None:
    link = Inode(5, 0o120777, 1, 2, 1, size=3, atime_ns=4, mtime_ns=5, ctime_ns=6, target=b"a/b")
    assert link.encode()[int(rows("Inode")[-1][0]) :] == b"a/b"


def test_the_layout_is_a_sum_over_the_tensors() -> None:
    bias = Tensor("head.bias", 64, 8192, 4, (2048,), "float32")
    mask = Tensor("mask", 0, 6, 1, (2, 3), "bool")
    layout = add_fingerprint(add_fingerprint(0, bias), mask)
    assert layout == (zlib.crc32(b"head.bias\0002048\0004\0float32") + zlib.crc32(b"mask\0002x3\0001\0bool")) % (
        1 << 32
    )
    inode = Inode(5, 0o100644, 1, 2, 1, size=3, atime_ns=4, mtime_ns=5, ctime_ns=6, layout=layout)
    (offset,) = (int(row[0]) for row in rows("Inode") if row[2] == "layout")
    assert struct.unpack_from("<I", inode.encode(), offset) == (layout,)
    assert Inode.decode(5, inode.encode()) == inode


def test_a_store_keeps_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden_store.build(tmp_path / "built", monkeypatch)
    assert golden_store.dump(tmp_path / "built") == golden_store.GOLDEN.read_text()


def content(tree: Tree, path: str, epoch: int = LIVE) -> bytes:
    inode = tree.names.resolve(path, epoch)
    return bytes(tree.files.load(inode).plan_read(0, inode.size).run(tree.reader))


def names(tree: Tree, path: str, epoch: int = LIVE) -> list[bytes]:
    return [name for name, _ in tree.names.entries(tree.names.resolve(path, epoch).ino, epoch)]


def test_an_index_of_an_older_version_is_made_anew_by_who_may_write(tmp_path: Path) -> None:
    golden_store.write_outdated(tmp_path)
    with pytest.raises(StoreVersionError, match="has the format 2; mount the store for writing once"):
        ChunkStore.open(tmp_path, read_only=True)
    with ChunkStore.open(tmp_path) as store:
        assert store.config.version == FORMAT_VERSION
        tree = Tree(store)
        assert content(tree, "run/last.pt") == NEW
        assert content(tree, "run/last.pt", tree.snapshots.all()[0].id) == OLD
    assert not (tmp_path / "index.lmdb.before-rebuild").exists()
    with ChunkStore.open(tmp_path, read_only=True) as store:
        assert content(Tree(store), "run/last.pt") == NEW


def test_a_store_is_read_from_its_packs_alone(golden: Path) -> None:
    with ChunkStore.open(golden) as store:
        tree = Tree(store)
        first, second = tree.snapshots.all()
        assert (first.name, first.label, first.trigger) == ("first", "before the insertion", "manual")
        assert (second.id, second.trigger, second.changed_files) == (2, "auto", 3)
        assert names(tree, "", first.id) == [b"best", b"run"]
        assert tree.names.resolve("best", first.id).target == b"run/last.pt"
        assert content(tree, "run/last.pt", first.id) == OLD
        run = tree.names.resolve("run").ino
        assert tree.xattrs.get(run, b"user.note", first.id) == b"lr 3e-4"
        assert tree.xattrs.names(run, second.id) == []
        assert names(tree, "", second.id) == [b"run"]
        assert names(tree, "run", second.id) == [b"last.pt", b"sparse"]
        assert content(tree, "run/last.pt", second.id) == NEW
        assert names(tree, "run") == [b"killed.pt", b"last.pt", b"sparse"]
        assert content(tree, "run/killed.pt") == PARTIAL
        assert [inode.ino for inode in tree.names.interrupted()] == [tree.names.resolve("run/killed.pt").ino]
        sparse = tree.names.resolve("run/sparse", second.id)
        tail = tree.files.load(sparse).plan_read(HOLE_SIZE - 5, 10).run(tree.reader)
        assert (sparse.size, bytes(tail)) == (HOLE_SIZE + 3, bytes(5) + b"end")


def test_a_version_that_is_renamed_over_another_one_succeeds_it(golden: Path) -> None:
    with ChunkStore.open(golden) as store:
        tree = Tree(store)
        old, new = tree.names.resolve("run/last.pt", 1), tree.names.resolve("run/last.pt", 2)
    assert old.ino != new.ino
    assert new.predecessor == old.manifest != 0


def test_a_reader_written_from_the_document_alone_reads_the_store(golden: Path) -> None:
    reader = SecondReader(golden)
    first, second = reader.snapshots().values()
    sparse = bytes(HOLE_SIZE) + b"end"
    assert reader.files(first) == {"best": b"run/last.pt", "run/last.pt": OLD}
    assert reader.files(second) == {"run/last.pt": NEW, "run/sparse": sparse}
    assert reader.files(LIVE) == {"run/last.pt": NEW, "run/sparse": sparse, "run/killed.pt": PARTIAL}


def test_a_reader_written_from_the_document_alone_reads_every_encoding(tmp_path: Path) -> None:
    generator = random.Random(3)
    files = {
        "floats": struct.pack("<50000f", *(generator.gauss(0, 0.02) for _ in range(50000))) + b"odd",
        "noise": generator.randbytes(100_000),
        "text": b" ".join(b"step %d loss" % step for step in range(10_000)),
        "short": b"saved",
        "empty": b"",
    }
    with ChunkStore.create(tmp_path / "store") as store:
        tree = Tree(store)
        for name, data in files.items():
            golden_store.save(tree, ROOT_INO, name.encode(), data)
        store.commit(checkpoint=True)
        store.reencoder.encode_waiting(1 << 30)
    reader = SecondReader(tmp_path / "store")
    assert reader.files(LIVE) == files
    assert reader.encodings == {
        codec.Encoding.RAW,
        codec.Encoding.WAITING,
        codec.Encoding.ZSTD,
        codec.Encoding.PLANES,
    }


def test_a_reader_written_from_the_document_alone_reads_around_freed_places(tmp_path: Path) -> None:
    generator = random.Random(4)
    files = {
        "noise": generator.randbytes(50_000),
        "floats": struct.pack("<50000f", *(generator.gauss(0, 0.02) for _ in range(50_000))),
        "text": b" ".join(b"step %d loss" % step for step in range(10_000)),
    }
    path = tmp_path / "store"
    with ChunkStore.create(path) as store:
        tree = Tree(store)
        for name, data in files.items():
            golden_store.save(tree, ROOT_INO, name.encode(), data)
        store.commit(checkpoint=True)
        assert SecondReader(path).encodings == {codec.Encoding.WAITING}
        store.reencoder.encode_waiting(1 << 30)
        store.commit(checkpoint=True)
        assert store.reclaimer.punch() > 200_000
    reader = SecondReader(path)
    assert reader.files(LIVE) == files
    assert reader.encodings == {codec.Encoding.WAITING, codec.Encoding.ZSTD, codec.Encoding.PLANES}
    assert len(reader.tables[Table.FREED]) == 1
