"""What is done for many versions holds up the loop of a mount for some hundred rows at a time, however many there are.

Counted, and not timed: the rows that the loop's thread reads or changes between two of its turns.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ckptfs.config import MIB
from ckptfs.mount import collector, committer, idle
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.nodes import Nodes
from ckptfs.mount.offload import Offload
from ckptfs.mount.protocol import Request
from ckptfs.mount.versions import MountedVersions
from ckptfs.store import ChunkStore
from ckptfs.store.reader import View
from ckptfs.store.tables import Tables
from ckptfs.tree import Tree
from ckptfs.tree.optimize import VERSION_SIZE_MIN, uncompared_bytes
from tests.unit.tree_support import CONFIG, NoSyncDisk, save

FILES = 300
VERSIONS = 1000
ROWS_MAX = 400
"""In one turn; a thousand are deleted at a time here."""
ROWS_PER_STEP = 50
"""Of a collection, so that there are many steps here."""
PRUNE_ROWS_MAX = 20 * VERSIONS
"""In all turns: some ten rows for each version. Another look at what every file has, for each version, would be a
hundred times as much."""
PARTS_MAX = 20
"""One or two are enough on a machine that has nothing else to do."""


class Meter(trio.abc.Instrument):
    """Counts rows that a thread goes through, and remembers the most of one turn of its loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self.count = self.total = 0
        self._thread = threading.get_ident()
        for name in ("get", "last", "put", "delete"):
            monkeypatch.setattr(Tables, name, self._counted(getattr(Tables, name)))
        monkeypatch.setattr(Tables, "scan", self._counted_each(Tables.scan))
        monkeypatch.setattr(View, "scan", self._counted_each(View.scan))
        taken = Tables.take_changes

        def take_changes(tables: Tables) -> Any:
            changes = taken(tables)
            self._add(len(changes.rows))
            return changes

        monkeypatch.setattr(Tables, "take_changes", take_changes)

    def _add(self, count: int) -> None:
        if threading.get_ident() == self._thread:
            self.count += count

    def _counted(self, method: Any) -> Any:
        def counted(*args: Any) -> Any:
            self._add(1)
            return method(*args)

        return counted

    def _counted_each(self, method: Any) -> Any:
        def counted(*args: Any) -> Iterator[Any]:
            for row in method(*args):
                self._add(1)
                yield row

        return counted

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.count)
        self.total += self.count


def test_no_command_about_many_versions_holds_up_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChunkStore.create(tmp_path / "store", disk=NoSyncDisk(), config=CONFIG) as store:
        tree = Tree(store)
        for number in range(FILES):
            save(tree, f"file-{number}", b"%d" % number)
        for number in range(VERSIONS):
            save(tree, "last.txt", b"%d" % number)
            tree.take_snapshot(f"step-{number}")
        store.commit(checkpoint=True)
        meter = Meter(monkeypatch)
        monkeypatch.setattr(collector, "ROWS_PER_STEP", ROWS_PER_STEP)
        monkeypatch.setattr(committer, "JOURNAL_SECONDS", 0)
        most: dict[str, list[int]] = {}
        totals: dict[str, int] = {}

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                offload, jobs = Offload(), Jobs(tree, nursery)
                committing = Committer(store, offload)
                nursery.start_soon(committing.run)
                collecting = Collector(tree, jobs, committing, offload)
                versions = MountedVersions(tree, Nodes(tree), jobs, committing, collecting, offload, 60, None, None)
                working = idle.Idle(tree, collecting, committing, offload, optimizing=True)
                half = [f"step-{number}" for number in range(0, VERSIONS, 2)]
                for request in (
                    Request("stats", {}),
                    Request("snapshot_list", {"path": ""}),
                    Request("snapshot_sizes", {}),
                    Request("snapshot_delete", {"refs": half}),
                    Request("gc", {"dry_run": False}),
                    Request("prune", {"policy": "last=3,named=no", "dry_run": True}),
                    Request("prune", {"policy": "last=3,named=no", "dry_run": False}),
                    Request("gc", {"dry_run": True}),
                    Request("gc", {"dry_run": False}),
                ):
                    meter.most = meter.total = 0
                    await versions.carry_out(request)
                    most.setdefault(request.command, []).append(meter.most)
                    totals[request.command] = meter.total
                meter.most = 0
                while not (await working.optimize()).finished:
                    pass
                most["optimize"] = [meter.most]
                nursery.cancel_scope.cancel()

        trio.run(run, instruments=[meter])
        print(most, totals)
        assert len(tree.snapshots) == 3
        assert max(max(rows) for rows in most.values()) <= ROWS_MAX
        assert totals["prune"] <= PRUNE_ROWS_MAX


def test_optimizing_ends_while_somebody_goes_on_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "PART_SECONDS", 0.5)
    with ChunkStore.create(tmp_path / "store", disk=NoSyncDisk()) as store:
        tree = Tree(store)
        for _ in range(3):
            save(tree, "last.bin", os.urandom(MIB))
            tree.take_snapshot()

        async def save_on() -> None:
            while True:
                save(tree, "log", os.urandom(2 * VERSION_SIZE_MIN))
                await trio.to_thread.run_sync(int)  # as in a mount, the interpreter is free now and then

        async def run() -> int:
            async with trio.open_nursery() as nursery:
                offload = Offload()
                committing = Committer(store, offload)
                collecting = Collector(tree, Jobs(tree, nursery), committing, offload)
                working = idle.Idle(tree, collecting, committing, offload, optimizing=True)
                nursery.start_soon(save_on)
                parts = 1
                while not (await working.optimize()).finished and parts < PARTS_MAX:
                    parts += 1
                nursery.cancel_scope.cancel()
            return parts

        assert trio.run(run) < PARTS_MAX
        assert not uncompared_bytes(tree)
