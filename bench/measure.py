"""What every row of the speed benchmark is made with: timings in turns, a line with its goal, bytes, and plain calls.

A row runs the same work at several places in turns, once unmeasured and then `runs` times, and prints the ratio of
medians beside what it has to reach, reached or not. Before each run the places are made equal: dirty pages are written
back and the page cache is freed. Figures of one run do not travel; ratios do.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from places import Ckptfs, Null, Plain

MIB = 1 << 20
WRITE_SIZE = 8 * MIB

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

    def ratio(self, place: str, other: str) -> float:
        """Return how many times as long one place takes as another."""
        return self.median(place) / self.median(other)

    def spread(self, *places: str) -> str:
        """Return median, least and greatest of each place as text."""
        return ", ".join(
            f"{place} {self.median(place):.3f} s ({min(self.seconds[place]):.3f}-{max(self.seconds[place]):.3f})"
            for place in places
        )


def line(work: str, value: float, relation: str, goal: float, detail: str = "") -> None:
    """Print one row."""
    reached = value >= goal if relation == ">=" else value <= goal
    print(f"{'ok  ' if reached else 'MISS'} {work:<58} {value:8.3f} {relation} {goal:<6g} {detail}", flush=True)


def note(work: str, value: float, detail: str = "") -> None:
    """Print a row that has nothing to reach."""
    print(f"     {work:<58} {value:8.3f}           {detail}", flush=True)


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


def timed(work: Callable[[], object]) -> float:
    """Return the seconds a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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


class Bench:
    """What the rows share: `size` bytes for each file, `runs` runs, and a scratch directory for the places.

    `memory_peak` is the largest memory that a daemon of any row has had, in bytes.
    """

    def __init__(self, scratch: Path, *, quick: bool) -> None:
        self.scratch = scratch
        self.quick = quick
        self.size, self.runs = (256 * MIB, 3) if quick else (1024 * MIB, 5)
        self.weights = Weights(self.size)
        self.memory_peak = 0

    @contextmanager
    def places(self, *kinds: type[Place]) -> Iterator[tuple[Place, ...]]:
        """Give places of their own to a row, and take them down behind it."""
        places = tuple(kind(self.scratch) for kind in kinds)
        try:
            yield places
        finally:
            for place in places:
                place.close()
                shutil.rmtree(place.path, ignore_errors=True)
                if isinstance(place, Ckptfs):
                    self.memory_peak = max(self.memory_peak, place.memory_peak)

    def alternate(self, places: Sequence[Place], run: Callable[[Place, int], float]) -> Timings:
        """Run once unmeasured at each place, then in turns, and return the timings."""
        timings = Timings()
        for number in range(-1, self.runs):
            for place in places:
                place.quiesce()
                seconds = run(place, number)
                if number >= 0:
                    timings.add(place.name, seconds)
        return timings
