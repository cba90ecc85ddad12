"""The disk below may fill up at any byte: the versions stay whole, and saving goes on when there is room again."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from tests.faults.full import growth, judge_full

SEEDS = (4, 28)
"""In the one, a collection releases chunks; in the other, versions become differences."""
ROOMS = 80


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_fills_up_anywhere_loses_nothing(
    seed: int, fuse: None, pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    size = growth(seed)
    rooms = range(0, size, size // ROOMS)
    record_property(f"full disks, seed {seed}", len(rooms))
    halves = pool.map(partial(judge_full, seed), (rooms[0::2], rooms[1::2]))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])
