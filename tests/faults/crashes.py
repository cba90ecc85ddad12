"""Power cuts at every operation of a workload: each directory that one may leave is opened, and judged.

A crash state is named by the seed of its workload and a *cut*, the number of the operation before it and of the try;
a second cut is one during the recovery from the first. It is whole when the store opens without an error, shows
exactly one of the states that it may show (not older than what was promised, not younger than what had begun), its
rows agree with each other at every epoch, and it takes a new save, a collection and what else idle time brings.
"""

import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ckptfs.errors import NotAStoreError
from ckptfs.store import Disk, never
from ckptfs.tree import Tree
from ckptfs.tree.gc import collect
from ckptfs.tree.optimize import Optimizer, optimize_part
from tests.faults import powercut, recorder
from tests.faults.powercut import KEPT, LOST, TORN, CutDisk, Image
from tests.faults.workload import State, Workload, ZeroingDisk, state_of
from tests.unit import golden_store
from tests.unit import tree_support as support

STORE = "store"
STEPS = 60
HOLE_UNITS = (1, 512, mmap.PAGESIZE)
TORN_TRIES = 10
RECOVERY_EVERY = 600
"""One of so many crash states is also cut off again while it is opened."""
AFTERWARDS_EVERY = 32
"""One of so many crash states is also gone on with, closed, and opened once more."""
_MEMORY_DIRECTORY = Path("/dev/shm")
_VOLATILE = ("lock", "index.lmdb-lock")


class Cut(NamedTuple):
    """Which power cut: after how many operations, and which of the states that the disk may have then."""

    operation: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.operation}.{self.attempt}"


@dataclass(frozen=True)
class Crash:
    """One crash state: what is found, and the first and last of the states that it may show (first -1: no store)."""

    cut: Cut
    image: Image
    first: int
    last: int


@dataclass
class Recording:
    """What happened to a disk, and what had been promised: `states`, and marks in the trace. `cuts` led to it."""

    seed: int
    trace: list[recorder.Operation] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    cuts: tuple[Cut, ...] = ()

    def name(self, crash: Crash) -> str:
        """Return what to give to `script/soak` to see a crash state again."""
        return self.named(crash.cut)

    def named(self, cut: Cut) -> str:
        """Return what `name` does, of a power cut that there may be no state of."""
        return " ".join((f"--seed {self.seed}", *(f"--cut {each}" for each in (*self.cuts, cut))))


class NoSuchCutError(Exception):
    """A power cut was asked for that leaves no state of its own: one before the code changed, or never."""


class Judgement(NamedTuple):
    """What came of a seed: the digests of its distinct crash states, and a message for each that was not whole."""

    digests: set[bytes]
    losses: list[str]


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """Give a directory in memory where there is one: a disk's syncs say nothing here and cost most of the time."""
    return tempfile.TemporaryDirectory(
        prefix="ckptfs-faults-", dir=_MEMORY_DIRECTORY if _MEMORY_DIRECTORY.is_dir() else None
    )


# Recording


def record(seed: int, directory: Path, steps: int = STEPS) -> Recording:
    """Run the workload of a seed below the recording filesystem."""
    recording = Recording(seed)
    with recorder.recording(directory, recording.trace) as path, open(path / recorder.MARKS, "wb", 0) as marks:

        def mark(kind: str, state: int) -> None:
            marks.write(f"{kind} {state}".encode())

        workload = Workload(path / STORE, seed, mark, ZeroingDisk(HOLE_UNITS[seed % len(HOLE_UNITS)]))
        workload.run(steps)
        recording.states = workload.states
    return recording


def record_recovery(before: Recording, crash: Crash, directory: Path) -> Recording:
    """Open a crash state below the recording filesystem."""
    recording = Recording(before.seed, states=before.states, cuts=(*before.cuts, crash.cut))
    with recorder.recording(directory, recording.trace) as path, open(path / recorder.MARKS, "wb", 0) as marks:
        crash.image.write(path)
        for each in (path / STORE).rglob("*"):
            _make_durable(each)
        _make_durable(path / STORE)
        _make_durable(path)
        marks.write(f"begun {crash.last}".encode())
        marks.write(f"kept {crash.first}".encode())
        support.crash(support.open_tree(path / STORE, disk=Disk()))
    return recording


def _make_durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


# Crash states


def crashes(recording: Recording, torn_tries: int = TORN_TRIES) -> Iterator[Crash]:
    """Yield the crash states of a recording; of equal ones with the same promises the first."""
    disk = CutDisk(_VOLATILE)
    first, last, began = -1, 0, False
    seen: set[tuple[bytes, int]] = set()
    for operation, marks in powercut.moments(recording.trace, disk):
        for mark in marks:
            kind, number = mark.split()
            if kind == b"kept":
                first = int(number)
            else:
                last = int(number)
            began = True
        if not began:
            continue  # what is there before the first mark is the disk that the recording began with
        for attempt, how in enumerate((KEPT, LOST, *[TORN] * torn_tries)):
            image = disk.cut(how, random.Random(f"{recording.seed} {operation} {attempt}"))
            key = (image.digest(), first)
            if key not in seen:
                seen.add(key)
                yield Crash(Cut(operation, attempt), image, first, last)


