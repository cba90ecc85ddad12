"""What a save on a full disk gets back before it is refused: dead space, and versions that the policy gives up."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.running import RunningMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk below")

MIB = 1024 * 1024
DISK_SIZE = 48 * MIB
SAVE_SIZE = 4 * MIB
SAVES = 20
FULL = "disk below the store is full|interrupted"


@pytest.fixture
def small(fuse: None, tmp_path: Path) -> Iterator[RunningMount]:
    """Give a ckptfs that is not mounted yet and whose store lies on a small disk, which punches holes."""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", tmp_path / "disk"], check=True)
    mount = RunningMount(tmp_path / "ckpt", tmp_path / "disk" / "store")
    mount.expected_in_log.append(FULL)
    try:
        yield mount
        mount.umount()
        assert not mount.unexpected_in_log()
        mount.ckptfs("check", mount.store, "--read-data")
    finally:
        mount.clean_up()
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def save(mount: RunningMount, count: int) -> bytes:
    """Save a new model `count` times, each of which makes a version, and return the last one."""
    for _ in range(count):
        data = os.urandom(SAVE_SIZE)
        (mount.path / "model.pt").write_bytes(data)
    return data


def test_the_oldest_automatic_versions_give_way_and_named_ones_never(small: RunningMount) -> None:
    small.mount("--keep", "last=2,named=no", "--on-full", "prune", settle=60)
    first = save(small, 1)
    small.snapshot("first")
    save(small, 4)
    small.run("snapshot", "create", "--label", "the good one")
    save(small, 1)
    assert len(small.versions()) == 5  # while the disk has room it keeps all
    last = save(small, SAVES)
    assert (small.path / "model.pt").read_bytes() == last
    assert small.at("first", "model.pt").read_bytes() == first
    rows = small.snapshots()
    automatic = [row["id"] for row in rows if row["trigger"] == "auto"]
    assert automatic == list(range(rows[-1]["id"] - len(automatic) + 1, rows[-1]["id"] + 1))
    assert [row["label"] for row in rows if row["trigger"] == "manual"] == ["", "the good one"]
    assert 2 <= len(automatic) < SAVES
    assert "deleted, the disk is full" in small.log()


def test_by_default_a_full_disk_costs_no_version(small: RunningMount) -> None:
    small.mount("--keep", f"last={SAVES}", settle=60)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        save(small, SAVES)
    rows = small.snapshots()
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 5


def test_what_the_policy_keeps_stays_when_the_disk_is_full(small: RunningMount) -> None:
    small.mount("--keep", f"last={SAVES}", "--on-full", "prune", settle=60)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        save(small, SAVES)
    assert 5 < len(small.versions()) < SAVES


def test_what_was_deleted_makes_room_for_the_next_save_at_once(small: RunningMount) -> None:
    small.mount(settle=60)
    for _ in range(5):
        data = os.urandom(DISK_SIZE * 2 // 3)
        (small.path / "large").write_bytes(data)
        assert (small.path / "large").read_bytes() == data
        (small.path / "large").unlink()
