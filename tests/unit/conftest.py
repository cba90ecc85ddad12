"""What several unit tests share: a tree, and for tests of mounts the kernel's table and FUSE, as the test says."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.mount import mountinfo, options
from ckptfs.mount.options import MountOptions
from ckptfs.tree import Tree
from tests.unit import tree_support as support
from tests.unit.tree_support import Clock, check_tree


@pytest.fixture
def clock() -> Clock:
    """Give the clock of `tree`."""
    return Clock()


@pytest.fixture
def tree(tmp_path: Path, clock: Clock) -> Iterator[Tree]:
    """Give an empty tree; whatever the test does with it, its rows agree at the end."""
    tree = support.new_tree(tmp_path / "store", clock)
    yield tree
    check_tree(tree)
    tree.close()


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
