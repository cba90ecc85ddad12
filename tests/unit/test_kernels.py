"""The kernels cut and hash as the reference does, whatever the bytes, however they are fed, and find the cuts again."""

import itertools
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptfs.config import BASES_MAX, KIB, MIB, ChunkSizes
from ckptfs.errors import UsageError
from ckptfs.store import codec, frames, kernels, records, reference
from ckptfs.store.codec import Encoding
from ckptfs.store.location import Location, build_location, parse_location
from ckptfs.store.records import HEADER_SIZE, RecordType

KERNELS = kernels.available_kernels()
NATIVE = [name for name in KERNELS if name != "python"]
SIZES = ChunkSizes()
SEED = 0x1234_5678_9ABC_DEF0
PASSES_OFTEN = bytes([reference.PREFILTER_TARGET, 0, 0, 0])  # the prefilter passes at every fourth position

# The count, the first three lengths and the XXH3-64 of all lengths as u32. What is cut here is what lies in every
# store: a change of these numbers is a new format version.
GOLDEN_CUTS = {
    ChunkSizes(): (107, [88268, 524288, 120438], "e11241349dac2e91"),
    ChunkSizes(16 * KIB, 16, 256 * KIB): (211, [56231, 32037, 131206], "e5538a6d4e3d728e"),  # of older stores
}
GOLDEN_SMALL = (130, [206, 247, 331], "254eb111cff02110")
GOLDEN_ID = "57eee82837ddb0dddb6cbd8548f1ba52"


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sprinkle(pattern: bytes, count: int, seed: int) -> bytes:
    """Repeat a pattern and change one byte in sixteen of it."""
    generator = random.Random(seed)
    data = bytearray(pattern * count)
    for _ in range(len(data) // 16):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def weights(seed: int, count: int) -> np.ndarray:
    """Make fp32 values as a layer has them, N(0, 0.02)."""
    print(f"seed {seed}")
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.02)


def packed(floats: list[float]) -> bytes:
    return struct.pack(f"<{len(floats)}f", *floats)


seeds = st.integers(0, 2**32)
contents = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda value, size: bytes([value]) * size, st.integers(0, 255), st.integers(0, 3000)),
    st.builds(random_bytes, seeds, st.integers(0, 6000)),
    st.builds(lambda pattern, count: pattern * count, st.binary(min_size=1, max_size=20), st.integers(0, 200)),
    st.builds(sprinkle, st.just(PASSES_OFTEN), st.integers(1, 1500), seeds),
    st.lists(st.floats(-1, 1, width=32), max_size=500).map(packed),
)


@st.composite
def limits(draw: st.DrawFn) -> tuple[int, int, int]:
    size_min = draw(st.integers(16, 200))
    return size_min, draw(st.integers(8, 12)), size_min + draw(st.integers(0, 3000))


def test_the_extension_is_built() -> None:
    assert "portable" in NATIVE, KERNELS["python"].title
    assert next(iter(KERNELS)) == kernels.NAME or os.environ.get(kernels.VARIABLE)


@pytest.mark.parametrize("name", NATIVE)
@settings(deadline=None)
@given(data=contents, limits=limits(), final=st.booleans(), shift=st.integers(0, 70))
def test_every_kernel_cuts_where_the_reference_cuts(
    name: str, data: bytes, limits: tuple[int, int, int], final: bool, shift: int
) -> None:
    view = memoryview(data)[shift:]
    assert KERNELS[name].cut(view, *limits, final) == reference.cut(view, *limits, final)


@pytest.mark.parametrize("name", NATIVE)
@settings(deadline=None)
@given(data=contents, limits=limits(), final=st.booleans(), shift=st.integers(0, 70), seed=st.integers(0, 2**64 - 1))
def test_every_kernel_hashes_as_the_reference_does(
    name: str, data: bytes, limits: tuple[int, int, int], final: bool, shift: int, seed: int
) -> None:
    view = memoryview(data)[shift:]
    hashed = KERNELS[name].cut_and_hash(view, *limits, final, seed)
    assert hashed == reference.cut_and_hash(view, *limits, final, seed)
    lengths, ids = hashed
    assert KERNELS[name].hash_chunks(memoryview(view)[: sum(lengths)], lengths, seed) == ids
    assert hashed[0] == KERNELS[name].cut(view, *limits, final)


