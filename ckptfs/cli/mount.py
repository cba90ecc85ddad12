"""`ckptfs mount`: check, make the store if there is none, and start the mount process or become it.

Without --foreground the command only starts a second one with it, which becomes the mount process, and passes on what
that says. Everything that can fail is checked in both, since both are run by people.
"""

import argparse
import os
import sys
from pathlib import Path

from ckptfs.cli.parser import Parser, Subparsers, add_command, policy, seconds
from ckptfs.cli.target import STORE_SUFFIX, default_store, is_store
from ckptfs.config import SETTLE_SECONDS
from ckptfs.errors import (
    DaemonError,
    FuseError,
    MountpointError,
    NotAStoreError,
    StoreInUseError,
    StoreReadOnlyError,
    StoreVersionError,
    UsageError,
)
from ckptfs.mount import daemonize, mountinfo
from ckptfs.mount.options import MountOptions, check
from ckptfs.mount.protocol import LOG_NAME


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser: Parser = add_command(
        subparsers,
        "mount",
        run,
        summary="mount a store; made if there is none",
        description="Mount a ckptfs on an empty directory and return when it can be used.",
        examples=(
            f"ckptfs mount /ckpt                         # the store is /ckpt{STORE_SUFFIX}",
            "ckptfs mount /ckpt --store /data/ckpt-store",
            "ckptfs mount /ckpt --foreground --settle 5  # stay; Ctrl-C unmounts",
            "ckptfs mount /ckpt --keep last=20,daily=7   # delete other versions, but named ones, by itself",
            "ckptfs mount /ckpt --keep last=5 --on-full prune  # and that only when the disk is full",
        ),
        errors=(
            MountpointError,
            FuseError,
            StoreInUseError,
            NotAStoreError,
            StoreVersionError,
            StoreReadOnlyError,
            DaemonError,
        ),
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument(
        "--store", metavar="DIR", help=f"where the bytes are kept (default: MOUNTPOINT{STORE_SUFFIX}); made if missing"
    )
    parser.add_argument(
        "--foreground", action="store_true", help="be the mount process instead of starting one; log to standard error"
    )
    parser.add_argument(
        "--settle",
        metavar="SECONDS",
        type=seconds,
        default=SETTLE_SECONDS,
        help="how long nothing may be written before a completed save becomes a version (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        metavar="POLICY",
        type=policy,
        help="which versions to keep after each completed save, like last=20,hourly=24,daily=7,weekly=4,within=3d; "
        "named=no gives up named ones too (default: all; see `ckptfs prune`)",
    )
    parser.add_argument(
        "--on-full",
        choices=("refuse", "prune"),
        default="refuse",
        help="what to do when the disk below is full: refuse to save, or first delete versions that --keep does not "
        "keep, oldest automatic ones first, which then stay until that happens (default: %(default)s)",
    )
    parser.add_argument("--allow-other", action="store_true", help="let other users in, as far as file modes allow")
    parser.add_argument("--read-only", action="store_true", help="change nothing in the store")
    parser.add_argument(
        "--no-optimize",
        dest="optimize",
        action="store_false",
        help="do not store earlier versions as differences by itself; `ckptfs optimize` does it when asked",
    )
    parser.add_argument(daemonize.READY_OPTION, type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    mountpoint = mountinfo.resolve_mountpoint(args.mountpoint)
    store = os.path.realpath(args.store) if args.store else default_store(mountpoint)
    if args.on_full == "prune" and args.keep is None:
        raise UsageError("--on-full prune needs --keep POLICY, which says what to keep then; see `ckptfs mount --help`")
    options = MountOptions(
        *(mountpoint, store, args.settle, args.allow_other, args.read_only, args.keep),
        optimize=args.optimize,
        prune_when_full=args.on_full == "prune",
    )
    if not args.foreground:
        _prepare(options)
        daemonize.start(_foreground_command(options), _log_path(options))
        print(f"{options.mountpoint} is mounted, its store is {options.store}")
        return
    with daemonize.ReadyPipe(args.ready_fd) as pipe:
        _prepare(options)
        from ckptfs.cli import foreground  # only now: a starter needs none of what this brings in

        foreground.set_up_logging(_log_path(options), to_stderr=not pipe.has_starter)
        foreground.serve(options, pipe.ready)


def _prepare(options: MountOptions) -> None:
    """Check everything that can be checked, and make the store if its directory is missing or empty."""
    check(options)
    if is_store(options.store):
        return
    if options.read_only:
        raise NotAStoreError(f"there is no store at {options.store}, and --read-only makes none")
    from ckptfs.store import ChunkStore  # only now: it takes longer than the rest, and a store is made once

    try:
        ChunkStore.create(Path(options.store)).close()
    except NotADirectoryError as error:
        raise NotAStoreError(f"{options.store} is not a directory") from error
    print(f"made a new store at {options.store}", flush=True)


def _foreground_command(options: MountOptions) -> list[str]:
    """Return the command line of the mount process; -P keeps its current directory, /, out of its module path."""
    return [
        *(sys.executable, "-P", "-m", "ckptfs", "mount", options.mountpoint),
        *("--foreground", "--store", options.store, "--settle", str(options.settle)),
        *(["--keep", options.keep] if options.keep else []),
        *(["--on-full", "prune"] if options.prune_when_full else []),
        *(["--allow-other"] if options.allow_other else []),
        *(["--read-only"] if options.read_only else []),
        *([] if options.optimize else ["--no-optimize"]),
    ]


def _log_path(options: MountOptions) -> str:
    return os.path.join(options.store, LOG_NAME)
