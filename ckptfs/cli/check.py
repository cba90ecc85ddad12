"""`ckptfs check`: whether a store is what it should be, and which files damage touches."""

import argparse
import json
import time
from collections.abc import Sequence

from ckptfs.cli.parser import Subparsers, add_command, add_json, size
from ckptfs.cli.progress import Progress
from ckptfs.cli.tables import Column, count_text, printable, size_text, table
from ckptfs.cli.target import Target, commands, find
from ckptfs.config import MIB
from ckptfs.errors import DaemonError, DamagedError, NoMountError, NotAStoreError, StoreInUseError, UsageError
from ckptfs.mount.protocol import Commands, FileDamage, Structure

SLICE_SIZE = 8 * MIB
"""So much is verified in one request to a mount process, which serves others in between."""

_COLUMNS = (Column("PATH"), Column("OFFSET", right=True), Column("SIZE", right=True), Column("VERSIONS"), Column("WHY"))


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "check",
        run,
        summary="tell whether everything that is kept is as it was written",
        description="Check that the rows of a store agree with each other and with its packs, which takes seconds; "
        "with --read-data also read every byte that is kept and verify it. Nothing is changed. "
        "A mounted store is checked by its mount process, and can be used meanwhile.",
        examples=(
            "ckptfs check",
            "ckptfs check /ckpt --read-data --limit 100M    # at most 100 MiB a second",
            "ckptfs check --store /ckpt.store --read-data --json",
        ),
        errors=(NoMountError, StoreInUseError, NotAStoreError, DamagedError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    parser.add_argument("--store", metavar="DIR", help="the store, instead of PATH")
    parser.add_argument("--read-data", action="store_true", help="read and verify every byte, not only the structure")
    parser.add_argument("--limit", metavar="RATE", type=size, help="read at most so much a second: 50M, 1G")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command; DamagedError after the report when there is something in it."""
    target = find_store(args)
    with commands(target, write=False) as store:
        structure = store.check_structure()
        damaged = structure["damaged"]
        if args.read_data:
            damaged = verify(store, structure, args.limit)
            journal = verify_journal(store, args.limit)
            structure["problems"] += [each for each in journal if each not in structure["problems"]]
        files = store.check_files(damaged) if damaged else []
    if args.json:
        report = {
            "problems": structure["problems"],
            "chunks": structure["chunks"],
            "raw_bytes": structure["raw_bytes"],
            "read_data": args.read_data,
            "damaged_chunks": [{"number": number, "reason": reason} for number, reason in damaged],
            "files": files,
        }
        print(json.dumps(report, indent=2))
    else:
        print(report_text(structure, damaged, files, read_data=args.read_data))
    if structure["problems"] or damaged:
        raise DamagedError(_summary(target, structure, damaged))


def find_store(args: argparse.Namespace) -> Target:
    """Return the store that PATH or --store means."""
    if args.store is not None and args.path is not None:
        raise UsageError("give PATH or --store, not both")
    return find(args.store if args.store is not None else args.path)


def verify(store: Commands, structure: Structure, limit: int | None) -> list[tuple[int, str]]:
    """Verify every chunk, at most `limit` bytes a second, and return those that are damaged and why."""
    damaged: list[tuple[int, str]] = []
    number, stop = 1, structure["numbers_end"]
    began = time.monotonic()
    with Progress("verified", structure["raw_bytes"]) as progress:
        while number < stop:
            done = store.check_data(number, stop, min(SLICE_SIZE, limit or SLICE_SIZE))
            number = done["next_number"]
            damaged += [(found, reason) for found, reason in done["damaged"]]
            progress.advance(done["raw_bytes"])
            _wait(began, progress.done_bytes, limit)
    return damaged


def verify_journal(store: Commands, limit: int | None) -> list[str]:
    """Look through the journal, at most `limit` bytes a second, and say where it is not what was written."""
    began = time.monotonic()
    size = min(SLICE_SIZE, limit or SLICE_SIZE)
    part = store.check_journal(0, size)
    problems, read_bytes = part["problems"], part["read_bytes"]
    with Progress("looked through the journal in", part["total_bytes"]) as progress:
        while not part["finished"]:
            progress.advance(part["done_bytes"] - progress.done_bytes)
            _wait(began, read_bytes, limit)
            part = store.check_journal(part["check"], size)
            problems += part["problems"]
            read_bytes += part["read_bytes"]
    return problems


def _wait(began: float, read_bytes: int, limit: int | None) -> None:
    """Sleep until as many bytes may have been read since `began`."""
    if limit:
        time.sleep(max(0.0, began + read_bytes / limit - time.monotonic()))


def report_text(
    structure: Structure, damaged: Sequence[tuple[int, str]], files: Sequence[FileDamage], *, read_data: bool
) -> str:
    """Return what a check found, for people."""
    lines = [printable(problem) for problem in structure["problems"]]
    if damaged:
        lines.append(damage_text(damaged, files))
    if not lines:
        kept = f"{count_text(structure['chunks'], 'chunk')} of {size_text(structure['raw_bytes'])}"
        read = "every byte is what was written" if read_data else "--read-data would also verify the bytes"
        lines.append(f"No damage: {kept}; {read}.")
    return "\n".join(lines)


def damage_text(damaged: Sequence[tuple[int, str]], files: Sequence[FileDamage]) -> str:
    """Return damaged chunks as the ranges of files that they are."""
    if not files:
        return "\n".join([*(printable(reason) for _, reason in damaged), "No file uses what is damaged."])
    rows = [
        (
            file["path"],
            f"{file['offset']:,}",
            f"{file['size']:,}",
            ", ".join(file["versions"]),
            file["reason"],
        )
        for file in files
    ]
    return table(_COLUMNS, rows)


def _summary(target: Target, structure: Structure, damaged: Sequence[tuple[int, str]]) -> str:
    found = [count_text(len(structure["problems"]), "problem")] if structure["problems"] else []
    found += [count_text(len(damaged), "damaged chunk")] if damaged else []
    return f"{target.store}: {' and '.join(found)}"
