"""`ckptfs stats`: what is kept and what it takes."""

import argparse
import json
import sys

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.tables import bar, count_text, duration_text, printable, size_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import DaemonError, NoMountError, NotAStoreError, StoreInUseError
from ckptfs.mount.protocol import Composition, Share, Stats

_KIND_WIDTH = len("8 differences")


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "stats",
        run,
        summary="show what is kept and what it takes",
        description="Show what all versions would weigh as plain files, as distinct chunks and as they are stored, "
        "and files whose writer was killed.",
        examples=(
            "ckptfs stats",
            "ckptfs stats --chains    # and how the history is stored",
            "ckptfs stats /ckpt --json",
        ),
        errors=(NoMountError, StoreInUseError, NotAStoreError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    parser.add_argument(
        "--chains",
        action="store_true",
        help="show how chunks are encoded and how long chains of differences are; seconds for a large store",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    with commands(find(args.path), write=False) as store:
        stats = store.stats()
        composition = store.composition() if args.chains else None
    if args.json:
        print(json.dumps({**stats, **(composition or {"encodings": None, "depths": None})}, indent=2))
    else:
        print(_text(stats, composition))


def _text(stats: Stats, composition: Composition | None) -> str:
    lines = [("store", stats["store"])]
    if "mountpoint" in stats:
        lines.append(
            ("mount", f"{stats['mountpoint']} (pid {stats['pid']}, up {duration_text(stats['uptime_seconds'])})")
        )
    else:
        lines.append(("mount", "none"))
    versions, distinct, stored = stats["version_bytes"], stats["chunk_bytes"], stats["stored_bytes"]
    differences = (
        f", of which {size_text(stats['delta_bytes'])} are kept as differences" if stats["delta_bytes"] else ""
    )
    lines += [
        ("live", size_text(stats["live_bytes"])),
        ("versions", _weight(versions, versions, f"in {count_text(stats['snapshots'], 'snapshot')}")),
        ("distinct", _weight(distinct, versions, f"in {count_text(stats['chunks'], 'chunk')}{differences}")),
        ("stored", _weight(stored, versions, f"on disk{_part(stored, versions)}")),
        ("waiting", f"{size_text(stats['waiting_bytes'])} stored raw, to be encoded when nobody reads or writes"),
        ("uncompared", f"{size_text(stats['uncompared_bytes'])} of earlier versions, to become differences then"),
    ]
    if "buffered_bytes" in stats:
        lines.append(("buffered", f"{size_text(stats['buffered_bytes'])} not yet on disk"))
    if composition is not None:
        lines += _composition(composition)
    lines.append(("kernel", stats["kernel"]))
    # No snapshot has these: their bytes are in the live tree only, as far as they were written.
    lines += [("interrupted", f"{path} (its writer was killed)") for path in stats["interrupted"]]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines)


def _composition(composition: Composition) -> list[tuple[str, str]]:
    """Return a line for each encoding and each depth that there is."""
    lines = [
        ("encoding", f"{name:<{_KIND_WIDTH}}  {_share_text(share)}")
        for name, share in composition["encodings"].items()
        if share["chunks"]
    ]
    return lines + [
        ("read through", f"{count_text(depth, 'difference'):<{_KIND_WIDTH}}  {_share_text(share)}")
        for depth, share in enumerate(composition["depths"])
        if share["chunks"]
    ]


def _share_text(share: Share) -> str:
    chunks = count_text(share["chunks"], "chunk")
    return f"{size_text(share['chunk_bytes'])} in {chunks} take {size_text(share['stored_bytes'])}"


def _weight(size: int, versions: int, text: str) -> str:
    """Return a size and what it is of; on a terminal behind a bar that shows its part of the versions' size."""
    shown = f"{bar(size / versions if versions else 0)}  " if sys.stdout.isatty() else ""
    return f"{shown}{size_text(size)} {text}"


def _part(size: int, versions: int) -> str:
    return f", {size / versions:.1%} of the versions" if versions else ""
