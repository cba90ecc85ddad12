"""Storage efficiency: what series of saves take in ckptfs and in other tools that keep every version.

Every tool gets the same saves one after the other: the files of a save are written over those of the one before, then
the tool keeps a version, and ckptfs gets the idle time to encode what it has stored raw. After each save the disk
blocks of all that the tool keeps are counted, its index included; what one more save costs is what this grew by. A row
is printed when every version has been read back and compared. Not measured here: time, and what reading an old version
costs.
"""

import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

import plot
import regimes
from direct import save
from measure import line
from peers import PEERS, PeerError
from places import ROOT, Ckptfs
from series import Recipe, name_in_save, name_of, saves_of

from ckptfs.config import FORMAT_VERSION, ChunkSizes, StoreConfig
from ckptfs.store import ChunkStore
from ckptfs.store.reserve import NAME as RESERVE
from ckptfs.tree import Tree

PICTURES = ROOT / "docs" / "series"
"""Where a plot of every series goes."""

DISK_BLOCK = 512
"""The unit of st_blocks, whatever the filesystem."""
POLL_SECONDS = 1.0
SETTLED_SECONDS = 7
"""Longer than ckptfs waits before it uses an idle moment or brings its index up to date."""
LAST_SAVES = 4
"""The marginal cost is the median over so many."""
QUICK_SAVES = 5

SERIES: dict[str, Recipe] = {
    name_of(recipe): recipe
    for recipe in (
        regimes.full_adamw,
        regimes.fp32_finetune,
        regimes.bf16_finetune,
        regimes.rl_bf16,
        regimes.frozen_trunk,
        regimes.lora,
        regimes.lora_adapters,
        regimes.growing_vocabulary,
        regimes.moe,
        regimes.sgd,
        regimes.pt_and_safetensors,
        regimes.demo,
    )
}
FIRST_GOALS = {"bf16-finetune": 0.67, "fp32-finetune": 0.83}
MARGINAL_GOALS = {
    "full-adamw": 0.76,
    "fp32-finetune": 0.59,
    "bf16-finetune": 0.17,
    "rl-bf16": 0.012,
    "frozen-trunk": 0.39,
}
BASE_GOAL_PERCENT = 0.1


class Tool(Protocol):
    """Something that keeps versions; what the members mean is said at `peers.Peer`."""

    name: str
    live: Path
    kept: Path
    commands: list[str]

    def keep(self, number: int, names: Sequence[Path]) -> None: ...

    def version(self, number: int) -> Path: ...

    def reserve(self) -> int: ...

    def close(self) -> None: ...


class MountedCkptfs:
    """Keeps versions in a real mount, with the store beside it."""

    name = "ckptfs"

    def __init__(self, scratch: Path) -> None:
        self._place = Ckptfs(scratch)
        self.live, self.kept = self._place.path, self._place.store
        self.commands = ["ckptfs mount ckptfs", "mkdir ckptfs/.snapshots/save-0"]
        self._has_optimize = _has_command("optimize")
        if self._has_optimize:
            self.commands.append("ckptfs optimize ckptfs")

    def keep(self, number: int, names: Sequence[Path]) -> None:
        """Take a snapshot, and return when nothing waits to be encoded and the store has stopped to change."""
        self.version(number).mkdir()
        if self._has_optimize:
            self._place.command("optimize", self.live)
        usage, unchanged_since = disk_usage(self.kept), time.monotonic()
        while time.monotonic() < unchanged_since + SETTLED_SECONDS:
            time.sleep(POLL_SECONDS)
            now = disk_usage(self.kept)
            if now != usage or json.loads(self._place.command("stats", self.live, "--json"))["waiting_bytes"]:
                usage, unchanged_since = now, time.monotonic()

    def version(self, number: int) -> Path:
        """Return the directory of a snapshot."""
        return self.live / ".snapshots" / f"save-{number}"

    def reserve(self) -> int:
        """Return the disk blocks that are kept back for a full disk."""
        return disk_usage(self.kept, RESERVE)

    def close(self) -> None:
        """Unmount."""
        self._place.close()