def judge(recording: Recording, crash: Crash, directory: Path) -> str:
    """Open one crash state; return what is wrong with it and how to see it again, "" when it is whole."""
    path = directory / "cut"
    crash.image.write(path)
    try:
        _judge(recording, crash, path / STORE)
    except Exception as error:  # whatever it is, it is what a person would meet after the power cut
        return f"{recording.name(crash)}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(path)
    return ""


def _judge(recording: Recording, crash: Crash, path: Path) -> None:
    try:
        tree = support.open_tree(path)
    except NotAStoreError:
        if crash.first < 0:
            return
        raise
    found = state_of(tree)
    allowed = recording.states[max(crash.first, 0) : crash.last + 1]
    assert found in allowed, f"it shows none of the states {crash.first} to {crash.last}\n{_compare(found, allowed)}"
    support.check_tree(tree)
    if sum(crash.cut) % AFTERWARDS_EVERY == 0:
        tree = go_on(tree, path)
    support.crash(tree)


def go_on(tree: Tree, path: Path) -> Tree:
    """Save something new, do all the work of idle time, end cleanly, and open the store once more."""
    support.save(tree, "afterwards", b"saved" * 500)
    expected = state_of(tree)
    collect(tree)
    optimize_part(Optimizer(tree), tree.store, never)
    tree.close()
    tree = support.open_tree(path)
    assert state_of(tree) == expected
    support.check_tree(tree)
    assert not any(part.problems for part in tree.store.check_journal())
    return tree


def _compare(found: State, allowed: Sequence[State]) -> str:
    """Say where what was found differs from the youngest state that it may be."""
    youngest = allowed[-1]
    lines = [f"  live: {_different(found.live, youngest.live)}"]
    lines.append(f"  committed: {_different(found.committed, youngest.committed)}")
    for name in sorted(found.snapshots.keys() | youngest.snapshots.keys()):
        lines.append(f"  {name}: {_different(found.snapshots.get(name, {}), youngest.snapshots.get(name, {}))}")
    return "\n".join(lines)


def _different(found: dict[str, support.Seen], expected: dict[str, support.Seen]) -> list[str]:
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


# Judging


def judge_seed(seed: int, steps: int = STEPS, torn_tries: int = TORN_TRIES) -> Judgement:
    """Judge every crash state of a seed, and some of those that a second power cut makes of them."""
    judgement = Judgement(set(), [])
    with scratch() as name:
        recording = record(seed, Path(name), steps)
        for count, crash in enumerate(crashes(recording, torn_tries)):
            whole = _note(judgement, recording, crash, Path(name))
            if whole and count % RECOVERY_EVERY == RECOVERY_EVERY - 1:
                recovery = record_recovery(recording, crash, Path(name))
                for second in crashes(recovery, torn_tries):
                    _note(judgement, recovery, second, Path(name))
    return judgement


def judge_upgrade() -> Judgement:
    """Judge every crash state of opening a store of an older version of the format."""
    judgement = Judgement(set(), [])
    with scratch() as name:
        golden_store.write_outdated(Path(name) / "old" / STORE)
        old = Crash(Cut(0, 0), Image.of(Path(name) / "old"), 0, 0)
        raised = support.open_tree(Path(name) / "old" / STORE)
        before = Recording(0, states=[state_of(raised)])
        support.crash(raised)
        upgrade = record_recovery(before, old, Path(name))
        for crash in crashes(upgrade):
            _note(judgement, upgrade, crash, Path(name))
    return judgement


def _note(judgement: Judgement, recording: Recording, crash: Crash, directory: Path) -> bool:
    """Judge a crash state and note what comes of it; tell whether it is whole."""
    judgement.digests.add(crash.image.digest())
    if loss := judge(recording, crash, directory):
        judgement.losses.append(loss)
    return not loss


def replay(seed: int, cuts: Sequence[Cut], keep: Path) -> str:
    """Make one crash state again, leave it in the directory `keep`, and judge it; NoSuchCutError."""
    with scratch() as name:
        recording = record(seed, Path(name))
        for cut in cuts[:-1]:
            recording = record_recovery(recording, _at(recording, cut), Path(name))
        crash = _at(recording, cuts[-1])
        crash.image.write(keep)
        return judge(recording, crash, Path(name))


def _at(recording: Recording, cut: Cut) -> Crash:
    for crash in crashes(recording):
        if crash.cut == cut:
            return crash
    raise NoSuchCutError(f"{recording.named(cut)}: there is no such power cut (any more)")
