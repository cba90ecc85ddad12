"""The disk below may fail at any operation, while the process goes on: nothing that was promised is lost."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from tests.faults.fault_disk import Fault, count_operations, judge_fault

SEED = 5


@pytest.mark.parametrize("fault", Fault)
def test_a_failure_of_any_operation_loses_nothing(fault: Fault, pool: ProcessPoolExecutor) -> None:
    count = count_operations(SEED)
    print(f"seed {SEED}, {count} operations")
    losses = list(filter(None, pool.map(partial(judge_fault, SEED, fault), range(count), chunksize=8)))
    assert not losses, "\n".join(losses[:10])
