"""mountinfo: the kernel's table, parsed."""

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.mount import mountinfo
from ckptfs.mount.mountinfo import Mount

TABLE = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid shared:12 master:3 propagate_from:2 - proc proc rw
60 22 0:55 / /ckpt rw,nosuid,nodev,relatime shared:40 - fuse.ckptfs /ckpt.store rw,user_id=0,group_id=0
61 22 0:56 / /data/my\040runs\011a\134b rw - fuse.ckptfs /data/my\040store\012x rw
62 60 0:57 / /ckpt/inner rw - tmpfs tmpfs rw
63 22 0:55 /run1 /view rw - fuse.ckptfs /ckpt.store rw
64 22 0:58 / /over rw - fuse.ckptfs /below.store rw
65 64 0:59 / /over rw - ext4 /dev/sdb rw
a line that is none
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Make the module read TABLE instead of what the kernel says."""
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    monkeypatch.setattr(mountinfo, "MOUNTINFO", str(path))


def test_a_line_gives_its_mount_whatever_the_number_of_optional_fields():
    mounts = mountinfo.parse(TABLE)
    assert mounts[1] == Mount("/proc", "/", "0:21", "proc", "proc")
    assert mounts[2] == Mount("/ckpt", "/", "0:55", "fuse.ckptfs", "/ckpt.store")
    assert len(mounts) == 8


def test_octal_escapes_are_undone_in_mountpoint_and_source():
    mount = mountinfo.parse(TABLE)[3]
    assert mount.mountpoint == "/data/my runs\ta\\b"
    assert mount.source == "/data/my store\nx"


@given(st.text(string.printable + "é\udcff", min_size=1))
def test_any_mountpoint_survives_the_escaping_of_the_kernel(name):
    raw = os.fsencode("/" + name)
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)
    (mount,) = mountinfo.parse(b"1 2 0:3 / " + escaped + b" rw - fuse.ckptfs /s rw\n")
    assert os.fsencode(mount.mountpoint) == raw


def test_only_the_topmost_mount_of_a_mountpoint_is_seen(table):
    top = mountinfo.mount_at("/over")
    assert top is not None
    assert top.fstype == "ext4"
    assert [mount.mountpoint for mount in mountinfo.ckptfs_mounts()] == ["/ckpt", "/data/my runs\ta\\b", "/view"]


@pytest.mark.parametrize(
    ("path", "mountpoint"),
    [
        ("/", "/"),
        ("/ckpt", "/ckpt"),
        ("/ckpt/run1/a.pt", "/ckpt"),
        ("/ckpt/inner/file", "/ckpt/inner"),
        ("/ckpt.store", "/"),
        ("/ckptx/y", "/"),
    ],
)
def test_a_path_lies_in_the_mount_with_the_longest_mountpoint_above_it(table, path, mountpoint):
    mount = mountinfo.mount_of(path)
    assert mount is not None
    assert mount.mountpoint == mountpoint


def test_the_path_in_a_bind_mount_begins_at_the_directory_that_it_shows(table):
    whole, view = mountinfo.mount_at("/ckpt"), mountinfo.mount_at("/view")
    assert whole is not None and view is not None
    assert whole.inner("/ckpt") == ""
    assert whole.inner("/ckpt/run1/a") == "run1/a"
    assert view.inner("/view") == "run1"
    assert view.inner("/view/a") == "run1/a"


def test_the_mounts_of_a_store_are_found_by_its_path(table):
    assert [mount.mountpoint for mount in mountinfo.mounts_of_store("/ckpt.store")] == ["/ckpt", "/view"]
    assert mountinfo.mounts_of_store("/elsewhere") == []


def test_a_mountpoint_is_not_looked_into_while_it_is_resolved(tmp_path, monkeypatch):
    real = tmp_path / "real"
    (real / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "to-mnt").symlink_to(real / "mnt")
    path = tmp_path / "mountinfo"
    path.write_text(f"1 2 0:3 / {real}/mnt rw - fuse.ckptfs /s rw\n")
    monkeypatch.setattr(mountinfo, "MOUNTINFO", str(path))
    asked = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda name, **options: (asked.append(os.fspath(name)), lstat(name, **options))[1])
    assert mountinfo.resolve_mountpoint(f"{tmp_path}/link/mnt/") == f"{real}/mnt"
    assert f"{real}/mnt" not in asked
    assert mountinfo.resolve_mountpoint(f"{tmp_path}/to-mnt") == f"{real}/mnt"


def test_the_real_table_can_be_read():
    assert mountinfo.mount_at("/proc").fstype == "proc"
    assert mountinfo.mount_of(os.getcwd()) is not None
