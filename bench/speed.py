"""Speed: ckptfs beside a null FUSE mount and a plain directory, in alternating runs on one machine.

Every row is a ratio of medians; what it has to reach is printed beside it, reached or not. Between runs the places
are made equal: files are removed, dirty pages written back. Figures of one run do not travel; ratios do.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from places import Ckptfs, Null, Plain

MIB = 1 << 20
WRITE_SIZE = 8 * MIB
SMALL_SIZE = 4096
WRITERS = 8

Place = Null | Plain | Ckptfs


@dataclass(slots=True)
class Timings:
    """Seconds of each run, by place."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, place: str, seconds: float) -> None:
        """Note one run."""
        self.seconds.setdefault(place, []).append(seconds)

    def median(self, place: str) -> float:
        """Return the median of a place's runs."""
        return statistics.median(self.seconds[place])

    def spread(self, place: str) -> str:
        """Return median, least and greatest as text."""
        runs = self.seconds[place]
        return f"{place} {self.median(place):.3f} s ({min(runs):.3f}-{max(runs):.3f})"


def line(work: str, value: float, relation: str, goal: float, detail: str) -> None:
    """Print one row."""
    reached = value >= goal if relation == ">=" else value <= goal
    print(f"{'ok  ' if reached else 'MISS'} {work:<58} {value:8.3f} {relation} {goal:<6g} {detail}", flush=True)


