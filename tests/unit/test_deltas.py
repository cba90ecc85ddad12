"""Chunks stored as deltas read as before, whatever happens to the chunks that they rest on, and chains stay short."""

import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.config import BASES_MAX, MIB, ChunkSizes
from ckptfs.errors import DamagedError
from ckptfs.store import (
    DELTA_CHAIN_MAX,
    Alignment,
    Bitmap,
    ChunkStore,
    Decoded,
    DeltaCandidate,
    Table,
    description,
    kernels,
    records,
)
from ckptfs.store.codec import Encoding
from ckptfs.store.delta import encode_delta
from ckptfs.store.location import Chunk, Known, Location
from ckptfs.store.records import EncodedChunk
from ckptfs.store.reference import Buffer
from tests.unit.second_reader import SecondReader

SEED = 4711
CHUNK_SIZE = 16384
ALL = 1 << 40
OVER = Alignment(0, 4, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def create(path: Path) -> ChunkStore:
    """Make a store that cuts at the multiples of CHUNK_SIZE only."""
    sizes = ChunkSizes(size_min=CHUNK_SIZE, size_max=CHUNK_SIZE)
    config = description.new_config(time.time_ns())._replace(chunk_sizes=sizes)
    ChunkStore.create(path, config=config).close()
    return ChunkStore.open(path, pack_size_max=MIB)


def versions(count: int) -> Iterator[bytes]:
    """Yield weights of one chunk, every one moved a little from those before."""
    generator = np.random.default_rng(SEED)
    weights = generator.normal(0, 0.02, CHUNK_SIZE // 4).astype(np.float32)
    for _ in range(count):
        yield weights.tobytes()
        weights = weights + generator.normal(0, 1e-6, len(weights)).astype(np.float32)


def put(store: ChunkStore, contents: Sequence[bytes], *, encode: bool = True) -> dict[int, bytes]:
    """Store each of the contents as chunks, and return number -> bytes."""
    kept = {}
    for content in contents:
        numbers, lengths = store.ingest(memoryview(content), True, encode=encode)
        ends = itertools.accumulate(lengths)
        kept |= {number: content[end - size : end] for number, size, end in zip(numbers, lengths, ends, strict=True)}
    return kept


def checkpoint(store: ChunkStore) -> None:
    """Commit a row, as whoever puts chunks does, and bring LMDB up to it."""
    store.tables.put(Table.META, b"step", b"")
    store.commit(checkpoint=True)


def chain(length: int) -> list[DeltaCandidate]:
    """Return what makes a chain: each chunk rests on the one put after it, the oldest first."""
    return [DeltaCandidate(number, (number + 1,), OVER) for number in range(1, length + 1)]


def location(store: ChunkStore, number: int) -> Location:
    found = store._index.locate(number)
    assert found is not None
    return found


def deltas(store: ChunkStore) -> list[int]:
    """Return the chunks that are deltas, which the store has counted."""
    located = {number: store._index.locate(number) for number in range(1, store.next_number)}
    found = [number for number, at in located.items() if at is not None and at.encoding == Encoding.DELTA]
    stats = store.stats()
    assert stats.delta_chunks == len(found)
    assert stats.delta_bytes == sum(location(store, number).raw_size for number in found)
    return found


def heights(store: ChunkStore) -> list[int]:
    return [location(store, number).height for number in range(1, store.stats().chunks + 1)]


def assert_reads_alone(store: ChunkStore, kept: dict[int, bytes]) -> None:
    assert {number for number, data in kept.items() if store.read(number) != data} == set()


def assert_reads(store: ChunkStore, kept: dict[int, bytes]) -> None:
    assert_reads_alone(store, kept)
    assert [decoded.view() for decoded in store.read_first(list(kept))] == list(kept.values())


def crash(path: Path, copy: Path) -> Path:
    """Return a copy of an open store as a kill of its process would leave it."""
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("index.lmdb-lock", "lock"))
    return copy


def test_a_chunk_becomes_smaller_and_reads_as_before(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(2)))
        checkpoint(store)
        plain_size = location(store, 1).stored_size
        appended = store.appended_bytes
        done = store.reencoder.encode_deltas(chain(1))
        after = location(store, 1)
        assert done == (1, plain_size, 8 + after.stored_size)
        assert after.stored_size < 0.6 * plain_size
        assert (after.encoding, after.bases, store._index.bases(1)) == (Encoding.DELTA, (2,), (2,))
        assert heights(store) == [0, 1]
        assert store.appended_bytes == appended, "it is no new chunk"
        assert_reads(store, kept)
        checkpoint(store)
        assert store.reclaimer.punch() > 0
        assert_reads(store, kept)
        assert store.reencoder.encode_deltas(chain(1)) == (0, 0, 0), "it is one already"
    for rebuild in (False, True):
        with ChunkStore.open(path, rebuild=rebuild) as store:
            assert_reads(store, kept)
            assert (location(store, 1).bases, heights(store), deltas(store)) == ((2,), [0, 1], [1])


