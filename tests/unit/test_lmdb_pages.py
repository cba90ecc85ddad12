"""The pages of an LMDB file: a whole one has no damage, whatever was written, and what is changed is named."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.store import Disk, Table
from ckptfs.store.environment import Environment
from ckptfs.store.lmdb_pages import damage_of

SEED = 11
PAGE = 4096
ROWS = 3000


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Path]:
    """Give an index in which LMDB has used every kind of page."""
    path = tmp_path / "index.lmdb"
    environment = Environment(path, Disk(), read_only=False)
    source = random.Random(SEED)
    for number in range(5):
        ids = sorted((source.randbytes(16), source.randbytes(8)) for _ in range(ROWS))
        values = [source.randbytes(source.choice((0, 10, 300, 6000))) for _ in range(ROWS // 10)]
        rows = [((number * ROWS + at).to_bytes(16, "big"), value) for at, value in enumerate(values)]
        environment.write([(Table.CHUNK_IDS, ids), (Table.MANIFESTS, rows)])
        environment.write([(Table.MANIFESTS, [(key, None) for key, _ in rows[::3]]), (Table.META, [(b"one", b"row")])])
        assert damage_of(path, Disk()) is None
    environment.close()
    return path


def test_an_empty_index_has_no_damage(tmp_path: Path) -> None:
    Environment(tmp_path / "index.lmdb", Disk(), read_only=False).close()
    assert damage_of(tmp_path / "index.lmdb", Disk()) is None


def test_a_whole_index_has_no_damage(index: Path) -> None:
    assert damage_of(index, Disk()) is None


def test_an_index_that_is_cut_short_is_damaged(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[: len(data) // 2])
    assert damage_of(index, Disk()) is not None
    index.write_bytes(b"")
    assert damage_of(index, Disk()) is not None


@pytest.mark.parametrize("at", [0, 10, 12])
def test_a_page_whose_header_is_changed_is_named(index: Path, at: int) -> None:
    data = bytearray(index.read_bytes())
    leaves = [start for start in range(2 * PAGE, len(data), PAGE) if struct.unpack_from("<H", data, start + 10)[0] == 2]
    found = []
    for start in leaves:
        data[start + at] ^= 2
        index.write_bytes(data)
        found.append(damage_of(index, Disk()))
        data[start + at] ^= 2
    assert any(found)
    assert all(said is None or "page" in said for said in found)


def test_pages_of_noise_end_in_damage_and_nothing_else(index: Path) -> None:
    whole = index.read_bytes()
    source = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(200):
        data = bytearray(whole)
        start = source.randrange(len(data) // PAGE) * PAGE
        for _ in range(source.choice((1, 8, 400))):
            data[start + source.randrange(64 if source.random() < 0.5 else PAGE)] = source.randrange(256)
        index.write_bytes(data)
        damage_of(index, Disk())


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_a_branch_that_leads_away_from_rows_is_named(index: Path, byte: bytes) -> None:
    whole = index.read_bytes()
    found = []
    for start in range(2 * PAGE, len(whole), PAGE):
        flags, lower = struct.unpack_from("<HH", whole, start + 10)
        if flags == 1 and lower > 20:
            at = start + struct.unpack_from("<H", whole, start + 18)[0]  # the second node: its key says something
            size = struct.unpack_from("<H", whole, at + 6)[0]
            index.write_bytes(whole[: at + 8] + byte * size + whole[at + 8 + size :])
            found.append(damage_of(index, Disk()))
    assert any(found)
    assert all(said is None or "belong" in said or "in order" in said for said in found)
