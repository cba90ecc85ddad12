"""ckptfs in other surroundings: as an unprivileged user from beginning to end, and where what it needs is missing.

Each command runs in a mount namespace of its own, in which the test takes away or adds what it likes.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.errors import AmbiguousSnapshotError, FuseError, StoreReadOnlyError
from tests.mount.running import ROOT, RunningMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount namespace with other devices")

NOBODY = 65534
CKPTFS = shlex.join([sys.executable, "-P", "-m", "ckptfs"])
NAMESPACE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Whatever a failed test leaves running in it ends with it."""
AS_NOBODY = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all"


@pytest.fixture
def base(fuse: None) -> Iterator[Path]:
    """Give a directory that every user can reach, with an empty mountpoint `ckpt` of the user nobody."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    for name in ("home", "home/ckpt", "dev"):
        (path / name).mkdir()
        os.chown(path / name, NOBODY, NOBODY)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run(base: Path, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, in which other users can reach Python and ckptfs."""
    done = subprocess.run(
        [*NAMESPACE, "sh", "-ec", f"{reachable(base)}\n{script}"],
        cwd=base / "home",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(base / "home")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def reachable(base: Path) -> str:
    """Return the script that opens the way to what a command needs, where directories above it are closed to others."""
    needed = sorted({Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1], ROOT})
    lines = []
    for number, closed in enumerate(
        sorted({each for path in needed for each in path.parents if not each.stat().st_mode & 1})
    ):
        kept = base / "dev" / f"kept-{number}"
        lines += [f"mkdir -p {kept}; mount --rbind {closed} {kept}; mount -t tmpfs -o mode=755 none {closed}"]
        lines += [
            f"mkdir -p {path}; mount --rbind {kept / path.relative_to(closed)} {path}"
            for path in needed
            if closed in path.parents
        ]
    return "\n".join(lines)


def fuse_device(base: Path, mode: str) -> str:
    """Return the script that gives /dev/fuse a mode."""
    node = f"{base}/dev/fuse"
    return f"mount -t tmpfs none {base}/dev; mknod -m {mode} {node} c 10 229; mount --bind {node} /dev/fuse"


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    """Expect one clear sentence and an exit code."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert done.stderr.startswith("ckptfs: ") and done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in parts), done.stderr


def test_an_unprivileged_user_mounts_saves_lists_rolls_back_and_unmounts(base: Path) -> None:
    session = f"""
        {CKPTFS} mount ckpt --settle 0.1
        echo one > ckpt/model
        cd ckpt
        {CKPTFS} snapshot create first
        echo two > model
        {CKPTFS} snapshot rollback first
        cat model .snapshots/first/model
        {CKPTFS} snapshot list
        {CKPTFS} check
        cd ..
        {CKPTFS} umount ckpt
        stat -c '%U %a' ckpt.store ckpt.store/store.json
    """
    done = run(base, f"{fuse_device(base, '666')}\n{AS_NOBODY} sh -ec {shlex.quote(session)}")
    assert "one\none\n" in done.stdout and "first" in done.stdout
    assert done.stdout.endswith("nobody 700\nnobody 600\n")


def test_without_the_fuse_device_a_mount_is_refused(base: Path) -> None:
    without = "\n".join(
        f"touch {base}/dev/{name}; mount --bind /dev/{name} {base}/dev/{name}" for name in ("null", "urandom")
    )
    done = run(base, f"{without}\nmount --rbind {base}/dev /dev\n{CKPTFS} mount ckpt", check=False)
    refused(done, FuseError.exit_code, "there is no /dev/fuse", "modprobe fuse")


def test_a_fuse_device_that_the_user_may_not_open_is_named(base: Path) -> None:
    done = run(base, f"{fuse_device(base, '600')}\n{AS_NOBODY} {CKPTFS} mount ckpt", check=False)
    refused(done, FuseError.exit_code, "/dev/fuse may not be opened by this user")


def test_without_fusermount_a_user_is_told_which_package_has_it(base: Path) -> None:
    done = run(base, f"{fuse_device(base, '666')}\n{AS_NOBODY} env PATH=/none {CKPTFS} mount ckpt", check=False)
    refused(done, FuseError.exit_code, "fusermount3 was not found", "install the package fuse3")


def test_a_user_who_may_not_allow_others_is_told_what_it_takes(base: Path) -> None:
    conf = f"touch {base}/dev/fuse.conf; mount --bind {base}/dev/fuse.conf /etc/fuse.conf\n{fuse_device(base, '666')}"
    done = run(base, f"{conf}\n{AS_NOBODY} {CKPTFS} mount ckpt --allow-other", check=False)
    refused(done, FuseError.exit_code, "user_allow_other", "/etc/fuse.conf")


def test_a_store_on_a_read_only_disk_is_refused_and_can_be_read(base: Path) -> None:
    run(base, f"{CKPTFS} mount ckpt; echo kept > ckpt/file; {CKPTFS} umount ckpt")
    frozen = "mount --bind ckpt.store ckpt.store; mount -o remount,bind,ro ckpt.store"
    refused(run(base, f"{frozen}; {CKPTFS} mount ckpt", check=False), StoreReadOnlyError.exit_code, "ckpt.store")
    read = f"{CKPTFS} mount ckpt --read-only; cat ckpt/file; {CKPTFS} snapshot list ckpt; {CKPTFS} umount ckpt"
    assert "kept\n" in run(base, f"{frozen}; {read}").stdout


def test_a_prefix_of_several_names_is_refused_with_the_names(mount: RunningMount) -> None:
    for name in ("before-lr", "before-lr-change"):
        mount.snapshot(name)
    refused(mount.run("snapshot", "show", "before", check=False), AmbiguousSnapshotError.exit_code, "before-lr-change")
    assert mount.run("snapshot", "show", "before-lr").returncode == 0
