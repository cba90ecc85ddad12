"""A ckptfs daemon under test: started, asked, killed and cleaned up through the same commands that people use.

Nothing here knows how ckptfs is built. Whatever a failed test leaves behind, `clean_up` takes down.
"""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SETTLE_SECONDS = 0.2
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.02
COMMAND_SECONDS = 60

_TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL|Traceback)\b")


class RunningMount:
    """One mountpoint with its store."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        self.store = store
        self.package = ROOT
        """Where the ckptfs that is run lies."""
        self.expected_in_log: list[str] = []
        self.daemon = 0
        """The process id of the daemon that `mount` started last."""
        self._pids: set[int] = set()
        self._directories = 0

    def ckptfs(self, *args: object, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run the command line; with `check`, a non-zero exit fails the test and shows what was printed."""
        command = [sys.executable, "-P", "-m", "ckptfs", *map(str, args)]
        environment = os.environ | {"PYTHONPATH": str(self.package)}
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *args: object) -> Any:
        """Run a command with --json inside the mount and return what it says."""
        return json.loads(self.run(*args, "--json").stdout)

    def run(self, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command that speaks to this mount because it starts inside it."""
        return self.ckptfs(*args, check=check, cwd=self._here())

    def _here(self) -> Path:
        return self.path if self.is_mounted() else ROOT

    def mount(self, *options: object, settle: float = SETTLE_SECONDS) -> None:
        """Mount, and return when the mountpoint is usable."""
        self.ckptfs("mount", self.path, "--store", self.store, "--settle", settle, *options)
        self.daemon = self.pid() if "--read-only" in options else self._writer()
        self._pids.add(self.daemon)

    def pid(self) -> int:
        """Return the process id of the daemon."""
        return int(self.json("stats", self.path)["pid"])

    def _writer(self) -> int:
        """Return the process that has the store open for writing, as its lock says: quicker than a command."""
        return int((self.store / "lock").read_text())

    def umount(self) -> None:
        self.ckptfs("umount", self.path)

    def kill(self) -> None:
        """Kill the daemon and return when the kernel has noticed: the process may look dead a moment earlier."""
        os.kill(self.pid(), signal.SIGKILL)
        self.wait_for(self.is_dead)

    def is_dead(self) -> bool:
        """Tell whether nobody answers for the mount; a stat would not do, the kernel may have the answer cached."""
        try:
            os.statvfs(self.path)
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    def remount(self) -> None:
        self.umount()
        self.mount()

    def is_mounted(self) -> bool:
        """Tell from the mount table, which can be asked even while the daemon hangs or is dead."""
        return mount_entry(self.path) is not None

    def new_directory(self, test_name: str) -> Path:
        """Make an empty directory for one test in the mount."""
        self._directories += 1
        directory = self.path / f"{self._directories}-{re.sub(r'[^a-z_]+', '-', test_name)}"
        directory.mkdir()
        return directory

    def snapshot(self, name: str) -> str:
        """Take a named snapshot by hand and return its name."""
        self.at(name).mkdir()
        return name

    def at(self, snapshot: str, path: str = "") -> Path:
        """Return where the tree of a snapshot (or the file in it) is to be found."""
        return self.path / ".snapshots" / snapshot / path

    def snapshots(self) -> list[dict[str, Any]]:
        """Return what `snapshot list --json` says, oldest first; asks the store itself when it is not mounted."""
        return self.json("snapshot", "list", self.path if self.is_mounted() else self.store)

    def versions(self) -> set[str]:
        """Return the names of all snapshots, by a look into `.snapshots`."""
        return set(os.listdir(self.path / ".snapshots")) - {"latest"}

    def wait_for(self, predicate: Callable[[], object], timeout: float = PATIENCE_SECONDS) -> None:
        """Return as soon as the predicate holds; fail when it does not in time."""
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline, f"waited {timeout} s in vain\n{self.log()[-4000:]}"
            time.sleep(POLL_SECONDS)

    def wait_for_version(self, since: set[str]) -> str:
        """Wait for the next snapshot after those that `versions()` said before a save; return its name."""
        self.wait_for(lambda: self.versions() - since)
        (name,) = self.versions() - since
        return name

    def log(self) -> str:
        """Return the daemon's log, or nothing as long as there is none."""
        path = self.store / "ckptfs.log"
        return path.read_text() if path.exists() else ""

    def unexpected_in_log(self) -> list[str]:
        """Return the lines of the log that a person would have to look at, and the traceback behind them."""
        trouble = [line for line in self.log().splitlines() if _TROUBLE.search(line)]
        return [line for line in trouble if not any(re.search(pattern, line) for pattern in self.expected_in_log)]

    def clean_up(self) -> None:
        """Take down whatever is left of the mount and of its daemons."""
        for pid in self._pids:
            if process_runs(pid) and self._is_daemon(pid):
                os.kill(pid, signal.SIGKILL)
        while self.is_mounted():
            subprocess.run(["fusermount3", "-uz", str(self.path)], check=True)

    def _is_daemon(self, pid: int) -> bool:
        return str(self.store).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def process_runs(pid: int) -> bool:
    """Tell whether a process lives; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def mount_entry(path: Path) -> tuple[str, str] | None:
    """Return source and type of the mount at this path, or nothing."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, mountpoint, kind, *_ = (re.sub(r"\\(\d{3})", _from_octal, field) for field in line.split())
        if mountpoint == str(path):
            return source, kind
    return None


def _from_octal(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def tree_of(directory: Path) -> dict[str, str]:
    """Return every regular file below a directory with the SHA-256 of its content."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
