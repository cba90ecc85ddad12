"""What several unit tests of mounts share: the kernel's table, and FUSE, as the test says."""

import os

import pytest

from ckptfs.mount import mountinfo, options
from ckptfs.mount.options import MountOptions


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """Make the kernel's table hold only what the test adds: `mounts(mountpoint, store, fstype)`; none removes it."""
    path = tmp_path / "mountinfo"
    path.write_text("1 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(mountinfo, "MOUNTINFO", str(path))

    def add(mountpoint, store, fstype="fuse.ckptfs"):
        with path.open("a") as file:
            file.write(f"2 1 0:9 / {mountpoint} rw - {fstype} {store} rw\n")

    return add


@pytest.fixture
def usable(tmp_path, mounts, monkeypatch):
    """Give options that pass, with FUSE there whatever the machine has."""
    monkeypatch.setattr(options, "FUSE_DEVICE", os.devnull)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "ckpt").mkdir()
    return MountOptions(str(tmp_path / "ckpt"), str(tmp_path / "ckpt.store"))
