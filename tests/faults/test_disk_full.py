"""The disk below may fill up at any byte: the versions stay whole, and saving goes on when there is room again."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.faults.full import growth, judge_full

SEED = 7
ROOMS = 120


def test_a_disk_that_fills_up_anywhere_loses_nothing(fuse: None, pool: ProcessPoolExecutor) -> None:
    size = growth(SEED)
    rooms = range(0, size, size // ROOMS)
    print(f"seed {SEED}, up to {size} bytes")
    halves = pool.map(partial(judge_full, SEED), (rooms[0::2], rooms[1::2]))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])
