"""Crashes: a store directory is copied as a kill or a power cut leaves it, torn at every place, and opened again."""

import os
import random
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Table
from ckptfs.store.packfile import Found
from ckptfs.store.records import Position, RecordType, Row

SEED = 4711
PACK_SIZE_MAX = 6000


@dataclass
class Kept:
    """What must be there when the packs reach up to `position`."""

    position: Position
    rows: dict[bytes, bytes] = field(default_factory=dict)
    chunks: dict[int, bytes] = field(default_factory=dict)


@dataclass
class History:
    """A store that was left without being closed, and what it had confirmed at each step."""

    path: Path
    steps: list[Kept]
    boundaries: list[Position]
    checkpointed: Position

    def kept_at(self, position: Position) -> Kept:
        """Return what must survive when everything from `position` on is gone."""
        return [step for step in self.steps if step.position <= position][-1]


def put(store: ChunkStore, data: bytes) -> int:
    """Store data that is too short to be cut, and return the number of its chunk."""
    (number,) = store.ingest(memoryview(data), True).numbers
    return number


def live(tmp_path: Path, *, checkpoint_at: int | None, synced: bool = False, loose_chunks: bool = True) -> History:
    """Put chunks and rows in eight steps, and return the directory as a kill would leave it."""
    print(f"seed {SEED}")
    source = random.Random(SEED)
    path = tmp_path / "store"
    ChunkStore.create(path).close()
    store = ChunkStore.open(path, pack_size_max=PACK_SIZE_MAX)
    rows: dict[bytes, bytes] = {}
    chunks: dict[int, bytes] = {}
    steps = [Kept(Position(1, 0))]
    for step in range(8):
        pieces = [source.randbytes(source.randrange(1, 1500)) for _ in range(3)]
        numbers = [put(store, piece) for piece in pieces]
        chunks.update(zip(numbers, pieces, strict=True))
        for number in numbers:
            rows[b"row %d" % number] = source.randbytes(source.randrange(200))
            store.tables.put(Table.INODES, b"row %d" % number, rows[b"row %d" % number])
        if step:
            gone = b"row %d" % (numbers[0] - 2)
            rows.pop(gone)
            store.tables.delete(Table.INODES, gone)
        store.commit(durable=synced)
        steps.append(Kept(store._packs.position, dict(rows), dict(chunks)))
        if step == checkpoint_at:
            if loose_chunks:
                # Chunks of a file that is not committed yet: the index has them, the journal does not speak of them.
                number = put(store, b"loose")
                chunks[number] = b"loose"
            store.commit(checkpoint=True)
            steps[-1] = Kept(store._packs.position, dict(rows), dict(chunks))
    boundaries = [found.end for found in store._packs.scan(Position(1, 0)) if isinstance(found, Found)]
    checkpointed = store._checkpoints.state.replay_from.position
    crashed = tmp_path / "crashed"
    shutil.copytree(path, crashed)
    store.close(commit=False)
    return History(crashed, steps, boundaries, checkpointed)


def pack_path(path: Path, pack: int) -> Path:
    return path / "packs" / f"{pack:08d}.pack"


def cut(path: Path, position: Position) -> None:
    """Cut the packs off at a position."""
    for file in sorted((path / "packs").iterdir()):
        number = int(file.stem)
        if number > position.pack:
            file.unlink()
        elif number == position.pack:
            os.truncate(file, position.offset)


def assert_kept(path: Path, kept: Kept) -> None:
    """Open a store twice: it holds exactly what was kept, takes new chunks and rows, and keeps those too."""
    with ChunkStore.open(path) as store:
        assert dict(store.tables.scan(Table.INODES)) == kept.rows
        assert {number: store.read(number) for number in kept.chunks} == kept.chunks
        assert store.stats().chunks == len(kept.chunks)
        assert store.stats().raw_bytes == sum(map(len, kept.chunks.values()))
        number = put(store, b"a new one")
        assert number == len(kept.chunks) + 1
        store.tables.put(Table.NAMES, b"new", b"row")
        store.commit()
        store.close(commit=False)
    with ChunkStore.open(path) as store:
        assert store.read(number) == b"a new one"
        assert store.tables.get(Table.NAMES, b"new") == b"row"
        assert dict(store.tables.scan(Table.INODES)) == kept.rows


