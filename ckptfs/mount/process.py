"""Which process writes, whether a signal is killing it, and whether it has closed a file.

A dying process's files are closed by the kernel, which looks like a normal close; but the process still waits for
its `flush`, and field 9 of its `/proc/PID/stat` shows PF_SIGNALED. A `flush` also comes when a forked child closes
what it inherited; the file is closed for good when the process that opened it does not have it open any more.
"""

import os
from enum import Enum, auto

PF_SIGNALED = 0x400
DESCRIPTORS_MAX = 1024
"""More open files than this are not searched: the answer would take too long."""


class Close(Enum):
    """What a `flush` says of the process that opened the file."""

    FINAL = auto()
    """It has the file open no more."""
    KILLED = auto()
    """It is being ended by a signal."""
    UNCLEAR = auto()
    """It has the file open still, or cannot be looked at."""


def process_of_thread(thread: int) -> int:
    """Return the process id (Tgid) of a thread id, 0 where it is of another PID namespace or gone."""
    if thread <= 0:
        return 0
    try:
        os.close(os.pidfd_open(thread))
    except OSError:  # it is not the first thread of its process
        for line in _read(f"/proc/{thread}/status").splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
        return 0
    return thread


def look(process: int, path: str) -> Close:
    """Say how a process, which `flush` keeps waiting, closes the file whose path in the mount is `path`."""
    if process <= 0:
        return Close.UNCLEAR
    try:
        directory = os.open(f"/proc/{process}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return Close.KILLED if _is_killed(process) else Close.UNCLEAR
    try:
        descriptors = os.listdir(directory)
        # The kernel closes the files of a process that ends when it has taken them all from it.
        if not descriptors and _is_killed(process):
            return Close.KILLED
        if len(descriptors) > DESCRIPTORS_MAX:
            return Close.UNCLEAR
        ending = f"/{path}"
        has_it_open = any(_target(descriptor, directory).endswith(ending) for descriptor in descriptors)
        return Close.UNCLEAR if has_it_open else Close.FINAL
    except OSError:
        return Close.UNCLEAR
    finally:
        os.close(directory)


def _is_killed(process: int) -> bool:
    fields = _read(f"/proc/{process}/stat").rpartition(b")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & PF_SIGNALED)


def _target(link: str, directory: int) -> str:
    try:
        return os.readlink(link, dir_fd=directory)  # the kernel's memory answers: no request reaches a filesystem
    except OSError:
        return ""


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
