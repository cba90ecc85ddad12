"""How long a save or a load has to wait for work on what was saved before: optimizing, collecting, deleting, asking.

One process writes and reads 4 KiB of a mount in turns, past its page cache, while a command runs in another one. A row
has the waits of that process, in milliseconds. There are two stores: one of large files, whose versions wait to become
differences, and the large store of the speed benchmark (`scale.py`) with a tenth of its chunks, for what grows with
rows and versions. Last, idle work: nobody asks for anything until it has begun, then somebody writes; the row has the
wait of that write, and how long the daemon goes on to use processors after it. Not measured: what work takes of the
processors and of the disk.
"""

import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from measure import MIB, Weights, write
from places import Ckptfs
from scale import SNAPSHOTS, make_large_store

from ckptfs.store import ChunkStore

PROBE_SIZE = 4096
PROBE_SECONDS = 0.002
QUIET_SECONDS = 5.0
READ_SIZE = MIB // 4
VERSION_SIZE = 128 * MIB
VERSIONS = 4
CHUNKS = 100_000
KEPT = 10
DELETED = 1000
IDLE_PROBES = 12
IDLE_SECONDS = 3.0
"""Within these a daemon begins: it looks every second whether nobody has asked for a second."""
WATCHED_SECONDS = 0.4
SLICE_SECONDS = 0.005
WORKING_SHARE = 0.2
"""A daemon that takes no more of a processor than this in a slice has paused."""
OPTIONS = ("--settle", "3600")


def report(*, quick: bool) -> None:
    """Measure and print every row; `quick` makes smaller stores."""
    scratch = Path(tempfile.mkdtemp(prefix="ckptfs-pause-"))
    print(f"{'waits of 4 KiB, ms':<44} {'median':>8} {'99.9 %':>8} {'longest':>8} {'probes':>8} {'s':>7}")
    try:
        _large_files(scratch, quick)
        _many_versions(scratch, quick)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _large_files(scratch: Path, quick: bool) -> None:
    """Optimize versions of a large file, by the command and in idle time, and collect them."""
    with _mounted(Ckptfs(scratch, name="files", mounted=False), "--no-optimize") as place:
        _row("nothing runs", place, lambda: time.sleep(QUIET_SECONDS))
        _save_versions(place, quick)
        _row("optimize, large files", place, lambda: place.command("optimize", place.path))
        _delete_versions(place)
        _row("gc, large files", place, lambda: place.command("gc", place.path))
        place.unmount()
        place.mount(*OPTIONS)
        _save_versions(place, quick)
        _idle(place)


