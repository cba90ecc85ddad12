"""Backup, repair and upgrade on a disk that fails at a chosen operation: nothing is lost, and the next try succeeds.

Each begins with a copy of what a workload has left as a kill does. A store to be repaired has a damaged chunk: when its
bytes are saved again, every version that uses it is whole, whatever failed before.
"""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

from ckptfs.config import FORMAT_VERSION
from ckptfs.errors import CkptfsError
from ckptfs.store import ChunkStore, Cut, Disk, back_up, description
from ckptfs.tree import Tree
from tests.faults.crashes import scratch
from tests.faults.fault_disk import Fault, FaultDisk, judge_descriptors
from tests.faults.workload import Promises, State, Workload, state_of
from tests.unit import golden_store
from tests.unit import tree_support as support
from tests.unit.test_check import damaged, flip, problems

SEED = 9
STEPS = 14


class Maintenance(Protocol):
    """Something that is done to a store, or to its backup; made in an empty directory."""

    begin_with: Path
    """What each trial has a copy of."""

    def __init__(self, directory: Path) -> None: ...

    def run(self, path: Path, disk: Disk) -> None:
        """Do it, on a copy."""

    def judge(self, path: Path) -> None:
        """Hold what has to be true when it has failed, and the disk works again."""


class Backup:
    """A backup brought up to a store that has gone on since it was made."""

    def __init__(self, directory: Path) -> None:
        self.begin_with = directory / "backup"
        workload = _begun(directory / "store")
        self._store = workload.path
        self._cut = _cut(workload.tree)
        self.run(self.begin_with, Disk())
        self._state = _ended(workload)
        self._cut = _cut(workload.tree)
        workload.crash()

    def run(self, path: Path, disk: Disk) -> None:
        back_up(self._store, path, lambda: self._cut, lambda _: None, disk=disk)

    def judge(self, path: Path) -> None:
        self.run(path, Disk())
        assert _shown(path) == self._state


class Rebuild:
    """The index of a whole store made anew."""

    def __init__(self, directory: Path) -> None:
        self.begin_with = directory / "store"
        workload = _begun(self.begin_with)
        self._state = _ended(workload)
        workload.crash()

    def run(self, path: Path, disk: Disk) -> None:
        _repair(path, disk, rebuild=True)

    def judge(self, path: Path) -> None:
        assert _shown(path) == self._state
        self.run(path, Disk())
        assert _shown(path) == self._state


class Repair:
    """The repair of a store with a damaged chunk."""

    def __init__(self, directory: Path) -> None:
        self.begin_with = directory / "store"
        workload = _begun(self.begin_with)
        self._state = _ended(workload)
        number = workload.tree.store.next_number - 1
        self._lost = workload.tree.store.read(number)
        flip(workload.tree, number)
        workload.crash()

    def run(self, path: Path, disk: Disk) -> None:
        _repair(path, disk, rebuild=False)

    def judge(self, path: Path) -> None:
        self.run(path, Disk())
        tree = support.open_tree(path)
        assert len(damaged(tree)) == 1
        support.save(tree, "healed", self._lost)
        tree.commit()
        support.crash(tree)
        support.crash(support.open_tree(path))
        found = _shown(path)
        del found.live["/healed"], found.committed["/healed"]
        assert found == self._state


class Upgrade:
    """A store of an older version of the format opened for writing."""

    def __init__(self, directory: Path) -> None:
        self.begin_with = directory / "store"
        golden_store.write_outdated(self.begin_with)
        self.run(shutil.copytree(self.begin_with, directory / "raised"), Disk())
        self._state = _shown(directory / "raised")

    def run(self, path: Path, disk: Disk) -> None:
        support.crash(support.open_tree(path, disk=disk))

    def judge(self, path: Path) -> None:
        assert _shown(path) == self._state
        assert description.read(path, Disk()).version == FORMAT_VERSION


KINDS = (Backup, Rebuild, Repair, Upgrade)


def _begun(path: Path) -> Workload:
    """Take the first half of the steps of a workload."""
    workload = Workload(path, SEED, Promises().mark, Disk())
    workload.begin()
    for _ in range(STEPS // 2):
        workload.step()
    workload.journal(durable=True)
    return workload


def _ended(workload: Workload) -> State:
    """Take the other half, and return what the store is to show from then on."""
    for _ in range(STEPS - STEPS // 2):
        workload.step()
    workload.journal(durable=True)
    return workload.states[-1]


def _cut(tree: Tree) -> Cut:
    return Cut(tree.store.position, tree.store.punch_count)


def _repair(path: Path, disk: Disk, *, rebuild: bool) -> None:
    """Do what `ckptfs repair` does."""
    with ChunkStore.open(path, disk=disk, salvage=True, rebuild=rebuild) as store:
        tree = Tree(store)
        assert problems(tree) == []
        damaged(tree)


def _shown(path: Path) -> State:
    tree = support.open_tree(path)
    found = state_of(tree)
    support.check_tree(tree)
    support.crash(tree)
    return found


def judge_maintenance(kind: type[Maintenance], fault: Fault) -> tuple[int, list[str]]:
    """Let every operation of a kind of maintenance fail in one way; return how many, and what was wrong then."""
    with scratch() as name:
        losses = [*_judge_each(kind(Path(name)), fault, Path(name) / "tried")]
    return len(losses), [f"{kind.__name__}: {loss}" for loss in losses if loss]


def _judge_each(maintenance: Maintenance, fault: Fault, path: Path) -> Iterator[str]:
    """Yield for each operation that was made to fail what was wrong, "" for nothing."""
    for at in count():
        shutil.copytree(maintenance.begin_with, path)
        disk = FaultDisk(fault, at)
        said = ""
        try:
            try:
                maintenance.run(path, disk)
            except (CkptfsError, OSError):
                assert disk.has_failed
            maintenance.judge(path)
            judge_descriptors(disk)
        except Exception as error:  # whatever it is, it is what a person would meet after the fault
            said = f"{fault.name} at {at}: {type(error).__name__}: {error}"
        shutil.rmtree(path)
        if not disk.has_failed:
            return
        yield said
