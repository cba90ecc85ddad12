"""Rows that a tree cannot be without: where one is lost, nothing is taken for empty, and nothing is written over."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckptfs.cli.main import main
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Table
from ckptfs.store.records import Row
from ckptfs.store.tables import Changes
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.rows import id_prefix
from tests.faults.hostile import read_state
from tests.faults.workload import State
from tests.unit.test_check import problems
from tests.unit.tree_support import check_tree, make_directory, new_tree, open_tree, save, unlink


@pytest.fixture
def path(tmp_path: Path, mounts: object) -> Path:
    """Give a store, not mounted, with two snapshots, the newest of three deleted, and its index without a seal."""
    path = tmp_path / "store"
    with closing(new_tree(path)) as tree:
        for number in range(4):
            save(tree, "file", b"version %d" % number)
            make_directory(tree, f"run-{number}")
            if number < 3:
                tree.take_snapshot(f"snapshot-{number}")
        save(tree, "old", b"new")
        tree.snapshots.delete(tree.snapshots.resolve("snapshot-2"))
    (path / "index.lmdb.seal").unlink()
    return path


def lose(path: Path, table: Table, prefix: bytes) -> None:
    """Take rows out of the index, as somebody would who knows how."""
    store = ChunkStore.open(path)
    keys = [key for key, _ in store.tables.scan(table, prefix) if key.startswith(prefix)]
    assert keys
    store._environment.write([(table, [(key, None) for key in keys])])
    store.close(commit=False)


def files(path: Path) -> dict[str, bytes]:
    """Return the packs and what else is not the index."""
    found = [each for each in path.rglob("*") if each.is_file() and not each.name.startswith(("index.lmdb", "lock"))]
    return {str(each): each.read_bytes() for each in found}


def test_a_store_without_its_root_is_damaged_and_comes_back(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, written = read_state(path), files(path)
    lose(path, Table.INODES, id_prefix(ROOT_INO))
    for command in (["check"], ["snapshot", "list"], ["repair"], ["gc"]):
        assert main([*command, str(path)]) == DamagedError.exit_code
        assert "has no root directory, and must have one; `ckptfs repair --rebuild-index`" in capsys.readouterr().err
    with pytest.raises(DamagedError, match="no root"):
        open_tree(path)
    assert files(path) == written
    assert main(["repair", str(path), "--rebuild-index"]) == 0
    assert "3 in inodes" in capsys.readouterr().out
    assert main(["check", str(path), "--read-data"]) == 0
    assert read_state(path) == before


def test_a_root_that_the_packs_have_lost_too_is_made_anew(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_state(path)
    with ChunkStore.open(path) as store:
        keys = [key for key, _ in store.tables.scan(Table.INODES, id_prefix(ROOT_INO), id_prefix(ROOT_INO + 1))]
        changes = [key for key, _ in store.tables.scan(Table.CHANGES) if key[4:] == b"\1" + id_prefix(ROOT_INO)]
        lost = [*(Row(Table.INODES, key, None) for key in keys), *(Row(Table.CHANGES, key, None) for key in changes)]
        store.append_journal(Changes(store.tables.take_changes().generation, tuple(lost)))
        store.close(commit=False)
    assert main(["check", str(path)]) == DamagedError.exit_code
    capsys.readouterr()
    assert main(["repair", str(path), "--rebuild-index"]) == DamagedError.exit_code
    assert "the root directory was lost" in capsys.readouterr().out
    assert main(["check", str(path), "--read-data"]) == 0
    assert contents(read_state(path)) == contents(before)


def contents(state: State) -> list[dict[str, object]]:
    """Return what the live tree and all snapshots show, but for the times of the root."""
    trees = [state.live, *state.snapshots.values()]
    return [{name: entry for name, entry in tree.items() if name not in ("", "/")} for tree in trees]


@pytest.fixture(params=[b"open_epoch", b"next_id"])
def path_without_numbers(path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give the store without one of the rows that say which numbers come next."""
    lose(path, Table.META, request.param)
    yield path


def test_numbers_that_were_given_are_not_given_again(path_without_numbers: Path, tmp_path: Path) -> None:
    path = path_without_numbers
    before = read_state(path)
    with closing(open_tree(path, read_only=True)) as tree:
        assert any("comes next" in each or "open epoch" in each for each in problems(tree))
    with closing(open_tree(path)) as tree:
        assert problems(tree) == []
        save(tree, "new", b"new")
        save(tree, "old", b"newer")
        unlink(tree, "new")
        tree.take_snapshot("afterwards")
        save(tree, "file", b"and on")
        check_tree(tree)
        assert problems(tree) == []
    after = read_state(path)
    assert after.live["/old"].data == b"newer" and after.live["/file"].data == b"and on"
    assert {name: after.snapshots[name] for name in before.snapshots} == before.snapshots
