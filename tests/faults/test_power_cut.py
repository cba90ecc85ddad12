"""The power may go at any operation: what was promised is there, and nothing is torn."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.faults.conftest import PROCESSES
from tests.faults.crashes import judge_seed, judge_upgrade

SEEDS = (9, 12, 8, 15, 3, 10, 16)
"""The long ones first. Collections release chunks in all, versions become differences in all but 3, and packs are
rewritten in 9, 8, 15 and 16."""
DISTINCT_MIN = 10_000


@pytest.mark.timeout(420)
def test_ten_thousand_power_cuts_lose_nothing(
    fuse: None, pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    distinct: set[bytes] = set()
    seeds: tuple[int, ...] = SEEDS
    while len(distinct) < DISTINCT_MIN:
        judgements = list(pool.map(judge_seed, seeds))
        losses = [loss for judgement in judgements for loss in judgement.losses]
        assert not losses, "\n".join(losses[:10])
        distinct = distinct.union(*(judgement.digests for judgement in judgements))
        # What a workload does changes with the code, and how many states it has: others follow until they are enough.
        seeds = tuple(range(max(seeds) + 1, max(seeds) + 1 + PROCESSES))
    record_property("distinct crash states", len(distinct))


def test_a_power_cut_while_an_older_store_is_raised_loses_nothing(
    fuse: None, record_property: Callable[[str, object], None]
) -> None:
    judgement = judge_upgrade()
    assert not judgement.losses, "\n".join(judgement.losses[:10])
    record_property("distinct crash states", len(judgement.digests))
