"""A store that somebody has tampered with ends in a clean error, in bounded time and memory."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from tests.faults.hostile import judge_hostile

SEEDS = range(300)


def test_a_store_that_was_tampered_with_ends_in_a_clean_error(
    pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    record_property("stores that were tampered with", len(SEEDS))
    halves = pool.map(judge_hostile, (SEEDS[0::2], SEEDS[1::2]))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])
