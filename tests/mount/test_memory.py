"""The daemon's memory stays bounded while a file larger than it is written and read, and while it optimizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

from ckptfs.store import ChunkStore
from ckptfs.tree import Tree
from tests.mount.running import ROOT, RunningMount
from tests.unit.harmful_files import HARMFUL
from tests.unit.tree_support import save

MIB = 1024 * 1024
MEMORY_MAX = 512 * MIB
FILE_SIZE = (4096 if os.environ.get("CKPTFS_TEST_LARGE") else 1024) * MIB
PIECE = 8 * MIB
OPTIMIZED_SIZE = 8 * MIB
OPTIMIZED_VERSIONS = 13
OPTIMIZED_MEMORY_MAX = 24 * MIB
TELL_PEAK = """
import os, sys
from ckptfs.cli.main import main
from tests.mount.test_memory import peak_memory
try:
    main(sys.argv[1:])
finally:
    print(peak_memory(os.getpid()))
"""
HARMFUL_SAVED = ("many members", "long keys", "tensors in GGUF", "many pieces")
"""One of each kind of file; `tests/unit/test_formats_hostile.py` has all of them, without a mount."""


def peak_memory(pid: int) -> int:
    """Return the largest resident size that a process has had, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def test_the_largest_sparse_files_cost_the_daemon_next_to_no_memory(mount: RunningMount) -> None:
    pid = mount.pid()
    before = peak_memory(pid)
    places = [0, 4097, 5 * MIB, 1 << 40, (1 << 62) + 1, (1 << 63) - 2]
    for number, grow in enumerate((True, False)):
        path = mount.path / f"sparse-{number}"
        with open(path, "wb+", buffering=0) as file:
            if grow:
                file.truncate((1 << 63) - 1)
            for place in reversed(places):
                os.pwrite(file.fileno(), b"x", place)
        assert path.stat().st_size == (1 << 63) - 1
        assert path.stat().st_blocks * 512 < MIB
        with open(path, "rb", buffering=0) as file:
            for place in places:
                around = max(place - 4000, 0)
                read = os.pread(file.fileno(), place - around + 1, around)
                assert read == bytes(place - around) + b"x"
        for size in (1 << 61, 1 << 45, 5 * MIB + 1, 1):
            os.truncate(path, size)
            assert path.stat().st_size == size
        assert path.read_bytes() == b"x"
    assert peak_memory(pid) - before < 32 * MIB


@pytest.mark.timeout(300)
def test_a_large_file_is_written_and_read_in_bounded_memory(mount: RunningMount) -> None:
    pid = mount.pid()
    generator = np.random.Generator(np.random.SFC64(1))
    written, read = xxhash.xxh3_128(), xxhash.xxh3_128()
    with open(mount.path / "large", "wb", buffering=0) as file:
        for _ in range(FILE_SIZE // PIECE):
            piece = generator.bytes(PIECE)
            written.update(piece)
            file.write(piece)
    peak_written = peak_memory(pid)
    with open(mount.path / "large", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the daemon is to answer, not the page cache
        while piece := file.read(PIECE):
            read.update(piece)
    assert read.digest() == written.digest()
    assert peak_written < MEMORY_MAX
    assert peak_memory(pid) < MEMORY_MAX


def test_files_made_to_do_harm_to_parsers_are_saved_in_bounded_memory(mount: RunningMount) -> None:
    pid = mount.pid()
    before = peak_memory(pid)
    for kind in HARMFUL_SAVED:
        data = HARMFUL[kind]()
        (mount.path / kind).write_bytes(data)
        assert (mount.path / kind).read_bytes() == data, kind
    mount.run("optimize")
    assert peak_memory(pid) - before < MEMORY_MAX
    mount.snapshot("whole")
    assert set(os.listdir(mount.at("whole"))) == set(HARMFUL_SAVED)


@pytest.mark.parametrize("mounted", [True, False])
def test_versions_many_times_as_large_are_optimized_in_bounded_memory(unmounted: RunningMount, mounted: bool) -> None:
    mount = unmounted
    weights = np.random.default_rng(1).standard_normal(OPTIMIZED_SIZE // 4, dtype=np.float32).view(np.uint32)
    with ChunkStore.create(mount.store) as store:
        tree = Tree(store)
        for number in range(OPTIMIZED_VERSIONS):
            save(tree, "last.bin", (weights ^ np.uint32(number * 0x357)).tobytes())
            tree.take_snapshot()
    if mounted:
        mount.mount("--no-optimize")
        before = peak_memory(mount.daemon)
        mount.run("optimize")
        grown = peak_memory(mount.daemon) - before
    else:
        before = own_peak_memory(mount, "stats")
        grown = own_peak_memory(mount, "optimize") - before
    stats = mount.json("stats", mount.store)
    assert stats["waiting_bytes"] == stats["uncompared_bytes"] == 0
    assert stats["delta_bytes"] > 3 * OPTIMIZED_MEMORY_MAX
    print(f"{grown / MIB:.1f} MiB")
    assert grown < OPTIMIZED_MEMORY_MAX


def own_peak_memory(mount: RunningMount, command: str) -> int:
    """Run a command on the store, which is not mounted, in a process of its own; return its largest resident size."""
    done = subprocess.run(
        [sys.executable, "-c", TELL_PEAK, command, mount.store], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])
