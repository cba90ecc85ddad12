"""A disk that fills up at a chosen byte or fails at a chosen write or sync: LMDB's too.

The store lies on the recording filesystem.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ckptfs.errors import CkptfsError, NoSpaceError
from ckptfs.store import Disk
from tests.faults import recorder
from tests.faults.crashes import scratch
from tests.faults.fault_disk import judge_mended, judge_snapshots
from tests.faults.workload import Promises, Workload

STEPS = 30
PLENTY = 1 << 40
INDEX_NAMES = ("index.lmdb", "index.lmdb.new")


def give_room(mountpoint: Path, size: int) -> None:
    """Let the files of a recording filesystem grow by `size` bytes from now on."""
    (mountpoint / recorder.ROOM).write_bytes(b"%d" % size)


def growth(seed: int, steps: int = STEPS) -> int:
    """Return how many bytes the store of a workload has when there is room for all."""
    with scratch() as name, recorder.recording(Path(name), []) as path:
        Workload(path / "store", seed, Promises().mark, Disk()).run(steps)
        return sum(each.stat().st_size for each in (path / "store").rglob("*"))


def count_writes(seed: int, steps: int = STEPS) -> int:
    """Return how many writes and syncs the workload of a seed makes, LMDB's included."""
    trace: list[recorder.Operation] = []
    with scratch() as name, recorder.recording(Path(name), trace) as path:
        Workload(path / "store", seed, Promises().mark, Disk()).run(steps)
    return sum(isinstance(operation, recorder.Write | recorder.Sync) for operation in trace)


def lmdb_writes(seed: int, steps: int = STEPS) -> list[int]:
    """Return which writes and syncs of the workload of a seed are LMDB's, of those that `count_writes` counts."""
    trace: list[recorder.Operation] = []
    with scratch() as name, recorder.recording(Path(name), trace) as path:
        Workload(path / "store", seed, Promises().mark, Disk()).run(steps)
    named = [change for operation in trace if isinstance(operation, recorder.Names) for change in operation.changed]
    indexes = {ino for name, ino in named if name in INDEX_NAMES}
    writes = [operation for operation in trace if isinstance(operation, recorder.Write | recorder.Sync)]
    return [at for at, operation in enumerate(writes) if operation.ino in indexes]


def judge_full(seed: int, rooms: Iterable[int], steps: int = STEPS) -> list[str]:
    """Run a workload on disks of these sizes; return what is wrong when each is full, and when it has room again."""
    return list(filter(None, _judge_each(seed, rooms, steps)))


def _judge_each(seed: int, rooms: Iterable[int], steps: int) -> Iterator[str]:
    with scratch() as name, recorder.recording(Path(name), []) as path:
        for room in rooms:
            try:
                _judge(path, seed, room, steps)
            except Exception as error:  # whatever it is, it is what a person would meet on a full disk
                yield f"--seed {seed} --room {room}: {type(error).__name__}: {error}"


def judge_failing(seed: int, ats: Iterable[int], steps: int = STEPS) -> list[str]:
    """Run a workload on a disk of which one of these writes and syncs fails; return what is wrong afterwards."""
    return list(filter(None, _judge_each_failing(seed, ats, steps)))


def _judge_each_failing(seed: int, ats: Iterable[int], steps: int) -> Iterator[str]:
    with scratch() as name, recorder.recording(Path(name), []) as path:
        for at in ats:
            try:
                _judge_failing(path, seed, at, steps)
            except Exception as error:  # whatever it is, it is what a person would meet after the fault
                yield f"--seed {seed} --failing {at}: {type(error).__name__}: {error}"


def _judge_failing(mountpoint: Path, seed: int, at: int, steps: int) -> None:
    promises = Promises()
    workload = Workload(mountpoint / str(at), seed, promises.mark, Disk())
    (mountpoint / recorder.FAILING).write_bytes(b"%d" % at)
    with suppress(CkptfsError, OSError):
        workload.run(steps)
    (mountpoint / recorder.FAILING).write_bytes(b"%d" % PLENTY)
    judge_mended(workload, promises, goes_on=False)


def _judge(mountpoint: Path, seed: int, room: int, steps: int) -> None:
    promises = Promises()
    workload = Workload(mountpoint / str(room), seed, promises.mark, Disk(), reserve=True)
    give_room(mountpoint, room)
    try:
        workload.run(steps)
    except NoSpaceError:
        if workload.is_open:
            judge_snapshots(workload.tree, workload.states[max(promises.first, 0) : promises.last + 1])
    give_room(mountpoint, PLENTY)
    judge_mended(workload, promises, goes_on=True)
