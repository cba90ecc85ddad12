"""options: what is refused before a mount, and the dead mount that is cleared."""

import errno
import os
from pathlib import Path

import pytest

from ckptfs.cli.main import main
from ckptfs.errors import FuseError, MountpointError
from ckptfs.mount import mountinfo, options
from ckptfs.mount.options import MountOptions


def test_an_empty_directory_can_be_mounted(usable):
    options.check(usable)


def test_missing_fuse_names_what_to_install(usable, monkeypatch, tmp_path):
    monkeypatch.setattr(options, "FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(FuseError, match="modprobe fuse"):
        options.check(usable)
    monkeypatch.setattr(options, "FUSE_DEVICE", os.devnull)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FuseError, match="package fuse3"):
        options.check(usable)


@pytest.mark.parametrize(("error", "said"), [(errno.EACCES, "mode is 0666"), (errno.ENODEV, "No such device")])
def test_a_device_that_cannot_be_opened_says_why(usable, monkeypatch, error, said):
    def refuse(path, flags):
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(options.os, "open", refuse)
    with pytest.raises(FuseError, match=said):
        options.check(usable)


def test_allow_other_needs_the_permission_of_root(usable, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(options.shutil, "which", lambda name: name)
    monkeypatch.setattr(options, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    wanted = MountOptions(usable.mountpoint, usable.store, allow_other=True)
    for text in ("", "#user_allow_other\n"):
        (tmp_path / "fuse.conf").write_text(text)
        with pytest.raises(FuseError, match="user_allow_other"):
            options.check(wanted)
    (tmp_path / "fuse.conf").write_text("# mine\nuser_allow_other\n")
    options.check(wanted)


def test_a_mountpoint_must_be_an_empty_directory(usable, tmp_path):
    with pytest.raises(MountpointError, match="does not exist; make it"):
        options.check(MountOptions(str(tmp_path / "none"), usable.store))
    (tmp_path / "file").touch()
    with pytest.raises(MountpointError, match="is not a directory"):
        options.check(MountOptions(str(tmp_path / "file"), usable.store))
    (tmp_path / "ckpt" / "file").touch()
    with pytest.raises(MountpointError, match="is not empty"):
        options.check(usable)


def test_store_and_mountpoint_must_not_lie_in_each_other(usable, tmp_path):
    for store in (usable.mountpoint, usable.mountpoint + "/store"):
        with pytest.raises(MountpointError, match="inside its own mountpoint"):
            options.check(MountOptions(usable.mountpoint, store))
    with pytest.raises(MountpointError, match="inside its own store"):
        options.check(MountOptions(usable.mountpoint, str(tmp_path)))


def test_links_do_not_hide_that_the_store_is_inside_the_mountpoint(usable, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "ckpt")
    assert main(["mount", str(tmp_path / "ckpt"), "--store", f"{tmp_path}/link/store"]) == MountpointError.exit_code
    assert "inside its own mountpoint" in capsys.readouterr().err


def test_a_living_mount_is_named_with_its_store(usable, mounts):
    mounts(usable.mountpoint, "/its/store")
    with pytest.raises(MountpointError, match="already a ckptfs, with the store /its/store"):
        options.check(usable)


def test_a_dead_mount_of_the_same_store_is_cleared_and_another_is_left(usable, mounts, monkeypatch):
    cleared = []

    def clear(mountpoint, *, lazy):
        cleared.append((mountpoint, lazy))
        Path(mountinfo.MOUNTINFO).write_text("")

    monkeypatch.setattr(options, "is_dead", lambda path: True)
    monkeypatch.setattr(options, "unmount", clear)
    mounts(usable.mountpoint, usable.store)
    options.check(usable)
    assert cleared == [(usable.mountpoint, True)]
    mounts(usable.mountpoint, "/another.store")
    with pytest.raises(MountpointError, match=r"dead ckptfs mount of another store, /another\.store"):
        options.check(usable)
    Path(mountinfo.MOUNTINFO).write_text("")
    mounts(usable.mountpoint, "peer", "fuse.sshfs")
    with pytest.raises(MountpointError, match=r"dead mount of type fuse\.sshfs"):
        options.check(usable)
    assert len(cleared) == 1
