"""kill -9 at random moments of real saves: the newest committed version is there and loads, after one command."""

import pytest

from tests.faults.daemons import KilledSaves
from tests.mount.running import RunningMount

SEED = 20
KILLS = 100


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