def test_a_reader_written_from_the_document_alone_reads_deltas(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(4)))
        checkpoint(store)
        assert store.reencoder.encode_deltas(chain(3)).chunks == 3
        checkpoint(store)
    reader = SecondReader(path)
    assert reader.chunks == kept
    assert Encoding.DELTA in reader.encodings


def test_a_chain_ends_in_a_keyframe(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(DELTA_CHAIN_MAX + 4)))
        checkpoint(store)
        # As saves come: the older one rests on the newer one.
        done = store.reencoder.encode_deltas(chain(DELTA_CHAIN_MAX + 3))
        assert done.chunks == DELTA_CHAIN_MAX + 2
        assert deltas(store) == [*range(1, DELTA_CHAIN_MAX + 1), DELTA_CHAIN_MAX + 2, DELTA_CHAIN_MAX + 3]
        assert heights(store) == [*range(DELTA_CHAIN_MAX + 1), 0, 1, 2]
        assert_reads(store, kept)
        checkpoint(store)
    with ChunkStore.open(path, rebuild=True) as store:
        assert heights(store) == [*range(DELTA_CHAIN_MAX + 1), 0, 1, 2]
        assert_reads(store, kept)


def test_the_length_of_a_chain_counts_in_both_directions(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(DELTA_CHAIN_MAX + 2)))
        upper, lower = chain(DELTA_CHAIN_MAX + 1)[:4], chain(DELTA_CHAIN_MAX + 1)[5:]
        assert store.reencoder.encode_deltas(reversed(lower)).chunks == len(lower)
        assert store.reencoder.encode_deltas(reversed(upper)).chunks == len(upper)
        # 4 deltas rest on the fifth chunk, and the sixth rests on 4: together they would be 9.
        assert store.reencoder.encode_deltas([DeltaCandidate(5, (6,), OVER)]).chunks == 0
        assert store.reencoder.encode_deltas([DeltaCandidate(5, (7,), OVER)]).chunks == 1
        assert heights(store) == [0, 1, 2, 3, 4, 0, 5, 6, 7, 8]
        assert_reads(store, kept)


def test_no_chunk_comes_to_rest_on_itself(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(3)))
        circle = [DeltaCandidate(number, (number % 3 + 1,), OVER) for number in (1, 2, 3)]
        assert store.reencoder.encode_deltas([DeltaCandidate(1, (1,), OVER), *circle]).chunks == 2
        assert deltas(store) == [1, 2]
        assert_reads(store, kept)


def test_what_cannot_be_a_delta_is_left_alone(path: Path) -> None:
    with create(path) as store:
        old, new = versions(2)
        kept = put(store, [old, new, np.random.default_rng(SEED).bytes(CHUNK_SIZE)])
        bases = ((), (99,), (2, 99))
        assert store.reencoder.encode_deltas([DeltaCandidate(1, numbers, OVER) for numbers in bases]) == (0, 0, 0)
        assert store.reencoder.encode_deltas([DeltaCandidate(99, (1,), OVER)]) == (0, 0, 0)
        assert store.reencoder.encode_deltas([DeltaCandidate(1, (2,), Alignment(1, 4, 0))]) == (0, 0, 0), "not covered"
        assert store.reencoder.encode_deltas([DeltaCandidate(3, (1,), OVER)]) == (0, 0, 0), "nothing in common"
        assert store.reencoder.encode_deltas(chain(1), lambda: True) == (0, 0, 0), "told to stop"
        too_many = DeltaCandidate(1, (2,) * (BASES_MAX + 1), OVER)
        assert store.reencoder.encode_deltas([too_many]) == (0, 0, 0)
        assert heights(store) == [0, 0, 0]
        assert store.reencoder.encode_deltas([DeltaCandidate(1, (2,) * BASES_MAX, OVER)]).chunks == 1
        assert_reads(store, kept)


