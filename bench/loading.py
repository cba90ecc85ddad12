"""The speed benchmark's rows of loading: cold reads, torch.load, and what is read a second time."""

import torch
from measure import MIB, WRITE_SIZE, Bench, Place, line, read, save, state_of, timed, write
from places import Ckptfs, Null, Plain

from ckptfs.mount.readahead import raise_kernel_readahead


def cold_read(bench: Bench) -> None:
    """Read the newest version from the disk; the kernel reads as far ahead in both mounts."""
    with bench.places(Null, Ckptfs) as places:
        raise_kernel_readahead(str(places[0].path))
        data, buffer = bench.weights.fresh(), bytearray(WRITE_SIZE)
        for place in places:
            write(place.path / "file", data)

        def read_cold(place: Place, _: int) -> float:
            place.chill()
            return read(place.path / "file", buffer)

        timings = bench.alternate(places, read_cold)
        detail = timings.spread("ckptfs", "null")
        line("cold read, rate over null", timings.ratio("null", "ckptfs"), ">=", 0.70, detail)


def torch_load(bench: Bench) -> None:
    """Load the newest version from the disk, and use every tensor."""
    with bench.places(Plain, Ckptfs) as places:
        data = bench.weights.fresh()
        for place in places:
            save(state_of(data), place.path / "state.pt")
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