@pytest.mark.parametrize("name", KERNELS)
def test_ids_are_xxh3_128_digests_whatever_the_size(name: str) -> None:
    """XXH3 is another algorithm for 0, 1-3, 4-8, 9-16, 17-128, 129-240 and more bytes, and works in 1 KiB strides."""
    noise = random_bytes(13, 5000)
    for size in [*range(1, 300), *range(1000, 1100), 2047, 2048, 2049, 4096, 5000]:
        for seed in (0, 1, 2**64 - 1):
            lengths, ids = KERNELS[name].cut_and_hash(noise[:size], 5000, 16, 5000, True, seed)
            assert (lengths, ids) == ([size], [xxhash.xxh3_128_digest(noise[:size], seed)])
    assert KERNELS[name].cut_and_hash(b"", 5000, 16, 5000, True, 1) == ([], [])


@settings(deadline=None)
@given(data=contents, limits=limits(), final=st.booleans())
def test_chunks_keep_to_their_sizes(data: bytes, limits: tuple[int, int, int], final: bool) -> None:
    size_min, mean_bits, size_max = limits
    lengths = kernels.cut(data, size_min, mean_bits, size_max, final)
    complete = lengths[:-1] if final else lengths
    assert all(size_min <= length <= size_max for length in complete)
    rest = len(data) - sum(lengths)
    assert rest == 0 if final else 0 <= rest < size_max


@settings(deadline=None)
@given(data=contents, limits=limits(), fed=st.lists(st.integers(0, 500)))
def test_cuts_do_not_depend_on_how_the_bytes_are_fed(data: bytes, limits: tuple[int, int, int], fed: list[int]) -> None:
    lengths: list[int] = []
    waiting, position = b"", 0
    for size in fed:
        waiting += data[position : position + size]
        position += size
        new = kernels.cut(waiting, *limits, False)
        waiting = waiting[sum(new) :]
        lengths += new
    lengths += kernels.cut(waiting + data[position:], *limits, True)
    assert lengths == kernels.cut(data, *limits, True)


@pytest.mark.parametrize("name", KERNELS)
def test_constant_bytes_have_no_cuts(name: str) -> None:
    for value in range(256):
        assert KERNELS[name].cut(bytes([value]) * 4000, 16, 8, 1000, True) == [1000] * 4


def summary(lengths: list[int]) -> tuple[int, list[int], str]:
    return len(lengths), lengths[:3], xxhash.xxh3_64_hexdigest(struct.pack(f"<{len(lengths)}I", *lengths))


@pytest.mark.parametrize("sizes", GOLDEN_CUTS)
@pytest.mark.parametrize("name", NATIVE)
def test_golden_cuts(name: str, sizes: ChunkSizes) -> None:
    lengths = KERNELS[name].cut(random_bytes(20240607, 16 * MIB), sizes.size_min, sizes.mean_bits, sizes.size_max, True)
    assert summary(lengths) == GOLDEN_CUTS[sizes]


@pytest.mark.parametrize("name", KERNELS)
def test_golden_cuts_of_small_chunks(name: str) -> None:
    assert summary(KERNELS[name].cut(random_bytes(7, 64 * KIB), 64, 9, 2000, True)) == GOLDEN_SMALL


@pytest.mark.parametrize("name", KERNELS)
def test_golden_id(name: str) -> None:
    assert KERNELS[name].hash_chunks(b"", [], 20240607) == []
    for lengths in ([5], [7], [6, 1], [2**62, 6], [-6]):
        with pytest.raises((ValueError, OverflowError)):
            KERNELS[name].hash_chunks(b"ckptfs", lengths, 20240607)
    (chunk_id,) = KERNELS[name].cut_and_hash(b"ckptfs", 16, 8, 16, True, 20240607)[1]
    assert chunk_id.hex() == GOLDEN_ID


