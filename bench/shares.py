"""Where the daemon's processor time goes while a row of the speed benchmark runs, by `perf`.

Every daemon that the row starts is sampled from its mount to its end, at the rate of FREQUENCY; what counts is where a
sample was taken, not who called. A row that starts several (cold reads) prepares with the first, which is left out.
What the row does before it measures is in the shares otherwise. Time in which the daemon waits is in none.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from measure import Bench
from places import Ckptfs
from speed import ROWS

FREQUENCY = 997
SHARES = (
    ("kernel: copying", r"\[.*;.*(copy|rep_movs|memcpy|_to_iter|_from_iter)"),
    ("kernel: pages", r"\[.*;.*(page|folio|lru|xas|memcg|alloc|rmqueue|free_|clear_|fault|mas_|vma)"),
    ("kernel: fuse", r"\[.*;.*fuse"),
    ("kernel: waking and switching", r"\[.*;.*(sched|schedule|futex|wake|_lock|unlock|switch|epoll|poll)"),
    ("kernel: other", r"\["),
    ("cutting, hashing, planes", r"(_kernels|_xxhash)\."),
    ("zstd", r".*zstd"),
    ("LMDB", r".*(lmdb|cpython\.cpython)"),
    ("copying in the daemon", r"libc.*;.*(memcpy|memmove|memset)"),
    ("pyfuse3 and libfuse", r".*(fuse|__init__\.cpython)"),
    ("libc: other", r"(libc|libpthread|ld-linux)"),
    ("Python", r".*"),
)
"""Names of shares, and what the library and the symbol of a sample in them look like; the first that fits counts."""


class Recorder:
    """Samples every daemon that is mounted from here on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def watch(self, pid: int) -> None:
        """Sample a daemon until it ends; returns when perf has begun, lest it miss threads that begin meanwhile."""
        path, orders, answers = (self._directory / f"{len(self._running)}.{kind}" for kind in ("data", "in", "out"))
        os.mkfifo(orders)
        os.mkfifo(answers)
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-p", str(pid), "-o", str(path)]
        command += ["--delay=-1", f"--control=fifo:{orders},{answers}"]
        self._running.append((path, subprocess.Popen(command)))
        with open(orders, "w") as order, open(answers) as answer:
            order.write("enable\n")
            order.flush()
            answer.readline()

    def samples(self) -> Counter[str]:
        """Return how many samples there are of each share, when all daemons have ended."""
        counts: Counter[str] = Counter()
        for _, process in self._running:
            process.wait()
        for path, _ in self._running[1:] or self._running:
            command = ["perf", "report", "-i", str(path), "--stdio", "--no-children", "-F", "sample,dso,sym", "-t", ";"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for row in re.finditer(r"^\s*(\d+)\s*;(\S+)\s*;\[.\] (.+)$", printed, re.MULTILINE):
                place = f"{row[2]};{row[3]}"
                counts[next(name for name, pattern in SHARES if re.match(pattern, place))] += int(row[1])
        return counts


def report(*, quick: bool, names: list[str]) -> None:
    """Run rows and print behind each one the shares of the daemon's processor time."""
    if not shutil.which("perf"):
        sys.exit("perf is not installed; on Debian it is in linux-perf")
    for name in names:
        if name not in ROWS:
            sys.exit(f"{name}: there is no such row; there are {', '.join(ROWS)}")
        scratch = Path(tempfile.mkdtemp(prefix="ckptfs-profile-"))
        recorder = Recorder(scratch)
        Ckptfs.on_mount = recorder.watch
        try:
            ROWS[name](Bench(scratch, quick=quick))
            samples = recorder.samples()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        total = sum(samples.values())
        if not total:
            sys.exit(f"{name}: perf has taken no sample; it may need root (now uid {os.geteuid()})")
        print(f"\n{name}: {total / FREQUENCY:.2f} s of processor time of the daemon")
        for share, count in samples.most_common():
            print(f"  {share:<30} {count / total:6.1%}")
