"""A mounted ckptfs whose daemon is killed while it optimizes, collects what nothing needs, or deletes versions.

Every round saves versions, begins a piece of work, kills the daemon when the store has changed so often as the seed
says, and mounts again: every version is what it was, a check finds nothing, and the same work goes on to its end.
"""

import os
import random
import signal
import stat
from collections.abc import Callable
from threading import Thread

import numpy as np

from ckptfs.errors import DaemonError
from ckptfs.mount.client import Client
from tests.mount.running import RunningMount

ELEMENTS = 1 << 18
"""Of the weights of a version, fp32: some eight chunks, each of which is a step of optimizing."""
VERSIONS = 3
"""So many are saved in a round; those of the round before are there, too."""
KEPT = 2
MARKS = 110
"""Files whose mode each version changes, so that deleting one takes more than one step."""
MARKS_STEP = 10
"""Every so many are looked at."""
OPTIONS = ("--no-optimize",)
SETTLE_SECONDS = 600


class KilledWork:
    """Rounds of work on one store, and what each of its versions has to show."""

    kinds = ("optimize", "gc", "prune")

    def __init__(self, mount: RunningMount, seed: int) -> None:
        """Mount, save, and do each kind of work once without a kill."""
        mount.mount(*OPTIONS, settle=SETTLE_SECONDS)
        self._mount = mount
        self._client = Client(str(mount.store))
        self._source = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._weights = self._noise.standard_normal(ELEMENTS, dtype=np.float32)
        self._number = 0
        self._versions: dict[str, tuple[bytes, int]] = {}
        """The model of each version, and the mode of the marks in it."""
        for number in range(MARKS):
            (mount.path / f"mark-{number}").touch()
        self._targets = {kind: self._watch(kind, None) + 1 for kind in self.kinds}
        """One more than the changes of the store that are seen while each kind of work is done.

        A busy machine shows fewer.
        """

    def kill_one(self, kind: str) -> bool:
        """Kill the daemon in the midst of some work and hold what must be there; False where the work had ended."""
        target = self._source.randrange(self._targets[kind])
        seen = self._watch(kind, target)
        if seen < target:
            self._targets[kind] = seen + 1
        self._mount.wait_for(self._mount.is_dead)
        self._mount.mount(*OPTIONS, settle=SETTLE_SECONDS)
        self._forget_deleted(kind)
        self._check()
        self._optimize()
        self._collect()
        stats = self._client.stats()
        assert stats["waiting_bytes"] == stats["uncompared_bytes"] == 0
        assert self._client.gc(dry_run=True)["chunks"] == 0
        self._check()
        return seen == target

    def _watch(self, kind: str, kill_at: int | None) -> int:
        """Save versions, begin work, kill the daemon at a change of the store; return how many were seen."""
        for _ in range(VERSIONS):
            self._save()
        work = self._begin(kind)
        thread = Thread(target=_unless_killed, args=[work])
        state, changes = self._state(kind), 0
        thread.start()
        while changes != kill_at and thread.is_alive():
            before, state = state, self._state(kind)
            changes += state != before
        if kill_at is not None:
            os.kill(self._mount.daemon, signal.SIGKILL)
        thread.join()
        if kill_at is None:
            self._forget_deleted(kind)
        return changes

    def _save(self) -> None:
        """Make a version of weights that have moved a little, and of other modes."""
        self._number += 1
        self._weights += self._noise.standard_normal(ELEMENTS, dtype=np.float32) * np.float32(1e-4)
        data, mode = self._weights.tobytes(), 0o600 | self._number % 64
        (self._mount.path / "model.bin").write_bytes(data)
        for number in range(MARKS):
            os.chmod(self._mount.path / f"mark-{number}", mode)
        self._versions[self._mount.snapshot(f"v{self._number}")] = data, mode

    def _begin(self, kind: str) -> Callable[[], object]:
        """Return the work that is to be watched; for a collection, versions are deleted before."""
        if kind == "optimize":
            return self._optimize
        if kind == "prune":
            return lambda: self._client.prune(f"last={KEPT},named=no", dry_run=False)
        for name in list(self._versions)[:-KEPT]:
            del self._versions[name]
            self._mount.at(name).rmdir()
        return self._collect

    def _optimize(self) -> None:
        while not self._client.optimize()["finished"]:
            pass

    def _collect(self) -> None:
        while not self._client.gc(dry_run=False)["finished"]:
            pass

    def _state(self, kind: str) -> object:
        """Return what is seen of the store from outside; of a prune, which versions there are."""
        if kind == "prune":
            try:
                return self._mount.versions()
            except OSError:  # it has just been killed
                return None
        files = [*(self._mount.store / "packs").iterdir(), self._mount.store / "index.lmdb"]
        return [(found.st_size, found.st_blocks, found.st_mtime_ns) for found in map(os.stat, files)]

    def _forget_deleted(self, kind: str) -> None:
        """Forget the versions that a prune has deleted, all or some of them where it was killed, and no other one."""
        there = self._mount.versions()
        gone = set(self._versions) - there
        assert there <= set(self._versions)
        assert gone <= set(list(self._versions)[:-KEPT] if kind == "prune" else ())
        for name in gone:
            del self._versions[name]

    def _check(self) -> None:
        """Compare every version with what was saved, and have the store checked."""
        for name, (data, mode) in self._versions.items():
            assert self._mount.at(name, "model.bin").read_bytes() == data, name
            for number in range(0, MARKS, MARKS_STEP):
                assert stat.S_IMODE(self._mount.at(name, f"mark-{number}").stat().st_mode) == mode, name
        assert not self._client.check_structure()["problems"]


def _unless_killed(work: Callable[[], object]) -> None:
    """Do some work to its end, but for that of the daemon."""
    try:
        work()
    except DaemonError:
        return
