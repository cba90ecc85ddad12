"""What a read decodes is bounded: below one chunk, and for all of the read. What is ever written stays within that."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptfs.config import KIB, ChunkSizes
from ckptfs.errors import DamagedError
from ckptfs.store import (
    DELTA_CHAIN_MAX,
    Alignment,
    ChunkStore,
    DeltaCandidate,
    budget,
    chains,
    codec,
    fetch,
    kernels,
)
from ckptfs.store.location import NUMBER, build_location
from ckptfs.tree import reader as reader_module
from ckptfs.tree.extents import Extents
from ckptfs.tree.optimize import Optimizer, optimize_part
from ckptfs.tree.reader import ChunkReader, ReadPlan
from tests.unit.tree_support import CHUNK_SIZES, CONFIG, NoSyncDisk, append_delta, new_tree, save

SIZE_MAX = CHUNK_SIZES.size_max
SCALE = ChunkSizes().size_max // SIZE_MAX
"""So much smaller than in a store that ckptfs makes are the chunks here."""
CHUNKS = 12


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    """Give a store that cuts at the multiples of SIZE_MAX only; chunks 1 to CHUNKS have bytes that say which it is."""
    config = CONFIG._replace(chunk_sizes=CHUNK_SIZES._replace(size_min=SIZE_MAX))
    with closing(ChunkStore.create(tmp_path / "store", disk=NoSyncDisk(), config=config)) as store:
        for number in range(1, CHUNKS + 1):
            assert store.ingest(memoryview(bytes([number]) * SIZE_MAX), True).numbers == [number]
        yield store


def planned(*pieces: tuple[int, int]) -> ReadPlan:
    """Return the plan of reading all of a file of (chunk number, length)."""
    extents = Extents()
    for number, length in pieces:
        extents.append(number, length)
    plan = ReadPlan(extents.size)
    plan.cover(extents, 0)
    return plan


def set_costs(
    monkeypatch: pytest.MonkeyPatch, decoded_max: int, *, ratio: int = 0, chunk_cost: int = 0, piece_cost: int = 0
) -> None:
    """Set what a read may cost, and what chunks and pieces of it cost besides their bytes."""
    monkeypatch.setattr(budget, "DECODED_MAX", decoded_max)
    monkeypatch.setattr(budget, "DECODED_RATIO", ratio)
    monkeypatch.setattr(budget, "CHUNK_COST", chunk_cost)
    monkeypatch.setattr(fetch, "CHUNK_COST", chunk_cost)
    monkeypatch.setattr(reader_module, "PIECE_COST", piece_cost)


def refused() -> "pytest.RaisesExc[DamagedError]":
    return pytest.raises(DamagedError, match="bytes of a file rest on far too many bytes")


def test_a_read_that_takes_far_more_than_it_has_is_refused(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "READ_SIZE_MAX", 4 * SIZE_MAX)
    few, many = (planned(*((number, 1) for number in range(1, count + 1))) for count in (10, 11))
    whole = planned(*((number, SIZE_MAX) for number in range(1, CHUNKS + 1)), (0, 1))
    for room in (None, bytearray(SIZE_MAX * (CHUNKS + 1))):
        set_costs(monkeypatch, 10 * SIZE_MAX)
        assert few.run(ChunkReader(store), room) == bytes(range(1, 11))
        with refused():
            many.run(ChunkReader(store), room)
        set_costs(monkeypatch, 0, ratio=1)
        data = whole.run(ChunkReader(store), room)
        assert data == b"".join(bytes([n]) * SIZE_MAX for n in range(1, CHUNKS + 1)) + b"\0"


@pytest.mark.parametrize(("chunk_cost", "piece_cost"), [(100, 0), (0, 100)])
def test_chunks_and_pieces_count_however_small_they_are(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, chunk_cost: int, piece_cost: int
) -> None:
    plan = planned((1, 1), (0, 1), (1, 1), (2, 1))
    cost = 2 * SIZE_MAX + 2 * chunk_cost + 3 * piece_cost
    set_costs(monkeypatch, cost, chunk_cost=chunk_cost, piece_cost=piece_cost)
    assert plan.run(ChunkReader(store)) == b"\1\0\1\2"
    set_costs(monkeypatch, cost - 1, chunk_cost=chunk_cost, piece_cost=piece_cost)
    with refused():
        plan.run(ChunkReader(store))


def forge_stored_size(store: ChunkStore, number: int, stored_size: int) -> None:
    """Let the index say that a chunk's record is so large."""
    location = store._index.locate(number)
    assert location is not None
    row = build_location(location._replace(stored_size=stored_size))
    store._index.rows.newest.locations[NUMBER.pack(number)] = row


