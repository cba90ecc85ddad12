"""The disk below may fill up at any byte: the versions stay whole, and saving goes on when there is room again."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from tests.faults.full import growth, judge_full

SEEDS = (4, 28)
"""In the one, a collection releases chunks; in the other, versions become differences."""
ROOMS = 80


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_fills_up_anywhere_loses_nothing(seed: int, fuse: None, pool: ProcessPoolExecutor) -> None:
    size = growth(seed)
    rooms = range(0, size, size // ROOMS)
    print(f"seed {seed}, up to {size} bytes")
    halves = pool.map(partial(judge_full, seed), (rooms[0::2], rooms[1::2]))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])
