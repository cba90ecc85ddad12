"""What the largest store that is promised costs: a million chunks, and ten thousand versions of a file.

Seconds are those of the processor, and only guard against what has become many times slower: `bench/` measures.
"""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ckptfs.config import MIB
from ckptfs.store import Table
from ckptfs.store.location import NUMBER, Location, build_location
from ckptfs.tree import Tree
from ckptfs.tree.commands import Commands
from ckptfs.tree.gc import Collection
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.rows import id_prefix
from ckptfs.tree.snapshots import Snapshot
from tests.unit import tree_support as support

SEED = 5150
CHUNKS, SNAPSHOTS, EXTENTS_EACH = 1_000_000, 10_000, 400
LENGTH = 65_536


def make(path: Path, chunks: int, snapshots: int) -> tuple[Tree, set[int]]:
    """Write the rows of very many versions of a file, past everything that makes them; return the chunks they have."""
    tree = support.new_tree(path)
    chance = np.random.default_rng(SEED)
    numbers = np.arange(1, chunks + 1)
    packed = [NUMBER.pack(number) for number in numbers.tolist()]
    location = build_location(Location(1, 64, LENGTH, LENGTH, 0))
    inodes, parts, listed, used = [], [], [], set()
    template = tree.names.inode(ROOT_INO)
    for version in range(1, snapshots + 1):
        manifest = version + 1
        tree.snapshots._by_id[version] = Snapshot(version, f"v{version}", 0, "auto", "", 1, 0, 0, ())
        listed.append((version.to_bytes(4, "big"), b"{}"))
        inode = template._replace(manifest=manifest)
        inodes.append((id_prefix(1 << 20) + version.to_bytes(4, "big"), inode.encode()))
        start = int(chance.integers(1, chunks - EXTENTS_EACH))
        span = numbers[start - 1 : start - 1 + EXTENTS_EACH].astype("<u8")
        used.update(span.tolist())
        lengths = np.full(EXTENTS_EACH, LENGTH, "<u4").tobytes()
        parts.append((id_prefix(manifest) + bytes(8), span.tobytes() + lengths))
    tree.store._environment.write(
        [
            (Table.CHUNKS, [(key, location) for key in packed]),
            (Table.CHUNK_IDS, [(key * 2, key) for key in packed]),
            (Table.INODES, inodes),
            (Table.MANIFESTS, parts),
            (Table.SNAPSHOTS, listed),
        ]
    )
    tree.store._end.mark = tree.store._end.mark._replace(number=chunks + 1)
    tree.store._index._next_number = chunks + 1
    tree.rows._next_id = snapshots + 2
    tree.rows.open_epoch = snapshots + 1
    for reader in tree.store._environment._readers:
        reader.renew()
    return tree, used


def seconds_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes that Python had taken meanwhile."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_million_chunks_and_ten_thousand_versions_cost_seconds(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    tree, used = make(tmp_path / "store", CHUNKS, SNAPSHOTS)

    def mark() -> None:
        with Collection(tree) as collection:
            collection.look()
            collection.mark()
            needed.append(sum(number in collection._needed for number in range(1, CHUNKS + 1, 97)))

    needed: list[int] = []
    assert seconds_of(mark) < 5
    assert peak_of(mark) < 100 * MIB
    assert needed == 2 * [len(used.intersection(range(1, CHUNKS + 1, 97)))]

    assert not Commands(tree).sizes_are_quick()
    found: dict[int, int] = {}
    assert seconds_of(lambda: found.update(Commands(tree).snapshot_sizes())) < 20
    assert len(found) == SNAPSHOTS
    assert 0 < sum(found.values()) < CHUNKS * (LENGTH + 1000)

    tree.store._finish_checkpoint(tree.store.tables.freeze())
    began = time.process_time()
    assert tree.store.reclaimer.condense(lambda: False)
    assert tree.store.reclaimer.begin(tree.store.position).left_bytes == 0
    assert time.process_time() - began < 20
    support.crash(tree)


def test_sizes_take_some_bytes_of_memory_for_each_chunk(tmp_path: Path) -> None:
    chunks = CHUNKS // 20
    tree, _ = make(tmp_path / "store", chunks, SNAPSHOTS // 20)
    assert peak_of(lambda: dict(Commands(tree).snapshot_sizes())) < 50 * chunks
    support.crash(tree)