def test_a_record_that_is_larger_than_its_chunk_counts_as_what_it_is(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_costs(monkeypatch, 10 * SIZE_MAX)
    forge_stored_size(store, 1, 11 * SIZE_MAX)
    with refused():
        store.read_first([1])
    append_delta(store, 2, 3)
    forge_stored_size(store, 3, 11 * SIZE_MAX)
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", 10 * SIZE_MAX)
    with pytest.raises(DamagedError, match="takes more than"):
        store.read(2)
    reads = []
    monkeypatch.setattr(chains._Chains, "read", lambda *_: reads.append(1) or {})
    set_costs(monkeypatch, 1 << 30)
    monkeypatch.setattr(chains, "LEVEL_SIZE_MAX", 10 * SIZE_MAX)
    with pytest.raises(DamagedError, match="takes more than"):
        store.read_first([2])
    assert not reads


def test_a_delta_that_is_larger_than_its_chunk_counts_as_what_it_is(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, base = (store.ingest(memoryview(raw), True).numbers[0] for raw in (b"a", b"b"))
    append_delta(store, delta, base)
    location = store._index.locate(delta)
    assert location is not None and location.stored_size > 1
    set_costs(monkeypatch, 2 * (location.stored_size + 1))
    assert store.read_first([delta])[0].view() == b"a"
    set_costs(monkeypatch, 2 * (location.stored_size + 1) - 1)
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", 0)  # lest it be read alone
    with pytest.raises(DamagedError):
        store.read_first([delta])


def test_deltas_with_far_too_many_bytes_between_their_records_are_read_alone(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_delta(store, 1, 2)
    decoded = count_decoded(monkeypatch)
    for limit, decoded_alone in ((2 * SIZE_MAX, 0), (SIZE_MAX + CHUNKS * 50, 2 * SIZE_MAX)):
        monkeypatch.setattr(chains, "DATA_SIZE_MAX", limit)
        decoded.clear()
        assert store.read_first([1])[0].view() == bytes([1]) * SIZE_MAX
        assert decoded["alone"] == decoded_alone


def test_a_delta_that_rests_on_very_many_bytes_is_refused(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded below a delta that is read alone may be decoded again and again: twice as often on each level."""
    monkeypatch.setattr(fetch, "MEMO_SIZE_MAX", 0)
    for above, below in pairwise((number, number + 1) for number in range(1, CHUNKS, 2)):
        for number in above:
            append_delta(store, number, *below)
    cost = (2**6 - 1) * (SIZE_MAX + budget.CHUNK_COST)
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", cost)
    assert store.read(1) == bytes([1]) * SIZE_MAX
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", cost - 1)
    with pytest.raises(DamagedError, match="takes more than"):
        store.read(1)


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> "Counter[str]":
    """Count the bytes of chunks that are decoded, all links of chains as if each were once, and those in no chain."""
    decoded: Counter[str] = Counter()
    take_chains, decode = kernels.take_chains, codec.decode

    def counting_chains(data: Any, links: bytes, *others: Any) -> bytes:
        decoded["size"] += sum(link[4] for link in kernels.LINK.iter_unpack(links))
        return take_chains(data, links, *others)

    def counting(encoding: int, payload: memoryview, raw_size: int, base: bytes = b"") -> bytes:
        decoded["size"] += raw_size
        decoded["alone"] += raw_size
        return decode(encoding, payload, raw_size, base)

    monkeypatch.setattr(kernels, "take_chains", counting_chains)
    monkeypatch.setattr(codec, "decode", counting)
    return decoded


@pytest.mark.parametrize("alone", [False, True])
def test_a_read_that_leads_to_the_same_differences_again_and_again_ends(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Every piece is a byte, and each batch of them decodes all that its chunks rest on anew."""
    for number in range(2, DELTA_CHAIN_MAX + 2):
        append_delta(store, number - 1, number)
    plan = planned(*((1, 1) for _ in range(100)))
    monkeypatch.setattr(reader_module, "SLICES_MAX", 2)
    if alone:
        monkeypatch.setattr(chains, "LEVEL_SIZE_MAX", 0)
    decoded, room = count_decoded(monkeypatch), bytearray(SIZE_MAX)
    set_costs(monkeypatch, 2 * 50 * (DELTA_CHAIN_MAX + 1) * SIZE_MAX)
    assert plan.run(ChunkReader(store), room) == b"\1" * 100
    assert decoded.pop("size") == 50 * (DELTA_CHAIN_MAX + 1) * SIZE_MAX
    set_costs(monkeypatch, 10 * (DELTA_CHAIN_MAX + 1) * SIZE_MAX)
    with refused():
        plan.run(ChunkReader(store), room)
    reads_max = 11 if alone else 5 + 1  # a chain might have to be decoded twice
    assert decoded["size"] <= reads_max * (DELTA_CHAIN_MAX + 1) * SIZE_MAX
    assert not store._damaged, "no chunk is to blame"


def test_a_chunk_that_rests_on_as_much_as_is_ever_written_is_read(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version reaches over both ends of the one before by one byte, of the largest of chunks."""
    world = bytearray(np.random.default_rng(8).bytes(40 * SIZE_MAX))
    cuts = [20 * SIZE_MAX, 21 * SIZE_MAX]
    oldest = bytes(world[cuts[0] : cuts[-1]])
    (first,) = numbers = store.ingest(memoryview(oldest), True).numbers
    candidates, below = [], 0
    for level in range(1, DELTA_CHAIN_MAX + 1):
        before = zip(numbers, pairwise(cuts), strict=True)
        start, stop = cuts[0], cuts[-1]
        cuts = [start - SIZE_MAX + 1, *range(start + 1, stop - 1, SIZE_MAX), stop - 1, stop + SIZE_MAX - 1]
        below += cuts[-1] - cuts[0]
        for at in range(0, len(world), 100):
            world[at] ^= level
        pieces = [memoryview(world)[start:stop] for start, stop in pairwise(cuts)]
        numbers = [number for piece in pieces for number in store.ingest(piece, True).numbers]
        assert len(numbers) == len(cuts) - 1 == 2 * level + 1
        for number, (start, stop) in before:
            over = [index for index, (low, high) in enumerate(pairwise(cuts)) if low < stop and start < high]
            bases = tuple(numbers[index] for index in over)
            candidates.append(DeltaCandidate(number, bases, Alignment(start - cuts[over[0]], 1, 0)))
    assert below == 80 * SIZE_MAX - 72
    assert SCALE * below < fetch.DECODED_SIZE_MAX / 50
    assert store.reencoder.encode_deltas(candidates).chunks == len(candidates) == DELTA_CHAIN_MAX**2
    set_costs(monkeypatch, 2 * (below + SIZE_MAX))
    monkeypatch.setattr(fetch, "MEMO_SIZE_MAX", fetch.MEMO_SIZE_MAX // SCALE)
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", SIZE_MAX + below)
    assert store.read(first) == store.read_first([first])[0].view() == oldest
    monkeypatch.setattr(fetch, "DECODED_SIZE_MAX", SIZE_MAX + below - 1)
    with pytest.raises(DamagedError, match="takes more than"):
        store.read(first)


@pytest.mark.parametrize("alone", [False, True])
def test_a_version_that_lies_deep_takes_far_less_than_its_read_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Everything is smaller by SCALE; nothing is allowed but what goes with the size."""
    with closing((tree := new_tree(tmp_path / "store")).store) as store:
        generator = np.random.default_rng(9)
        weights, saved = generator.normal(0, 0.02, 16 * KIB).astype(np.float32), []
        for version in range(DELTA_CHAIN_MAX + 1):
            saved.append(weights.tobytes())
            save(tree, "weights", saved[-1])
            tree.take_snapshot(f"save-{version}")
            weights[generator.integers(0, len(weights), len(weights) // 16)] *= 1.0001
        optimizer = Optimizer(tree)
        while not optimize_part(optimizer, store, lambda: False).finished:
            pass
        set_costs(monkeypatch, 0, ratio=budget.DECODED_RATIO, chunk_cost=budget.CHUNK_COST // SCALE)
        monkeypatch.setattr(chains, "ASKED_SIZE_MAX", chains.ASKED_SIZE_MAX // SCALE)
        monkeypatch.setattr(chains, "LEVEL_SIZE_MAX", 0 if alone else chains.LEVEL_SIZE_MAX // SCALE)
        decoded = count_decoded(monkeypatch)
        inode = tree.names.resolve("weights", tree.snapshots.resolve("save-0").id)
        assert tree.files.load(inode).plan_read(0, inode.size).run(ChunkReader(store)) == saved[0]
        assert decoded["size"] > DELTA_CHAIN_MAX * len(saved[0]), "it does not lie deep"
        print(decoded["size"] / len(saved[0]), "times its size")
