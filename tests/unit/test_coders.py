"""The C coders code as the reference does, decode what they coded, and take nothing else for it."""

import math
import random
import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptfs.config import KIB
from ckptfs.store import kernels, reference_coders
from ckptfs.store.reference_coders import Coded

SEED = 20240607
KERNELS = kernels.available_kernels()
NATIVE = next(iter(KERNELS.values()))
Kernel = kernels.Kernel


def skewed(seed: int, size: int, zeros: float, values: int) -> bytes:
    """Make bytes that are 0 with a chance of `zeros`, else one of the first `values`, the small ones more often."""
    generator = np.random.default_rng(seed)
    others = np.minimum(generator.geometric(4 / (values + 3), size), values) % 256
    return np.where(generator.random(size) < zeros, 0, others).astype(np.uint8).tobytes()


planes = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda value, size: bytes([value]) * size, st.integers(0, 255), st.integers(0, 3000)),
    st.builds(
        skewed,
        st.integers(0, 1000),
        st.integers(0, 5000),
        st.sampled_from([0.0, 0.3, 0.8, 0.87, 0.88, 0.95, 0.999]),
        st.sampled_from([1, 2, 5, 40, 255]),
    ),
    st.builds(lambda left, right: left + right, st.binary(max_size=50), st.just(bytes(70_000) + b"x" + bytes(50))),
)


@settings(deadline=None)
@given(data=planes)
@example(data=bytes(1023) + b"a" * 9000)
@example(data=bytes(range(256)) * 40)
@example(data=b"ab" * 511)
@example(data=b"ab" * 512 + b"a")
def test_coded_bytes_are_those_of_the_reference_and_decode_again(data: bytes) -> None:
    coded = NATIVE.encode_bytes(data)
    for kernel in KERNELS.values():
        assert kernel.encode_bytes(data) == coded
        assert kernel.decode_bytes(coded, len(data)) == data
    assert len(coded) <= len(data) + 1


