"""Many processes at one directory, and a store that is found elsewhere the next time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptfs.errors import DaemonError
from tests.mount.running import RunningMount, tree_of

PROCESSES = 32
ROUNDS = 12
SIZE = 20_000

HAMMER = f"""
import os, sys
directory, me = sys.argv[1:]
os.chdir(directory)
for n in range({ROUNDS}):
    for target in (me + ".pt", "shared.pt"):
        with open(f"{{me}}.tmp", "wb") as file:
            file.write(bytes([int(me), n]) * {SIZE})
        os.rename(f"{{me}}.tmp", target)
    os.mkdir(f"{{me}}.d")
    assert f"{{me}}.d" in os.listdir()
    os.rmdir(f"{{me}}.d")
    with open("shared.pt", "rb") as file:
        data = file.read()
    assert data == data[:2] * {SIZE}, "a torn file"
"""


def test_thirty_two_processes_at_one_directory_meet_no_torn_file(place: Path) -> None:
    hammers = [
        subprocess.Popen([sys.executable, "-S", "-c", HAMMER, str(place), str(number)]) for number in range(PROCESSES)
    ]
    assert [hammer.wait() for hammer in hammers] == [0] * PROCESSES
    assert sorted(os.listdir(place)) == sorted([*(f"{number}.pt" for number in range(PROCESSES)), "shared.pt"])
    for number in range(PROCESSES):
        assert (place / f"{number}.pt").read_bytes() == bytes([number, ROUNDS - 1]) * SIZE


def test_who_finds_a_file_just_before_it_is_replaced_reads_what_it_found(place: Path) -> None:
    """Between finding and opening it; here the two are taken apart, which `open` does by itself when it is unlucky."""
    (place / "last.pt").write_bytes(b"first")
    found = os.open(place / "last.pt", os.O_PATH)
    (place / "new.pt").write_bytes(b"second")
    os.rename(place / "new.pt", place / "last.pt")
    assert Path(f"/proc/self/fd/{found}").read_bytes() == b"first"
    os.close(found)
    assert (place / "last.pt").read_bytes() == b"second"


def test_a_store_that_was_moved_is_mounted_where_it_is(mount: RunningMount, tmp_path: Path) -> None:
    (mount.path / "last.pt").write_bytes(b"content")
    mount.snapshot("before")
    shown = tree_of(mount.path)
    mount.umount()
    moved = tmp_path / "another disk" / "store"
    moved.parent.mkdir()
    mount.store.rename(moved)
    mount.store = moved
    mount.mount()
    assert tree_of(mount.path) == shown
    assert mount.at("before", "last.pt").read_bytes() == b"content"


@pytest.mark.expects_log("No such file|interrupted")
def test_a_store_that_is_moved_while_it_is_mounted_keeps_what_was_confirmed(mount: RunningMount) -> None:
    """Its process finds nothing any more where the store was, but what it has open it has."""
    (mount.path / "last.pt").write_bytes(b"content")
    mount.snapshot("before")
    before, mount.store = mount.store, mount.store.rename(mount.store.with_name("moved"))
    with (mount.path / "synced.pt").open("wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(OSError) as failed, (mount.path / "torn.pt").open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    assert failed.value.errno in (errno.ENOENT, errno.EIO)
    mount.snapshot("after")
    done = mount.ckptfs("umount", mount.path, check=False)
    assert (done.returncode, f"not at {before} any more" in done.stderr) == (DaemonError.exit_code, True), done
    mount.mount()
    expected = {"last.pt": b"content", "synced.pt": b"synced"}
    assert {path.name: path.read_bytes() for path in mount.at("after").iterdir()} == expected
    assert mount.json("stats")["interrupted"] == ["torn.pt"]
    assert mount.at("before", "last.pt").read_bytes() == b"content"
    mount.run("check", "--read-data")
