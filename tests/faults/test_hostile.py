"""A store that somebody has tampered with ends in a clean error, in bounded time and memory."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.faults.hostile import judge_hostile, said_by_child

SEEDS = range(300)


def test_a_store_that_was_tampered_with_ends_in_a_clean_error(
    pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    record_property("stores that were tampered with", len(SEEDS))
    halves = pool.map(judge_hostile, (SEEDS[0::2], SEEDS[1::2]))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "../other").write_bytes(b""),
        lambda path: os.unlink(path / "../file"),
        lambda path: os.rename(path / "packs", path / "../packs"),
        lambda path: os.rename(path / "../file", path / "file"),
        lambda path: (path / "link" / "other").mkdir(),
        lambda path: os.truncate(path / "link" / "file", 0),
    ],
)
def test_what_is_done_outside_of_a_store_is_noticed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """It is by this that none of the stores above was used to write anywhere else."""
    path = tmp_path / "store"
    (path / "packs").mkdir(parents=True)
    (path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    assert "outside of the store" in said_by_child(path, lambda: change(path))
    assert said_by_child(path, lambda: (path / "within").write_bytes(b"")) == ""
