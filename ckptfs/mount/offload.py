"""Where work runs that may touch the disk below: in a worker thread, or right here when it is small.

A hop to a thread and back costs more than a small append to the page cache. Such an append blocks only when the disk
below is behind; so small work runs in the loop until a call takes long, and then in threads for a while.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

SLOW_SECONDS = 0.003
"""A small call that takes longer than this shows that the disk below is behind."""
BEHIND_SECONDS = 1.0
"""How long small work goes to threads after that."""
THREADS = 4

P = ParamSpec("P")
R = TypeVar("R")


class Offload:
    """Runs blocking calls of one mount, some at a time."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._behind_until = 0.0

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread and return its result."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._limiter)

    async def run_small(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run work of some ten microseconds, in place unless the disk below is behind."""
        began = time.monotonic()
        if began < self._behind_until:
            return await self.run(work, *args, **kwargs)
        try:
            return work(*args, **kwargs)
        finally:
            ended = time.monotonic()
            if ended - began > SLOW_SECONDS:
                self._behind_until = ended + BEHIND_SECONDS
