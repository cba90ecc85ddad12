"""A small store, made by a fixed script with a fixed seed and a clock that counts: its bytes are golden.

It has whatever the format has a row for: directories, files of several chunks, a hole, a link, an attribute, a
version over another one, a name that is gone, two snapshots, and a file whose writer was killed. A wanted change of
the format writes `dump` of a new `build` to GOLDEN, and keeps the old text for a test that old stores are still read.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from ckptfs.config import FORMAT_VERSION, ChunkSizes, StoreConfig
from ckptfs.store import ChunkStore, codec, records
from ckptfs.store.codec import Encoding
from ckptfs.store.schema import CHECK_SIZE, Table
from ckptfs.tree import Tree, renaming
from ckptfs.tree.files import OpenFile
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.namespace import Owner

GOLDEN = Path(__file__).parent / "golden" / "store.txt"
OLD_GOLDEN = tuple(GOLDEN.with_name(f"store-{version}.txt") for version in (1, 2))
"""The same store as the versions 1 to 3 of the format had it."""

CONFIG = StoreConfig(FORMAT_VERSION, 0x0123456789ABCDEF, 1_700_000_000_000_000_000, ChunkSizes(64, 8, 256))
OWNER = Owner(1000, 1000)
SECOND_NS = 1_000_000_000
HOLE_SIZE = 5_000_000
BYTES_PER_LINE = 48

OLD = random.Random(1).randbytes(900)
NEW = OLD[:300] + b"inserted" + OLD[300:]
PARTIAL = random.Random(2).randbytes(100)


def build(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the store. Payloads are all raw: what zstd makes of bytes is not format, and changes with its version."""
    monkeypatch.setattr("os.geteuid", lambda: OWNER.uid)
    monkeypatch.setattr("os.getegid", lambda: OWNER.gid)
    monkeypatch.setattr(codec, "encode", lambda data: (Encoding.RAW, data))
    monkeypatch.setattr(records, "_METADATA_RAW_MAX", 1 << 30)
    clock = itertools.count(CONFIG.created_ns, SECOND_NS)
    with ChunkStore.create(path, config=CONFIG) as store:
        tree = Tree(store, wall_ns=lambda: next(clock), monotonic=lambda: 0.0)
        run = tree.names.create(ROOT_INO, b"run", 0o40755, OWNER).ino
        save(tree, run, b"last.pt", OLD)
        tree.names.create(ROOT_INO, b"best", 0o120777, OWNER, target=b"run/last.pt")
        tree.xattrs.set(run, b"user.note", b"lr 3e-4")
        tree.take_snapshot("first", "manual", "before the insertion")
        tree.commit()
        save(tree, run, b"last.pt.tmp", NEW)
        renaming.rename(tree.names, run, b"last.pt.tmp", run, b"last.pt")
        tree.names.unlink(ROOT_INO, b"best")
        tree.xattrs.remove(run, b"user.note")
        sparse = _open(tree, run, b"sparse")
        tree.files.truncate(sparse, HOLE_SIZE)
        tree.files.write(sparse, HOLE_SIZE, b"end")
        _close(tree, sparse)
        tree.take_snapshot(None, "auto")
        tree.commit()
        killed = _open(tree, run, b"killed.pt")
        tree.files.write(killed, 0, PARTIAL)
        killed.interrupted = True
        _close(tree, killed)


def _open(tree: Tree, directory: int, name: bytes) -> OpenFile:
    return tree.files.open(tree.names.create(directory, name, 0o100644, OWNER, committed=False), writing=True)


def _close(tree: Tree, file: OpenFile) -> None:
    while (job := file.content.take_job(final=True)) is not None:
        job.run()
        file.content.finish_job()
    tree.files.commit(file)
    tree.files.release(file, writing=True)


def save(tree: Tree, directory: int, name: bytes, data: bytes) -> None:
    """Write a new file and close it."""
    file = _open(tree, directory, name)
    tree.files.write(file, 0, data)
    _close(tree, file)


def dump(path: Path) -> str:
    """Return the description and the pack of a store as text, one paragraph of hex for each record."""
    pack = (path / "packs" / "00000001.pack").read_bytes()
    lines = [*(path / "store.json").read_text().splitlines()]
    for offset, header in _headers(pack):
        lines.append(f"# offset {offset}: type {header.type}, number {header.number}")
        data = pack[offset : offset + header.size]
        lines += [data[at : at + BYTES_PER_LINE].hex() for at in range(0, len(data), BYTES_PER_LINE)]
    return "\n".join(lines) + "\n"


def _headers(pack: bytes) -> Iterator[tuple[int, records.Header]]:
    offset = 0
    while offset < len(pack):
        header = records.parse_header(pack[offset:])
        assert header is not None, f"no record at offset {offset}"
        yield offset, header
        offset += header.size


def write_golden(path: Path, golden: Path = GOLDEN) -> None:
    """Make a directory with the golden store's description and pack, and no index."""
    description, _, body = golden.read_text().partition("#")
    (path / "packs").mkdir(parents=True)
    (path / "store.json").write_text(description)
    hexadecimal = "".join(line for line in ("#" + body).splitlines() if not line.startswith("#"))
    (path / "packs" / "00000001.pack").write_bytes(bytes.fromhex(hexadecimal))


def write_outdated(path: Path) -> None:
    """Make the golden store as version 2 of the format left it, with its index, whose rows have no checks."""
    write_golden(path, OLD_GOLDEN[-1])
    description = (path / "store.json").read_bytes()
    ChunkStore.open(path).close()
    (path / "store.json").write_bytes(description)
    (path / "index.lmdb.seal").unlink()
    with lmdb.open(str(path / "index.lmdb"), subdir=False, lock=False, max_dbs=len(Table)) as environment:
        for table in Table:
            with environment.begin(environment.open_db(table.name.lower().encode()), write=True) as transaction:
                rows = list(transaction.cursor())
                for key, value in rows:
                    transaction.delete(key, value)
                for key, value in rows:
                    transaction.put(key, value[:-CHECK_SIZE])