@dataclass(frozen=True, slots=True)
class Row:
    """What one tool made of a series.

    `raw` is the size of each save and `stored` the disk that the tool took after it, in bytes, but for `reserve`, which
    it keeps allocated from the start for a disk that runs full.
    """

    tool: str
    raw: Sequence[int]
    stored: Sequence[int]
    commands: Sequence[str]
    reserve: int = 0

    def first(self) -> float:
        """Return what the first save took over its raw size, the reserve included."""
        return (self.stored[0] + self.reserve) / self.raw[0]

    def first_unreserved(self) -> float:
        """Return the same without the reserve."""
        return self.stored[0] / self.raw[0]

    def marginal(self) -> float:
        """Return what one more save takes over its raw size: the median over the last ones."""
        grown = [after - before for before, after in pairwise(self.stored)]
        return statistics.median([size / raw for size, raw in zip(grown, self.raw[1:], strict=True)][-LAST_SAVES:])

    def mean(self) -> float:
        """Return what all saves behind the first took over their raw size."""
        return (self.stored[-1] - self.stored[0]) / sum(self.raw[1:])


def _has_command(name: str) -> bool:
    """Say whether this ckptfs has a command."""
    words = [sys.executable, "-m", "ckptfs", name, "--help"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0


def disk_usage(directory: Path, pattern: str = "*") -> int:
    """Return the disk blocks of what is below a directory, in bytes; a file with several names counts once."""
    found = {info.st_ino: info.st_blocks for path in directory.rglob(pattern) if (info := path.lstat())}
    return sum(found.values()) * DISK_BLOCK


def keep_all(tool: Tool, series: Path, saves: Sequence[list[Path]]) -> Row:
    """Keep every save, read every version back, and return what they took."""
    raw, stored = [], []
    reserve = 0
    for number, files in enumerate(saves):
        print(f"{tool.name}: save {number + 1} of {len(saves)}", end="\r", file=sys.stderr, flush=True)
        names = [name_in_save(series, file) for file in files]
        for file, name in zip(files, names, strict=True):
            (tool.live / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, tool.live / name)
        tool.keep(number, names)
        if number == 0:
            commands = list(tool.commands)  # the later versions are kept the same way
            reserve = tool.reserve()
        raw.append(sum(file.stat().st_size for file in files))
        stored.append(disk_usage(tool.kept) - reserve)
    for number, files in enumerate(saves):
        version = tool.version(number)
        for file in files:
            if not filecmp.cmp(file, version / name_in_save(series, file), shallow=False):
                sys.exit(f"{tool.name}: {file} reads back differently from version save-{number}")
    return Row(tool.name, raw, stored, commands, reserve)


def deduplicated(saves: Sequence[list[Path]]) -> Row:
    """Return what the distinct chunks of the saves have raw: what is left by dedup alone, without an index."""
    raw, distinct = [], []
    with tempfile.TemporaryDirectory(prefix="ckptfs-bench-") as scratch:
        config = StoreConfig(FORMAT_VERSION, seed=1, created_ns=0, chunk_sizes=ChunkSizes())
        with ChunkStore.create(Path(scratch) / "store", config=config) as store:
            tree = Tree(store)
            for number, files in enumerate(saves):
                for file in files:
                    save(tree, os.fsencode(f"{number}-{file.name}"), file.read_bytes())
                store.commit(checkpoint=True)
                raw.append(sum(file.stat().st_size for file in files))
                distinct.append(store.stats().raw_bytes)
    return Row("dedup", raw, distinct, ["none: the distinct chunks of ckptfs, raw and without an index"])


def keep_in(make: Callable[[Path], Tool], series: Path, saves: Sequence[list[Path]]) -> Row:
    """Keep a series in a tool that is set up for it and taken down behind it."""
    with tempfile.TemporaryDirectory(prefix="ckptfs-bench-") as scratch:
        tool = make(Path(scratch))
        try:
            return keep_all(tool, series, saves)
        finally:
            tool.close()


def measure(series: Path, saves: Sequence[list[Path]], peers: Sequence[str]) -> list[Row]:
    """Keep a series in ckptfs and in the peers of these names that are installed; return the rows, smallest first."""
    rows = [deduplicated(saves), keep_in(MountedCkptfs, series, saves)]
    for peer in PEERS:
        if peer.name not in peers:
            continue
        if not peer.installed():
            print(f"{peer.name} is not available here")
            continue
        try:
            rows.append(keep_in(peer, series, saves))
        except PeerError as error:
            print(f"{peer.name} is left out: {error}")
    return sorted(rows, key=lambda row: row.stored[-1])


def print_table(rows: Sequence[Row]) -> None:
    """Print what each tool made of a series."""
    titles = ("of raw", "first", "+reserve", "marginal", "mean")
    print(f"{'tool':<8} {'stored bytes':>15} {'reserve':>12}", *(f"{title:>9}" for title in titles))
    for row in rows:
        of_raw = row.stored[-1] / sum(row.raw)
        ratios = (of_raw, row.first_unreserved(), row.first(), row.marginal(), row.mean())
        print(f"{row.tool:<8} {row.stored[-1]:>15,} {row.reserve:>12,}", *(f"{ratio:>9.4f}" for ratio in ratios))


def draw(name: str, rows: Sequence[Row]) -> None:
    """Write the picture of a series: ckptfs, without and with its reserve, what was saved, and what each tool took."""
    raw = {"raw": list(accumulate(rows[0].raw))}
    stored = {row.tool: row.stored for row in sorted(rows, key=lambda row: row.tool)}
    ours = {MountedCkptfs.name: stored.pop(MountedCkptfs.name)}
    (reserve,) = (row.reserve for row in rows if row.tool == MountedCkptfs.name)
    ours["with reserve"] = [size + reserve for size in ours[MountedCkptfs.name]]
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"{name}.svg").write_text(plot.svg(f"{name}: stored after each save", ours | raw | stored))


