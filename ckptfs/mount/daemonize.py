"""Starting a mount process in the background.

Owns both ends of the pipe through which a new mount process says that it is usable, or why it is not; refuses to know
what it does. The starter returns only when it knows: the mount is usable, or an error of `ckptfs.errors` that the
process gave, or DaemonError with the end of its log when it died without a word. A starter that is interrupted ends
the process it started.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckptfs.config import KIB
from ckptfs.errors import CkptfsError, DaemonError
from ckptfs.mount.protocol import decode_reply, encode_error, encode_result

READY_OPTION = "--ready-fd"
END_SECONDS = 10.0
TAIL_LINES = 20
TAIL_SIZE_MAX = 16 * KIB


class ReadyPipe:
    """The mount process's end of the pipe to its starter; without a starter (`fd` None) it says nothing.

    As a context it passes a CkptfsError on to the starter, if it comes before `ready`, and closes the pipe.
    """

    def __init__(self, fd: int | None) -> None:
        """Take over the writing end of the pipe."""
        self._fd = fd
        if fd is not None:
            # fusermount3 must not inherit it, or the starter would not see that this process is gone.
            os.set_inheritable(fd, False)

    @property
    def has_starter(self) -> bool:
        """Tell whether somebody still waits at the other end."""
        return self._fd is not None

    def ready(self) -> None:
        """Say that the mount is usable."""
        self._say(encode_result(None))

    def _say(self, line: bytes) -> None:
        if self._fd is not None:
            with suppress(BrokenPipeError):  # the starter may have been killed
                os.write(self._fd, line)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say(encode_error(error) if isinstance(error, CkptfsError) else b"")


def start(command: Sequence[str], log_path: str) -> None:
    """Run a command as a background process and return when it says that it is ready.

    The command gets one more argument, READY_OPTION with the pipe's file descriptor. It has a session of its own, runs
    in the root directory and leaves behind what it prints on standard error in the log.
    """
    reader, writer = os.pipe()
    with open(reader, "rb") as answers:
        try:
            with open(_log_or_null(log_path), "ab") as log:
                log_offset = log.tell()
                process = subprocess.Popen(
                    [*command, f"{READY_OPTION}={writer}"],
                    pass_fds=[writer],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                    # It shall find its modules where this process does, which may have been started as a script, with
                    # -m in a working tree, or with a PYTHONPATH that is relative.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
        finally:
            os.close(writer)
        try:
            answer = answers.readline()
        except BaseException:
            _end(process)
            raise
    try:
        if answer:
            decode_reply(answer)
    except CkptfsError:
        _end(process, patience_seconds=END_SECONDS)
        raise
    if not answer:
        _end(process, patience_seconds=END_SECONDS)
        how = f"exit code {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
        raise DaemonError(f"the mount process ended with {how} before it was usable{_tail(log_path, log_offset)}")
    # It goes on without this process, and Popen is not to warn of that.
    process.returncode = 0


def _log_or_null(path: str) -> str:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return os.devnull
    return path


def _end(process: subprocess.Popen[bytes], patience_seconds: float = 0.0) -> None:
    """Let a process end by itself for a while, then tell it to, then make sure of it."""
    for wait_seconds, then in ((patience_seconds, process.terminate), (END_SECONDS, process.kill)):
        try:
            process.wait(wait_seconds)
            return
        except subprocess.TimeoutExpired:
            then()
    process.wait()


def _tail(path: str, offset: int) -> str:
    """Return what the log has got since an offset, its last lines only, ready to end a message with."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start_offset = offset if offset <= size else 0  # it has been rotated
            file.seek(max(start_offset, size - TAIL_SIZE_MAX))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return ""
    return "; the end of its log:" + "".join(f"\n  {line}" for line in lines) if lines else f"; nothing is in {path}"
