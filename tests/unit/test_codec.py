"""What the codec encodes it decodes, and nothing but DamagedError comes of bytes that it never made."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptfs.config import KIB
from ckptfs.errors import DamagedError
from ckptfs.store import kernels
from ckptfs.store.codec import Encoding, decode, encode
from ckptfs.store.delta import Alignment, encode_delta

SEED = 20240607


def fp32_weights(size: int) -> bytes:
    """Make N(0, 0.02) values of 4 bytes each."""
    print(f"seed {SEED}")
    values = np.random.default_rng(SEED).standard_normal(size // 4, dtype=np.float32) * np.float32(0.02)
    return values.tobytes()


def bf16_weights(size: int) -> bytes:
    return (np.frombuffer(fp32_weights(2 * size), np.uint32) >> 16).astype(np.uint16).tobytes()


def random_bytes(size: int) -> bytes:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED).bytes(size)


FP32 = fp32_weights(64 * KIB)
BF16 = bf16_weights(64 * KIB)
TOKENS = np.random.default_rng(SEED).integers(0, 50_000, 8 * KIB).tobytes()

contents = st.one_of(
    st.binary(max_size=500),
    st.builds(lambda pattern, count: pattern * count, st.binary(min_size=1, max_size=40), st.integers(0, 3000)),
    st.builds(
        lambda source, start, size: source[start : start + size],
        st.sampled_from([FP32, BF16, TOKENS, random_bytes(64 * KIB)]),
        st.integers(0, 20),
        st.integers(0, 64 * KIB),
    ),
    st.builds(lambda head, start: head + FP32[start:], st.binary(max_size=300), st.integers(0, 64 * KIB)),
)


@settings(deadline=None)
@given(data=contents)
@example(data=b"")
@example(data=FP32)
@example(data=BF16[1:])
@example(data=TOKENS)
def test_what_is_encoded_is_decoded(data: bytes) -> None:
    encoding, payload = encode(memoryview(data))
    assert decode(encoding, payload, len(data)) == data
    assert decode(int(encoding), bytes(payload), len(data)) == data
    assert len(payload) <= 0.97 * len(data) or encoding is Encoding.RAW


@pytest.mark.parametrize(
    ("name", "data", "expected", "ratio_most"),
    [
        ("fp32", FP32, Encoding.PLANES, 0.85),
        ("fp32, out of phase", FP32[3:], Encoding.PLANES, 0.85),
        ("bf16", BF16, Encoding.PLANES, 0.69),
        ("tokens", TOKENS, Encoding.PLANES, 0.27),
        ("fp64 of fp32", np.frombuffer(FP32, np.float32).astype(np.float64).tobytes(), Encoding.PLANES, 0.46),
        ("counting", np.arange(8 * KIB).tobytes(), Encoding.PLANES, 0.2),
        ("zeros", bytes(64 * KIB), Encoding.ZSTD, 0.001),
        ("text", b"".join(b"step %d loss %f\n" % (n, 1 / (n + 1)) for n in range(4000)), Encoding.ZSTD, 0.5),
        ("noise", random_bytes(64 * KIB), Encoding.RAW, 1.0),
        ("tiny", bytes(63), Encoding.RAW, 1.0),
    ],
)
def test_the_bytes_choose_their_encoding(name: str, data: bytes, expected: Encoding, ratio_most: float) -> None:
    encoding, payload = encode(data)
    print(f"{name}: {encoding.name} {len(payload) / len(data):.4f}")
    assert encoding is expected
    assert len(payload) <= ratio_most * len(data)


def test_raw_hands_back_the_buffer_itself() -> None:
    noise = memoryview(random_bytes(64 * KIB))
    assert encode(noise)[1] is noise


# "abcdABCD1234wxyzW" as 4 elements of 4 bytes, planes 1 and 3 raw, planes 0 and 2 as zstd frames, 1 byte of tail.
GOLDEN_RAW = b"abcdABCD1234wxyzW"
GOLDEN_FRAMES = (bytes.fromhex("28b52ffd20042100006141") + b"1w", bytes.fromhex("28b52ffd20042100006343") + b"3y")
GOLDEN_PLANES = b"".join(
    [
        bytes([4]),
        bytes.fromhex("01 0d000000  00 04000000  01 0d000000  00 04000000"),
        GOLDEN_FRAMES[0],
        b"bB2x",
        GOLDEN_FRAMES[1],
        b"dD4z",
        b"W",
    ]
)


def test_golden_planes_payload() -> None:
    """The layout of docs/format.md; that these bytes decode is what keeps old stores readable."""
    assert decode(2, GOLDEN_PLANES, len(GOLDEN_RAW)) == GOLDEN_RAW


# 1.0 and -1.0 of 2 bytes, turned: mantissa and sign raw, the exponents constant; a byte of tail.
GOLDEN_TURNED = bytes([2 | 1 << 7]) + bytes.fromhex("00 02000000  02 02000000") + b"\x00\x01" + b"\x01\x7f" + b"!"


def test_golden_turned_planes_payload() -> None:
    assert decode(2, GOLDEN_TURNED, 5) == struct.pack("<HH", 0x3F80, 0xBF80) + b"!"
    in_phase_1 = bytes([GOLDEN_TURNED[0] | 1 << 4]) + GOLDEN_TURNED[1:] + b"?"
    assert decode(2, in_phase_1, 6) == b"?" + struct.pack("<HH", 0x3F80, 0xBF80) + b"!"


@pytest.mark.parametrize("phase", [0, 1, 3])
def test_the_encoder_brings_exponents_into_one_plane(phase: int) -> None:
    """What it makes of the exponents may change; where everything lies, and the raw planes, may not."""
    data = FP32[4 - phase :] if phase else FP32 + b"xyz"
    encoding, payload = encode(data)
    payload = bytes(payload)
    assert (encoding, payload[0]) == (Encoding.PLANES, 4 | phase << 4 | 1 << 7)
    entries = list(struct.iter_unpack("<BI", payload[1:21]))
    assert [kind for kind, _ in entries] == [0, 0, 0, 2]
    turned = np.frombuffer(data, np.uint32, (len(data) - phase) // 4, phase)
    turned = turned << 1 | turned >> 31
    planes = turned.view(np.uint8).reshape(-1, 4).T
    count = len(turned)
    assert payload[21 : 21 + 3 * count] == planes[:3].tobytes()
    exponents = payload[21 + 3 * count :][: entries[3][1]]
    assert kernels.decode_bytes(exponents, count) == planes[3].tobytes()
    tail = data[phase + 4 * count :]
    assert payload[21 + 3 * count + entries[3][1] :] == tail + data[:phase]
    assert len(payload) < 0.835 * len(data)


@settings(deadline=None)
@given(
    target=contents,
    before=st.binary(max_size=100),
    behind=st.binary(max_size=100),
    width=st.sampled_from([1, 2, 4, 8]),
    phase=st.integers(0, 7),
)
def test_a_delta_is_decoded_with_its_bases(target: bytes, before: bytes, behind: bytes, width: int, phase: int) -> None:
    base = before + bytes(byte ^ (at % 50 == 0) for at, byte in enumerate(target)) + behind
    payload = encode_delta(target, base, Alignment(len(before), width, phase % width))
    assert decode(Encoding.DELTA, payload, len(target), base) == target
    with pytest.raises(DamagedError):
        decode(Encoding.DELTA, payload, len(target) + len(behind) + 1, base)


# The first element moves from 1.0 by one step, the second stays; the byte behind them goes from 5 to 4. The first 2
# bytes of the bases are skipped.
GOLDEN_BASES = b"--" + struct.pack("<2f", 1.0, 1.0) + b"\x05"
GOLDEN_DELTA = bytes.fromhex("04 00 02000000  00 0200  01 00  01 00  01 00  ff")


def test_golden_delta_payload() -> None:
    raw = struct.pack("<If", 0x3F800001, 1.0) + b"\x04"
    assert decode(3, GOLDEN_DELTA, 9, GOLDEN_BASES) == raw
    assert encode_delta(raw, GOLDEN_BASES, Alignment(2, 4, 0)) == GOLDEN_DELTA


PLANES = bytes(encode(FP32)[1])
ZSTD = bytes(encode(bytes(64 * KIB))[1])
FRAME = zstandard.compress(b"x" * 100)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)


@pytest.mark.parametrize(
    ("why", "encoding", "payload", "raw_size"),
    [
        ("raw, too short", 0, b"abc", 4),
        ("raw, too long", 0, b"abcde", 4),
        ("delta without a head", 3, b"abcd", 4),
        ("delta without bases", 3, bytes(6), 4),
        ("delta of nothing, width 3", 3, bytes([3, 0, 0, 0, 0, 0]), 0),
        ("unknown", 5, b"abcd", 4),
        ("negative", -1, b"abcd", 4),
        ("zstd, empty", 1, b"", 100),
        ("zstd, of nothing", 1, zstandard.compress(b""), 0),
        ("zstd, other size", 1, FRAME, 99),
        ("zstd, negative size", 1, FRAME, -1),
        ("zstd, no size", 1, UNSIZED, 100),
        ("zstd, cut off", 1, FRAME[:-1], 100),
        ("zstd, bytes behind", 1, FRAME + b"x", 100),
        ("zstd, two frames", 1, FRAME + FRAME, 200),
        ("zstd, skippable frame", 1, struct.pack("<II", 0x184D2A50, 4) + b"abcd", 0),
        ("planes, empty", 2, b"", 0),
        ("planes, width 0", 2, b"\x00", 0),
        ("planes, phase 2 of 2", 2, bytes([2 | 2 << 4]) + bytes(10), 0),
        ("planes, phase behind the chunk", 2, bytes([2 | 1 << 4]) + bytes(10), 0),
        ("planes, width 3", 2, b"\x03" + b"\x00\x04\x00\x00\x00" * 3 + bytes(12), 12),
        ("planes, table cut off", 2, GOLDEN_PLANES[:20], 17),
        ("planes, cut off", 2, GOLDEN_PLANES[:-1], 17),
        ("planes, bytes behind", 2, GOLDEN_PLANES + b"x", 17),
        ("planes, another size", 2, GOLDEN_PLANES, 16),
        ("planes, same tail, fewer elements", 2, GOLDEN_PLANES, 13),
        ("planes, unknown kind", 2, b"\x04\x02" + GOLDEN_PLANES[2:], 17),
        ("planes, negative size", 2, GOLDEN_PLANES, -3),
    ],
)
def test_malformed_payloads_are_damage(why: str, encoding: int, payload: bytes, raw_size: int) -> None:
    with pytest.raises(DamagedError):
        decode(encoding, payload, raw_size)


def test_a_plane_that_is_nearly_constant_is_coded_to_little() -> None:
    """Huffman codes take a bit for every byte at least, and zstd finds no matches in them."""
    generator = np.random.default_rng(SEED)
    plane = (generator.random(16 * KIB) < 0.03).astype(np.uint8)
    data = np.stack([generator.integers(0, 256, 16 * KIB, np.uint8), plane], axis=1).tobytes()
    encoding, payload = encode(data)
    assert (encoding, list(struct.unpack("<BIBI", payload[1:11]))[::2]) == (Encoding.PLANES, [0, 2])
    assert decode(encoding, payload, len(data)) == data
    assert len(payload) < 16 * KIB * 1.03


def test_a_frame_cannot_make_the_decoder_allocate() -> None:
    """Both the content size and the window of a frame are bounded before zstd sees it."""
    promising = bytearray(zstandard.compress(b"x" * 300))
    header = zstandard.frame_header_size(bytes(promising))
    huge_content = promising[:4] + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + promising[header:]
    with pytest.raises(DamagedError, match="not one of 300 bytes"):
        decode(Encoding.ZSTD, bytes(huge_content), 300)
    window_of_128_mib = bytes([(27 - 10) << 3])
    huge_window = promising[:4] + bytes([0x40]) + window_of_128_mib + struct.pack("<H", 44) + promising[header:]
    assert zstandard.get_frame_parameters(bytes(huge_window)).content_size == 300
    with pytest.raises(DamagedError, match="not one of 300 bytes"):
        decode(Encoding.ZSTD, bytes(huge_window), 300)


@settings(deadline=None)
@given(
    source=st.sampled_from([(2, PLANES, len(FP32)), (2, GOLDEN_PLANES, 17), (1, ZSTD, 64 * KIB), (1, FRAME, 100)]),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    cut_off=st.integers(0, 3),
    size_change=st.integers(-5, 5),
)
def test_changed_payloads_decode_to_the_size_or_are_damage(
    source: tuple[int, bytes, int], changes: list[tuple[int, int]], cut_off: int, size_change: int
) -> None:
    encoding, payload, raw_size = source
    changed = bytearray(payload[: len(payload) - cut_off])
    for position, value in changes:
        changed[position % len(changed)] = value
    try:
        raw = decode(encoding, bytes(changed), raw_size + size_change)
    except DamagedError:
        return
    assert len(raw) == raw_size + size_change


@settings(deadline=None)
@given(encoding=st.integers(0, 5), payload=st.binary(max_size=200), raw_size=st.integers(-10, 1000))
def test_arbitrary_payloads_decode_to_the_size_or_are_damage(encoding: int, payload: bytes, raw_size: int) -> None:
    try:
        raw = decode(encoding, payload, raw_size)
    except DamagedError:
        return
    assert len(raw) == raw_size


def test_threads_do_not_share_contexts() -> None:
    chunks = [FP32, BF16, TOKENS, bytes(64 * KIB)] * 50
    with ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(encode, chunks))
        raw = list(pool.map(lambda pair, chunk: decode(pair[0], pair[1], len(chunk)), encoded, chunks))
    assert raw == chunks
