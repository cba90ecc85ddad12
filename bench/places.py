"""Where the speed benchmark writes: a null mount, a plain directory, and ckptfs, all on one disk.

A place is a directory and the ways to make it cold. Everything lies in one scratch directory, which goes at the end.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> None:
    """Write everything back and forget every clean page; needs root."""
    os.sync()
    DROP_CACHES.write_text("3")


def recycle() -> None:
    """Write everything back and, where permitted, free the page cache.

    Memory that a virtual machine touches for the first time is several times slower: a run whose page cache keeps
    growing would measure that.
    """
    os.sync()
    if os.geteuid() == 0:
        DROP_CACHES.write_text("1")


class Plain:
    """An ordinary directory."""

    name = "plain"

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "plain"
        self.path.mkdir()

    def chill(self) -> None:
        """Make the next read come from the disk."""
        drop_caches()

    def quiesce(self) -> None:
        """Make the next run begin like this one."""
        recycle()

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path)


class Null:
    """A mount of nullfs.py, through the kernel's writeback cache."""

    name = "null"
    options: tuple[str, ...] = ()

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / self.name
        self.path.mkdir()
        command = [sys.executable, Path(__file__).with_name("nullfs.py"), self.path, *self.options]
        self._process = subprocess.Popen(command)
        while not os.path.ismount(self.path):
            if self._process.poll() is not None:
                sys.exit("the null filesystem could not be mounted")
            time.sleep(POLL_SECONDS)

    def chill(self) -> None:
        """Make the next read come from the filesystem."""
        drop_caches()

    def quiesce(self) -> None:
        """Make the next run begin like this one."""
        recycle()

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["fusermount3", "-u", self.path], check=True)
        self._process.wait()


class NullDirect(Null):
    """A mount of nullfs.py that written bytes reach past the page cache."""

    name = "null-direct"
    options = ("--direct",)


class Ckptfs:
    """A mount of ckptfs with a store of its own; `on_mount` hears the process id of every daemon."""

    on_mount: ClassVar[Callable[[int], None]] = staticmethod(lambda pid: None)

    def __init__(self, scratch: Path, *, name: str = "ckptfs", mounted: bool = True) -> None:
        self.name = name
        self.path = scratch / name
        self.store = scratch / f"{name}.store"
        self.path.mkdir()
        self.memory_peak = 0
        if mounted:
            self.mount()

    def command(self, *words: object) -> str:
        """Run the ckptfs command line and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "ckptfs", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"ckptfs {' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def mount(self, *options: str) -> None:
        """Start the daemon."""
        self.command("mount", self.path, "--store", self.store, *options)
        Ckptfs.on_mount(self.pid())

    def pid(self) -> int:
        """Return the daemon's process id."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--foreground" in words and os.fsencode(self.path) in words:
                return int(process.name)
        sys.exit("the daemon is gone")

    def written(self) -> int:
        """Return the bytes that the daemon has written so far: answers to the kernel, and what goes to the store."""
        counters = Path(f"/proc/{self.pid()}/io").read_text()
        written = re.search(r"wchar: (\d+)", counters)
        assert written
        return int(written[1])

    def note_memory(self) -> None:
        """Remember the daemon's largest memory so far."""
        status = Path(f"/proc/{self.pid()}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        self.memory_peak = max(self.memory_peak, int(peak[1]) * 1024)

    def unmount(self) -> None:
        """End the daemon."""
        self.note_memory()
        self.command("umount", self.path)

    def chill(self) -> None:
        """Make the next read come from the disk: a new daemon, no page cache."""
        self.unmount()
        drop_caches()
        self.mount()

    def quiesce(self) -> None:
        """Make the next run begin like this one."""
        recycle()

    def close(self) -> None:
        """Unmount and remove the store."""
        self.unmount()
        shutil.rmtree(self.store)
        self.path.rmdir()
