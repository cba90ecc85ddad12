"""Which mount or store a command speaks to, and how.

Owns the meaning of PATH on the command line and the choice between the two sides of every command: the mount process
that has the store open, or the store itself when nothing is mounted. Refuses to know what the commands do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ckptfs.errors import DaemonError, NoMountError, UsageError
from ckptfs.mount import mountinfo

if TYPE_CHECKING:
    from ckptfs.mount.protocol import Commands

SNAPSHOTS_NAME = ".snapshots"
STORE_FILE = "store.json"
STORE_SUFFIX = ".store"


class Target(NamedTuple):
    """A store, the mountpoint that shows it (None: not mounted), and a path below the root of its tree ("" = root)."""

    store: str
    mountpoint: str | None = None
    path: str = ""


def find(path: str | None) -> Target:
    """Return what PATH means; without one the mount of the current directory, or else the only one there is.

    A path in a mount need not exist: it may be a directory that only older versions have.
    NoMountError when there is no mount or store; UsageError for a path in a snapshot.
    """
    return _only() if path is None else _named(path)


def find_mountpoint(path: str | None) -> str:
    """Return the mountpoint of the ckptfs that PATH is, or of the one that `find` takes without it.

    The mount is not looked into: it may be dead. NoMountError when PATH is not a mountpoint.
    """
    if path is None:
        mountpoint = _only().mountpoint
        assert mountpoint is not None, "without a path only mounts are found"
        return mountpoint
    mountpoint = mountinfo.resolve_mountpoint(path)
    mount = mountinfo.mount_at(mountpoint)
    if mount and mount.is_ckptfs:
        return mountpoint
    around = mountinfo.mount_of(mountpoint)
    if around and around.is_ckptfs:
        raise NoMountError(f"{path} is not a mountpoint; the ckptfs that it lies in is {around.mountpoint}")
    raise NoMountError(f"{path} is not a ckptfs mount{_candidates()}")


@contextmanager
def commands(target: Target, *, write: bool) -> Iterator["Commands"]:
    """Give the commands of a target's store; `write` says whether they will change it."""
    # What either side takes is brought in only now: `mount` and `umount` need none of it.
    if target.mountpoint is not None:
        from ckptfs.mount.client import Client

        _barrier(target.mountpoint, target.store)
        if not _is_frozen(target.store):
            yield Client(target.store)
            return
    from ckptfs.store import ChunkStore
    from ckptfs.tree import Commands as StoreCommands
    from ckptfs.tree import Tree

    # Leaving the store commits what was done; a command that failed leaves it as it was.
    with ChunkStore.open(Path(target.store), read_only=not write) as store:
        yield cast("Commands", StoreCommands(Tree(store)))


def _is_frozen(store: str) -> bool:
    """Tell whether a store is on a read-only disk on which its mount process could not make a control socket."""
    from ckptfs.mount.protocol import SOCKET_NAME

    has_socket = os.path.lexists(os.path.join(store, SOCKET_NAME))
    return not has_socket and bool(os.statvfs(store).f_flag & os.ST_RDONLY)


def _barrier(mountpoint: str, store: str) -> None:
    """Wait until the mount process has got every close() that returned before this call.

    The control socket could overtake the kernel's requests. A statvfs is answered by the mount process behind them,
    so a save that ended before this command was typed is known to it when the command arrives.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        from ckptfs.mount.unmount import is_dead

        if is_dead(mountpoint):
            option = "" if store == default_store(mountpoint) else f" --store {store}"
            raise DaemonError(
                f"the mount on {mountpoint} is dead, its process was killed; "
                f"`ckptfs mount {mountpoint}{option}` brings it back, `ckptfs umount {mountpoint}` clears it"
            ) from error
        raise DaemonError(f"the mount on {mountpoint} does not answer: {error.strerror}") from error


def _named(path: str) -> Target:
    mountpoint = mountinfo.resolve_mountpoint(path)
    mount = mountinfo.mount_at(mountpoint)
    real = mountpoint if mount else os.path.realpath(path)
    mount = mount or mountinfo.mount_of(real)
    if mount and mount.is_ckptfs:
        inner = mount.inner(real)
        if mountinfo.is_below("/" + inner, "/" + SNAPSHOTS_NAME):
            raise UsageError(f"{path} is in a snapshot, which never changes; name the directory in the live tree")
        return Target(mount.source, mount.mountpoint, inner)
    if is_store(real):
        mounts = mountinfo.mounts_of_store(real)
        return Target(real, mounts[0].mountpoint if mounts else None)
    store = default_store(real)
    if is_store(store):
        raise NoMountError(f"{path} is not mounted now; `ckptfs mount {path}` mounts it, and its store is {store}")
    raise NoMountError(f"{path} is neither in a ckptfs mount nor a store{_candidates()}")


def is_store(path: str) -> bool:
    """Tell whether a directory looks like a store; opening it says whether it is one."""
    return os.path.isfile(os.path.join(path, STORE_FILE))


def default_store(mountpoint: str) -> str:
    """Return the store that a mountpoint has when none is named: next to it, with the suffix `.store`."""
    return mountpoint.rstrip("/") + STORE_SUFFIX


def _only() -> Target:
    try:
        here = mountinfo.mount_of(os.getcwd())
    except OSError:  # the current directory was removed, or its mount is dead
        here = None
    if here and here.is_ckptfs:
        return Target(here.source, here.mountpoint)
    by_store = {mount.source: mount for mount in reversed(mountinfo.ckptfs_mounts())}
    if len(by_store) == 1:
        ((store, mount),) = by_store.items()
        return Target(store, mount.mountpoint)
    if not by_store:
        raise NoMountError("there is no ckptfs mount; name a store, or mount one with `ckptfs mount MOUNTPOINT`")
    raise NoMountError(f"the current directory is in no ckptfs mount, and there are several{_candidates()}")


def _candidates() -> str:
    """Return the mounts there are, ready to end a sentence with."""
    mounts = mountinfo.ckptfs_mounts()
    lines = "".join(f"\n  {mount.mountpoint}  (store {mount.source})" for mount in mounts)
    return f"; the mounts are:{lines}" if lines else ""
