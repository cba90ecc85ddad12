"""The disk below may fail at any operation of a backup or a repair: nothing is lost, and the next try succeeds."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product

from tests.faults.fault_disk import Fault
from tests.faults.maintenance import KINDS, judge_maintenance


def test_a_failure_of_any_operation_of_backup_and_repair_loses_nothing(
    pool: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    counts, found = zip(*pool.map(judge_maintenance, *zip(*product(KINDS, Fault), strict=True)), strict=True)
    record_property("failing operations", sum(counts))
    losses = [loss for each in found for loss in each]
    assert not losses, "\n".join(losses[:10])
