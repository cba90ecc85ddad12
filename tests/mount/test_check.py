"""`ckptfs check`, `repair` and `backup` of a store that is mounted and in use."""

import json
import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from tests.mount.running import RunningMount, tree_of

DAMAGED = 15
IN_USE = 6
LOG = "is not what was written"


def damage(mount: RunningMount) -> None:
    """Flip a byte in the middle of the largest pack."""
    pack = max((mount.store / "packs").iterdir(), key=lambda path: path.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))


def test_a_mount_is_checked_while_files_are_saved(mount: RunningMount) -> None:
    stop = threading.Event()

    def save() -> None:
        rng = random.Random(1)
        count = 0
        while not stop.is_set():
            (mount.path / f"step-{count % 5}.pt").write_bytes(rng.randbytes(1_000_000))
            (mount.path / f"link-{count}").hardlink_to(mount.path / f"step-{count % 5}.pt")
            count += 1

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(5):
            report = mount.json("check", mount.path, "--read-data")
            assert report["problems"] == report["files"] == report["damaged_chunks"] == []
    finally:
        stop.set()
        thread.join()


@pytest.mark.expects_log(LOG)
def test_damage_is_named_and_healed_by_saving_again(mount: RunningMount) -> None:
    data = random.Random(2).randbytes(3_000_000)
    since = mount.versions()
    (mount.path / "a.pt").write_bytes(data)
    version = mount.wait_for_version(since)
    mount.remount()
    damage(mount)
    done = mount.run("check", mount.path, "--read-data", "--json", check=False)
    assert done.returncode == DAMAGED
    (file,) = json.loads(done.stdout)["files"]
    assert (file["path"], file["versions"]) == ("a.pt", [version, "the live tree"])
    assert "00000001.pack at offset" in file["reason"]
    # The kernel reads whole pages: those that the damage touches cannot be read.
    start = file["offset"] - file["offset"] % mmap.PAGESIZE
    stop = file["offset"] + file["size"]
    stop += -stop % mmap.PAGESIZE
    with (mount.path / "a.pt").open("rb", buffering=0) as whole:
        assert os.pread(whole.fileno(), start, 0) == data[:start]
        assert os.pread(whole.fileno(), len(data), stop) == data[stop:]
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(whole.fileno(), 1, file["offset"])
    (mount.path / "again.pt").write_bytes(data)
    assert mount.json("check", mount.path, "--read-data")["damaged_chunks"] == []
    assert mount.at(version, "a.pt").read_bytes() == data


def test_a_mounted_store_is_not_repaired(mount: RunningMount) -> None:
    done = mount.run("repair", mount.path, check=False)
    assert done.returncode == IN_USE
    assert f"`ckptfs umount {mount.path}` first" in done.stderr


def test_a_backup_of_a_store_in_use_can_be_mounted(mount: RunningMount, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    rng = random.Random(3)
    for step in range(3):
        (mount.path / f"step-{step}.pt").write_bytes(rng.randbytes(2_000_000))
        with (mount.path / "log").open("a") as log:
            log.write(f"step {step}\n")
        mount.snapshot(f"s{step}")
        report = mount.json("backup", backup, mount.path)
        assert 2_000_000 <= report["copied_bytes"] < 2_200_000
    expected = tree_of(mount.path)
    (tmp_path / "restored").mkdir()
    restored = RunningMount(tmp_path / "restored", backup)
    try:
        restored.mount("--read-only")
        assert tree_of(restored.path) == expected
        assert tree_of(restored.at("s0")) == tree_of(mount.at("s0"))
        restored.umount()
    finally:
        restored.clean_up()
    assert mount.json("backup", backup, mount.path)["copied_bytes"] < 10_000


def test_a_backup_into_what_it_is_of_is_refused(mount: RunningMount) -> None:
    (mount.path / "file").write_bytes(b"content")
    before = sorted(mount.path.iterdir())
    for destination in (mount.path / "inside", mount.path, mount.store / "inside"):
        refused = mount.run("backup", destination, mount.path, check=False)
        assert refused.returncode == 2, refused
        assert "choose another directory" in refused.stderr
    assert sorted(mount.path.iterdir()) == before
    assert not (mount.store / "inside").exists()
