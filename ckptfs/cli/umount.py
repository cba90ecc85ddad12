"""`ckptfs umount`: take a mount down and return when everything is in the store."""

import argparse
import os
import sys

from ckptfs.cli.parser import Subparsers, add_command
from ckptfs.cli.target import find_mountpoint
from ckptfs.errors import BusyError, DaemonError, FuseError, NoMountError
from ckptfs.mount import mountinfo
from ckptfs.mount.unmount import has_finished, has_writer, is_dead, unmount, wait_for_release


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "umount",
        run,
        summary="take a mount down",
        description="Take a mount down and return when everything written to it is safe in its store. "
        "A mount whose process was killed is cleared.",
        examples=("ckptfs umount /ckpt", "ckptfs umount         # the only ckptfs mount"),
        errors=(NoMountError, FuseError, DaemonError, BusyError),
    )
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        help="default: the mount of the current directory, or the only one",
    )


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    mountpoint = find_mountpoint(args.mountpoint)
    mount = mountinfo.mount_at(mountpoint)
    if mount is None:
        raise NoMountError(f"{mountpoint} has just been unmounted by somebody else")
    os.chdir("/")  # this process must not be the one that keeps the mount busy
    if is_dead(mountpoint):
        unmount(mountpoint, lazy=True)
        print(f"cleared the dead mount on {mountpoint}; what was committed is in {mount.source}")
        return
    is_writing = has_writer(mount.source)
    unmount(mountpoint)

    def tell() -> None:
        print(f"ckptfs: waiting until everything is in {mount.source}", file=sys.stderr, flush=True)

    wait_for_release(mount.source, tell)
    if not os.path.lexists(mount.source):
        raise DaemonError(
            f"{mountpoint} is unmounted, but its store is not at {mount.source} any more, so its process could not "
            "finish; what was closed or synced is in the store, and the next mount takes it up"
        )
    if is_writing and not has_finished(mount.source):
        from ckptfs.mount.protocol import LOG_NAME

        raise DaemonError(
            f"{mountpoint} is unmounted, but its process could not finish, see {os.path.join(mount.source, LOG_NAME)}; "
            "what was closed or synced is in the store, and the next mount takes it up"
        )
