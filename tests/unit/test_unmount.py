"""unmount and `ckptfs umount`: a mount goes, or the message says who holds it."""

import errno
import os
import subprocess
import sys

import pytest

from ckptfs.cli import umount as umount_command
from ckptfs.cli.main import main
from ckptfs.errors import BusyError, CkptfsError, FuseError, NoMountError
from ckptfs.mount import unmount


@pytest.fixture
def fusermount(tmp_path, monkeypatch):
    """Put a fusermount3 into the path that says what the test wants, and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    calls.touch()

    def install(message="", code=0):
        program = folder / "fusermount3"
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho "{message}" >&2\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return calls

    return install


def test_umount_takes_the_mount_down_and_waits_for_its_process(tmp_path, mounts, fusermount, monkeypatch, capsys):
    calls = fusermount()
    for name in ("ckpt", "s"):
        (tmp_path / name).mkdir()
    mounts(tmp_path / "ckpt", tmp_path / "s")
    waited = []
    monkeypatch.setattr(umount_command, "wait_for_release", lambda store, tell: (waited.append(store), tell()))
    monkeypatch.chdir(tmp_path / "ckpt")
    assert main(["umount"]) == 0
    assert calls.read_text() == f"-u -- {tmp_path}/ckpt\n"
    assert waited == [f"{tmp_path}/s"]
    assert capsys.readouterr().err == f"ckptfs: waiting until everything is in {tmp_path}/s\n"
    assert os.getcwd() == "/"


def test_umount_clears_a_dead_mount(tmp_path, mounts, fusermount, monkeypatch, capsys):
    calls = fusermount()
    mounts(tmp_path / "ckpt", "/s")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(umount_command, "is_dead", lambda path: True)
    assert main(["umount", str(tmp_path / "ckpt")]) == 0
    assert calls.read_text() == f"-uz -- {tmp_path}/ckpt\n"
    assert "cleared the dead mount" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "dead"), [(errno.ENOTCONN, True), (errno.ECONNABORTED, True), (errno.EACCES, False), (0, False)]
)
def test_a_mount_is_dead_when_nobody_is_behind_it_any_more(tmp_path, monkeypatch, error, dead):
    def statvfs(path):
        if error:
            raise OSError(error, os.strerror(error), path)

    # What stat says does not count: the kernel answers it from its cache, long after the process is gone.
    monkeypatch.setattr(os, "statvfs", statvfs)
    assert unmount.is_dead(str(tmp_path)) is dead


def test_umount_wants_a_mountpoint(tmp_path, mounts, capsys):
    mounts(tmp_path / "ckpt", "/s")
    assert main(["umount", str(tmp_path / "ckpt" / "run1")]) == NoMountError.exit_code
    assert main(["umount", str(tmp_path)]) == NoMountError.exit_code
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("ckptfs:"))
    assert first.endswith(f"the ckptfs that it lies in is {tmp_path}/ckpt")
    assert "is not a ckptfs mount; the mounts are:" in second


@pytest.mark.parametrize("how", ["its current directory", "open file", "mapped file"])
def test_a_busy_mount_names_the_processes_that_use_it(tmp_path, mounts, fusermount, how):
    fusermount("fusermount3: failed to unmount: Device or resource busy", 1)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "file").write_bytes(b"x")
    (tmp_path / "ckpt-neighbour").mkdir()
    body = {
        "its current directory": "os.chdir('ckpt')",
        "open file": "kept = open('ckpt/file')",
        "mapped file": "f = open('ckpt/file'); kept = mmap.mmap(f.fileno(), 1, prot=mmap.PROT_READ); f.close()\n"
        "os.closerange(3, 64)",
    }[how]
    script = f"import mmap, os, sys\n{body}\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(BusyError, match=rf"in use by python\S* \(pid {process.pid}, {how}.*\); end them"):
            unmount.unmount(str(tmp_path / "ckpt"))
        assert list(unmount.users(str(tmp_path / "ckpt-neighbour"))) == []
        process.stdin.close()


def test_a_mount_inside_is_named_as_what_keeps_it_busy(tmp_path, mounts):
    mounts("/ckpt", "/s")
    mounts("/ckpt/inner", "tmpfs", "tmpfs")
    assert unmount.busy_message("/ckpt") == "/ckpt is in use: unmount /ckpt/inner first"


def test_only_the_first_users_are_named(monkeypatch, mounts):
    found = [unmount.User(pid, "train", "open file") for pid in range(9)]
    monkeypatch.setattr(unmount, "users", lambda mountpoint: iter(found))
    assert unmount.busy_message("/ckpt").count("train") == unmount.USERS_NAMED_MAX
    assert " and 4 more; " in unmount.busy_message("/ckpt")
    found.clear()
    assert "may not see" in unmount.busy_message("/ckpt")


def test_an_unmount_that_fails_for_another_reason_says_which(fusermount, mounts):
    fusermount("fusermount3: not permitted", 1)
    with pytest.raises(CkptfsError, match="could not be unmounted: fusermount3: not permitted"):
        unmount.unmount("/ckpt")


def test_umount_8_is_taken_where_there_is_no_fusermount3(tmp_path, monkeypatch):
    program = tmp_path / "umount"
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/calls\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    unmount.unmount("/ckpt", lazy=True)
    assert (tmp_path / "calls").read_text() == "-l -- /ckpt\n"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FuseError, match="package fuse3"):
        unmount.unmount("/ckpt")


def test_waiting_for_a_release_ends_when_the_store_is_closed_or_mounted_again(monkeypatch, mounts):
    states = [True, True, False]
    told = []
    monkeypatch.setattr(unmount, "has_writer", lambda store: states.pop(0))
    monkeypatch.setattr(unmount, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(unmount, "SLOW_SECONDS", 0.0)
    unmount.wait_for_release("/s", lambda: told.append(1))
    assert (states, told) == ([], [1])
    mounts("/ckpt", "/s")
    monkeypatch.setattr(unmount, "has_writer", lambda store: True)
    unmount.wait_for_release("/s", lambda: told.append(2))
    assert told == [1]
