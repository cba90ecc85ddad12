"""How figures, times, names and tables look to a person.

Owns alignment, widths and units; refuses to know where the figures come from. What is printed never holds a control
character, whatever a file is called: a name must not be able to move the cursor of the terminal that shows it.
"""

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from ckptfs.config import KIB

GAP = "  "
ELLIPSIS = "…"
WIDTH_MIN = 8
BAR_WIDTH = 24
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_FILLED, _FILLING = "█", ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_AGES = ((1, "s"), (60, "min"), (3600, "h"), (86400, "d"))
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Column(NamedTuple):
    """A column of a table; a `flexible` one may be cut to make the table fit the terminal."""

    title: str
    right: bool = False
    flexible: bool = False


def size_text(size: int) -> str:
    """Return a size in bytes with three digits and a binary unit: `1.25 GiB`."""
    value, power = float(size), 0
    while abs(value) >= KIB and power < len(_UNITS) - 1:
        value, power = value / KIB, power + 1
    digits = 0 if power == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {_UNITS[power]}"


def duration_text(seconds: float) -> str:
    """Return a duration in its greatest whole unit: `3 min`."""
    for (unit_seconds, unit), (next_seconds, _) in pairwise(_AGES):
        if seconds < next_seconds:
            return f"{max(0, int(seconds)) // unit_seconds} {unit}"
    unit_seconds, unit = _AGES[-1]
    return f"{int(seconds) // unit_seconds} {unit}"


def time_text(created: str) -> str:
    """Return an RFC 3339 time as the local one: `2025-11-23 14:04:10`."""
    return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age_text(created: str) -> str:
    """Return how long ago an RFC 3339 time was."""
    return duration_text((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()) + " ago"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun: `1 file`, `1,200 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def bar(share: float) -> str:
    """Return a bar of BAR_WIDTH cells of which a share, up to all, is filled, to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8)
    return (_FILLED * (eighths // 8) + _FILLING[eighths % 8]).ljust(BAR_WIDTH)


def printable(text: str) -> str:
    """Return a text with what would disturb a terminal, and bytes that are not UTF-8, as escapes."""
    return _UNPRINTABLE.sub(lambda match: _escape(match[0]), text)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as aligned lines under the columns' titles; on a terminal it fits, and titles are bold.

    Columns that are empty in every row are left out.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    shown = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    columns = [columns[index] for index in shown]
    cells = [[row[index] for index in shown] for row in cells]
    widths = [
        max(map(_width, (column.title, *texts)))
        for column, texts in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    terminal = sys.stdout.isatty()
    if terminal:
        _narrow(widths, columns, shutil.get_terminal_size().columns)
    lines = [_row([column.title for column in columns], columns, widths)]
    if terminal and "NO_COLOR" not in os.environ:
        lines[0] = BOLD + lines[0] + PLAIN
    lines += [_row(row, columns, widths) for row in cells]
    return "\n".join(lines)


def _row(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = []
    for text, column, width in zip(texts, columns, widths, strict=True):
        fitting = _cut(text, width)
        padding = " " * (width - _width(fitting))
        parts.append(padding + fitting if column.right else fitting + padding)
    return GAP.join(parts).rstrip()


def _narrow(widths: list[int], columns: Sequence[Column], total: int) -> None:
    """Take from the widest flexible column until the table fits, or none can give any more."""
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - total
    flexible = [index for index, column in enumerate(columns) if column.flexible]
    while excess > 0 and flexible:
        widest = max(flexible, key=widths.__getitem__)
        if widths[widest] <= WIDTH_MIN:
            return
        widths[widest] -= 1
        excess -= 1


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return text + ELLIPSIS


def _width(text: str) -> int:
    """Return how many cells of a terminal a text takes; see Unicode TR 11 and combining marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries the byte code - 0xDC00 of a file name
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
