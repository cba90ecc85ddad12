"""The power may go at any operation: what was promised is there, and nothing is torn."""

from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.faults.crashes import judge_seed

SEEDS = (3, 4, 9, 6, 1, 10, 14, 5, 7, 2)
"""The long ones first. Collections release chunks in 1, 3, 4 and 14; versions become differences in 3, 4, 6, 9, 10."""
DISTINCT_MIN = 10_000


@pytest.mark.timeout(240)
def test_ten_thousand_power_cuts_lose_nothing(fuse: None, pool: ProcessPoolExecutor) -> None:
    print(f"seeds {SEEDS}")
    judgements = list(pool.map(judge_seed, SEEDS))
    losses = [loss for judgement in judgements for loss in judgement.losses]
    assert not losses, "\n".join(losses[:10])
    distinct = set().union(*(judgement.digests for judgement in judgements))
    print(f"{len(distinct)} distinct crash states")
    assert len(distinct) >= DISTINCT_MIN
