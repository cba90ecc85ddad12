"""`ckptfs check`, `repair` and `backup` of a store that is mounted and in use."""

import hashlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptfs.errors import NoSpaceError
from ckptfs.tree.inode import ROOT_INO
from tests.faults import recorder
from tests.faults.full import PLENTY, give_room
from tests.mount.running import ROOT, RunningMount, tree_of
from tests.unit.tree_support import check_tree, open_tree, read

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
    with (mount.path / "log").open("ab", buffering=0) as log:
        for step in range(3):
            (mount.path / f"step-{step}.pt").write_bytes(rng.randbytes(2_000_000))
            mount.snapshot(f"s{step}")
            log.write(b"step %d\n" % step)  # a log is taken as it stands, open as it is
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


def shown_by(store: Path, version: str) -> dict[str, str]:
    """Return what `tree_of` says of a version, by a look into a store that nobody has mounted."""
    tree = open_tree(store, read_only=True)
    snapshot = tree.snapshots.named(version)
    assert snapshot is not None
    names = [name.decode() for name, _ in tree.names.entries(ROOT_INO, snapshot.id)]
    shown = {name: hashlib.sha256(read(tree, name, snapshot)).hexdigest() for name in names}
    tree.store.close()
    return shown


def test_a_backup_taken_while_files_are_saved_has_every_version_whole(mount: RunningMount, tmp_path: Path) -> None:
    stop = threading.Event()

    def save() -> None:
        rng = random.Random(4)
        while not stop.is_set():
            (mount.path / "new.tmp").write_bytes(rng.randbytes(700_000))
            (mount.path / "new.tmp").rename(mount.path / "last.pt")
            with (mount.path / "other.pt").open("wb") as file:
                file.write(rng.randbytes(300_000))

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for number in range(3):
            mount.snapshot(f"before-{number}")
            mount.ckptfs("backup", tmp_path / "backup", mount.path)
    finally:
        stop.set()
        thread.join()
    tree = open_tree(tmp_path / "backup", read_only=True)
    versions = [snapshot.name for snapshot in tree.snapshots.all()]
    assert check_tree(tree) is None
    tree.store.close()
    assert set(versions) >= {"before-0", "before-1", "before-2"}
    for version in versions:
        assert shown_by(tmp_path / "backup", version) == tree_of(mount.at(version)), version


def test_a_backup_that_met_a_full_disk_and_a_kill_is_taken_up_again(mount: RunningMount, tmp_path: Path) -> None:
    size = 24 << 20
    (mount.path / "a.pt").write_bytes(random.Random(5).randbytes(size))
    mount.snapshot("kept")
    with recorder.recording(tmp_path, []) as disk:
        killed, full = disk / "killed", disk / "full"
        pack = killed / "packs" / "00000001.pack"
        process = subprocess.Popen([sys.executable, "-m", "ckptfs", "backup", killed, mount.path], cwd=ROOT)
        mount.wait_for(lambda: pack.exists() and pack.stat().st_size > size)  # it has all its room, and is being filled
        process.kill()
        assert process.wait() == -signal.SIGKILL
        give_room(disk, size // 4)
        refused = mount.run("backup", full, mount.path, check=False)
        assert (refused.returncode, "full" in refused.stderr) == (NoSpaceError.exit_code, True)
        give_room(disk, PLENTY)
        for backup in (killed, full):
            assert mount.json("backup", backup, mount.path)["copied_bytes"] > size
            assert shown_by(backup, "kept") == tree_of(mount.at("kept"))
            assert mount.json("backup", backup, mount.path)["copied_bytes"] < 10_000


def test_a_backup_into_what_it_is_of_is_refused(mount: RunningMount, tmp_path: Path) -> None:
    (mount.path / "file").write_bytes(b"content")
    before = sorted(mount.path.iterdir())
    (tmp_path / "link").symlink_to(mount.store)
    inside = (mount.path / "inside", mount.path, mount.path / ".snapshots" / "inside")
    for destination in (*inside, mount.store / "inside", tmp_path / "link" / "inside"):
        refused = mount.run("backup", destination, mount.path, check=False)
        assert refused.returncode == 2, refused
        assert "choose another directory" in refused.stderr
    assert sorted(mount.path.iterdir()) == before
    assert not (mount.store / "inside").exists()