def test_a_waiting_chunk_gets_the_encoding_that_is_smallest(path: Path) -> None:
    old, new = versions(2)
    unlike = b"".join(b"step %d loss\n" % step for step in range(2000))[:CHUNK_SIZE]
    noise = np.random.default_rng(SEED).bytes(CHUNK_SIZE)
    with create(path) as store:
        kept = put(store, [old, new, unlike, noise], encode=False)
        candidates = [DeltaCandidate(number, (2,), OVER) for number in (1, 3, 4)]
        done = store.reencoder.encode_deltas(candidates)
        assert (done.chunks, done.before_bytes) == (1, 2 * CHUNK_SIZE)
        encodings = [location(store, number).encoding for number in (1, 2, 3, 4)]
        assert encodings == [Encoding.DELTA, Encoding.WAITING, Encoding.ZSTD, Encoding.RAW]
        assert store.waiting_bytes == CHUNK_SIZE
        checkpoint(store)
        assert store.reencoder.encode_waiting(ALL).chunks == 1
        assert_reads(store, kept)


def test_a_delta_may_lie_over_several_bases_at_any_place(path: Path) -> None:
    stream = b"".join(versions(4))
    moved = (np.frombuffer(stream, np.uint32) + np.uint32(3)).tobytes()
    skip = 1001
    with create(path) as store:
        kept = put(store, [stream, moved[skip : skip + 3 * CHUNK_SIZE]])
        candidates = [DeltaCandidate(number, (number - 4, number - 3), Alignment(skip, 4, 3)) for number in (5, 6, 7)]
        assert store.reencoder.encode_deltas(candidates).chunks == 3
        assert location(store, 6).stored_size < 600
        assert_reads(store, kept)
        assert heights(store) == [1, 1, 1, 1, 0, 0, 0]


def test_a_base_may_be_stored_anew(path: Path, tmp_path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(3)), encode=False)
        checkpoint(store)
        assert store.reencoder.encode_deltas(chain(1)).chunks == 1
        checkpoint(store)
        assert store.reencoder.encode_waiting(ALL).chunks == 2
        assert location(store, 2).encoding == Encoding.PLANES
        checkpoint(store)
        assert store.reclaimer.punch() > 0
        assert_reads(store, kept)
        assert heights(store) == [0, 1, 0], "also where the old record of the base is gone"
        crashed = crash(path, tmp_path / "crashed")
    (crashed / "index.lmdb").unlink()
    with ChunkStore.open(crashed) as store:
        assert_reads(store, kept)
        assert heights(store) == [0, 1, 0]
        assert store.reencoder.encode_deltas([DeltaCandidate(2, (3,), OVER)]).chunks == 1
        assert heights(store) == [0, 1, 2]
        assert_reads(store, kept)


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_kill_at_any_step_loses_no_chunk(path: Path, tmp_path: Path, index_lost: bool) -> None:
    copies = []
    with create(path) as store:
        kept = put(store, list(versions(4)))
        checkpoint(store)
        for step in range(3):
            store.reencoder.encode_deltas(chain(3)[step : step + 1])
            copies.append(crash(path, tmp_path / f"appended-{step}"))
            store.tables.put(Table.META, b"step", b"%d" % step)
            store.commit(durable=False)
            copies.append(crash(path, tmp_path / f"journalled-{step}"))
            checkpoint(store)
            copies.append(crash(path, tmp_path / f"checkpointed-{step}"))
            assert store.reclaimer.punch() > 0
            copies.append(crash(path, tmp_path / f"punched-{step}"))
    for copy in copies:
        if index_lost:
            (copy / "index.lmdb").unlink()
        with ChunkStore.open(copy) as store:
            assert_reads(store, kept)
            made = len(deltas(store))
            assert heights(store) == [*range(made + 1), *[0] * (3 - made)]
    assert made == 3


def test_a_delta_whose_base_is_damaged_is_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(path) as store:
        kept = put(store, list(versions(4)))
        assert store.reencoder.encode_deltas(chain(1)).chunks == 1
        checkpoint(store)
        place = location(store, 2)
        with store._packs.path(place.pack).open("r+b") as file:
            file.seek(place.offset + 100)
            file.write(b"damage")
        for number in (1, 2):
            with pytest.raises(DamagedError, match="chunk 2"):
                store.read(number)
        with pytest.raises(DamagedError, match="chunk 2"):
            store.read_first([4, 3, 1])
        assert_reads(store, {number: kept[number] for number in (3, 4)})
        with caplog.at_level(logging.WARNING):
            assert (
                store.reencoder.encode_deltas([DeltaCandidate(3, (2,), OVER), DeltaCandidate(3, (4,), OVER)]).chunks
                == 1
            )
        (message,) = caplog.messages
        assert "chunk 2" in message
        caplog.clear()


