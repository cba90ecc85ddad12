"""The `ckptfs` command: its parser, and how everything that ends it becomes an exit code.

An error of `ckptfs.errors` is one sentence and its code; only a bug shows a traceback. Only the command that is called
is brought in, and by it what it needs, so that a start is quick.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ckptfs import __version__
from ckptfs.cli.exitcodes import BROKEN_PIPE, DONE, INTERRUPTED, epilog
from ckptfs.cli.parser import Parser
from ckptfs.errors import CkptfsError

COMMANDS = ("mount", "umount", "snapshot", "prune", "gc", "optimize", "stats", "check", "repair", "backup")
"""Each is a module of this package; this is their order in the help."""

EXAMPLES = (
    "ckptfs mount /ckpt                    # the store is /ckpt.store",
    "python train.py                       # saves into /ckpt; every completed save is a version",
    "ckptfs snapshot list",
    "ckptfs snapshot rollback latest~1",
    "ckptfs umount /ckpt",
)


def make_parser(commands: Sequence[str] = COMMANDS) -> Parser:
    """Return the parser of the whole command line, or of a command line with one of these commands."""
    parser = Parser(
        prog="ckptfs",
        description="A filesystem for training checkpoints that keeps every completed save as a version.",
        epilog=epilog(EXAMPLES),
    )
    parser.add_argument("--version", action="version", version=f"ckptfs {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in commands:
        import_module(f"ckptfs.cli.{command}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code; never raises but for a bug."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except CkptfsError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(f"{place}{error.strerror or error}", CkptfsError.exit_code)


def _run(argv: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    names_command = bool(arguments) and arguments[0] in COMMANDS
    try:
        args = make_parser(arguments[:1] if names_command else COMMANDS).parse_args(arguments)
    except SystemExit as end:  # --help and --version
        return int(end.code or DONE)
    args.run(args)
    return DONE


def _fail(message: str, code: int) -> int:
    from ckptfs.cli.tables import printable

    lines = "\n".join(printable(line) for line in message.splitlines())
    print(f"ckptfs: {lines}", file=sys.stderr)
    return code
