"""What a mount is asked to be, and everything about it that can be refused before mounting, each in a sentence.

Owns the rules about mountpoint and store as directories; refuses to know what is in a store. Changes one thing only:
a dead mount that a killed mount process left on the mountpoint is cleared. What is checked here may change before the
mount is made, so the mount itself fails as cleanly.
"""

import os
import shutil
import stat
from typing import NamedTuple

from ckptfs.config import SETTLE_SECONDS
from ckptfs.errors import FuseError, MountpointError
from ckptfs.mount import mountinfo
from ckptfs.mount.unmount import FUSERMOUNT, is_dead, unmount

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"


class MountOptions(NamedTuple):
    """One mount. Both paths are absolute with symbolic links resolved; `settle` is in seconds.

    `keep` is the policy for versions (`retention.parse_policy`), applied after each automatic snapshot or, with
    `prune_when_full`, when the disk below is full; None keeps all.
    """

    mountpoint: str
    store: str
    settle: float = SETTLE_SECONDS
    allow_other: bool = False
    read_only: bool = False
    keep: str | None = None
    optimize: bool = True
    prune_when_full: bool = False


def check(options: MountOptions) -> None:
    """Refuse what cannot become a mount (FuseError, MountpointError); clear a dead mount of the same store."""
    _check_fuse(options)
    _check_mount_there(options)
    _check_mountpoint(options.mountpoint)
    if mountinfo.is_below(options.store, options.mountpoint):
        raise MountpointError(f"the store {options.store} is inside its own mountpoint {options.mountpoint}")
    if mountinfo.is_below(options.mountpoint, options.store):
        raise MountpointError(f"the mountpoint {options.mountpoint} is inside its own store {options.store}")


def _check_fuse(options: MountOptions) -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise FuseError(
            f"there is no {FUSE_DEVICE}: load the kernel module with `modprobe fuse`, "
            f"or start the container with `--device {FUSE_DEVICE} --cap-add SYS_ADMIN`"
        ) from error
    except PermissionError as error:
        # The privileges of fusermount3 do not help: it opens the device as the user who called it.
        raise FuseError(f"{FUSE_DEVICE} may not be opened by this user; its mode is 0666 on most systems") from error
    except OSError as error:
        raise FuseError(f"{FUSE_DEVICE} cannot be opened: {error.strerror}; `modprobe fuse` may help") from error
    if os.geteuid() == 0:
        return
    if not shutil.which(FUSERMOUNT):
        raise FuseError(f"{FUSERMOUNT} was not found, and without it only root can mount; install the package fuse3")
    if options.allow_other and not _users_may_allow_other():
        raise FuseError(f"--allow-other needs a line `user_allow_other` in {FUSE_CONF}, which only root can write")


def _users_may_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def _check_mount_there(options: MountOptions) -> None:
    """Refuse a mountpoint that has a living mount or somebody else's dead one; clear our own dead one."""
    while mount := mountinfo.mount_at(options.mountpoint):
        dead = is_dead(mount.mountpoint)
        if not mount.is_ckptfs:
            if dead:
                raise MountpointError(
                    f"{mount.mountpoint} has a dead mount of type {mount.fstype}; "
                    f"clear it with `{FUSERMOUNT} -uz {mount.mountpoint}`"
                )
            return  # an ordinary filesystem; its root directory can be a mountpoint like any other
        if not dead:
            raise MountpointError(f"{mount.mountpoint} is already a ckptfs, with the store {mount.source}")
        if mount.source != options.store:
            raise MountpointError(
                f"{mount.mountpoint} has a dead ckptfs mount of another store, {mount.source}; "
                f"clear it with `ckptfs umount {mount.mountpoint}`"
            )
        unmount(mount.mountpoint, lazy=True)


def _check_mountpoint(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            raise MountpointError(f"{path} is not a directory")
        with os.scandir(path) as entries:
            if any(entries):
                raise MountpointError(f"{path} is not empty, and a mount would hide what is in it; name an empty one")
    except FileNotFoundError as error:
        raise MountpointError(f"{path} does not exist; make it with `mkdir {path}`") from error
    except OSError as error:
        raise MountpointError(f"{path} cannot be used as a mountpoint: {error.strerror}") from error
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountpointError(f"{path} cannot be used as a mountpoint: this user may not write to it")