def test_the_mean_chunk_is_as_designed() -> None:
    data = weights(3, 32 * MIB // 4).tobytes()
    lengths = kernels.cut(data, 16 * KIB, 14, 256 * KIB, True)
    mean_expected = 16 * KIB + 2**14
    assert abs(sum(lengths) / len(lengths) - mean_expected) < 0.1 * mean_expected


@pytest.mark.parametrize("inserted", [1, 64, 4096, 20011, 20032])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_bytes_are_found_again_behind_an_insertion(kind: str, inserted: int) -> None:
    """An insertion costs the chunk that it hits, about 140 KiB with these sizes, and what follows until cuts agree."""
    floats = weights(11, 16 * MIB // (4 if kind == "fp32" else 2))
    old = floats.tobytes() if kind == "fp32" else (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    known = set(chunk_hashes(old))
    found = []
    for where in range(MIB, 16 * MIB, 2 * MIB):
        new = old[:where] + random_bytes(where, inserted) + old[where:]
        found.append(sum(size for digest, size in chunk_hashes(new) if (digest, size) in known) / len(old))
    print(f"{kind} + {inserted}: found again {min(found):.4f} to {max(found):.4f}")
    assert sum(found) / len(found) >= 0.98


def chunk_hashes(data: bytes) -> list[tuple[bytes, int]]:
    """Return the hash and the size of every chunk of `data`."""
    lengths = kernels.cut(data, SIZES.size_min, SIZES.mean_bits, SIZES.size_max, True)
    starts = itertools.accumulate(lengths, initial=0)
    return [(xxhash.xxh3_128_digest(data[s : s + n]), n) for s, n in zip(starts, lengths, strict=False)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("limits", [(15, 12, 100), (64, 7, 100), (64, 41, 100), (64, 12, 63), (-1, 12, 100)])
def test_sizes_that_make_no_sense_are_refused(name: str, limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="size_min"):
        KERNELS[name].cut(b"x" * 1000, *limits, True)
    with pytest.raises(ValueError, match="size_min"):
        KERNELS[name].cut_and_hash(b"x" * 1000, *limits, True, 1)


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None)
@given(data=contents, width=st.sampled_from([2, 4, 8]), turned=st.booleans())
def test_planes_are_those_of_the_reference_and_join_again(name: str, data: bytes, width: int, turned: bool) -> None:
    planes = KERNELS[name].split_planes(data, width, turned)
    assert planes == reference.split_planes(data, width, turned)
    assert KERNELS[name].join_planes(planes, width, turned) == data
    assert reference.join_planes(planes, width, turned) == data


@pytest.mark.parametrize("name", KERNELS)
def test_golden_planes(name: str) -> None:
    assert KERNELS[name].split_planes(b"abcdABCD1234xyz", 4, False) == b"aA1bB2cC3dD4xyz"
    assert KERNELS[name].join_planes(b"aA1bB2cC3dD4xyz", 4, False) == b"abcdABCD1234xyz"
    assert KERNELS[name].split_planes(b"\x01\x82\x83\x04x", 2, True) == b"\x03\x06\x04\x09x"
    assert KERNELS[name].join_planes(b"\x03\x06\x04\x09x", 2, True) == b"\x01\x82\x83\x04x"


@pytest.mark.parametrize("name", KERNELS)
def test_a_width_that_is_none_is_refused(name: str) -> None:
    for call in (KERNELS[name].split_planes, KERNELS[name].join_planes):
        with pytest.raises(ValueError, match="width"):
            call(b"12345678", 3, False)
    with pytest.raises(ValueError, match="width"):
        KERNELS[name].plane_entropies(b"12345678", 9, False)


@pytest.mark.parametrize("name", NATIVE)
@settings(deadline=None)
@given(data=contents, width=st.integers(1, 8), turned=st.booleans())
def test_entropies_are_those_of_the_reference(name: str, data: bytes, width: int, turned: bool) -> None:
    expected = reference.plane_entropies(data, width, turned)
    assert KERNELS[name].plane_entropies(data, width, turned) == pytest.approx(expected, abs=1e-9)


def test_entropies_of_known_planes() -> None:
    assert reference.plane_entropies(bytes([7, 0, 7, 1] * 1000), 2, False) == pytest.approx([0.0, 1.0], abs=1e-3)
    assert reference.plane_entropies(random_bytes(5, 64 * KIB), 1, False) == pytest.approx([8.0], abs=0.01)


def test_a_kernel_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"CKPTFS_KERNEL=neon: not available here; this machine has .*python"):
        kernels.choose_kernel(KERNELS, "neon")


@pytest.mark.parametrize("name", KERNELS)
def test_the_variable_forces_a_kernel(name: str) -> None:
    program = "from ckptfs.store import kernels; print(kernels.NAME, kernels.cut(bytes(100), 16, 8, 40, True))"
    environment = {**os.environ, kernels.VARIABLE: name}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(name)
    assert run.stdout.endswith("[40, 40, 20]\n")


def test_a_build_without_the_extension_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ckptfs.store._kernels", None)
    without = kernels.available_kernels()
    assert list(without) == ["python"]
    assert without["python"].title.startswith("python (slow: no C extension")


@pytest.mark.parametrize("name", KERNELS)
@given(sizes=st.lists(st.integers(0, 300), max_size=6), gap=st.integers(0, 9), number=st.integers(0, (1 << 63) - 1))
def test_raw_records_are_what_records_builds(name: str, sizes: list[int], gap: int, number: int) -> None:
    data = random_bytes(7, sum(sizes) + gap * len(sizes))
    ids = [bytes([index]) * 16 for index in range(len(sizes))]
    spans, expected, start = b"", b"", 0
    for index, size in enumerate(sizes):
        start += gap
        payload = data[start : start + size]
        built = records.build(RecordType.CHUNK, number + index, ids[index], size, Encoding.WAITING, payload)
        expected += b"".join(built.buffers)
        spans += struct.pack("<QQ", start, size)
        start += size
    out = bytearray(len(expected))
    KERNELS[name].raw_records(memoryview(out), Encoding.WAITING, data, spans, b"".join(ids), number)
    assert out == expected


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("span", "ids", "room"),
    [
        ((0, 9), 16, 64),
        ((9, 0), 16, 48),
        ((2**64 - 1, 2), 16, 56),
        ((0, 8), 15, 56),
        ((0, 8), 16, 64),
        ((0, 8), 16, 48),
    ],
)
def test_raw_records_stay_inside_what_they_are_given(name: str, span: tuple[int, int], ids: int, room: int) -> None:
    out = bytearray(room)
    with pytest.raises(ValueError, match="room for just their records"):
        KERNELS[name].raw_records(memoryview(out), 1, bytes(8), struct.pack("<QQ", *span), bytes(ids), 1)
    assert out == bytes(room)


def stored(data: bytes, number: int, encoding: Encoding | None, seed: int = SEED) -> bytes:
    """Return the record of a chunk: as it is, or encoded the way that suits it."""
    chosen, payload = (encoding, data) if encoding is not None else codec.encode(data)
    return b"".join(records.build(RecordType.CHUNK, number, digest(data, seed), len(data), chosen, payload).buffers)


def digest(data: bytes, seed: int = SEED) -> bytes:
    return xxhash.xxh3_128_digest(data, seed)


def floats_of(seed: int, size: int, kind: str) -> bytes:
    """Return bytes that mostly become planes: weights, and what does not fill an element around them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size // 2 + 1).astype(np.float32) * np.float32(0.02)
    whole = values.view(np.uint16)[1::2].tobytes() if kind == "bf16" else values.tobytes()
    return whole[seed % 4 : seed % 4 + size]


chunks = st.one_of(
    st.builds(random_bytes, seeds, st.integers(0, 3000)),
    st.builds(floats_of, st.integers(0, 99), st.integers(0, 9000), st.sampled_from(["fp32", "bf16"])),
    st.builds(bytes, st.integers(0, 3000)),
)


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=40)
@given(cases=st.lists(st.tuples(chunks, st.sampled_from([Encoding.RAW, Encoding.WAITING, None])), max_size=5))
def test_chunks_are_taken_out_of_their_records(name: str, cases: list[tuple[bytes, Encoding | None]]) -> None:
    data, places, expected = b"", [], []
    for number, (chunk, encoding) in enumerate(cases, 7):
        record = stored(chunk, number, encoding)
        places.append((len(data), number, len(chunk)))
        data += record
        expected.append(record[5] in (Encoding.RAW, Encoding.WAITING, Encoding.PLANES))
    wanted = b"".join(chunk for chunk, _ in cases)
    out = bytearray(len(wanted))
    packed = b"".join(kernels.PLACE.pack(*place) for place in places)
    taken = KERNELS[name].take_chunks(data, packed, out, SEED)
    assert taken == KERNELS["python"].take_chunks(data, packed, bytearray(len(wanted)), SEED)
    start = 0
    for (chunk, _), is_taken, may in zip(cases, taken, expected, strict=True):
        assert not is_taken or out[start : start + len(chunk)] == chunk
        assert bool(is_taken) <= may
        start += len(chunk)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_raw_chunks_and_planes_of_weights_are_taken(name: str, kind: str) -> None:
    for number, encoding in ((1, Encoding.RAW), (2, Encoding.WAITING), (3, None)):
        chunk = floats_of(number, 60_001, kind)
        record = stored(chunk, number, encoding)
        assert record[5] == (Encoding.PLANES if encoding is None else encoding)
        out = bytearray(len(chunk))
        place = kernels.PLACE.pack(3, number, len(chunk))
        assert KERNELS[name].take_chunks(b"abc" + record, place, out, SEED) == b"\1"
        assert out == chunk


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("encoding", [Encoding.RAW, None])
def test_no_chunk_is_taken_that_is_not_what_was_written(name: str, encoding: Encoding | None) -> None:
    kernel = KERNELS[name]
    chunk = floats_of(5, 2000, "fp32")
    record = stored(chunk, 9, encoding)
    place = (0, 9, len(chunk))

    def take(data: bytes, place: tuple[int, int, int] = place, seed: int = SEED) -> bytes:
        return kernel.take_chunks(data, kernels.PLACE.pack(*place), bytearray(place[2]), seed)

    assert take(record) == b"\1"
    assert take(record, (0, 8, len(chunk))) == b"\0"
    assert take(record, (0, 9, len(chunk) - 1)) == b"\0"
    assert take(record, (0, 9, len(chunk) + 4)) == b"\0"
    assert take(record, (8, 9, len(chunk))) == b"\0"
    assert take(record, (2**64 - 1, 9, len(chunk))) == b"\0"
    assert take(record, seed=SEED + 1) == b"\0"
    payload_end = HEADER_SIZE + int.from_bytes(record[12:16], "little")
    step = 1 if name != "python" else 37
    for at in range(0, payload_end, step):
        flipped = bytearray(record)
        flipped[at] ^= 0x10
        # The check of the payload is for scans; the id vouches for more.
        assert take(bytes(flipped)) == b"\0", at
    for size in range(0, payload_end, 7 * step):
        assert take(record[:size]) == b"\0", size


@pytest.mark.parametrize("name", KERNELS)
def test_a_delta_a_frame_and_metadata_are_left_to_others(name: str) -> None:
    chunk = b"abcdefgh" * 200
    others = [
        records.build(RecordType.CHUNK, 1, digest(chunk), len(chunk), Encoding.ZSTD, frames.compress_matches(chunk)),
        records.build(RecordType.METADATA, 1, digest(chunk), len(chunk), Encoding.RAW, chunk),
        records.build(RecordType.CHUNK, 1, digest(chunk), len(chunk), Encoding.RAW, chunk, bases=bytes(8)),
        records.build(RecordType.CHUNK, 1, digest(chunk), len(chunk), Encoding.DELTA, chunk),
    ]
    for record in others:
        data, place = b"".join(record.buffers), kernels.PLACE.pack(0, 1, len(chunk))
        assert KERNELS[name].take_chunks(data, place, bytearray(len(chunk)), SEED) == b"\0"


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("places", "room"),
    [
        (bytes(23), 0),
        (kernels.PLACE.pack(0, 1, 9), 8),
        (kernels.PLACE.pack(0, 1, 8), 9),
        (kernels.PLACE.pack(0, 1, 2**64 - 1) + kernels.PLACE.pack(0, 1, 9), 8),
    ],
)
def test_chunks_are_taken_only_into_just_their_room(name: str, places: bytes, room: int) -> None:
    with pytest.raises(ValueError, match="room for just their chunks"):
        KERNELS[name].take_chunks(bytes(100), places, bytearray(room), SEED)


def chunk_record(number: int, payload: bytes, bases: list[int]) -> bytes:
    encoding = Encoding.DELTA if bases else Encoding.WAITING
    built = records.build(
        RecordType.CHUNK, number, digest(payload), len(payload), encoding, payload, bases=records.pack_bases(bases)
    )
    return b"".join(built.buffers)


def scanned(data: bytes, size_most: int, pack: int, offset: int) -> tuple[int, list[int], list[bytes], list[bytes]]:
    """Say what `scan_chunks` has to return, by what reads one record at a time."""
    at, numbers, ids, locations = 0, [], [], []
    while (header := records.parse_header(data[at:])) is not None and at + header.size <= len(data):
        record = records.parse_body(header, memoryview(data)[at + HEADER_SIZE :])
        is_small = max(header.raw_size, header.stored_size) <= size_most
        if header.type != RecordType.CHUNK or not is_small or not records.is_intact(record):
            break
        numbers.append(header.number)
        ids.append(header.id)
        sizes = header.stored_size, header.raw_size
        locations.append(build_location(Location(pack, offset + at, *sizes, header.encoding, record.bases)))
        at += header.size
    return at, numbers, ids, locations


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=70), st.lists(st.integers(0, 2**64 - 1), max_size=3)),
        max_size=5,
    ),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=1),
    cut=st.integers(0, 20),
    size_most=st.sampled_from([2**20, 2**20, 60]),
    pack=st.integers(1, 2**32 - 1),
    offset=st.integers(0, 2**62),
)
def test_runs_of_chunk_records_are_taken_apart_as_far_as_they_are_intact(
    name: str,
    chunks: list[tuple[int, bytes, list[int]]],
    flips: list[tuple[float, int]],
    cut: int,
    size_most: int,
    pack: int,
    offset: int,
) -> None:
    data = bytearray(b"".join(chunk_record(*chunk) for chunk in chunks))
    for place, bits in flips:
        if data:
            data[int(place * len(data))] ^= bits
    whole = bytes(data[: len(data) - cut] if cut < 10 else data)
    assert KERNELS[name].scan_chunks(whole, size_most, pack, offset) == scanned(whole, size_most, pack, offset)


@pytest.mark.parametrize("name", KERNELS)
def test_a_run_of_chunk_records_ends_at_every_damaged_byte_and_at_other_records(name: str) -> None:
    scan = KERNELS[name].scan_chunks
    first, second = chunk_record(3, b"first" * 9, []), chunk_record(4, b"second" * 7, [1, 2])
    size, numbers, ids, locations = scan(first + second, 100, 7, 1 << 40)
    assert (size, numbers, ids) == (len(first + second), [3, 4], [digest(b"first" * 9), digest(b"second" * 7)])
    assert parse_location(locations[1]) == Location(7, (1 << 40) + len(first), 42, 42, Encoding.DELTA, (1, 2))
    for at in range(HEADER_SIZE + 16 + 42):
        flipped = bytearray(second)
        flipped[at] ^= 1
        assert scan(first + flipped, 100, 7, 0)[:2] == (len(first), [3]), at
    for size in range(len(second)):
        assert scan(first + second[:size], 100, 7, 0)[:2] == (len(first), [3]), size
    assert scan(second, 41, 7, 0)[0] == 0
    for other in (RecordType.METADATA, RecordType.PACK):
        built = records.build(other, 4, bytes(16), 8, Encoding.RAW, bytes(8))
        assert scan(first + b"".join(built.buffers) + second, 100, 7, 0)[1] == [3]
    large = records.build(RecordType.CHUNK, 4, bytes(16), 101, Encoding.PLANES, bytes(8))
    assert scan(first + b"".join(large.buffers), 100, 7, 0)[1] == [3]
    for base_count in (BASES_MAX, BASES_MAX + 1):
        resting = chunk_record(4, b"second" * 7, [1] * base_count)
        assert scan(first + resting, 100, 7, 0)[1] == [3, 4][: 1 + (base_count == BASES_MAX)]