@pytest.mark.parametrize("checkpoint_at", [None, 0, 4, 7])
def test_a_kill_loses_nothing_that_was_journalled(tmp_path: Path, checkpoint_at: int | None) -> None:
    history = live(tmp_path, checkpoint_at=checkpoint_at)
    assert_kept(history.path, history.steps[-1])


@pytest.mark.parametrize("checkpoint_at", [None, 3])
@pytest.mark.parametrize("tear", [0, -8, -3, 8, 40, 52])
def test_a_tail_torn_anywhere_leaves_the_last_intact_step(tmp_path: Path, checkpoint_at: int | None, tear: int) -> None:
    history = live(tmp_path, checkpoint_at=checkpoint_at)
    assert len(history.boundaries) >= 32
    for boundary in history.boundaries:
        position = Position(boundary.pack, boundary.offset + tear)
        if position < history.checkpointed:
            continue
        torn = tmp_path / "torn"
        shutil.copytree(history.path, torn)
        cut(torn, position)
        assert_kept(torn, history.kept_at(position))
        shutil.rmtree(torn)


def test_a_tail_of_zeros_leaves_the_last_intact_step(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None)
    boundary = history.boundaries[-3]
    with pack_path(history.path, boundary.pack).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(boundary.offset)
        file.write(bytes(size - boundary.offset))
    for later in range(boundary.pack + 1, history.boundaries[-1].pack + 1):
        pack_path(history.path, later).unlink()
    assert_kept(history.path, history.kept_at(boundary))


def test_what_a_checkpoint_covers_must_be_in_the_packs(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=7)
    end = history.checkpointed
    cut(history.path, end._replace(offset=end.offset - 8))
    with pytest.raises(DamagedError, match="durable"):
        ChunkStore.open(history.path)
    pack_path(history.path, end.pack).unlink()
    with pytest.raises(DamagedError, match="durable"):
        ChunkStore.open(history.path)


def damage(path: Path, position: Position) -> None:
    """Change a byte of the record that ends at a position."""
    with pack_path(path, position.pack).open("r+b") as file:
        file.seek(position.offset - 12)
        byte = file.read(1)[0]
        file.seek(position.offset - 12)
        file.write(bytes([byte ^ 255]))


def test_damage_that_was_synced_is_an_error_and_nothing_is_cut_off(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None, synced=True)
    before = {file.name: file.stat().st_size for file in (history.path / "packs").iterdir()}
    damaged = history.boundaries[6]
    damage(history.path, damaged)
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"\d+\.pack at offset \d+.*intact"):
            ChunkStore.open(history.path)
    assert {file.name: file.stat().st_size for file in (history.path / "packs").iterdir()} == before


def test_damage_that_no_sync_covered_ends_the_replay(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None, synced=False)
    damaged = history.boundaries[6]
    damage(history.path, damaged)
    assert_kept(history.path, history.kept_at(history.boundaries[5]))


def test_a_lost_pack_is_an_error_when_it_was_synced(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None, synced=True)
    pack_path(history.path, 2).unlink()
    with pytest.raises(DamagedError, match=r"00000002\.pack at offset 0.*missing"):
        ChunkStore.open(history.path)


def test_a_journal_step_that_is_cut_out_ends_the_replay(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None)
    steps = [step.position for step in history.steps]
    end, following = next((one, next_one) for one, next_one in pairwise(steps[1:]) if one.pack == next_one.pack)
    begin = history.boundaries[history.boundaries.index(end) - 1]
    cut(history.path, following)  # what is behind the step lies further ahead then, and is intact
    file = pack_path(history.path, end.pack)
    data = file.read_bytes()
    file.write_bytes(data[: begin.offset] + data[end.offset :])
    assert_kept(history.path, history.kept_at(begin))


@pytest.mark.parametrize("lost", [False, True])
def test_the_index_is_rebuilt_from_the_packs(tmp_path: Path, lost: bool) -> None:
    history = live(tmp_path, checkpoint_at=5, loose_chunks=False)
    if lost:
        (history.path / "index.lmdb").unlink()
    with ChunkStore.open(history.path, rebuild=not lost) as store:
        assert dict(store.tables.scan(Table.INODES)) == history.steps[-1].rows
    assert not (history.path / "index.lmdb.before-rebuild").exists()
    assert_kept(history.path, history.steps[-1])


def test_a_rebuild_that_meets_damage_keeps_the_old_index(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=5)
    damage(history.path, history.boundaries[3])
    with pytest.raises(DamagedError):
        ChunkStore.open(history.path, rebuild=True)
    assert not (history.path / "index.lmdb.before-rebuild").exists()  # for who may only read, too
    # Damage before the checkpoint does not keep the store from being opened, and its other chunks stay readable.
    with ChunkStore.open(history.path) as store:
        assert dict(store.tables.scan(Table.INODES)) == history.steps[-1].rows


