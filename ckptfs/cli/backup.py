"""`ckptfs backup`: a consistent copy of a store, taken while it is used, and brought up to date later."""

import argparse
import json
import os
from pathlib import Path

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.progress import Progress
from ckptfs.cli.tables import printable, size_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import (
    DaemonError,
    DamagedError,
    NoMountError,
    NoSpaceError,
    NotAStoreError,
    StoreInUseError,
    StoreReadOnlyError,
    UsageError,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "backup",
        run,
        summary="copy a store, mounted or not, into a directory",
        description="Copy everything that is committed now into a directory, which is a store then, all versions "
        "included. The store can be used meanwhile. The second time only what is new is copied. "
        "To restore, mount the directory, or a copy of it, with --store.",
        examples=(
            "ckptfs backup /mnt/other-disk/ckpt.backup",
            "ckptfs backup /mnt/other-disk/ckpt.backup /ckpt --json",
            "ckptfs mount /restored --store /mnt/other-disk/ckpt.backup --read-only",
        ),
        errors=(
            NoMountError,
            StoreInUseError,
            NotAStoreError,
            StoreReadOnlyError,
            NoSpaceError,
            DamagedError,
            DaemonError,
        ),
    )
    parser.add_argument("destination", metavar="DEST", help="the directory, made if it is missing")
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    from ckptfs.store import Cut, Position, back_up

    target = find(args.path)
    destination = os.path.realpath(args.destination)
    for place in (target.mountpoint, target.store):
        if place and Path(destination).is_relative_to(os.path.realpath(place)):
            raise UsageError(f"{destination} lies in {place}, which it would be a backup of; choose another directory")
    with commands(target, write=False) as store:

        def cut() -> Cut:
            said = store.backup_cut()
            return Cut(Position(said["pack"], said["offset"]), said["punch_count"])

        with Progress("copied", store.stats()["stored_bytes"]) as progress:
            done = back_up(Path(target.store), Path(destination), cut, progress.advance)
    if args.json:
        report = {
            "destination": destination,
            "copied_bytes": done.copied_bytes,
            "total_bytes": done.total_bytes,
            "losses": done.losses,
        }
        print(json.dumps(report, indent=2))
    else:
        print(
            f"{printable(destination)} has everything up to now: "
            f"{size_text(done.copied_bytes)} copied, {size_text(done.total_bytes)} in all."
        )
    if done.losses:
        lost = "\n".join(map(printable, done.losses))
        raise DamagedError(f"the store has damage, and so has its backup:\n{lost}")
