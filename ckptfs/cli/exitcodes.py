"""The exit codes of the command line, as help and docs/cli.md show them.

Owns the codes that are not errors of ckptfs, and the layout; the rest is read from `ckptfs.errors`.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from ckptfs.errors import CkptfsError, error_classes

DONE = 0
INTERRUPTED = 130
BROKEN_PIPE = 141

WIDTH = 100
"""How wide help texts may be."""


class ExitCode(NamedTuple):
    """One exit code and what it means, in a sentence."""

    code: int
    meaning: str


def exit_codes() -> list[ExitCode]:
    """Return every exit code there is, ascending."""
    return [
        ExitCode(DONE, "Done."),
        *(ExitCode(cls.exit_code, _meaning(cls)) for cls in error_classes()),
        ExitCode(INTERRUPTED, "Interrupted with Ctrl-C (128 + SIGINT)."),
        ExitCode(BROKEN_PIPE, "The reader of the output went away (128 + SIGPIPE)."),
    ]


def epilog(examples: Sequence[str], errors: Sequence[type[CkptfsError]] | None = None) -> str:
    """Return the end of a help text: examples, and the exit codes of some errors (None: the whole table)."""
    shown = exit_codes()
    if errors is not None:
        wanted = {DONE, CkptfsError.exit_code, *(cls.exit_code for cls in errors)}
        shown = [row for row in shown if row.code in wanted]
    lines = ["EXAMPLES", *(f"  {example}" for example in examples), "", "EXIT STATUS"]
    for row in shown:
        lines += textwrap.wrap(
            row.meaning, WIDTH, initial_indent=f"  {row.code:>3}  ", subsequent_indent=" " * 7, break_on_hyphens=False
        )
    if errors is not None:
        lines += ["", "`ckptfs --help` shows every exit code."]
    return "\n".join(lines)


def _meaning(cls: type[CkptfsError]) -> str:
    return " ".join((cls.__doc__ or "").split())
