"""`ckptfs prune`: delete the versions that a policy does not keep."""

import argparse
import json

from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.snapshot import list_text
from ckptfs.cli.tables import count_text
from ckptfs.cli.target import commands, find
from ckptfs.errors import DaemonError, NoMountError, NoSpaceError, StoreInUseError, StoreReadOnlyError, UsageError
from ckptfs.retention import parse_policy

_PERIODS = (("hourly", "hours"), ("daily", "days"), ("weekly", "weeks"))


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "prune",
        run,
        summary="delete the versions that a policy does not keep",
        description="Delete every version that none of the --keep rules keeps. Versions that were given a name or a "
        "label are kept, unless --no-keep-named is given. The disk space comes back when nobody reads or writes, or "
        "with `ckptfs gc`.",
        examples=(
            "ckptfs prune --keep-last 10 --keep-daily 7 --dry-run",
            "ckptfs prune /ckpt --keep-within 3d --keep-weekly 8",
        ),
        errors=(NoMountError, StoreInUseError, StoreReadOnlyError, NoSpaceError, DaemonError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a path in a mount, or a store")
    parser.add_argument("--keep-last", metavar="N", help="keep the N newest versions")
    for name, periods in _PERIODS:
        help_text = f"keep the newest version of each of the last N {periods} that have one"
        parser.add_argument(f"--keep-{name}", metavar="N", help=help_text)
    parser.add_argument(
        "--keep-within",
        metavar="DURATION",
        help="keep what is not older than this before the newest version, like 3d, 12h or 1d12h",
    )
    parser.add_argument(
        "--keep-named",
        action=argparse.BooleanOptionalAction,
        help="keep versions that were given a name or a label (default)",
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and list what would be deleted")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    policy = _policy(args)
    with commands(find(args.path), write=not args.dry_run) as store:
        rows = store.prune(policy, dry_run=args.dry_run)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(list_text(rows))
        print(f"{'This would delete' if args.dry_run else 'Deleted'} {count_text(len(rows), 'version')}.")
    else:
        print("The policy keeps every version.")


def _policy(args: argparse.Namespace) -> str:
    """Return the policy that the options make; UsageError where there is none, or it is none."""
    rules = [
        f"{rule}={value}"
        for rule in ("last", *dict(_PERIODS), "within")
        if (value := getattr(args, f"keep_{rule}")) is not None
    ]
    if args.keep_named is not None:
        rules.append(f"named={'yes' if args.keep_named else 'no'}")
    if not rules or rules == ["named=no"]:
        raise UsageError("say what to keep, with --keep-last N for example; see `ckptfs prune --help`")
    policy = ",".join(rules)
    try:
        parse_policy(policy)
    except UsageError as error:
        raise UsageError(f"{error}; see `ckptfs prune --help`") from error
    return policy
