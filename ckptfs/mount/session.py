"""One mount, from opening the store to its clean end: the door to the kernel.

Owns the trio loop. The mount ends when it is unmounted from outside or on SIGTERM or SIGINT; either way everything
accepted is made durable before the store is let go. A kill -9 loses what was not closed yet, and nothing else.
"""

import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from ckptfs.config import MIB
from ckptfs.errors import FuseError
from ckptfs.mount import control, notify, protocol
from ckptfs.mount.accesstimes import AccessTimes
from ckptfs.mount.collector import Collector
from ckptfs.mount.committer import Committer
from ckptfs.mount.handles import Handles
from ckptfs.mount.idle import Idle
from ckptfs.mount.jobs import Jobs
from ckptfs.mount.nodes import Node, Nodes
from ckptfs.mount.offload import Offload
from ckptfs.mount.operations import Operations
from ckptfs.mount.options import MountOptions
from ckptfs.mount.protocol import Request
from ckptfs.mount.readahead import ReadAhead, raise_kernel_readahead
from ckptfs.mount.room import Room
from ckptfs.mount.versions import MountedVersions
from ckptfs.retention import parse_policy
from ckptfs.store import ChunkStore, kernels
from ckptfs.tree import Tree
from ckptfs.tree.rows import LIVE

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0002
"""How long a thread may hold the interpreter while another waits: a worker must not delay the loop's replies."""


RESTART_SECONDS = 5.0
MALLOC_OPTIONS = ((-3, 16 * MIB), (-1, 128 * MIB))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: each write request is 1 MiB of memory, which glibc would map and unmap."""


def run(options: MountOptions, ready: Callable[[], None]) -> None:
    """Open the store, mount it, call `ready` once it is usable, and return after it was unmounted.

    StoreInUseError, NotAStoreError, StoreVersionError, StoreReadOnlyError, DamagedError, FuseError.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # only glibc has it, and only glibc needs it
        for option in MALLOC_OPTIONS:
            mallopt(*option)
    if kernels.IS_SLOW:
        log.warning("saving will be some hundred times slower than it could be, the kernel is %s", kernels.NAME)
    with ChunkStore.open(Path(options.store), read_only=options.read_only) as store:
        if not options.read_only:
            store.hold_reserve()
        session = _Session(options, store, ready)
        gc.freeze()  # looking through all modules and versions for garbage holds up the loop for tens of milliseconds
        try:
            trio.run(session.run)
        except BaseExceptionGroup as group:
            raise _only_error(group) from group


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that took the tasks down, or the group of several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _keep_running(task: Callable[[], Awaitable[None]]) -> None:
    """Run a task that never ends; a bug in it is logged and must not take the mount down."""
    while True:
        try:
            await task()
        except Exception:
            log.exception("a bug, or a failure nobody foresaw, in the background; starting again")
            await trio.sleep(RESTART_SECONDS)


