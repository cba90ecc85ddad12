"""The small files of a store that somebody has tampered with: `store.json`, `index.lmdb.seal` and `backup.json`.

Whatever is in them ends in a clean error or in what was meant, and takes little memory however large they are.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from ckptfs.config import CHUNK_SIZE_MAX, GIB
from ckptfs.errors import DamagedError, NotAStoreError
from ckptfs.store import ChunkStore, Cut, Disk, Table, back_up, seal

DEEP = "[" * 60_000


class FrugalDisk(Disk):
    """A disk that reads no more than some MiB at once."""

    def pread(self, fd: int, size: int, offset: int) -> bytearray:
        assert size <= 1 << 23
        return super().pread(fd, size, offset)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a store with a chunk, closed."""
    with ChunkStore.create(tmp_path / "store") as store:
        store.ingest(memoryview(b"chunk" * 100), True)
        store.tables.put(Table.META, b"key", b"value")
    return tmp_path / "store"


def sizes(**changed: int) -> dict[str, Any]:
    return {"chunk_sizes": {"size_min": 16, "mean_bits": 8, "size_max": 16, **changed}}


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": "0" * 15},
        {"seed": "0" * 17},
        {"seed": "-00000000000000f"},
        {"seed": "0_0_0_0_0_0_0_00"},
        {"seed": "0x0000000000000f"},
        {"created_ns": -1},
        {"created_ns": 1.5},
        {"created_ns": True},
        {"version": "8"},
        {"chunk_sizes": 5},
        sizes(size_min=15),
        sizes(size_min=17),
        sizes(mean_bits=7),
        sizes(mean_bits=41),
        sizes(mean_bits=10**30),
        sizes(size_max=CHUNK_SIZE_MAX + 1),
        sizes(size_max=10**30, size_min=10**30),
        sizes(size_min=-5),
    ],
    ids=str,
)
def test_a_description_that_nothing_could_be_stored_by_is_refused(path: Path, changed: dict[str, Any]) -> None:
    content = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(content | sizes()))
    ChunkStore.open(path, read_only=True).close()
    (path / "store.json").write_text(json.dumps(content | changed))
    with pytest.raises(NotAStoreError, match=r"store\.json cannot be read"):
        ChunkStore.open(path)


@pytest.mark.parametrize("text", [DEEP, '{"kind":' * 7000, '{"version":' + "9" * 5000, "\0", ""])
def test_a_description_that_is_no_json_is_refused(path: Path, text: str) -> None:
    (path / "store.json").write_text(text)
    with pytest.raises(NotAStoreError, match=r"store\.json cannot be read"):
        ChunkStore.open(path)


def test_of_a_description_without_an_end_only_the_beginning_is_read(path: Path) -> None:
    os.truncate(path / "store.json", GIB)
    with pytest.raises(NotAStoreError, match=r"store\.json cannot be read"):
        ChunkStore.open(path, disk=FrugalDisk())


@pytest.mark.parametrize("change", ["longer", "endless", "empty", "shorter", "other"])
def test_a_seal_that_is_not_what_was_set_does_not_hold(path: Path, change: str) -> None:
    file = path / "index.lmdb.seal"
    data = file.read_bytes()
    if change == "endless":
        os.truncate(file, GIB)
    else:
        changed = {"longer": data + b" ", "empty": b"", "shorter": data[:-1], "other": data.swapcase()}
        file.write_bytes(changed[change])
    with pytest.raises(DamagedError, match="its seal does not hold"):
        ChunkStore.open(path, disk=FrugalDisk())
    with ChunkStore.open(path, disk=FrugalDisk(), rebuild=True) as store:
        assert store.tables.get(Table.META, b"key") == b"value"


def test_a_seal_says_size_and_digest_of_the_index(path: Path) -> None:
    index = (path / "index.lmdb").read_bytes()
    digest = xxhash.xxh3_128_hexdigest(index)
    assert (path / "index.lmdb.seal").read_text() == f"{len(index)} {digest}\n"
    (path / "index.lmdb.seal").write_text(f"{len(index) + 1} {digest}\n")
    with pytest.raises(DamagedError, match="its seal does not hold"):
        ChunkStore.open(path)


def test_an_index_of_any_size_is_sealed_piece_by_piece(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class NotingDisk(Disk):
        def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            sizes.append(sum(map(len, buffers)))
            return super().pread_into(fd, buffers, offset)

    monkeypatch.setattr(seal, "_PIECE_SIZE", 4000)
    assert seal.Seal(path / "index.lmdb", NotingDisk()).damage() is None
    assert max(sizes) == 4000 and len(sizes) > 5


@pytest.fixture
def source(path: Path) -> Iterator[ChunkStore]:
    """Give the store, open, with a backup beside it and a row that this does not have yet."""
    with ChunkStore.open(path) as store:
        backed_up(store)
        store.tables.put(Table.META, b"key", b"newer")
        store.commit()
        yield store


def backed_up(store: ChunkStore) -> bytes | None:
    """Bring the backup of a store up to date; return what it has of the row then."""
    path = store.path.with_name("backup")
    back_up(store.path, path, lambda: Cut(store.position, store.punch_count), lambda count: None, disk=FrugalDisk())
    with ChunkStore.open(path, read_only=True) as backup:
        return backup.tables.get(Table.META, b"key")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 4000,
        '{"position": [Infinity, 0], "copying": true}',
        '{"position": [1, 2, 3], "copying": true}',
        '{"position": ["a", "b"], "copying": true}',
        '{"position": [1, 64]}',
        "5",
        "",
    ],
)
def test_a_state_of_a_backup_that_cannot_be_read_is_named(source: ChunkStore, text: str) -> None:
    state = source.path.with_name("backup") / "backup.json"
    state.write_text(text)
    with pytest.raises(DamagedError, match=r"backup\.json cannot be read.*in a new directory"):
        backed_up(source)
    os.truncate(state, GIB)
    with pytest.raises(DamagedError, match=r"backup\.json cannot be read"):
        backed_up(source)


@pytest.mark.parametrize("position", [(1, 10**9), (2, 0), (3, 0), (2, 1), (10**9, 10**18)])
def test_a_backup_that_claims_to_have_what_it_has_not_is_refused(source: ChunkStore, position: tuple[int, int]) -> None:
    state = source.path.with_name("backup") / "backup.json"
    state.write_text(json.dumps({"position": position, "copying": True}))
    with pytest.raises(DamagedError, match="says that the backup has more than it has"):
        backed_up(source)


@pytest.mark.parametrize("position", [(1, 0), (1, 100), (0, 0), (-1, -9)])
def test_a_backup_that_claims_to_have_less_gets_it_again(source: ChunkStore, position: tuple[int, int]) -> None:
    state = source.path.with_name("backup") / "backup.json"
    state.write_text(json.dumps({"position": position, "copying": True}))
    assert backed_up(source) == b"newer"


@pytest.mark.timeout(20)
def test_a_pack_that_has_become_shorter_than_it_was_ends_the_backup(source: ChunkStore) -> None:
    class ShortDisk(Disk):
        def copy_range(self, source: int, target: int, offset: int, size: int, path: Path) -> int:
            return 0

    with pytest.raises(DamagedError, match="ends before its journal says so"):
        back_up(
            source.path,
            source.path.with_name("other"),
            lambda: Cut(source.position, 0),
            lambda count: None,
            disk=ShortDisk(),
        )
