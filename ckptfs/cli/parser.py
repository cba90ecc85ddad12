"""What the parsers of all commands share: errors as exceptions, help with examples and exit codes, common arguments."""

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from ckptfs.cli.exitcodes import WIDTH, epilog
from ckptfs.config import GIB, KIB, MIB
from ckptfs.errors import CkptfsError, UsageError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
Run = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of ending the process."""

    def __init__(self, **options: Any) -> None:
        """Take the options of ArgumentParser; examples keep their line breaks, and options are never guessed."""
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **{"add_help": True, **options}
        )

    def parse_known_args(  # type: ignore[override]  # typeshed overloads it by the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Refuse at once what is not known: argparse would let the parser of all commands say so, and point there."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Print a help text; argparse would hide that it could not be printed."""
        (file or sys.stderr).write(message)


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Run,
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
    errors: Sequence[type[CkptfsError]],
) -> Parser:
    """Add the parser of one command, which `run` carries out; its arguments are the caller's to add."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, WIDTH),
        epilog=epilog(examples, [UsageError, *errors]),
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: Parser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")


def add_at(parser: Parser) -> None:
    """Add --at, for commands whose arguments leave no place for a PATH."""
    parser.add_argument(
        "--at", metavar="PATH", help="the mount or store to speak to (default: the one of the current directory)"
    )


def seconds(text: str) -> float:
    """Parse a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def policy(text: str) -> str:
    """Return the text of a policy that is one."""
    from ckptfs.retention import parse_policy

    try:
        parse_policy(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def size(text: str) -> int:
    """Parse a number of bytes, at least 1, with an optional binary unit: 512K, 100M, 1.5G."""
    units = {"K": KIB, "M": MIB, "G": GIB}
    unit = units.get(text[-1:].upper())
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 512K, 100M or 1G")
    return int(value)
