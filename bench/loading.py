"""The speed benchmark's rows of loading: cold reads, torch.load, and what is read a second time."""

from collections.abc import Iterable

import torch
from measure import MIB, WRITE_SIZE, Bench, Place, line, note, read, save, state_of, timed, write
from places import Ckptfs, Null, Plain

from ckptfs.mount.readahead import raise_kernel_readahead


def cold_read(bench: Bench) -> None:
    """Read the newest version from the disk; the kernel reads as far ahead in both mounts.

    In one row the idle work on it is done, as when it is read on another day, in the other one it has not begun. The
    plain directory shows what the disk gives.
    """
    with bench.places(Null, Plain, Ckptfs) as places:
        raise_kernel_readahead(str(places[0].path))
        buffer = bytearray(WRITE_SIZE)

        def read_cold(place: Place, _: int) -> float:
            place.chill()
            return read(place.path / "file", buffer)

        def save_and_read_cold(place: Place, number: int) -> float:
            write(place.path / "file", bench.weights.fresh())
            return read_cold(place, number)

        timings = bench.alternate(places, save_and_read_cold)
        detail = timings.spread("ckptfs", "null", "plain")
        note("cold read of what was just saved, rate over null", timings.ratio("null", "ckptfs"), detail)
        _finish_idle_work(places)
        timings = bench.alternate(places, read_cold)
        detail = timings.spread("ckptfs", "null", "plain")
        line("cold read, rate over null", timings.ratio("null", "ckptfs"), ">=", 0.70, detail)
        note("plain directory, cold, rate over null", timings.ratio("null", "plain"), "what the disk gives")


def _finish_idle_work(places: Iterable[Place]) -> None:
    """Have ckptfs do now what it would do when nobody reads or writes, which is not to happen between two runs."""
    for place in places:
        if isinstance(place, Ckptfs):
            place.command("optimize", place.path)


def torch_load(bench: Bench) -> None:
    """Load the newest version from the disk, and use every tensor."""
    with bench.places(Plain, Ckptfs) as places:
        data = bench.weights.fresh()
        for place in places:
            save(state_of(data), place.path / "state.pt")
        _finish_idle_work(places)
        for mapped in (False, True):

            def load_cold(place: Place, _: int, mapped: bool = mapped) -> float:
                place.chill()

                def load() -> None:
                    for tensor in torch.load(place.path / "state.pt", mmap=mapped).values():
                        tensor.sum()

                return timed(load)

            timings = bench.alternate(places, load_cold)
            work = f"torch.load{' mmap' if mapped else ''} and use, cold, time over plain"
            detail = timings.spread("ckptfs", "plain")
            line(work, timings.ratio("ckptfs", "plain"), "<=", 1.3, detail)


def second_read(bench: Bench) -> None:
    """Read a file of a snapshot again: what the daemon still answers is the open and the close."""
    with bench.places(Ckptfs) as (place,):
        assert isinstance(place, Ckptfs)
        buffer = bytearray(WRITE_SIZE)
        write(place.path / "file", bench.weights.fresh())
        (place.path / ".snapshots" / "kept").mkdir()
        path = place.path / ".snapshots" / "kept" / "file"
        place.unmount()
        place.mount("--read-only")  # or it would use the moment to encode, and write that to the store
        answered, seconds = [], []
        for _ in range(2):
            before = place.written()
            seconds.append(read(path, buffer))
            answered.append((place.written() - before) / MIB)
        detail = f"in {seconds[1]:.3f} s; the first read: {answered[0]:.0f} MiB in {seconds[0]:.3f} s"
        line("second read of a snapshot file, MiB from the daemon", answered[1], "<=", 0.01, detail)