class _Session:
    """The parts of a mount and how they begin and end together."""

    def __init__(self, options: MountOptions, store: ChunkStore, ready: Callable[[], None]) -> None:
        self._options = options
        self._store = store
        self._ready = ready
        self._tree = Tree(store)
        self._nodes = Nodes(self._tree)
        self._began = time.monotonic()

    async def run(self) -> None:
        async with trio.open_nursery() as work:
            offload = Offload()
            self._jobs = Jobs(self._tree, work)
            self._committer = Committer(self._store, offload)
            collector = Collector(self._tree, self._jobs, self._committer, offload)
            policy = parse_policy(self._options.keep) if self._options.keep else None
            self._versions = MountedVersions(
                *(self._tree, self._nodes, self._jobs, self._committer, collector, offload),
                self._options.settle,
                None if self._options.prune_when_full else policy,
                policy if self._options.prune_when_full else None,
            )
            self._idle = idle = Idle(
                *(self._tree, collector, self._committer, offload), optimizing=self._options.optimize
            )
            readahead = ReadAhead(self._tree.reader, work)
            access_times = AccessTimes(self._tree)
            room = Room(self._tree, self._jobs, collector, self._versions.give_up)
            handles = Handles(
                *(self._tree, self._jobs, self._committer, offload, readahead, access_times),
                room,
                self._versions.touched,
                idle.busy,
            )
            operations = Operations(
                self._tree, self._nodes, handles, access_times, self._committer, self._versions, room
            )
            listener = self._listen()
            try:
                self._mount(operations)
                try:
                    async with trio.open_nursery() as service:
                        service.start_soon(self._stop_on_signal)
                        if listener is not None:
                            service.start_soon(control.serve, listener, self._carry_out)
                        if not self._options.read_only:
                            for task in (self._committer.run, self._versions.run, idle.run):
                                service.start_soon(_keep_running, task)
                        service.start_soon(self._announce, operations.begun)
                        await pyfuse3.main()
                        service.cancel_scope.cancel()
                finally:
                    pyfuse3.close(unmount=True)
            finally:
                if listener is not None:
                    listener.close()
                    with protocol.control_address(self._options.store) as address, suppress(OSError):
                        os.unlink(address)
            notify.stopping(f"{self._options.mountpoint} is unmounted, writing the last of it")
            if not self._options.read_only:
                await self._finish()

    def _listen(self) -> socket.socket | None:
        """Return the listening control socket; None on a read-only disk, where commands read the store themselves."""
        try:
            return protocol.listen(self._options.store)
        except OSError as error:
            if self._options.read_only and error.errno == errno.EROFS:
                return None
            raise

    def _mount(self, operations: Operations) -> None:
        options = set(pyfuse3.default_options)
        source = self._options.store.replace("\\", "\\\\").replace(",", "\\,")
        options |= {f"fsname={source}", "subtype=ckptfs"}
        options |= {"allow_other"} if self._options.allow_other else set()
        options |= {"ro"} if self._options.read_only else set()
        try:
            pyfuse3.init(operations, self._options.mountpoint, options)
        except RuntimeError as error:
            raise FuseError(f"{self._options.mountpoint} cannot be mounted; the system's reason is above") from error

    async def _announce(self, begun: trio.Event) -> None:
        await begun.wait()  # the kernel sets its readahead when it gets the answer, which has been sent by now
        raise_kernel_readahead(self._options.mountpoint)
        self._ready()

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("%s: unmounting %s", signal.Signals(number).name, self._options.mountpoint)
                notify.stopping(f"unmounting {self._options.mountpoint}")
                await self._fetch_dirty_pages()
                pyfuse3.terminate()
                return

    async def _fetch_dirty_pages(self) -> None:
        """Make the kernel send what it still holds of open files: after the unmount it cannot."""
        for file in self._tree.files:
            if file.writers:
                node_id = pyfuse3.InodeT(self._nodes.node_id(Node(file.ino, LIVE)))
                with suppress(OSError):
                    await trio.to_thread.run_sync(pyfuse3.invalidate_inode, node_id)

    async def _carry_out(self, request: Request) -> Any:
        if request == Request("optimize", {}):
            return (await self._idle.optimize())._asdict()
        result = await self._versions.carry_out(request)
        if request.command == "stats":
            result |= {
                "mountpoint": self._options.mountpoint,
                "pid": os.getpid(),
                "uptime_seconds": round(time.monotonic() - self._began, 1),
            }
        return result

    async def _finish(self) -> None:
        """Commit what is open still, take the snapshot that is due, and bring the index up to everything."""
        for file in self._tree.files:
            file.interrupted = file.interrupted or (file.dirty and not file.appended)
            await self._jobs.drain(file)
            self._tree.files.commit(file)
        if self._tree.epoch.pending:
            self._tree.take_snapshot(trigger="auto")
        await self._committer.checkpoint()