class Weights:
    """Bytes like those of an fp32 checkpoint; every call of `fresh` gives others of the same kind."""

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        self._base = (generator.standard_normal(size // 4, dtype=np.float32) * np.float32(0.02)).view(np.uint32)
        self._count = 0

    def fresh(self) -> np.ndarray:
        """Return fp32 weights that no call before has returned, as their bits: every element differs."""
        self._count += 1
        return self._base ^ np.uint32(self._count * 0x1357 & 0xFFFF)

    def partly_fresh(self, known: np.ndarray, share: float) -> np.ndarray:
        """Return `known` with its last `share` of elements made anew."""
        changed = known.copy()
        start = int(len(known) * (1 - share))
        changed[start:] = self.fresh()[start:]
        return changed


def write(path: Path, data: np.ndarray, *, sync: bool = False) -> float:
    """Write a file in large calls, close it, and return the seconds it took."""
    view = memoryview(data).cast("B")
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for start in range(0, len(view), WRITE_SIZE):
        os.write(fd, view[start : start + WRITE_SIZE])
    if sync:
        os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - began


def read(path: Path, buffer: bytearray) -> float:
    """Read a file in large calls and return the seconds it took."""
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)
    return time.perf_counter() - began


def timed(work: Callable[[], object]) -> float:
    """Return the seconds a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save(state: object, path: Path, *, sync: bool = False) -> float:
    """Save with torch and return the seconds it took."""
    began = time.perf_counter()
    torch.save(state, path)
    if sync:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - began


def state_of(bits: np.ndarray) -> dict[str, torch.Tensor]:
    """Return a state dict of 32 tensors over the given bits."""
    tensors = torch.from_numpy(bits.view(np.float32)).chunk(32)
    return {f"layer.{number}": tensor for number, tensor in enumerate(tensors)}


class Speed:
    """All rows, on places in one scratch directory."""

    def __init__(self, scratch: Path, size: int, runs: int) -> None:
        self.scratch = scratch
        self.size = size
        self.runs = runs
        self.weights = Weights(size)
        self.memory_peak = 0

    def alternate(self, places: Sequence[Place], run: Callable[[Place, int], float], *, warm: bool = True) -> Timings:
        """Run once unmeasured at each place, then in turns, and return the timings."""
        timings = Timings()
        for number in range(-1 if warm else 0, self.runs):
            for place in places:
                place.quiesce()
                seconds = run(place, number)
                if number >= 0:
                    timings.add(place.name, seconds)
        return timings

    def close(self, places: Sequence[Place]) -> None:
        """Take the places down and remember the daemon's memory."""
        for place in places:
            place.close()
            if isinstance(place, Ckptfs):
                self.memory_peak = max(self.memory_peak, place.memory_peak)
            shutil.rmtree(place.path, ignore_errors=True)

    def sequential(self) -> None:
        """Rows of plain large writes."""
        null, plain, ckptfs = places = (Null(self.scratch), Plain(self.scratch), Ckptfs(self.scratch))
        known = self.weights.fresh()
        write(ckptfs.path / "known", known)

        def rewrite(place: Place, _: int) -> float:
            seconds = write(place.path / "again", known)
            os.unlink(place.path / "again")
            return seconds

        timings = self.alternate((null, ckptfs), rewrite)
        detail = f"{timings.spread('ckptfs')}, {timings.spread('null')}"
        line("known bytes, against null", timings.median("null") / timings.median("ckptfs"), ">=", 0.80, detail)

        def write_new(place: Place, number: int, *, sync: bool = False) -> float:
            path = place.path / "new"
            path.unlink(missing_ok=True)
            return write(path, self.weights.fresh(), sync=sync)

        timings = self.alternate((null, ckptfs), write_new)
        detail = f"{timings.spread('ckptfs')}, {timings.spread('null')}"
        line("new fp32 bytes, against null", timings.median("null") / timings.median("ckptfs"), ">=", 0.65, detail)
        timings = self.alternate((plain, ckptfs), lambda place, number: write_new(place, number, sync=True))
        detail = f"{timings.spread('ckptfs')}, {timings.spread('plain')}"
        line("new, fsync, against plain", timings.median("plain") / timings.median("ckptfs"), ">=", 0.80, detail)
        self.close(places)

    def torch_save(self) -> None:
        """Rows of torch.save."""
        places = (Null(self.scratch), Plain(self.scratch), Ckptfs(self.scratch))

        def save_new(place: Place, _: int) -> float:
            path = place.path / "state.pt"
            path.unlink(missing_ok=True)
            return save(state_of(self.weights.fresh()), path)

        timings = self.alternate(places, save_new)
        detail = ", ".join(map(timings.spread, ("ckptfs", "null", "plain")))
        ours = timings.median("ckptfs")
        line("torch.save, new bytes, time over null", ours / timings.median("null"), "<=", 1.25, detail)
        line("torch.save, new bytes, time over plain", ours / timings.median("plain"), "<=", 1.6, "")
        known = self.weights.fresh()
        for place in places[1:]:
            save(state_of(known), place.path / "state.pt")

        def save_partly(place: Place, _: int) -> float:
            state = state_of(self.weights.partly_fresh(known, 0.25))
            return save(state, place.path / "state.pt", sync=True)

        timings = self.alternate(places[1:], save_partly)
        detail = ", ".join(map(timings.spread, ("ckptfs", "plain")))
        ratio = timings.median("ckptfs") / timings.median("plain")
        line("torch.save, 75 % known, fsync, time over plain", ratio, "<=", 0.8, detail)
        self.close(places)

    def cold(self) -> None:
        """Rows of reading after the caches are gone."""
        null, plain, ckptfs = places = (Null(self.scratch), Plain(self.scratch), Ckptfs(self.scratch))
        data = self.weights.fresh()
        buffer = bytearray(WRITE_SIZE)
        for place in places:
            write(place.path / "file", data)
            save(state_of(data), place.path / "state.pt")

        def read_cold(place: Place, _: int) -> float:
            place.chill()
            return read(place.path / "file", buffer)

        timings = self.alternate((null, ckptfs), read_cold)
        detail = ", ".join(map(timings.spread, ("ckptfs", "null")))
        line("cold read, against null", timings.median("null") / timings.median("ckptfs"), ">=", 0.70, detail)
        for mapped in (False, True):

            def load_cold(place: Place, _: int, mapped: bool = mapped) -> float:
                place.chill()

                def load() -> None:
                    state = torch.load(place.path / "state.pt", mmap=mapped)
                    for tensor in state.values():
                        tensor.sum()

                return timed(load)

            timings = self.alternate((plain, ckptfs), load_cold)
            detail = ", ".join(map(timings.spread, ("ckptfs", "plain")))
            ratio = timings.median("ckptfs") / timings.median("plain")
            line(f"torch.load{' mmap' if mapped else ''} and use, cold, time over plain", ratio, "<=", 1.3, detail)
        self.close(places)

    def many_writers(self) -> None:
        """The row of eight processes."""
        ckptfs = Ckptfs(self.scratch)
        program = (
            "import sys, time; sys.path.insert(0, sys.argv[1]); import numpy as np; from pathlib import Path\n"
            "from speed import write\n"
            "data = np.random.default_rng(int(sys.argv[3])).integers(0, 1 << 32, int(sys.argv[4]) // 4, np.uint32)\n"
            "print('ready', flush=True); input(); write(Path(sys.argv[2]), data); print('done', flush=True)\n"
        )

        command = [sys.executable, "-c", program, str(Path(__file__).parent)]

        def run(count: int, number: int) -> float:
            size = self.size // count
            processes = [
                subprocess.Popen(
                    [*command, str(ckptfs.path / f"{count}-{index}"), str(1000 * number + index), str(size)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for index in range(count)
            ]
            for process in processes:
                assert process.stdout and process.stdout.readline() == "ready\n"
            began = time.perf_counter()
            for process in processes:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout and process.stdout.readline() == "done\n"
            seconds = time.perf_counter() - began
            for process in processes:
                process.communicate()
            for index in range(count):
                os.unlink(ckptfs.path / f"{count}-{index}")
            return seconds

        timings = Timings()
        for number in range(self.runs):
            for count in (1, WRITERS):
                ckptfs.quiesce()
                timings.add(str(count), run(count, number))
        ratio = timings.median("1") / timings.median(str(WRITERS))
        detail = f"writers: {timings.spread(str(WRITERS))}, {timings.spread('1')}"
        line("8 writers, total rate over one writer's", ratio, ">=", 0.9, detail)
        self.close((ckptfs,))

    def small_files(self, count: int) -> None:
        """The row of small files."""
        places = (Null(self.scratch), Ckptfs(self.scratch))

        def create(place: Place, number: int) -> float:
            data = os.urandom(SMALL_SIZE * count)
            began = time.perf_counter()
            for index in range(count):
                fd = os.open(place.path / f"{number}-{index}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, data[index * SMALL_SIZE : (index + 1) * SMALL_SIZE])
                os.close(fd)
            return time.perf_counter() - began

        timings = self.alternate(places, create)
        detail = ", ".join(map(timings.spread, ("ckptfs", "null"))) + f" for {count} files"
        ratio = timings.median("null") / timings.median("ckptfs")
        line("create, 4 KiB, close: rate over null", ratio, ">=", 0.5, detail)
        self.close(places)


def report(*, quick: bool) -> None:
    """Measure and print every row; `quick` takes a quarter of the bytes and fewer runs."""
    size, runs = (256 * MIB, 3) if quick else (1024 * MIB, 5)
    print(f"{size // MIB} MiB, medians of {runs} alternating runs, torch threads: {torch.get_num_threads()}")
    scratch = Path(tempfile.mkdtemp(prefix="ckptfs-speed-"))
    try:
        speed = Speed(scratch, size, runs)
        speed.sequential()
        speed.torch_save()
        if os.geteuid() == 0:
            speed.cold()
        else:
            print("skip  cold reads: dropping the page cache needs root")
        speed.many_writers()
        speed.small_files(500 if quick else 2000)
        line("daemon memory, MiB", speed.memory_peak / MIB, "<=", 512, "")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
