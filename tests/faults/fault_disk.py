"""A disk that fails at a chosen operation, and what a workload is left with then.

The process goes on: what it said is kept must be readable at once, and be there when the store is opened again.
"""

import errno
import gc
import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from ckptfs.errors import NoSpaceError, NotAStoreError
from ckptfs.store import ChunkStore
from ckptfs.tree import Tree
from tests.faults.crashes import go_on, scratch
from tests.faults.workload import Promises, State, Workload, state_of
from tests.unit import tree_support as support

STEPS = 30


class Fault(Enum):
    """What happens at the chosen operation."""

    ERROR = "it fails with EIO, once"
    FULL = "from then on nothing that needs room succeeds"
    SHORT = "a write gets half of its bytes in, and then the disk is full"
    DEAD = "from then on every operation fails with EIO"


class FaultDisk(support.OwnedDisk):
    """Counts operations and fails at the one numbered `at`, from 0, until `mend`.

    Those that need no room do not count where it is a full disk that they would meet.
    """

    def __init__(self, fault: Fault | None, at: int) -> None:
        super().__init__()
        self.count = 0
        self._fault = fault
        self._at = at

    @property
    def has_failed(self) -> bool:
        """Whether the chosen operation has been reached."""
        return self.count > self._at

    def mend(self) -> None:
        """Work again; a full disk has room."""
        self._fault = None

    def _happens(self, path: Path | None, *, needs_room: bool = False, size: int = 0) -> int:
        """Count an operation and fail if it is its turn; return how many bytes of it get through."""
        if self._fault in (Fault.FULL, Fault.SHORT) and not needs_room:
            return size
        number, self.count = self.count, self.count + 1
        if self._fault is None or number < self._at:
            return size
        if self._fault is Fault.DEAD or (self._fault is Fault.ERROR and number == self._at):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if self._fault is Fault.SHORT and number == self._at and size:
            return size // 2
        if self._fault in (Fault.FULL, Fault.SHORT):
            raise NoSpaceError(f"the disk below the store is full: {path}")
        return size

    def open_read(self, path: Path) -> int:
        self._happens(path)
        return super().open_read(path)

    def open_write(self, path: Path, *, create: bool = False, empty: bool = False) -> int:
        self._happens(path, needs_room=create and not path.exists())
        return super().open_write(path, create=create, empty=empty)

    def pread_into(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._happens(None)
        return super().pread_into(fd, buffers, offset)

    def pwrite(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, path: Path) -> None:
        data = b"".join(buffers)
        done = self._happens(path, needs_room=True, size=len(data))
        super().pwrite(fd, [data[:done]], offset, path)
        if done < len(data):
            raise NoSpaceError(f"the disk below the store is full: {path}")

    def copy_range(self, source: int, target: int, offset: int, size: int, path: Path) -> int:
        done = self._happens(path, needs_room=True, size=size)
        copied = super().copy_range(source, target, offset, done, path)
        if done < size:
            raise NoSpaceError(f"the disk below the store is full: {path}")
        return copied

    def fdatasync(self, fd: int, path: Path) -> None:
        self._happens(path)

    def sync_directory(self, path: Path) -> None:
        self._happens(path)

    def truncate(self, fd: int, size: int, path: Path) -> None:
        self._happens(path)
        super().truncate(fd, size, path)

    def allocate(self, fd: int, size: int, path: Path) -> None:
        self._happens(path, needs_room=True)
        super().allocate(fd, size, path)

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        self._happens(path)
        return super().punch(fd, offset, size, path)

    def make_directory(self, path: Path) -> None:
        self._happens(path, needs_room=True)
        super().make_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._happens(target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._happens(path)
        super().unlink(path)


def count_operations(seed: int, fault: Fault, steps: int = STEPS) -> int:
    """Return how many operations of the workload of a seed can fail in a way."""
    disk = FaultDisk(fault, sys.maxsize)
    with scratch() as name:
        Workload(Path(name) / "store", seed, Promises().mark, disk).run(steps)
    return disk.count


def judge_fault(seed: int, fault: Fault, at: int, steps: int = STEPS) -> str:
    """Run a workload whose operation `at` fails; return what is wrong then, "" when nothing is."""
    try:
        with scratch() as name:
            _judge_fault(seed, FaultDisk(fault, at), fault, Path(name) / "store", steps)
    except Exception as error:  # whatever it is, it is what a person would meet after the fault
        return f"--seed {seed} --fault {fault.name} --at {at}: {type(error).__name__}: {error}"
    return ""


def _judge_fault(seed: int, disk: FaultDisk, fault: Fault, path: Path, steps: int) -> None:
    promises = Promises()
    workload = Workload(path, seed, promises.mark, disk)
    try:
        workload.run(steps)
    except (NoSpaceError, OSError):
        assert disk.has_failed
    if workload.is_open and fault is not Fault.DEAD:
        judge_snapshots(workload.tree, workload.states[max(promises.first, 0) : promises.last + 1])
    disk.mend()
    judge_mended(workload, promises, goes_on=fault in (Fault.FULL, Fault.SHORT))
    judge_descriptors(disk)


def judge_mended(workload: Workload, promises: Promises, *, goes_on: bool) -> None:
    """Hold what has to be true of a workload that an error has ended, when the disk below works again.

    When it `goes_on`, it takes a save before it is killed; either way the store is opened again.
    """
    goes_on = goes_on and workload.is_open
    if goes_on:
        support.save(workload.tree, "when there was room again", b"saved" * 500)
        workload.tree.commit()
    if workload.is_open:
        workload.crash()
    try:
        tree = support.open_tree(workload.path)
    except NotAStoreError:
        assert promises.first < 0
        ChunkStore.create(workload.path).close()
        tree = support.open_tree(workload.path)
    allowed = workload.states[max(promises.first, 0) : promises.last + 1]
    if goes_on:
        assert support.read(tree, "when there was room again") == b"saved" * 500
        judge_snapshots(tree, allowed)
    else:
        assert state_of(tree) in allowed, f"it shows none of the states {promises.first} to {promises.last}"
    support.check_tree(tree)
    support.crash(go_on(tree, workload.path))


def judge_descriptors(disk: FaultDisk) -> None:
    """Hold that every descriptor was closed once: whoever closes it again may close that of somebody else."""
    assert not disk.misclosed, "a descriptor was closed twice"
    if disk.opened:
        gc.collect()  # a failed opening may leave a cycle, which owns its descriptors until it is found
    assert not disk.opened, "a descriptor was left open"


def judge_snapshots(tree: Tree, allowed: list[State]) -> None:
    """Hold that every snapshot shows what it showed when it was taken, and that none is missing."""
    shown = {snapshot.name: support.dump(tree, snapshot.id) for snapshot in tree.snapshots.all()}
    known = {name: seen for state in allowed for name, seen in state.snapshots.items()}
    assert all(seen == known[name] for name, seen in shown.items())
    assert all(name in shown for name in known if all(name in state.snapshots for state in allowed))
