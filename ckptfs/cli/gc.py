"""`ckptfs gc`: give the disk space back that deleted versions and files took."""

import argparse
import json
from typing import Final

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.progress import Progress
from ckptfs.cli.tables import count_text, size_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import DaemonError, NoMountError, NoSpaceError, StoreInUseError, StoreReadOnlyError

_FIELDS: Final = ("chunks", "raw_bytes", "freed_bytes")


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "gc",
        run,
        summary="give the disk space of deleted versions and files back now",
        description="Free the disk space of what no version and no file needs any more. A mount does this by itself "
        "when nobody reads or writes; saving and loading go on meanwhile.",
        examples=("ckptfs gc", "ckptfs gc /ckpt --dry-run   # only say how much"),
        errors=(NoMountError, StoreInUseError, StoreReadOnlyError, NoSpaceError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be freed")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    with commands(find(args.path), write=not args.dry_run) as store:
        part = store.gc(dry_run=args.dry_run)
        report = {name: part[name] for name in _FIELDS}
        with Progress("freed", part["freed_bytes"] + part["left_bytes"]) as progress:
            while not part["finished"]:
                progress.advance(part["freed_bytes"])
                part = store.gc(dry_run=False)
                for name in _FIELDS:
                    report[name] += part[name]
    print(json.dumps(report, indent=2) if args.json else report_text(**report, dry_run=args.dry_run))


def report_text(chunks: int, raw_bytes: int, freed_bytes: int, *, dry_run: bool) -> str:
    """Return what was freed, exactly."""
    if not (freed_bytes or chunks):
        return "There is nothing to free."
    return (
        f"{'This would free' if dry_run else 'Freed'} {freed_bytes:,} bytes ({size_text(freed_bytes)}) of disk: "
        f"{count_text(chunks, 'chunk')} with {size_text(raw_bytes)} that nothing needs."
    )