@st.composite
def element_pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw two byte strings of one size, often floats that have moved a little."""
    size = draw(st.integers(0, 9000))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    base = (generator.standard_normal(size // 4 + 1, dtype=np.float32) * np.float32(0.02)).view(np.uint32)
    kind = draw(st.sampled_from(["noise", "steps", "few", "same", "negated"]))
    if kind == "noise":
        return generator.bytes(size), base.tobytes()[:size]
    moved = {
        "steps": base + generator.integers(0, 1000, len(base), np.uint32),
        "few": np.where(generator.random(len(base)) < 0.01, base ^ 3, base),
        "same": base,
        "negated": base ^ (1 << 31),
    }[kind]
    return moved.astype(np.uint32).tobytes()[:size], base.tobytes()[:size]


@settings(deadline=None, max_examples=60)
@given(pair=element_pairs(), width=st.sampled_from([1, 2, 4, 8]), phase=st.integers(0, 7))
def test_differences_are_those_of_the_reference_and_decode_again(
    pair: tuple[bytes, bytes], width: int, phase: int
) -> None:
    target, base = pair
    coded = NATIVE.encode_difference(target, base, width, phase % width)
    for kernel in KERNELS.values():
        assert kernel.encode_difference(target, base, width, phase % width) == coded
        assert kernel.decode_difference(coded, base, width, phase % width) == target


def outcome(decode: Callable[[], bytes]) -> bytes | None:
    """Return what was decoded, or None where it was called damaged."""
    try:
        return decode()
    except ValueError:
        return None


CODED = [
    (NATIVE.encode_bytes(data), len(data))
    for data in (skewed(1, 9000, 0.2, 40), skewed(2, 900, 0.2, 5), skewed(3, 5000, 0.99, 3), b"abcdef")
]


@settings(deadline=None, max_examples=400)
@given(
    source=st.sampled_from(CODED),
    changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=3),
    cut_off=st.integers(0, 5),
    size_change=st.integers(-2, 2),
)
def test_kernels_and_reference_agree_on_changed_bytes(
    source: tuple[bytes, int], changes: list[tuple[int, int]], cut_off: int, size_change: int
) -> None:
    coded, size = source
    changed = bytearray(coded[: len(coded) - cut_off])
    for position, value in changes:
        changed[position % len(changed)] = value
    native = outcome(lambda: NATIVE.decode_bytes(changed, size + size_change))
    for kernel in KERNELS.values():
        assert native == outcome(lambda kernel=kernel: kernel.decode_bytes(changed, size + size_change))
    assert native is None or len(native) == size + size_change


@settings(deadline=None, max_examples=300)
@given(coded=st.binary(max_size=80), size=st.integers(-1, 2000))
def test_kernels_and_reference_agree_on_arbitrary_bytes(coded: bytes, size: int) -> None:
    native = outcome(lambda: NATIVE.decode_bytes(coded, size))
    assert native == outcome(lambda: reference_coders.decode_bytes(coded, size))


@settings(deadline=None, max_examples=200)
@given(
    width=st.sampled_from([1, 2, 4, 8]),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    cut_off=st.integers(-1, 4),
)
def test_kernels_and_reference_agree_on_changed_differences(
    width: int, changes: list[tuple[int, int]], cut_off: int
) -> None:
    base = np.random.default_rng(SEED).standard_normal(300, dtype=np.float32).tobytes() + b"xyz"
    target = bytes(byte ^ 1 if at % 40 == 3 else byte for at, byte in enumerate(base))
    coded = NATIVE.encode_difference(target, base, width, width // 2)
    changed = bytearray((coded + b"x")[: len(coded) - cut_off])
    for position, value in changes:
        changed[position % len(changed)] = value
    native = outcome(lambda: NATIVE.decode_difference(changed, base, width, width // 2))
    for kernel in KERNELS.values():
        assert native == outcome(lambda kernel=kernel: kernel.decode_difference(changed, base, width, width // 2))


# 64 bytes of which the one at 37 is 7, all others 0: one table, r = 6 and order 2; 37 is a one and 6 low bits; 7 is the
# first direction, 3 above it: a zero, a one, two more ones. Then come 26 zeros, written as 37 were.
GOLDEN_FEW = bytes.fromhex("02 ff 46 4b af 01")
# 16 bytes of which 12 are "a" and 4 are "b", with frequencies of 3/4 and 1/4, for all keys.
GOLDEN_RANS_HEAD = bytes.fromhex("03 01 ff 61 62 800c")


@pytest.mark.parametrize("name", KERNELS)
def test_golden_bytes(name: str) -> None:
    """The layout of docs/format.md; that these bytes decode is what keeps old stores readable."""
    kernel = KERNELS[name]
    zeros = bytearray(64)
    zeros[37] = 7
    assert kernel.decode_bytes(GOLDEN_FEW, 64) == zeros
    assert kernel.encode_bytes(bytes(zeros)) == GOLDEN_FEW
    assert kernel.decode_bytes(b"\0abc", 3) == b"abc"
    assert kernel.decode_bytes(b"\1a", 3) == b"aaa"
    state = 1 << 15
    for value in reversed(b"aaabaaabaaabaaab"):
        frequency, start = (1536, 0) if value == ord("a") else (512, 1536)
        state = (state // frequency << 11) + start + state % frequency
    assert state < 1 << 31
    assert kernel.decode_bytes(GOLDEN_RANS_HEAD + struct.pack("<I", state), 16) == b"aaab" * 4


@pytest.mark.parametrize("name", KERNELS)
def test_golden_differences(name: str) -> None:
    """Of 1.0, -2.0 and 3.0 the second moves one step away from zero; their exponents leave them in this order."""
    kernel = KERNELS[name]
    base = b"\x05" + struct.pack("<3f", 1.0, -2.0, 3.0) + b"\x09"
    target = b"\x07" + struct.pack("<fIf", 1.0, 0xC0000001, 3.0) + b"\x08"
    coded = bytes.fromhex("00 000100  01 00  01 00  01 00  02 ff")
    assert kernel.encode_difference(target, base, 4, 1) == coded
    assert kernel.decode_difference(coded, base, 4, 1) == target


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("width", "phase", "size"), [(3, 0, 8), (0, 0, 8), (16, 0, 8), (4, 4, 8), (4, -1, 8), (4, 0, 7)]
)
def test_what_cannot_be_subtracted_is_refused(name: str, width: int, phase: int, size: int) -> None:
    with pytest.raises(ValueError, match="width"):
        KERNELS[name].encode_difference(bytes(8), bytes(size), width, phase)
    if size == 8:
        with pytest.raises(ValueError, match="width"):
            KERNELS[name].decode_difference(bytes(8), bytes(size), width, phase)


def entropy(data: bytes) -> float:
    """Return the order-0 entropy in bytes."""
    return -sum(count * math.log2(count / len(data)) for count in Counter(data).values()) / 8


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("values", [1, 5, 40])
def test_planes_cost_little_more_than_their_entropy(zeros: float, values: int) -> None:
    print(f"seed {SEED}")
    data = skewed(SEED, 64 * KIB, zeros, values)
    size = len(NATIVE.encode_bytes(data))
    print(f"{size} for {entropy(data):.0f}")
    assert size <= 1.05 * entropy(data) + 100


def test_steps_of_floats_cost_less_than_their_entropy() -> None:
    """bf16 weights that move by about one unit of the smallest: how far one moves in steps depends on its exponent."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    old = generator.standard_normal(40 * KIB, dtype=np.float32) * np.float32(0.02)
    new = old + generator.standard_normal(40 * KIB, dtype=np.float32) * np.float32(2e-5)
    old_bits, new_bits = ((each.view(np.uint32) >> 16).astype(np.uint16) for each in (old, new))
    coded = NATIVE.encode_difference(new_bits.tobytes(), old_bits.tobytes(), 2, 0)
    negative = old_bits >= 1 << 15
    steps = np.where(negative, old_bits - new_bits, new_bits - old_bits).astype(np.int16)
    folded = ((steps << 1) ^ (steps >> 15)).astype(np.uint16)
    whole = entropy((folded & 0xFF).astype(np.uint8).tobytes()) + entropy((folded >> 8).astype(np.uint8).tobytes())
    print(f"{len(coded)} bytes; as planes of steps {whole:.0f}")
    assert len(coded) < 0.9 * whole


