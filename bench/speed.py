"""Speed: ckptfs beside a null FUSE mount and a plain directory, in alternating runs on one machine."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import deep
import kernels
import loading
import saving
import scale
import torch
from measure import MIB, Bench, line

ROWS: Mapping[str, Callable[[Bench], None]] = {
    "known": saving.known_bytes,
    "new": saving.new_bytes,
    "fsync": saving.new_bytes_synced,
    "save": saving.torch_save,
    "save-known": saving.torch_save_known,
    "cold": loading.cold_read,
    "load": loading.torch_load,
    "second": loading.second_read,
    "deep": deep.deep_read,
    "writers": saving.many_writers,
    "small": saving.small_files,
    "kernel": lambda bench: kernels.goals(),
    "large": scale.large_store,
    "rollback": scale.rollback,
}
NEED_ROOT = ("cold", "load")
"""Dropping the page cache needs it."""


def report(*, quick: bool, names: list[str]) -> None:
    """Measure and print the rows of these names, or every one; `quick` takes a quarter of the bytes and fewer runs."""
    for name in names:
        if name not in ROWS:
            sys.exit(f"{name}: there is no such row; there are {', '.join(ROWS)}")
    scratch = Path(tempfile.mkdtemp(prefix="ckptfs-speed-"))
    try:
        bench = Bench(scratch, quick=quick)
        threads = torch.get_num_threads()
        print(f"{bench.size // MIB} MiB, medians of {bench.runs} alternating runs, torch threads: {threads}")
        for name in names or ROWS:
            if name in NEED_ROOT and os.geteuid() != 0:
                print(f"skip {name}: dropping the page cache needs root")
            else:
                ROWS[name](bench)
        line("daemon memory, MiB", bench.memory_peak / MIB, "<=", 512)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
