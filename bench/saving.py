"""The speed benchmark's rows of saving: plain writes, torch.save, many writers, small files."""

import os
import subprocess
import sys
import time
from pathlib import Path

from measure import Bench, Place, Timings, line, note, save, state_of, write
from places import Ckptfs, Null, NullDirect, Plain

SMALL_SIZE = 4096
WRITERS = 8


def known_bytes(bench: Bench) -> None:
    """Write what the store has already."""
    with bench.places(Null, NullDirect, Ckptfs) as places:
        known = bench.weights.fresh()
        write(places[-1].path / "known", known)

        def rewrite(place: Place, _: int) -> float:
            seconds = write(place.path / "again", known)
            os.unlink(place.path / "again")
            return seconds

        timings = bench.alternate(places, rewrite)
        detail = timings.spread("ckptfs", "null")
        line("known bytes, rate over null", timings.ratio("null", "ckptfs"), ">=", 0.80, detail)
        _over_direct(timings)


def new_bytes(bench: Bench) -> None:
    """Write what the store has not."""
    with bench.places(Null, NullDirect, Ckptfs) as places:
        timings = bench.alternate(places, lambda place, _: _write_new(bench, place))
        detail = timings.spread("ckptfs", "null")
        line("new fp32 bytes, rate over null", timings.ratio("null", "ckptfs"), ">=", 0.65, detail)
        _over_direct(timings)


def _over_direct(timings: Timings) -> None:
    """Print the rate over the null mount that takes written bytes as ckptfs does; no goal was set against that one."""
    note(
        "the same over the null mount with direct I/O",
        timings.ratio("null-direct", "ckptfs"),
        timings.spread("null-direct"),
    )


def new_bytes_synced(bench: Bench) -> None:
    """Write what the store has not, with fsync."""
    with bench.places(Plain, Ckptfs) as places:
        timings = bench.alternate(places, lambda place, _: _write_new(bench, place, sync=True))
        detail = timings.spread("ckptfs", "plain")
        line("new, fsync, rate over plain", timings.ratio("plain", "ckptfs"), ">=", 0.80, detail)


def _write_new(bench: Bench, place: Place, *, sync: bool = False) -> float:
    path = place.path / "new"
    path.unlink(missing_ok=True)
    return write(path, bench.weights.fresh(), sync=sync)


def torch_save(bench: Bench) -> None:
    """Save a state that is new."""
    with bench.places(Null, NullDirect, Plain, Ckptfs) as places:

        def save_new(place: Place, _: int) -> float:
            path = place.path / "state.pt"
            path.unlink(missing_ok=True)
            return save(state_of(bench.weights.fresh()), path)

        timings = bench.alternate(places, save_new)
        detail = timings.spread("ckptfs", "null", "plain")
        line("torch.save, new bytes, time over null", timings.ratio("ckptfs", "null"), "<=", 1.25, detail)
        line("torch.save, new bytes, time over plain", timings.ratio("ckptfs", "plain"), "<=", 1.6)
        _over_direct(timings)


def torch_save_known(bench: Bench) -> None:
    """Save a state of which three quarters are stored already, with fsync."""
    with bench.places(Plain, Ckptfs) as places:
        known = bench.weights.fresh()
        for place in places:
            save(state_of(known), place.path / "state.pt")

        def save_partly(place: Place, _: int) -> float:
            state = state_of(bench.weights.partly_fresh(known, 0.25))
            return save(state, place.path / "state.pt", sync=True)

        timings = bench.alternate(places, save_partly)
        detail = timings.spread("ckptfs", "plain")
        line("torch.save, 75 % known, fsync, time over plain", timings.ratio("ckptfs", "plain"), "<=", 0.8, detail)


_WRITER = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); import numpy as np; from pathlib import Path\n"
    "from measure import write\n"
    "data = np.random.default_rng(int(sys.argv[3])).integers(0, 1 << 32, int(sys.argv[4]) // 4, np.uint32)\n"
    "print('ready', flush=True); input(); write(Path(sys.argv[2]), data); print('done', flush=True)\n"
)


def many_writers(bench: Bench) -> None:
    """Write one file, and as many bytes in eight files by eight processes."""
    with bench.places(Ckptfs) as (place,):
        timings = Timings()
        for number in range(bench.runs):
            for count in (1, WRITERS):
                place.quiesce()
                timings.add(str(count), _write_by(count, place.path, bench.size // count, 1000 * number))
        detail = f"writers: {timings.spread(str(WRITERS), '1')}"
        line("8 writers, total rate over one writer's", timings.ratio("1", str(WRITERS)), ">=", 0.9, detail)


def _write_by(count: int, directory: Path, size: int, seed: int) -> float:
    """Let processes write a file of `size` new bytes each, and return the seconds from the first to the last."""
    paths = [directory / f"{count}-{index}" for index in range(count)]
    command = [sys.executable, "-c", _WRITER, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(
            [*command, str(path), str(seed + index), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index, path in enumerate(paths)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout and process.stdout.readline() == "done\n"
    seconds = time.perf_counter() - began
    for process, path in zip(processes, paths, strict=True):
        process.communicate()
        path.unlink()
    return seconds


def small_files(bench: Bench) -> None:
    """Create many small files."""
    count = 500 if bench.quick else 2000
    with bench.places(Null, Ckptfs) as places:

        def create(place: Place, number: int) -> float:
            data = os.urandom(SMALL_SIZE * count)
            began = time.perf_counter()
            for index in range(count):
                fd = os.open(place.path / f"{number}-{index}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, data[index * SMALL_SIZE : (index + 1) * SMALL_SIZE])
                os.close(fd)
            return time.perf_counter() - began

        timings = bench.alternate(places, create)
        detail = f"{timings.spread('ckptfs', 'null')} for {count} files"
        line("create, 4 KiB, close: rate over null", timings.ratio("null", "ckptfs"), ">=", 0.5, detail)
