"""The disk below may fail at any operation, while the process goes on: nothing that was promised is lost."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from tests.faults.fault_disk import Fault, count_operations, judge_fault
from tests.faults.full import judge_failing, lmdb_writes

SEEDS = (4, 28)
"""In the one, a collection releases chunks; in the other, versions become differences."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", Fault)
def test_a_failure_of_any_operation_loses_nothing(
    fault: Fault, seed: int, pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    count = count_operations(seed, fault)
    record_property(f"failing operations, seed {seed}", count)
    losses = list(filter(None, pool.map(partial(judge_fault, seed, fault), range(count), chunksize=8)))
    assert not losses, "\n".join(losses[:10])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_failure_of_a_write_or_sync_of_lmdb_loses_nothing(
    seed: int, fuse: None, pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    """The disk of the other test does not see these; here are two thirds of them, and in the soak all."""
    writes = lmdb_writes(seed)
    halves = pool.map(partial(judge_failing, seed), parts := (writes[0::3], writes[1::3]))
    record_property(f"failing writes and syncs, seed {seed}", sum(map(len, parts)))
    losses = [loss for half in halves for loss in half]
    assert not losses, "\n".join(losses[:10])
