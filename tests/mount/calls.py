"""Calls on a directory with one of each, and what comes of them: to do the same on ckptfs and on the disk below."""

import ctypes
import errno
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
CLOCK_REALTIME_COARSE = 5

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR

T = TypeVar("T")
Act = Callable[[], object]

_libc = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *args: object) -> int:
    """Call a function of the C library that `os` does not offer; OSError where it fails."""
    done = int(getattr(_libc, name)(*args))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def in_child(act: Act) -> int:
    """Do something in a child; return the errno that it fails with, or 0."""
    pid = os.fork()
    if not pid:
        code = 255
        try:
            act()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limited(size_max: int, act: Act) -> int:
    """Do something in a child whose files may have so many bytes at most, as `in_child` does."""

    def limit_and_act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_max, size_max))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        act()

    return in_child(limit_and_act)


def renameat2(old: str, new: str, flags: int) -> None:
    """Rename with flags."""
    libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """Allocate or free a range of a file."""
    libc("fallocate", fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(size))


def opened(path: str, flags: int, act: Callable[[int], T] = lambda fd: None) -> T:
    """Open, do something with the file descriptor, and close it."""
    fd = os.open(path, flags)
    try:
        return act(fd)
    finally:
        os.close(fd)


def furnish() -> None:
    """Fill the current directory with one of each."""
    Path("file").write_bytes(b"content")
    Path("other").write_bytes(b"other")
    Path("empty").mkdir()
    Path("full/below").mkdir(parents=True)
    Path("full/file").touch()
    Path("link").symlink_to("file")
    Path("to-dir").symlink_to("full")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")


def outcome(act: Act) -> object:
    """Return what a call returns, or the name of the errno that it fails with."""
    try:
        return act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def outcomes(place: Path, acts: Mapping[str, Act]) -> dict[str, object]:
    """Return what comes of each act, done in a furnished directory of its own in `place`."""
    found: dict[str, object] = {}
    before = Path.cwd()
    for name, act in acts.items():
        room = place / "room"
        room.mkdir()
        os.chdir(room)
        try:
            furnish()
            found[name] = outcome(act)
        finally:
            os.chdir(before)
            shutil.rmtree(room)
    return found


def wait_for_the_clock() -> None:
    """Return when the clock that a filesystem takes its times from has gone on."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        pass


def moved_times(paths: str, act: Act) -> str:
    """Return which of a(ccess), m(odification), c(hange) time and n(umber of links) an act changes, for each path.

    Before it the access time is older than the others.
    """
    for path in paths.split():
        os.utime(path, ns=(10**18, 10**18 + 5), follow_symlinks=False)
    wait_for_the_clock()
    before = {path: os.lstat(path) for path in paths.split()}
    wait_for_the_clock()
    outcome(act)
    found = []
    for path, old in before.items():
        if not os.path.lexists(path):
            found.append(f"{path}: gone")
            continue
        now = os.lstat(path)
        fields = {"a": "st_atime_ns", "m": "st_mtime_ns", "c": "st_ctime_ns", "n": "st_nlink"}
        moved = "".join(letter for letter, field in fields.items() if getattr(now, field) != getattr(old, field))
        found.append(f"{path}:{moved}")
    return " ".join(found)
