"""How far a long command is: one line that is written over on a terminal, and plain lines now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from ckptfs.cli.tables import duration_text, size_text

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 10.0


class Progress:
    """The progress of one command, on standard error so that what it prints can go to a program."""

    def __init__(self, verb: str, total_bytes: int, stream: TextIO | None = None) -> None:
        self.done_bytes = 0
        self._verb = verb
        self._total = total_bytes
        self._stream = stream = stream or sys.stderr
        self._terminal = stream.isatty()
        self._began = time.monotonic()
        self._next = self._began + (0 if self._terminal else PLAIN_SECONDS)

    def advance(self, count: int) -> None:
        """Count bytes that are done, and say so when it is time."""
        self.done_bytes += count
        now = time.monotonic()
        if now >= self._next:
            self._show(now)
            self._next = now + (TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS)

    def _show(self, now: float) -> None:
        rate = self.done_bytes / max(now - self._began, 1e-9)
        left = max(self._total - self.done_bytes, 0)
        text = f"{self._verb} {size_text(self.done_bytes)} of {size_text(self._total)}, {size_text(int(rate))}/s"
        if rate and left:
            text += f", {duration_text(left / rate)} left"
        print(f"\r{text}\x1b[K" if self._terminal else text, end="" if self._terminal else "\n", file=self._stream)
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
