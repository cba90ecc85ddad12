"""Storage efficiency: what a series of saves takes in ckptfs and in other tools that keep every version.

Every tool gets the same saves one after the other: the files of a save are written over those of the one before, then
the tool keeps a version. What counts is the disk blocks of all that it stored, its index included. For every row the
commands that made it are printed. Not measured here: time, and what reading an old version costs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard
from series import demo_series, raw_size, saves_of

DISK_BLOCK = 512
"""The unit of st_blocks, whatever the filesystem."""
IDLE_SECONDS = 3.0
"""Longer than ckptfs waits before it uses an idle moment."""
ZSTD_LEVELS = (1, 3)
BORG_COMPRESSIONS = ("lz4", "zstd,3")

Play = Callable[[Path, Path], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Row:
    """What one tool made of a series; `stored` in bytes of disk, `commands` as they were run."""

    tool: str
    stored: int
    commands: Sequence[str]


def disk_usage(directory: Path) -> int:
    """Return the disk blocks of everything below a directory, in bytes; a file with several names counts once."""
    found = {info.st_ino: info.st_blocks for path in directory.rglob("*") if (info := path.lstat())}
    return sum(found.values()) * DISK_BLOCK


class Transcript:
    """Runs commands and remembers them without the scratch directory in their paths."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.lines: list[str] = []

    def run(self, *command: object, environment: dict[str, str] | None = None) -> None:
        """Run a command in the scratch directory; what it prints is shown only when it fails."""
        words = [str(word) for word in command]
        line = " ".join(words).replace(f"{self.scratch}/", "")
        if line not in self.lines:
            self.lines.append(line)
        done = subprocess.run(
            words, cwd=self.scratch, env=os.environ | (environment or {}), capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{line}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def replay(series: Path, directory: Path) -> Iterator[int]:
    """Write one save after the other into a directory, over what is there; yield its number when it is written."""
    for number, files in enumerate(saves_of(series)):
        for file in files:
            shutil.copyfile(file, directory / file.name)
        yield number


@contextmanager
def mounted(transcript: Transcript) -> Iterator[Path]:
    """Mount a ckptfs in the scratch directory; its store is beside it."""
    mountpoint = transcript.scratch / "ckpt"
    mountpoint.mkdir()
    transcript.run("ckptfs", "mount", "ckpt")
    try:
        yield mountpoint
    finally:
        transcript.run("ckptfs", "umount", "ckpt")


def wait_until_encoded(store: Path, mountpoint: Path) -> None:
    """Return when nothing waits to be encoded and the store has stopped to shrink."""
    sizes = [0, disk_usage(store)]
    while sizes[-1] != sizes[-2] or waiting_bytes(mountpoint):
        time.sleep(IDLE_SECONDS)
        sizes.append(disk_usage(store))


def waiting_bytes(mountpoint: Path) -> int:
    """Return how much a mount has stored raw so far."""
    words = ["ckptfs", "stats", str(mountpoint), "--json"]
    return int(json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["waiting_bytes"])


def in_ckptfs(series: Path, transcript: Transcript) -> list[Row]:
    """Keep a series through a real mount."""
    with mounted(transcript) as mountpoint:
        for number in replay(series, mountpoint):
            (mountpoint / ".snapshots" / f"save-{number}").mkdir()
        wait_until_encoded(transcript.scratch / "ckpt.store", mountpoint)
        for number, files in enumerate(saves_of(series)):
            for file in files:
                if (mountpoint / ".snapshots" / f"save-{number}" / file.name).read_bytes() != file.read_bytes():
                    sys.exit(f"{file} reads back differently from version save-{number}")
    stored = disk_usage(transcript.scratch / "ckpt.store")
    return [Row("ckptfs", stored, [*transcript.lines, "mkdir ckpt/.snapshots/save-N  # after each save"])]


def in_zstd_files(series: Path, transcript: Transcript) -> list[Row]:
    """Keep every file of every save as a compressed copy."""
    rows = []
    for level in ZSTD_LEVELS:
        directory = transcript.scratch / f"zstd-{level}"
        directory.mkdir()
        compressor = zstandard.ZstdCompressor(level=level)
        for number, files in enumerate(saves_of(series)):
            for file in files:
                (directory / f"{number}-{file.name}.zst").write_bytes(compressor.compress(file.read_bytes()))
        rows.append(
            Row(f"zstd -{level} per file", disk_usage(directory), [f"zstd -{level} FILE  # the zstandard package"])
        )
    return rows


def in_borg(series: Path, transcript: Transcript) -> list[Row]:
    """Keep an archive per save in a borg repository without encryption."""
    if not shutil.which("borg"):
        return []
    rows = []
    home = {"BORG_BASE_DIR": str(transcript.scratch), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    for compression in BORG_COMPRESSIONS:
        before = len(transcript.lines)
        live = transcript.scratch / f"borg-live-{compression}"
        live.mkdir()
        repository = f"borg-{compression}"
        transcript.run("borg", "init", "--encryption=none", repository, environment=home)
        for number in replay(series, live):
            archive = f"{repository}::save-{number}"
            transcript.run("borg", "create", f"--compression={compression}", archive, live.name, environment=home)
        commands = transcript.lines[before : before + 2]  # the archives after the first are made the same way
        rows.append(Row(f"borg {compression}", disk_usage(transcript.scratch / repository), commands))
    return rows


def in_restic(series: Path, transcript: Transcript) -> list[Row]:
    """Keep a snapshot per save in a restic repository."""
    if not shutil.which("restic"):
        return []
    before = len(transcript.lines)
    live = transcript.scratch / "restic-live"
    live.mkdir()
    secret = {"RESTIC_PASSWORD": "none", "RESTIC_CACHE_DIR": str(transcript.scratch / "restic-cache")}
    transcript.run("restic", "init", "--repo", "restic", environment=secret)
    for _ in replay(series, live):
        transcript.run("restic", "backup", "--repo", "restic", live.name, environment=secret)
    return [Row("restic", disk_usage(transcript.scratch / "restic"), transcript.lines[before:])]


def report(seed: int) -> None:
    """Measure every tool that is installed and print a table, then the commands behind its rows."""
    series = demo_series(seed)
    raw = raw_size(series)
    rows = []
    for measure in (in_ckptfs, in_zstd_files, in_borg, in_restic):
        with tempfile.TemporaryDirectory(prefix="ckptfs-bench-") as scratch:
            rows += measure(series, Transcript(Path(scratch)))
    saves = sum(1 for _ in saves_of(series))
    print(f"series {series.name}: {saves} saves, {raw:,} bytes raw\n")
    print(f"{'tool':<20} {'stored bytes':>15} {'of raw':>8}")
    for row in sorted(rows, key=lambda row: row.stored):
        print(f"{row.tool:<20} {row.stored:>15,} {row.stored / raw:>8.1%}")
    for row in rows:
        print(f"\n{row.tool}:")
        print("\n".join(f"  $ {line}" for line in row.commands))
