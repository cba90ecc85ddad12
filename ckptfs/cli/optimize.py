"""`ckptfs optimize`: do now, and to the end, what a mount does when nobody reads or writes."""

import argparse
import json
import sys
import time

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.tables import duration_text, size_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import DaemonError, NoMountError, NoSpaceError, StoreInUseError, StoreReadOnlyError

CLEAR_LINE = "\r\x1b[K"
LINE_SECONDS = 10.0
"""How long a line of progress stands before the next one, where the output is no terminal."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "optimize",
        run,
        summary="store earlier versions as differences now",
        description="Encode what was saved, and store earlier versions as what they differ in from later ones, from "
        "beginning to end. A mount does this by itself when nobody reads or writes. The newest version stays as it "
        "is, and what is done when you press Ctrl-C stays done.",
        examples=("ckptfs optimize", "ckptfs optimize /ckpt.store --json   # a store that is not mounted"),
        errors=(NoMountError, StoreInUseError, StoreReadOnlyError, NoSpaceError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    began = time.monotonic()
    with commands(find(args.path), write=True) as store, _Meter() as meter:
        before = store.stats()["stored_bytes"]
        done = 0
        finished = False
        while not finished:
            part = store.optimize()
            done += part["done_bytes"]
            finished = part["finished"]
            meter.show(done, part["left_bytes"])
        after = store.stats()["stored_bytes"]
    seconds = time.monotonic() - began
    if args.json:
        report = {"done_bytes": done, "before_bytes": before, "after_bytes": after, "seconds": round(seconds, 3)}
        print(json.dumps(report, indent=2))
    else:
        print(f"{size_text(done)} gone through; the store had {size_text(before)} and has {size_text(after)}.")


class _Meter:
    """A line of progress on standard error: written over on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._over = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> "_Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._over:
            print(end=CLEAR_LINE, file=sys.stderr, flush=True)

    def show(self, done: int, left: int) -> None:
        """Show how far the work is; sizes in bytes."""
        now = time.monotonic()
        if not self._over and now - self._shown < LINE_SECONDS:
            return
        self._shown = now
        rate = done / max(now - self._began, 1e-3)
        share = done / (done + left) if done + left else 1.0
        rest = f", {duration_text(left / rate)} left" if rate else ""
        line = f"{share:4.0%}  {size_text(done)} of {size_text(done + left)}, {size_text(int(rate))}/s{rest}"
        print(
            f"{CLEAR_LINE}{line}" if self._over else line, end="" if self._over else "\n", file=sys.stderr, flush=True
        )