def append_delta(store: ChunkStore, number: int, base: int, kept: dict[int, bytes]) -> None:
    """Append a delta without asking whether it may be one."""
    chunk_id = store._fetcher.read_with_id(number)[1]
    payload = encode_delta(kept[number], kept[base], OVER)
    check = records.payload_check(payload, records.pack_bases([base]))
    store._ingest.append_again([EncodedChunk(chunk_id, CHUNK_SIZE, Encoding.DELTA, payload, check, (base,))], [number])


def test_a_cycle_is_damage_and_ends(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(2)))
        chunk_id = store._fetcher.read_with_id(2)[1]
        append_delta(store, 1, 2, kept)
        payload = encode_delta(kept[2], kept[1], OVER)
        check = records.payload_check(payload, records.pack_bases([1]))
        store._ingest.append_again([EncodedChunk(chunk_id, CHUNK_SIZE, Encoding.DELTA, payload, check, (1,))], [2])
        for number in (1, 2):
            with pytest.raises(DamagedError, match="more than 8 deltas rest on one another"):
                store.read(number)
        checkpoint(store)
    with ChunkStore.open(path, rebuild=True) as store, pytest.raises(DamagedError, match="more than 8 deltas"):
        store.read_first([1, 2])


def test_a_chain_that_is_too_long_is_damage(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(DELTA_CHAIN_MAX + 2)))
        for number in range(DELTA_CHAIN_MAX + 1, 0, -1):
            append_delta(store, number, number + 1, kept)
        with pytest.raises(DamagedError, match="more than 8 deltas rest on one another"):
            store.read(1)
        assert_reads(store, {number: kept[number] for number in range(2, DELTA_CHAIN_MAX + 3)})


def test_neighbours_decode_a_common_base_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_counts = []
    take_chains = kernels.take_chains

    def counting(data: Buffer, links: Buffer, *others: Any) -> bytes:
        link_counts.append(len(links) // kernels.LINK.size)
        return take_chains(data, links, *others)

    stream = b"".join(versions(5))
    moved = (np.frombuffer(stream, np.uint32) + np.uint32(3)).tobytes()
    with create(path) as store:
        kept = put(store, [stream, moved[1000 : 1000 + 4 * CHUNK_SIZE]])
        candidates = [
            DeltaCandidate(number, (number - 5, number - 4), Alignment(1000, 4, 0)) for number in range(6, 10)
        ]
        assert store.reencoder.encode_deltas(candidates).chunks == 4
        monkeypatch.setattr(kernels, "take_chains", counting)
        read = store.read_first([6, 7, 8, 9])
        assert [decoded.view() for decoded in read] == [kept[number] for number in (6, 7, 8, 9)]
        assert link_counts == [4 + 5]


def sweep(store: ChunkStore, needed: Sequence[int]) -> int:
    """Release all chunks but those that are needed and what these rest on; return how many went."""
    try:
        return store.sweeper.sweep(mark(store, needed)).chunks
    finally:
        store.sweeper.end()


def mark(store: ChunkStore, needed: Sequence[int]) -> Bitmap:
    """Begin a sweep, and mark what is needed."""
    bitmap = store.sweeper.begin()
    for number in needed:
        bitmap.add(number)
    store.sweeper.need_bases(bitmap)
    return bitmap


def stored(store: ChunkStore, kept: dict[int, bytes]) -> dict[int, bytes]:
    """Return those of the chunks that the store still has."""
    return {number: data for number, data in kept.items() if store._index.locate(number) is not None}


def test_a_sweep_keeps_what_the_needed_rests_on(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(6)))
        assert store.reencoder.encode_deltas(chain(4)).chunks == 4
        assert sweep(store, [3]) == 3
        assert list(stored(store, kept)) == [3, 4, 5]
        assert_reads(store, stored(store, kept))
        checkpoint(store)
        assert store.reclaimer.punch() > 0
        assert_reads(store, stored(store, kept))
        assert sweep(store, []) == 3
        assert deltas(store) == []
    with ChunkStore.open(path, rebuild=True) as store:
        assert stored(store, kept) == {}


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_sweep_releases_every_delta_before_what_it_rests_on(path: Path, tmp_path: Path, index_lost: bool) -> None:
    copies = []
    with create(path) as store:
        kept = put(store, list(versions(8)))
        assert store.reencoder.encode_deltas(chain(6)).chunks == 6
        checkpoint(store)
        release = store.sweeper._release

        def releasing(known: Sequence[Known]) -> list[Chunk]:
            released = release(known)
            assert_reads(store, stored(store, kept))
            copies.append(crash(path, tmp_path / f"released-{len(copies)}"))
            return released

        store.sweeper._release = releasing
        assert sweep(store, [8]) == 7
    left = []
    for copy in copies:
        if index_lost:
            (copy / "index.lmdb").unlink()
        with ChunkStore.open(copy) as store:
            assert_reads(store, stored(store, kept))
            left.append(len(stored(store, kept)))
    assert sorted(set(left)) == [*range(1, 9)]


