"""`ckptfs snapshot ...`: list, create, show, roll back to and delete versions."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence

from ckptfs.cli.parser import Subparsers, add_at, add_command, add_json
from ckptfs.cli.tables import Column, age_text, count_text, printable, size_text, table, time_text
from ckptfs.cli.target import Target, commands, find
from ckptfs.errors import (
    AmbiguousSnapshotError,
    DaemonError,
    NoMountError,
    NoSpaceError,
    OpenFilesError,
    SnapshotNameError,
    StoreInUseError,
    StoreReadOnlyError,
    UnknownSnapshotError,
)
from ckptfs.mount.protocol import Rollback, SnapshotDetails, SnapshotRow

REF_HELP = "a snapshot's number, name, unique beginning of its name, `latest`, or `latest~N`"

_TARGET_ERRORS = (NoMountError, StoreInUseError, DaemonError)
_REF_ERRORS = (UnknownSnapshotError, AmbiguousSnapshotError)
_WRITE_ERRORS = (StoreReadOnlyError, NoSpaceError)
_COLUMNS = (
    Column("ID", right=True),
    Column("NAME"),
    Column("WHEN"),
    Column("TRIGGER"),
    Column("FILES", right=True),
    Column("SIZE", right=True),
    Column("STORED", right=True),
)
_SIZE_COLUMNS = (Column("ALONE", right=True),)
_TEXT_COLUMNS = (
    Column("CHANGED", flexible=True),
    Column("LABEL", flexible=True),
)
_NO_SIZES = "What deleting each would free takes a while to find out here; `ckptfs snapshot list --sizes` tells it."
_CHANGE_COLUMNS = (Column("CHANGE"), Column("SIZE", right=True), Column("PATH"))


def add_parser(subparsers: Subparsers) -> None:
    """Add the parsers of the command group."""
    group = subparsers.add_parser(
        "snapshot",
        help="list, show, take, delete versions, and roll back to one",
        description="Work with the versions of a ckptfs. `ckptfs snapshot COMMAND --help` tells more of each.",
    )
    actions = group.add_subparsers(metavar="COMMAND", required=True)
    _add_list(actions)
    _add_create(actions)
    _add_show(actions)
    _add_rollback(actions)
    _add_delete(actions)


def _add_list(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "list",
        run_list,
        summary="list the versions, oldest first",
        description="List the versions, oldest first. SIZE is what was saved, STORED the disk that it really took, and "
        "ALONE what deleting it would free; where finding that out takes more than half a second, only with --sizes.",
        examples=(
            "ckptfs snapshot list",
            "ckptfs snapshot list --sizes        # what deleting each would free also where that takes seconds",
            "ckptfs snapshot list /ckpt/run1     # only the versions that changed this directory",
            "ckptfs snapshot list --json | jq -r '.[-1].name'",
        ),
        errors=_TARGET_ERRORS,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a mountpoint, a directory in one, or a store")
    parser.add_argument(
        "--sizes", action="store_true", help="say what deleting each would free however long that takes to find out"
    )
    add_json(parser)


def _add_create(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "create",
        run_create,
        summary="take a version now",
        description="Take a version of everything that is committed now.",
        examples=("ckptfs snapshot create before-lr-change --label 'lr 3e-4, loss 2.17'",),
        errors=(*_TARGET_ERRORS, SnapshotNameError, *_WRITE_ERRORS),
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="default: made from the time")
    parser.add_argument("--label", metavar="TEXT", default="", help="a note that `list` shows")
    add_at(parser)
    add_json(parser)


def _add_show(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "show",
        run_show,
        summary="show what a version changed",
        description="Show one version and every file that it added, modified or removed.",
        examples=("ckptfs snapshot show latest", "ckptfs snapshot show latest~1 --at /ckpt"),
        errors=(*_TARGET_ERRORS, *_REF_ERRORS),
    )
    parser.add_argument("ref", metavar="REF", help=REF_HELP)
    add_at(parser)
    add_json(parser)


def _add_rollback(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "rollback",
        run_rollback,
        summary="make the live tree what it was in a version",
        description="Make the live tree, or one directory of it, what it was in a version. "
        "The state before is kept as a version itself, so a rollback can be undone; newer versions stay.",
        examples=(
            "ckptfs snapshot rollback latest~1",
            "ckptfs snapshot rollback before-lr-change /ckpt/run1   # its neighbours stay as they are",
        ),
        errors=(*_TARGET_ERRORS, *_REF_ERRORS, OpenFilesError, *_WRITE_ERRORS),
    )
    parser.add_argument("ref", metavar="REF", help=REF_HELP)
    parser.add_argument("path", metavar="PATH", nargs="?", help="a mountpoint, a directory in one, or a store")
    add_json(parser)


def _add_delete(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "delete",
        run_delete,
        summary="delete versions",
        description="Delete versions; the live tree and the other versions stay as they are.",
        examples=("ckptfs snapshot delete 3 4 before-lr-change",),
        errors=(*_TARGET_ERRORS, *_REF_ERRORS, *_WRITE_ERRORS),
    )
    parser.add_argument("refs", metavar="REF", nargs="+", help=REF_HELP)
    add_at(parser)
    add_json(parser)


def run_list(args: argparse.Namespace) -> None:
    """Carry out `snapshot list`."""
    target = find(args.path)
    with commands(target, write=False) as store:
        rows = store.snapshot_list(target.path)
        sizes = store.snapshot_sizes() if args.sizes or store.sizes_are_quick() else None
    _add_sizes(rows, sizes)
    if args.json:
        _print_json(rows)
    elif rows:
        print(list_text(rows))
        if sizes is None:
            print(_NO_SIZES, file=sys.stderr)
    elif target.path:
        print(f"No version has changed {printable(target.path)} yet.")
    else:
        print("There are no versions yet; every completed save becomes one.")


def run_create(args: argparse.Namespace) -> None:
    """Carry out `snapshot create`."""
    with commands(find(args.at), write=True) as store:
        row = store.snapshot_create(args.name, args.label)
    if args.json:
        _print_json(row)
    else:
        print(f"Took {_named(row)} with {count_text(row['changed_files'], 'changed file')}.")


def run_show(args: argparse.Namespace) -> None:
    """Carry out `snapshot show`."""
    with commands(find(args.at), write=False) as store:
        details = store.snapshot_show(args.ref)
        _add_sizes([details], store.snapshot_sizes())
    if args.json:
        _print_json(details)
    else:
        print(show_text(details))


def _add_sizes(rows: Sequence[SnapshotRow], sizes: Iterable[tuple[int, int]] | None) -> None:
    """Put into rows what deleting each would free, None where that is not known."""
    size_of = None if sizes is None else dict(sizes)
    for row in rows:
        row["exclusive_bytes"] = None if size_of is None else size_of.get(row["id"], 0)  # 0: taken since


def run_rollback(args: argparse.Namespace) -> None:
    """Carry out `snapshot rollback`."""
    target = find(args.path)
    with commands(target, write=True) as store:
        done = store.snapshot_rollback(args.ref, target.path)
    if args.json:
        _print_json(done)
    else:
        print(rollback_text(done, target, args.path))


def run_delete(args: argparse.Namespace) -> None:
    """Carry out `snapshot delete`."""
    with commands(find(args.at), write=True) as store:
        rows = store.snapshot_delete(args.refs)
    if args.json:
        _print_json(rows)
    else:
        print("\n".join(f"Deleted {_named(row)}." for row in rows))


def list_text(rows: Sequence[SnapshotRow]) -> str:
    """Return the table of `snapshot list`; what deleting each would free is in it where all rows have it."""
    alone = [row.get("exclusive_bytes") for row in rows]
    sized = None not in alone
    return table(
        (*_COLUMNS, *_SIZE_COLUMNS, *_TEXT_COLUMNS) if sized else (*_COLUMNS, *_TEXT_COLUMNS),
        [
            (
                str(row["id"]),
                row["name"],
                f"{time_text(row['created'])} ({age_text(row['created'])})",
                row["trigger"],
                f"{row['changed_files']:,}",
                size_text(row["written_bytes"]),
                size_text(row["stored_bytes"]),
                *([size_text(size)] if size is not None else []),
                _changed_text(row),
                row["label"],
            )
            for row, size in zip(rows, alone, strict=True)
        ],
    )


def show_text(details: SnapshotDetails) -> str:
    """Return the text of `snapshot show`."""
    head = [
        ("snapshot", f"{details['id']} {details['name']}"),
        ("when", f"{time_text(details['created'])} ({age_text(details['created'])})"),
        ("trigger", details["trigger"]),
        ("label", details["label"] or "-"),
        ("size", f"{size_text(details['written_bytes'])} in {count_text(details['changed_files'], 'file')}"),
        ("stored", f"{size_text(details['stored_bytes'])} of disk"),
        ("alone", f"{size_text(details['exclusive_bytes'] or 0)} that deleting it would free"),
    ]
    text = "\n".join(f"{name:<8}  {printable(value)}" for name, value in head)
    if not details["changes"]:
        return text + "\n\nNo file changed."
    changes = [
        (change["change"], "" if change["change"] == "removed" else size_text(change["size"]), change["path"])
        for change in details["changes"]
    ]
    return text + "\n\n" + table(_CHANGE_COLUMNS, changes)


def rollback_text(done: Rollback, target: Target, path: str | None) -> str:
    """Return what a rollback did and how to undo it; `path` is PATH as it was given."""
    where = printable(target.path) or printable(target.mountpoint or target.store)
    undo = shlex.join(["ckptfs", "snapshot", "rollback", done["saved"]["name"], *([path] if path is not None else [])])
    lines = [
        f"{where} is what it was in {_named(done['target'])}: {count_text(done['changed_files'], 'file')} changed.",
        f"The state before is kept as {_named(done['saved'])}; to undo: {printable(undo)}",
    ]
    if done["removed_partial"]:
        lines.append("Gone, because their writers were killed and no version has them:")
        lines += [f"  {printable(partial)}" for partial in done["removed_partial"]]
    return "\n".join(lines)


def _changed_text(row: SnapshotRow) -> str:
    """Return the paths that a row names, and how many more there are."""
    more = row["changed_files"] - len(row["paths"])
    return ", ".join(row["paths"]) + (f" +{more:,}" if more > 0 else "")


def _named(row: SnapshotRow) -> str:
    return f"snapshot {row['id']} ({printable(row['name'])})"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
