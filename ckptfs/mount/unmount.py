"""Taking a mount down, and what stands in its way: dead mounts, and processes that use it.

Runs `fusermount3`, which needs no privileges, or umount(8) where there is no fusermount3. Never looks into the mount
while searching for its users: it reads links and maps in /proc only, so a mount process that hangs cannot stop it.
"""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ckptfs.disk import Disk
from ckptfs.errors import BusyError, CkptfsError, FuseError, NotAStoreError, StoreInUseError
from ckptfs.lock import StoreLock
from ckptfs.mount import mountinfo

USERS_NAMED_MAX = 5
FUSERMOUNT = "fusermount3"
POLL_SECONDS = 0.01
SLOW_SECONDS = 2.0

_DEAD = {errno.ENOTCONN, errno.ECONNABORTED}


class User(NamedTuple):
    """A process that keeps a mount busy, and by what: `its directory`, `an open file`, ..."""

    pid: int
    name: str
    how: str


def is_dead(mountpoint: str) -> bool:
    """Tell whether the process behind the FUSE mount on this mountpoint is gone."""
    try:
        # Not stat: the kernel answers that from its cache for as long as the dead process allowed.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in _DEAD
    return False


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Take down the mount on an absolute path; `lazy` detaches it whoever uses it, which is right for a dead one.

    Returns when the kernel has let it go; its process may still be writing then. BusyError names who uses it.
    """
    if shutil.which(FUSERMOUNT):
        command = [FUSERMOUNT, "-uz" if lazy else "-u", "--", mountpoint]
    elif os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), "--", mountpoint]
    else:
        raise FuseError(f"{FUSERMOUNT} was not found; install the package fuse3")
    # The C locale, because the reason of a failure is only in the words.
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}, cwd="/")
    if done.returncode == 0:
        return
    reason = os.fsdecode(done.stderr).strip() or f"{command[0]} failed with exit code {done.returncode}"
    if "busy" in reason:
        raise BusyError(busy_message(mountpoint))
    raise CkptfsError(f"{mountpoint} could not be unmounted: {reason}")


def wait_for_release(store: str, on_slow: Callable[[], None]) -> None:
    """Return when no mount process has the store open, or when it is mounted (again) and will not be released soon.

    Until then a mount process that lost its mount is still writing. `on_slow` is called once, after SLOW_SECONDS.
    """
    slow_at = time.monotonic() + SLOW_SECONDS
    while has_writer(store) and not mountinfo.mounts_of_store(store):
        if time.monotonic() >= slow_at:
            on_slow()
            slow_at = float("inf")
        time.sleep(POLL_SECONDS)


def has_finished(store: str) -> bool:
    """Tell whether the last writer of a store has brought everything into the index; true when another one is at it."""
    try:
        with StoreLock(Path(store), Disk(), shared=True) as lock:
            return lock.is_finished
    except (StoreInUseError, NotAStoreError, OSError):
        return True


def has_writer(store: str) -> bool:
    """Tell whether a writer has the store open; a store that is gone, or not ours to read, counts as closed."""
    try:
        StoreLock(Path(store), Disk(), shared=True).close()
    except StoreInUseError:
        return True
    except (NotAStoreError, OSError):
        return False
    return False


def busy_message(mountpoint: str) -> str:
    """Say who uses a mount, and what to do: up to USERS_NAMED_MAX processes, or the mounts inside it."""
    inner = [m.mountpoint for m in mountinfo.read() if m.mountpoint != mountpoint and _is_in(m.mountpoint, mountpoint)]
    if inner:
        return f"{mountpoint} is in use: unmount {', '.join(inner)} first"
    found = list(users(mountpoint))
    if not found:
        return f"{mountpoint} is in use by a process that this user may not see"
    named = ", ".join(f"{user.name} (pid {user.pid}, {user.how})" for user in found[:USERS_NAMED_MAX])
    more = f" and {len(found) - USERS_NAMED_MAX} more" if len(found) > USERS_NAMED_MAX else ""
    return f"{mountpoint} is in use by {named}{more}; end them, or let them leave it, and try again"


def users(mountpoint: str) -> Iterator[User]:
    """Yield the processes that use a mount, as far as this user may see them, in the order of their ids."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        # A process may end, or not be ours to look at, at any moment.
        with suppress(OSError):
            how = _use(pid, mountpoint)
            if how:
                with open(f"/proc/{pid}/comm", "rb") as file:
                    yield User(pid, os.fsdecode(file.read().strip()), how)


def _use(pid: int, mountpoint: str) -> str:
    """Return how a process uses a mount, or ""."""
    for link, how in (("cwd", "its current directory"), ("root", "its root"), ("exe", "its program")):
        with suppress(OSError):
            if _is_in(os.readlink(f"/proc/{pid}/{link}"), mountpoint):
                return how
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            if _is_in(path, mountpoint):
                return f"open file {path}"
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) > 5 and _is_in(os.fsdecode(fields[5]), mountpoint):
                return f"mapped file {os.fsdecode(fields[5])}"
    return ""


def _is_in(path: str, mountpoint: str) -> bool:
    return mountinfo.is_below(path, mountpoint)