def report(seed: int, names: Sequence[str], peers: Sequence[str], *, quick: bool, pictures: bool) -> None:
    """Print a table and the goals for each series, then the commands behind the rows; draw pictures where asked."""
    ours: dict[str, Row] = {}
    commands: dict[str, Sequence[str]] = {}
    for name in names:
        series = regimes.series(SERIES[name], seed)
        saves = list(saves_of(series))[: QUICK_SAVES if quick else None]
        rows = measure(series, saves, peers)
        print(f"\n{series.name}: {len(saves)} saves, {sum(rows[0].raw):,} bytes raw\n{SERIES[name].__doc__}")
        print_table(rows)
        if pictures:
            draw(name, rows)
        commands |= {row.tool: row.commands for row in rows}
        (ours[name],) = (row for row in rows if row.tool == MountedCkptfs.name)
        if name in FIRST_GOALS:
            detail = f"{ours[name].first():.3f} with the reserve"
            line(f"{name}: first save", ours[name].first_unreserved(), "<=", FIRST_GOALS[name], detail)
        if name in MARGINAL_GOALS:
            line(f"{name}: one more save", ours[name].marginal(), "<=", MARGINAL_GOALS[name])
        if name == "lora-adapters" and "lora" in ours:
            both, adapters = ours["lora"], ours[name]
            base = both.raw[-1] - adapters.raw[-1]
            share = (both.marginal() * both.raw[-1] - adapters.marginal() * adapters.raw[-1]) / base
            line("lora: the base's share of one more save, in percent", 100 * share, "<=", BASE_GOAL_PERCENT)
    for tool, lines in commands.items():
        print(f"\n{tool}:", *(f"$ {line}" for line in lines), sep="\n  ")
