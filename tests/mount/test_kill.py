"""kill -9 at random moments of real saves and of work on what was saved: what was there is, after one command."""

from itertools import islice

import pytest

from tests.faults.daemons import KilledSaves
from tests.faults.killed_work import KilledWork
from tests.mount.running import RunningMount

SEED = 20
KILLS = 100
WORK_KILLS = 2
TRIES_MAX = 12


@pytest.mark.expects_log("interrupted")
def test_a_hundred_kills_of_daemon_and_writer_lose_no_completed_save(mount: RunningMount) -> None:
    print(f"seed {SEED}")
    saves = KilledSaves(mount, SEED)
    try:
        killed = 0
        while killed < KILLS:
            killed += saves.kill_one()
    finally:
        saves.close()


def test_a_kill_of_the_daemon_at_work_changes_no_version_and_the_work_goes_on(unmounted: RunningMount) -> None:
    print(f"seed {SEED}")
    work = KilledWork(unmounted, SEED)
    for kind in work.kinds:
        tries = (work.kill_one(kind) for _ in range(TRIES_MAX))
        assert sum(islice(filter(None, tries), WORK_KILLS)) == WORK_KILLS, kind
    unmounted.run("check", "--read-data")