@pytest.mark.parametrize(
    ("size", "gap", "alone", "behind_noise"),
    [(2 * KIB, 8, "0308", "0308"), (8 * KIB, 20, "0308", "0320"), (16 * KIB, 40, "0308", "02ff")],
    ids=["too-little-for-more", "more-lanes", "few-as-such"],
)
def test_a_small_plane_behind_a_large_one_is_coded_to_decode_fast(
    size: int, gap: int, alone: str, behind_noise: str
) -> None:
    """One byte in 32 of what a difference takes already may be spent on the speed of decoding it."""
    generator = np.random.default_rng(SEED)
    changed = (generator.integers(0, gap, size) == 0).astype(np.uint16)
    folded = (changed << 8 | generator.integers(0, 256, size)).astype(np.int32)
    base = np.full(size, 0x3C00, dtype=np.uint16).tobytes()
    target = (0x3C00 + ((folded >> 1) ^ -(folded & 1))).astype(np.uint16).tobytes()
    plane = NATIVE.encode_bytes(changed.astype(np.uint8).tobytes())
    coded = NATIVE.encode_difference(target, base, 2, 0)
    noise, second = coded[: 1 + size], coded[1 + size :]
    assert (noise[0], plane[:2].hex(), second[:2].hex()) == (0, alone, behind_noise)
    assert len(second) <= len(plane) + size // 32
    for kernel in KERNELS.values():
        assert kernel.encode_difference(target, base, 2, 0) == coded
        assert kernel.decode_difference(coded, base, 2, 0) == target


@pytest.mark.parametrize(("values", "behind_noise"), [(205, Coded.RAW), (170, Coded.RANS)], ids=["4 %", "7 %"])
def test_a_plane_behind_a_large_one_stays_as_it_is_where_that_costs_a_32nd(values: int, behind_noise: Coded) -> None:
    generator = np.random.default_rng(SEED)
    size = 64 * KIB
    plane = generator.integers(0, values, size)
    folded = plane << 8 | generator.integers(0, 256, size)
    base = np.full(size, 0x3F800000, dtype=np.uint32).tobytes()
    target = (0x3F800000 + ((folded >> 1) ^ -(folded & 1))).astype(np.uint32).tobytes()
    coded = NATIVE.encode_difference(target, base, 4, 0)
    assert NATIVE.encode_bytes(plane.astype(np.uint8).tobytes())[0] == Coded.RANS
    assert (coded[0], coded[1 + size]) == (Coded.RAW, behind_noise)
    for kernel in KERNELS.values():
        assert kernel.encode_difference(target, base, 4, 0) == coded
        assert kernel.decode_difference(coded, base, 4, 0) == target


def test_a_difference_of_nothing_costs_next_to_nothing() -> None:
    data = random.Random(SEED).randbytes(80 * KIB)
    assert len(NATIVE.encode_difference(data, data, 4, 0)) <= 4 * 2
