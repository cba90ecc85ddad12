"""The speed benchmark's row of old versions: reading one that lies as many deltas deep as ckptfs makes them."""

import statistics

import torch
from measure import MIB, WRITE_SIZE, Bench, line, read
from places import Ckptfs
from safetensors.torch import save_file

from ckptfs.store import DELTA_CHAIN_MAX

GB = 1e9
GOAL = 0.3
SIZE = 128 * MIB
STEP = 2e-5
"""How far the weights of N(0, 0.02) move from one save to the next, as a fine-tune's do in some steps."""
TENSORS = 16


def deep_read(bench: Bench) -> None:
    """Read the oldest version; the packs are in the page cache of the disk below."""
    for kind in (torch.float32, torch.bfloat16):
        with bench.places(Ckptfs) as (place,):
            assert isinstance(place, Ckptfs)
            random = torch.Generator().manual_seed(0)
            weights = torch.randn(SIZE // kind.itemsize, generator=random) * 0.02
            for version in range(DELTA_CHAIN_MAX + 1):
                tensors = {str(number): tensor for number, tensor in enumerate(weights.to(kind).chunk(TENSORS))}
                save_file(tensors, place.path / "model.safetensors")
                (place.path / ".snapshots" / f"save-{version}").mkdir()
                place.command("optimize", place.path)
                weights += torch.randn(len(weights), generator=random) * STEP
            rates = []
            for _ in range(bench.runs):
                place.unmount()
                place.mount()
                path = place.path / ".snapshots" / "save-0" / "model.safetensors"
                rates.append(path.stat().st_size / read(path, bytearray(WRITE_SIZE)) / GB)
            detail = f"{min(rates):.3f}-{max(rates):.3f}, {SIZE // MIB} MiB"
            name = str(kind).removeprefix("torch.")
            line(f"a version {DELTA_CHAIN_MAX} deltas deep, {name}, GB/s", statistics.median(rates), ">=", GOAL, detail)
