"""A mounted ckptfs whose daemon, or whose writer, is killed at random moments of real saves with `torch.save`.

Each save holds one number everywhere, so that a loaded checkpoint says whether it is whole and which save it is. One
process has imported torch; it forks a child for every save, and the child can be killed.
"""

import os
import random
import select
import signal
import subprocess
import sys
from contextlib import suppress

from tests.mount.running import RunningMount

_WORKER = """
import os, sys, torch
torch.set_num_threads(1)

def save(path, number, how, size):
    target = path + ".tmp" if how == "rename" else path
    with open(target, "wb") as file:
        torch.save({name: torch.full((size,), number, dtype=torch.int64) for name in "abc"}, file)
        if how == "fsync":
            file.flush()
            os.fsync(file.fileno())
    if how == "rename":
        os.rename(target, path)

def load(path):
    return {int(value) for tensor in torch.load(path).values() for value in (tensor.min(), tensor.max())}

print("ready", flush=True)
for line in sys.stdin:
    kind, path, *arguments = line.split()
    if kind == "load":
        print(*load(path), flush=True)
        continue
    child = os.fork()
    if child == 0:
        try:
            save(path, int(arguments[0]), arguments[1], int(arguments[2]))
        except (OSError, RuntimeError):  # torch turns what the file raises into its own error
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print("saved" if os.waitpid(child, 0)[1] == 0 else "not saved", flush=True)
"""
WAYS = ("plain", "fsync", "rename")
TENSOR_SIZE_MAX = 40_000
KILL_WITHIN_SECONDS = 0.02
DAEMON_SHARE = 0.2
"""Of all kills; one of a daemon costs a new mount."""


class KilledSaves:
    """Saves into one file of a mount, kills among them, and what has to be there after each."""

    def __init__(self, mount: RunningMount, seed: int) -> None:
        self._mount = mount
        self._path = mount.path / "last.pt"
        self._source = random.Random(seed)
        self._number = self._whole = 0
        """The latest save that was begun, and the latest that was reported as done: nothing older may be found."""
        self._worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._answer() == "ready"
        self._begin_save()
        assert self._end_save()

    def close(self) -> None:
        """End the process that saves."""
        self._worker.stdin.close()
        self._worker.wait()
        self._worker.stdout.close()

    def _answer(self) -> str:
        return self._worker.stdout.readline().strip()

    def _begin_save(self) -> int:
        """Begin a save in some way; return the process that does it."""
        self._number += 1
        how, size = self._source.choice(WAYS), self._source.randint(1, TENSOR_SIZE_MAX)
        self._worker.stdin.write(f"save {self._path} {self._number} {how} {size}\n")
        return int(self._answer())

    def _end_save(self) -> bool:
        """Wait for the end of the save; tell whether it was reported as done."""
        done = self._answer() == "saved"
        if done:
            self._whole = self._number
        return done

    def kill_one(self) -> bool:
        """Kill the daemon or the writer at a random moment of a save, mount again, and hold what must be there.

        Returns whether somebody was killed: a writer may have ended by then.
        """
        writer = self._begin_save()
        select.select([self._worker.stdout], [], [], self._source.random() * KILL_WITHIN_SECONDS)
        if self._source.random() < DAEMON_SHARE:
            os.kill(self._mount.daemon, signal.SIGKILL)
            self._end_save()
            self._mount.wait_for(self._mount.is_dead)
            self._mount.mount()
            killed = True
        else:
            with suppress(ProcessLookupError):
                os.kill(writer, signal.SIGKILL)
            killed = not self._end_save()
        self.check()
        return killed

    def check(self) -> None:
        """Load the newest committed version: whole, not older than what was reported as done."""
        name = self._mount.snapshot(f"after-{self._number}")
        self._worker.stdin.write(f"load {self._mount.at(name, 'last.pt')}\n")
        found = self._answer()
        assert found.isdigit() and self._whole <= int(found) <= self._number, (
            f"the newest version is {found!r}, save {self._whole} had been completed and {self._number} begun"
        )
        self._mount.at(name).rmdir()
