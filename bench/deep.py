"""The speed benchmark's row of old versions: reading one that lies as many deltas deep as ckptfs makes them."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from measure import MIB, WRITE_SIZE, Bench, line, read
from places import Ckptfs
from safetensors.torch import save_file

from ckptfs.store import DELTA_CHAIN_MAX, ChunkStore, Table
from ckptfs.store.location import NUMBER, parse_location
from ckptfs.tree import Tree

GB = 1e9
GOAL = 0.3
STEP = 2e-5
"""How far the weights of N(0, 0.02) move from one save to the next, as a fine-tune's do in some steps."""
TENSOR_SIZE = 8 * MIB
FILE = "model.safetensors"
OLDEST = "save-0"
DEEP_SHARE_MIN = 0.99
"""The part of the oldest version's bytes that has to lie as deep as can be; the head of the file has nothing to rest
on."""


def deep_read(bench: Bench) -> None:
    """Read the oldest version; the packs are in the page cache of the disk below."""
    size = bench.size // 2  # nine of them are stored, and eight encoded
    for kind in (torch.float32, torch.bfloat16):
        with bench.places(Ckptfs) as (place,):
            assert isinstance(place, Ckptfs)
            random = torch.Generator().manual_seed(0)
            weights = torch.randn(size // kind.itemsize, generator=random) * 0.02
            for version in range(DELTA_CHAIN_MAX + 1):
                tensors = {
                    str(number): tensor for number, tensor in enumerate(weights.to(kind).chunk(size // TENSOR_SIZE))
                }
                save_file(tensors, place.path / FILE)
                (place.path / ".snapshots" / f"save-{version}").mkdir()
                place.command("optimize", place.path)
                weights += torch.randn(len(weights), generator=random) * STEP
            place.unmount()
            share = _deep_share(place.store)
            place.mount()
            if share < DEEP_SHARE_MIN:
                sys.exit(f"only {share:.1%} of {OLDEST} lies {DELTA_CHAIN_MAX} deltas deep")
            rates = []
            for _ in range(bench.runs):
                place.unmount()
                place.mount()
                path = place.path / ".snapshots" / OLDEST / FILE
                rates.append(path.stat().st_size / read(path, bytearray(WRITE_SIZE)) / GB)
            detail = f"{min(rates):.3f}-{max(rates):.3f}, {size // MIB} MiB"
            name = str(kind).removeprefix("torch.")
            line(f"a version {DELTA_CHAIN_MAX} deltas deep, {name}, GB/s", statistics.median(rates), ">=", GOAL, detail)


def _deep_share(store_path: Path) -> float:
    """Return the part of the oldest version's bytes that lies as many deltas deep as the row says."""
    with ChunkStore.open(store_path, read_only=True) as store:
        with store.view() as view:
            rows = [(*NUMBER.unpack(key), parse_location(value)) for key, value in view.scan(Table.CHUNKS)]
        bases_of = {number: location.bases for number, location in rows}
        tree = Tree(store)
        snapshot = tree.snapshots.resolve(OLDEST)
        extents = tree.files.load(tree.names.resolve(FILE, snapshot.id)).extents
        chunks = list(extents.between(0, extents.size))
        deep = [chunk for chunk in chunks if _depth(chunk.number, bases_of) == DELTA_CHAIN_MAX]
        return sum(chunk.length for chunk in deep) / extents.size


def _depth(number: int, bases_of: Mapping[int, Sequence[int]]) -> int:
    """Return how many deltas are decoded one on the other to read a chunk."""
    depth, level = 0, {number}
    while level := {base for each in level for base in bases_of[each]}:
        depth += 1
    return depth
