"""What the priority of idle work would do to the loop: how long it waits while others have all processors.

A thread encodes chunks as the idle pass does, at the usual priority, at nice 19 or at SCHED_IDLE; as many processes as
there are processors keep them busy, as a training job does. Meanwhile the main thread wakes up every 5 ms for a bit of
Python, as the loop of a mount does for a request: *late* is how much later than asked for that was done.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from ckptfs.mount.session import SWITCH_SECONDS
from ckptfs.store import codec

SECONDS = 8.0
PERIOD = 0.005
CHUNK_SIZE = 128 * 1024
PRIORITIES: dict[str, Callable[[int], None] | None] = {
    "nothing is encoded": None,
    "usual": lambda thread: None,
    "nice 19": lambda thread: os.setpriority(os.PRIO_PROCESS, thread, 19),
    "SCHED_IDLE": lambda thread: os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0)),
}


def report() -> None:
    """Print a line for each priority."""
    sys.setswitchinterval(SWITCH_SECONDS)
    command = [sys.executable, "-c", "while True: pass"]
    print(f"{'priority':>20} {'chunks/s':>9} {'late, ms: median':>17} {'p99':>7} {'most':>7}")
    for name, lower in PRIORITIES.items():
        others = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
        try:
            late, encoded = _measure(lower)
        finally:
            for other in others:
                other.kill()
                other.wait()
        late.sort()
        shown = statistics.median(late), late[len(late) * 99 // 100], late[-1]
        median, most_of_them, most = (each * 1e3 for each in shown)
        print(f"{name:>20} {encoded / SECONDS:>9.0f} {median:>17.2f} {most_of_them:>7.1f} {most:>7.1f}")


def _measure(lower: Callable[[int], None] | None) -> tuple[list[float], int]:
    """Return how late each turn of the loop was, in seconds, and how many chunks were encoded meanwhile."""
    chunk = memoryview((np.random.default_rng(0).standard_normal(CHUNK_SIZE // 4) * 0.02).astype(np.float32)).cast("B")
    begun, ended = threading.Event(), threading.Event()
    encoded = 0

    def encode() -> None:
        nonlocal encoded
        assert lower is not None
        lower(threading.get_native_id())
        begun.set()
        while not ended.is_set():
            codec.encode(chunk)
            encoded += 1

    worker = threading.Thread(target=encode)
    if lower is not None:
        worker.start()
        begun.wait()
    late = []
    until = time.monotonic() + SECONDS
    while (asked := time.monotonic() + PERIOD) < until:
        time.sleep(PERIOD)
        sum(range(500))
        late.append(time.monotonic() - asked)
    ended.set()
    if lower is not None:
        worker.join()
    return late, encoded
