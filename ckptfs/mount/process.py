"""Which process writes, whether a signal is killing it, and whether it has closed a file.

A dying process's files are closed by the kernel, which looks like a normal close; but the process still waits for
its `flush`, and field 9 of its `/proc/PID/stat` shows PF_SIGNALED. A `flush` also comes when a forked child closes
what it inherited; the file is closed for good when the process that opened it does not have it open any more.
"""

import os

PF_SIGNALED = 0x400
DESCRIPTORS_MAX = 1024
"""More open files than this are not searched: the answer would take too long."""


def process_of_thread(thread: int) -> int:
    """Return the process id (Tgid) of a thread id, 0 where it is of another PID namespace or gone."""
    if thread <= 0:
        return 0
    for line in _read(f"/proc/{thread}/status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    return 0


def is_killed(process: int) -> bool:
    """Whether a process is being ended by a signal; false for an unknown one."""
    if process <= 0:
        return False
    fields = _read(f"/proc/{process}/stat").rpartition(b")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & PF_SIGNALED)


def has_closed(process: int, path: str) -> bool:
    """Whether a process, which `flush` keeps waiting, has no file open whose path ends in `path`; false if unknown."""
    if process <= 0:
        return False
    directory = f"/proc/{process}/fd"
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return False
    if len(descriptors) > DESCRIPTORS_MAX:
        return False
    return not any(_target(f"{directory}/{descriptor}").endswith(f"/{path}") for descriptor in descriptors)


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # answered from the kernel's memory: no request reaches a filesystem
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
