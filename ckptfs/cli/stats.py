"""`ckptfs stats`: what is kept and what it takes."""

import argparse
import json

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.tables import count_text, duration_text, printable, size_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import DaemonError, NoMountError, NotAStoreError, StoreInUseError
from ckptfs.mount.protocol import Stats


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "stats",
        run,
        summary="show what is kept and what it takes",
        description="Show how much is kept, how much disk it takes, and files whose writer was killed.",
        examples=("ckptfs stats", "ckptfs stats /ckpt --json"),
        errors=(NoMountError, StoreInUseError, NotAStoreError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    with commands(find(args.path), write=False) as store:
        stats = store.stats()
    print(json.dumps(stats, indent=2) if args.json else _text(stats))


def _text(stats: Stats) -> str:
    lines = [("store", stats["store"])]
    if "mountpoint" in stats:
        lines.append(
            ("mount", f"{stats['mountpoint']} (pid {stats['pid']}, up {duration_text(stats['uptime_seconds'])})")
        )
    else:
        lines.append(("mount", "none"))
    versions, stored = stats["version_bytes"], stats["stored_bytes"]
    share = f", {stored / versions:.1%} of the versions" if versions else ""
    lines += [
        ("live", size_text(stats["live_bytes"])),
        ("versions", f"{size_text(versions)} in {count_text(stats['snapshots'], 'snapshot')}"),
        ("waiting", f"{size_text(stats['waiting_bytes'])} stored raw, to be encoded when nobody reads or writes"),
        ("uncompared", f"{size_text(stats['uncompared_bytes'])} of earlier versions, to become differences then"),
        ("stored", f"{size_text(stored)} on disk in {count_text(stats['chunks'], 'chunk')}{share}"),
    ]
    if "buffered_bytes" in stats:
        lines.append(("buffered", f"{size_text(stats['buffered_bytes'])} not yet on disk"))
    lines.append(("kernel", stats["kernel"]))
    # No snapshot has these: their bytes are in the live tree only, as far as they were written.
    lines += [("interrupted", f"{path} (its writer was killed)") for path in stats["interrupted"]]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines)