def test_a_delta_made_during_a_sweep_keeps_what_it_comes_to_rest_on(path: Path) -> None:
    with create(path) as store:
        kept = put(store, list(versions(5)))
        assert store.reencoder.encode_deltas(chain(4)[1:3]).chunks == 2
        needed = mark(store, [1])
        assert store.reencoder.encode_deltas(chain(1)).chunks == 1
        assert store.sweeper.sweep(needed).chunks == 1
        store.sweeper.end()
        assert list(stored(store, kept)) == [1, 2, 3, 4]
        assert deltas(store) == [1, 2, 3]
        assert_reads(store, stored(store, kept))


def test_no_delta_is_made_against_a_base_released_meanwhile(path: Path) -> None:
    """The race: the base is there when it is chosen and read, and gone before the delta is appended."""
    with create(path) as store:
        kept = put(store, list(versions(2)))
        append = store.reencoder._append

        def sweep_first(chunks: Sequence[EncodedChunk], numbers: Sequence[int]) -> int:
            assert sweep(store, [1]) == 1
            return append(chunks, numbers)

        store.reencoder._append = sweep_first
        assert store.reencoder.encode_deltas(chain(1)) == (0, 0, 0)
        assert list(stored(store, kept)) == [1]
        assert deltas(store) == []
        assert_reads(store, stored(store, kept))


def test_a_base_released_while_it_is_read_is_no_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(path) as store:
        kept = put(store, list(versions(2)))
        read_many = store._fetcher.read_many

        def sweep_first(numbers: Sequence[int]) -> list[Decoded]:
            assert sweep(store, [1]) == 1
            return read_many(numbers)

        store._fetcher.read_many = sweep_first  # type: ignore[method-assign]
        assert store.reencoder.encode_deltas(chain(1)) == (0, 0, 0)
        assert_reads_alone(store, stored(store, kept))
        assert not caplog.records


def test_a_delta_found_again_during_a_sweep_keeps_what_it_rests_on(path: Path) -> None:
    contents = list(versions(5))
    with create(path) as store:
        kept = put(store, contents)
        assert store.reencoder.encode_deltas(chain(3)).chunks == 3
        needed = mark(store, [5])
        assert store.ingest(memoryview(contents[1]), True).numbers == [2]
        assert store.sweeper.sweep(needed).chunks == 1
        store.sweeper.end()
        assert list(stored(store, kept)) == [2, 3, 4, 5]
        assert_reads(store, stored(store, kept))


@settings(deadline=None, max_examples=12)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=3), st.booleans()),
        min_size=10,
        max_size=40,
    )
)
def test_whatever_rests_on_whatever_reads_as_before(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[int], bool]]
) -> None:
    path = tmp_path_factory.mktemp("deltas") / "store"
    with create(path) as store:
        kept = put(store, list(versions(12)), encode=False)
        for number, bases, with_checkpoint in steps:
            store.reencoder.encode_deltas([DeltaCandidate(number, tuple(bases), OVER)])
            if with_checkpoint:
                checkpoint(store)
        assert_reads(store, kept)
        checkpoint(store)
        known, made = heights(store), deltas(store)
        assert known == longest_above(store)
        store.reencoder.encode_waiting(ALL)
        checkpoint(store)
        store.reclaimer.punch()
    with ChunkStore.open(path, rebuild=True) as store:
        assert_reads(store, kept)
        assert (heights(store), deltas(store)) == (known, made)


def longest_above(store: ChunkStore) -> list[int]:
    """Return for every chunk the longest chain of deltas that rest on it, found from the bases alone."""
    count = store.stats().chunks
    longest = [0] * (count + 1)
    for _ in range(DELTA_CHAIN_MAX):
        for number in range(1, count + 1):
            for base in store._index.bases(number):
                longest[base] = max(longest[base], longest[number] + 1)
    return longest[1:]
