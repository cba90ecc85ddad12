"""The power may go at any operation: what was promised is there, and nothing is torn."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.faults.conftest import PROCESSES
from tests.faults.crashes import crashes, judge_seed, judge_upgrade, record

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


def test_a_power_cut_that_there_is_not_is_said_to_be_none(fuse: None, tmp_path: Path) -> None:
    recording = record(SEEDS[0], tmp_path)
    there = next(crash.cut for crash in crashes(recording) if crash.first >= 0)
    gone = there._replace(operation=len(recording.trace) + 1)

    def soak(*cuts: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.faults.soak", "--seed", str(recording.seed)]
        command += [part for cut in cuts for part in ("--cut", str(cut))]
        root = Path(__file__).parents[2]
        environment = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    seen = soak(there)
    assert seen.returncode == 0 and (tmp_path / "crash").is_dir(), seen.stderr
    for cuts in ((gone,), (there, gone)):
        refused = soak(*cuts)
        assert refused.returncode == 2
        assert refused.stderr.endswith(f"--cut {gone}: there is no such power cut (any more)\n"), refused.stderr
        assert "Traceback" not in refused.stderr
