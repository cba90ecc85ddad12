"""Versions of a mounted tree: when automatic snapshots happen, and what the kernel must hear of a rollback.

Before any snapshot the logs (files that are only appended to) are taken as they stand: what the kernel still holds
of them is fetched, stored and committed.
"""

import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any

import pyfuse3
import trio

from ckptfs.errors import CkptfsError, UsageError
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.nodes import Node, Nodes
from ckptfs.mount.offload import Offload
from ckptfs.mount.protocol import Request
from ckptfs.retention import Policy, is_named, parse_policy
from ckptfs.tree import Commands, Tree
from ckptfs.tree.commands import COUNTED_TABLES, Answer, describe
from ckptfs.tree.rollback import RollbackResult
from ckptfs.tree.rows import LIVE
from ckptfs.tree.snapshots import Snapshot

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


class MountedVersions:
    """The versions of one mounted tree."""

    def __init__(
        self,
        tree: Tree,
        nodes: Nodes,
        jobs: Jobs,
        committer: Committer,
        collector: Collector,
        offload: Offload,
        settle: float,
        policy: Policy | None,
        policy_when_full: Policy | None,
    ) -> None:
        self._tree = tree
        self._nodes = nodes
        self._jobs = jobs
        self._committer = committer
        self._collector = collector
        self._offload = offload
        self._settle = settle
        self._policy = policy
        self._policy_when_full = policy_when_full
        self._commands = Commands(tree)
        self._due_sooner = trio.Event()
        self._asleep_until = math.inf

    def touched(self) -> None:
        """Note that the tree has changed, so that journal and automatic snapshot follow."""
        self._committer.wake()
        # Due at the earliest after `settle`; what is open now is looked at by `run`, not at every change.
        if self._tree.epoch.pending and trio.current_time() + self._settle < self._asleep_until:
            self._due_sooner.set()

    def _due_in(self) -> float:
        """Return the seconds until an automatic snapshot is due, infinity where nothing asks for one."""
        due = self._tree.epoch.due_in(self._settle, self._tree.files.unfinished_since())
        return math.inf if due is None else due

    async def run(self) -> None:
        """Take an automatic snapshot whenever one is due, for ever."""
        while True:
            due = self._due_in()
            if due == 0:
                await self._take_automatic()
                continue
            self._due_sooner = trio.Event()
            self._asleep_until = trio.current_time() + due
            with trio.move_on_at(self._asleep_until):
                await self._due_sooner.wait()

    async def _take_automatic(self) -> None:
        try:
            await self._commit_logs()
            if self._tree.epoch.pending:
                self._report(self._tree.take_snapshot(trigger="auto"))
                await self._prune()
            await self._committer.commit(durable=True)
        except (CkptfsError, OSError) as error:
            log.error("the automatic snapshot is not durable yet: %s", error)
            await trio.sleep(RETRY_SECONDS)

    async def _prune(self) -> None:
        """Delete the versions that the policy of the mount does not keep."""
        if self._policy is not None:
            await self._delete(self._policy.removable(self._tree.snapshots.all()))

    async def _delete(self, snapshots: Iterable[Snapshot], why: str = "") -> None:
        """Delete snapshots, however many, in steps between which the loop answers others and the journal follows."""
        for snapshot in self._tree.snapshots.in_turn(snapshots):
            for _ in self._tree.snapshots.deletion(snapshot):
                await self._committer.keep_up()
            log.info("snapshot %d %s deleted%s", snapshot.id, snapshot.name, why)

    async def give_up(self, count: int) -> int:
        """Delete up to `count` versions because the disk is full, oldest automatic ones first; return how many.

        Versions that the policy for this case keeps stay, and so do those with a name or a label in any case.
        """
        if self._policy_when_full is None:
            return 0
        removable = [
            each for each in self._policy_when_full.removable(self._tree.snapshots.all()) if not is_named(each)
        ]
        removable.sort(key=lambda snapshot: (snapshot.trigger != "auto", snapshot.id))
        await self._delete(removable[:count], ", the disk is full")
        return len(removable[:count])

    @staticmethod
    def _report(snapshot: Snapshot) -> None:
        paths = ", ".join(snapshot.paths)
        log.info("snapshot %d %s: %d files changed: %s", snapshot.id, snapshot.name, snapshot.changed_files, paths)

    async def _commit_logs(self) -> None:
        for file in self._tree.files:
            if file.appended and not file.unlinked:
                await self._jobs.drain(file)
                if file.dirty and file.content.settled and not file.interrupted and file.error is None:
                    self._tree.files.commit(file)

    async def create(self, name: str) -> int:
        """Take a named snapshot of the present, durably, and return its id."""
        await self._commit_logs()
        snapshot = self._tree.take_snapshot(name)
        self._report(snapshot)
        await self._committer.commit(durable=True)
        return snapshot.id

    async def delete(self, name: str) -> None:
        """Delete the snapshot of this name, durably."""
        await self._delete([self._tree.snapshots.resolve(name)])
        await self._committer.commit(durable=True)

    async def carry_out(self, request: Request) -> Any:
        """Carry out a command of the control socket; what it changed is durable when this returns."""
        if request.command == "gc":
            return await self._gc(request)
        command = getattr(self._commands, request.command, None)
        if command is None or request.command not in COMMANDS:
            raise UsageError(f"the mount process knows no command {request.command!r}; is it of another version?")
        changing = request.command in CHANGING and not request.arguments.get("dry_run")
        if changing or request.command == "backup_cut":
            await self._commit_logs()
        if request.command == "backup_cut":
            await self._committer.commit(durable=True)
            # What is superseded is named in the journal then, and the index of the backup has all of it.
            await self._committer.checkpoint()
        result: Any
        try:
            if request.command in CHECKING:
                return await self._check(command, request)
            if request.command == "stats":
                return await self._stats()
            if request.command == "snapshot_list":
                return await self._described(self._commands.listed(**request.arguments))
            if request.command in DELETING:
                result = await self._delete_chosen(request)
            else:
                result = command(**request.arguments)
        except TypeError as error:
            raise UsageError(f"{request.command}: {error}") from error
        if changing:
            log.info("%s %s", request.command, request.arguments)
            await self._committer.commit(durable=True)
            if request.command == "snapshot_rollback":
                await self._forget_content(self._commands.last_rollback, result["saved"]["id"])
        return result

    async def _delete_chosen(self, request: Request) -> list[Answer]:
        """Delete the snapshots that a command is about, unless it is a dry run; return what they are or were."""
        match request:
            case Request("snapshot_delete", {"refs": list(refs)}):
                snapshots = self._commands.referred(refs)
            case Request("prune", {"policy": str(text)}):
                policy = parse_policy(text)
                snapshots = await self._offload.run(policy.removable, self._tree.snapshots.all())
            case _:
                raise UsageError(f"{request.command}: it is not said what to delete")
        if not request.arguments.get("dry_run"):
            await self._delete(snapshots)
        return await self._described(snapshots)

    async def _described(self, snapshots: list[Snapshot]) -> list[Answer]:
        """Describe snapshots, however many."""
        return await self._offload.run(lambda: [describe(snapshot) for snapshot in snapshots])

    async def _stats(self) -> Answer:
        """Return the figures of the store; what is to be counted is counted in a thread."""
        with self._tree.store.view(COUNTED_TABLES, chunks=False) as view:
            figures = await self._offload.run(self._commands.begin_stats(), view)
        return figures | {"buffered_bytes": self._jobs.buffered}

    async def _gc(self, request: Request) -> Any:
        match request.arguments:
            case {"dry_run": bool(dry_run)}:
                collected = await (self._collector.preview() if dry_run else self._collector.collect_part())
                return collected._asdict()
        raise UsageError("gc: it is not said whether this is a dry run")

    async def _check(self, command: Callable[..., Any], request: Request) -> Any:
        """Carry out a command that reads much, in a thread and, where it reads rows, of this moment."""
        if request.command in ("check_data", "check_journal"):
            return await self._offload.run(command, **request.arguments)
        async with self._committer.view() as view:
            return await self._offload.run(command, **request.arguments, view=view)

    async def _forget_content(self, rollback: RollbackResult | None, saved: int) -> None:
        """Make the kernel ask again for everything that a rollback changed."""
        assert rollback is not None
        for ino in rollback.changed_inos:
            self._nodes.retire(ino, saved)
        parents = {parent for parent, _ in rollback.entries}
        entries = [(self._nodes.node_id(Node(parent, LIVE)), name) for parent, name in rollback.entries]
        directories = [self._nodes.node_id(Node(ino, LIVE)) for ino in parents]
        told: Future[None] = Future()
        Thread(target=_tell_kernel, args=(entries, directories, told), daemon=True).start()
        # The kernel tells at once of each inode that it forgets. Were the loop to listen, it and the thread would take
        # the interpreter from each other a thousand times; but for longer it must not stand still.
        try:
            told.result(STANDSTILL_SECONDS)
        except TimeoutError:
            await trio.to_thread.run_sync(told.result)


DELETING = ("snapshot_delete", "prune")
CHANGING = ("snapshot_create", "snapshot_rollback", *DELETING)
STANDSTILL_SECONDS = 0.02
"""For so long the loop stands still while the kernel is told of a rollback, which may make it wait."""
CHECKING = ("snapshot_sizes", "composition", "check_structure", "check_data", "check_journal", "check_files")
COMMANDS = ("snapshot_list", "snapshot_show", "sizes_are_quick", "stats", "backup_cut", *CHANGING, *CHECKING)


def _tell_kernel(entries: Iterable[tuple[int, bytes]], directories: Iterable[int], told: Future[None]) -> None:
    """Carry out `_invalidate`, and say when it is done."""
    try:
        _invalidate(entries, directories)
    except BaseException as error:  # whatever it is: somebody waits
        told.set_exception(error)
    else:
        told.set_result(None)


def _invalidate(entries: Iterable[tuple[int, bytes]], directories: Iterable[int]) -> None:
    """Drop the kernel's knowledge of names and of directories' attributes; runs in a thread, since it can wait."""
    for parent, name in entries:
        with suppress(FileNotFoundError):  # the kernel does not know it
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
    for directory in directories:
        with suppress(FileNotFoundError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(directory), attr_only=True)