def test_a_rebuild_that_was_cut_short_is_undone(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=5)
    index = history.path / "index.lmdb"
    index.rename(history.path / "index.lmdb.before-rebuild")
    index.write_bytes(b"")
    assert_kept(history.path, history.steps[-1])
    assert not (history.path / "index.lmdb.before-rebuild").exists()


def test_an_index_that_was_being_made_when_the_power_went_is_begun_again(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=5, loose_chunks=False)
    (history.path / "index.lmdb").unlink()
    (history.path / "index.lmdb.new").write_bytes(bytes(8192))
    assert_kept(history.path, history.steps[-1])
    assert not (history.path / "index.lmdb.new").exists()


def test_without_an_index_nothing_is_cut_off_before_intact_metadata(tmp_path: Path) -> None:
    history = live(tmp_path, checkpoint_at=None, synced=False)
    damage(history.path, history.boundaries[6])
    (history.path / "index.lmdb").unlink()
    with pytest.raises(DamagedError, match="intact"):
        ChunkStore.open(history.path)
    # The index that this made is empty, so it is still a lost one.
    with pytest.raises(DamagedError, match="intact"):
        ChunkStore.open(history.path)


def test_rows_journalled_between_freeze_and_checkpoint_survive(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = ChunkStore.create(path)
    store.tables.put(Table.META, b"key", b"frozen")
    store.commit(durable=False)
    frozen = store.tables.freeze()
    store.tables.put(Table.META, b"key", b"younger")
    store.tables.put(Table.META, b"new", b"younger")
    number = put(store, b"chunk")
    store.commit(durable=False)
    store.checkpoint(frozen)
    store.tables.release(frozen)
    assert store.tables.get(Table.META, b"key") == b"younger"
    store.close(commit=False)
    with ChunkStore.open(path) as store:
        assert dict(store.tables.scan(Table.META)) == {b"key": b"younger", b"new": b"younger"}
        assert store.read(number) == b"chunk"
        assert put(store, b"other") == number + 1


def test_chunks_without_a_journal_behind_them_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = ChunkStore.create(path)
    put(store, b"kept")
    store.tables.put(Table.META, b"key", b"value")
    store.commit()
    assert put(store, b"lost") == 2
    store.close(commit=False)
    with ChunkStore.open(path) as store:
        assert store.stats().chunks == 1
        assert put(store, b"other") == 2
        assert store.read(2) == b"other"


def test_only_tables_of_the_tree_are_taken_from_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = ChunkStore.create(path)
    store.tables.put(Table.META, b"key", b"value")
    store.commit()
    changes = store.tables.take_changes()
    store.append_journal(changes._replace(rows=(Row(Table.STORE, b"state", b"forged"),)))
    store.close(commit=False)
    with ChunkStore.open(path) as store:
        assert dict(store.tables.scan(Table.META)) == {b"key": b"value"}
        kinds = [found.record.header.type for found in store._packs.scan(Position(1, 0)) if isinstance(found, Found)]
    assert kinds == [RecordType.METADATA]


def test_chunks_that_a_checkpoint_knows_are_kept_and_those_behind_them_are_not(tmp_path: Path) -> None:
    """One run of records, up to the middle of which LMDB speaks of them, and no metadata behind it."""
    path, crashed = tmp_path / "store", tmp_path / "crashed"
    with ChunkStore.create(path) as store:
        store.tables.put(Table.INODES, b"old", b"")
        store.commit(durable=False)
        frozen = store.tables.freeze()
        store.tables.put(Table.INODES, b"young", b"")
        store.commit(durable=False)
        kept = put(store, b"kept"), put(store, b"kept too")
        store.checkpoint(frozen)
        put(store, b"loose"), put(store, b"loose too")
        state = store._checkpoints.state
        assert state.replay_from.position < state.kept_until < store.position
        shutil.copytree(path, crashed)
        store.tables.release(frozen)
        store.close(commit=False)
    with ChunkStore.open(crashed) as store:
        assert store.stats().chunks == len(kept) and store.next_number == kept[-1] + 1
        assert [store.read(number) for number in kept] == [b"kept", b"kept too"]
        assert store.tables.get(Table.INODES, b"young") == b""