def _many_versions(scratch: Path, quick: bool) -> None:
    """Delete, prune and collect where there are many versions, rows and chunks, and ask for what there is."""
    share = 10 if quick else 1
    place = Ckptfs(scratch, name="many", mounted=False)
    make_large_store(place.store, CHUNKS // share, SNAPSHOTS // share)
    with ChunkStore.open(place.store) as store:
        store.reencoder.encode_waiting(store.waiting_bytes)  # else idle time would do it beside every row
    with _mounted(place, "--no-optimize"):
        at = ("--at", place.path)
        refs = [f"step-{number}" for number in range(0, SNAPSHOTS // share, SNAPSHOTS // share // (DELETED // share))]
        _row("nothing runs, many versions", place, lambda: time.sleep(QUIET_SECONDS))
        for command in (("stats",), ("snapshot", "list"), ("snapshot", "list", "--sizes"), ("check",), ("optimize",)):
            _row(
                f"{' '.join(command)}, many versions",
                place,
                lambda command=command: place.command(*command, place.path),
            )
        _row(f"snapshot delete of {len(refs):,}", place, lambda: place.command("snapshot", "delete", *refs, *at))
        _row("gc behind it", place, lambda: place.command("gc", place.path))
        prune = ("prune", place.path, "--keep-last", KEPT, "--no-keep-named")
        _row(f"prune of {SNAPSHOTS // share - len(refs) - KEPT:,}", place, lambda: place.command(*prune))
        for file in sorted(place.path.glob("*.pt"))[::2]:
            file.unlink()
        _row("gc behind it, and of half of the files", place, lambda: place.command("gc", place.path))


@contextmanager
def _mounted(place: Ckptfs, *options: str) -> Iterator[Ckptfs]:
    """Give a mount with a file to read from."""
    place.mount(*OPTIONS, *options)
    try:
        (place.path / "read").write_bytes(os.urandom(READ_SIZE))
        yield place
    finally:
        place.close()


def _save_versions(place: Ckptfs, quick: bool) -> None:
    """Save versions of weights that move a little."""
    weights = Weights(VERSION_SIZE // (4 if quick else 1)).fresh().view(np.float32)
    for number in range(VERSIONS):
        weights = weights * np.float32(1 + 1e-4 * number)
        write(place.path / "model.bin", weights)
        (place.path / ".snapshots" / f"version-{number}").mkdir()


def _delete_versions(place: Ckptfs) -> None:
    for version in list((place.path / ".snapshots").glob("version-*")):
        version.rmdir()


def _row(work: str, place: Ckptfs, run: Callable[[], object]) -> None:
    """Probe a mount while something runs, and print the waits."""
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_probe, args=(place.path, there))
    process.start()
    assert here.recv() == "begun"
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    here.send("end")
    waits = sorted(here.recv())
    process.join()
    late = waits[-1 - len(waits) // 1000]
    print(
        f"{work:<44} {statistics.median(waits):8.2f} {late:8.2f} {waits[-1]:8.2f} {len(waits):8,} {seconds:7.2f}",
        flush=True,
    )


def _probe(path: Path, connection: Connection) -> None:
    """Write and read in turns until told to end, then send the waits in milliseconds."""
    waits: list[float] = []
    buffer = mmap.mmap(-1, PROBE_SIZE)
    reading = os.open(path / "read", os.O_RDONLY | os.O_DIRECT)
    offsets = range(0, READ_SIZE, PROBE_SIZE)
    connection.send("begun")
    while not connection.poll():
        waits.append(_milliseconds(lambda: _write(path)))
        offset = offsets[len(waits) * 997 % len(offsets)]
        waits.append(_milliseconds(lambda offset=offset: os.preadv(reading, [buffer], offset)))
        time.sleep(PROBE_SECONDS)
    connection.send(waits)


def _write(path: Path) -> None:
    """Save a small file over the one before."""
    fd = os.open(path / "written", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, os.urandom(PROBE_SIZE))
    os.close(fd)


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _idle(place: Ckptfs) -> None:
    """Write now and then where a daemon works in idle time, and print how long that waits and when the work stops."""
    waits, stops = [], []
    pid = place.pid()
    for _ in range(IDLE_PROBES):
        silent_until = time.perf_counter() + IDLE_SECONDS
        while not (is_working := _is_working(pid)) and time.perf_counter() < silent_until:
            pass
        if not is_working:
            break
        began = time.perf_counter()
        waits.append(_milliseconds(lambda: _write(place.path)))
        stops.append(_last_work(pid, began) * 1000)
    if not waits:
        print("idle work: there was none left when somebody wrote")
        return
    for name, found in (("idle work: wait of a write", waits), ("idle work: goes on after the write", stops)):
        print(f"{name:<44} {statistics.median(found):8.2f} {'':8} {max(found):8.2f} {len(found):8,}", flush=True)


def _is_working(pid: int) -> bool:
    before = _processor_seconds(pid)
    time.sleep(SLICE_SECONDS * 4)
    return _processor_seconds(pid) - before > WORKING_SHARE * SLICE_SECONDS * 4


def _last_work(pid: int, began: float) -> float:
    """Return how many seconds after `began` a daemon last used a good part of a processor."""
    last, before, used = 0.0, time.perf_counter(), _processor_seconds(pid)
    while before - began < WATCHED_SECONDS:
        time.sleep(SLICE_SECONDS)
        now, used_now = time.perf_counter(), _processor_seconds(pid)
        if used_now - used > WORKING_SHARE * (now - before):
            last = now - began
        before, used = now, used_now
    return last


def _processor_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return total / 1e9
