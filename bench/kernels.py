"""The loops over every byte, on one core: cut and hash, planes, encode and decode, beside merely touching the bytes.

A round runs every row once, so that all rows meet the same machine. What counts is processor time, not the wall's,
which a neighbour on the core would lengthen. Figures of one machine do not travel; the ratios to touching the same
bytes do. Nothing here touches a disk.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xxhash
import zstandard
from measure import MIB, line

from ckptfs.config import KIB, ChunkSizes
from ckptfs.store import codec
from ckptfs.store.kernels import (
    Kernel,
    available_kernels,
    decode_bytes,
    decode_difference,
    encode_bytes,
    encode_difference,
)
from ckptfs.tree.stream import PIECE_SIZE

GB = 1e9
ROUNDS = 9
FILE_SIZE = 150 * MIB
ENCODED_SIZE = 16 * MIB
SHIFTED_SIZE = 16 * MIB
SHIFT_STEP = 2 * MIB
INSERTIONS = (1, 64, 4096, 20011, 20032)
HASHED_SIZE = 64 * KIB
SEED = 20240607

CUT_GOAL = 5.0
CUT_AND_HASH_GOAL = 6.0
HASH_GOAL = 0.8
FOUND_GOAL = 98.0

SIZES = ChunkSizes()
LIMITS = SIZES.size_min, SIZES.mean_bits, SIZES.size_max

Work = Callable[[], None]


def weights(kind: str, size: int) -> memoryview:
    """Return `size` bytes of N(0, 0.02) weights, fp32 or bf16."""
    count = size // (2 if kind == "bf16" else 4)
    floats = np.random.default_rng(SEED).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    bits = (floats.view(np.uint32) >> 16).astype(np.uint16) if kind == "bf16" else floats
    return memoryview(bits).cast("B")


def pieces_of(data: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Return the pieces of `data` that lie one behind the other and have these lengths."""
    return [data[end - length : end] for length, end in zip(lengths, itertools.accumulate(lengths), strict=True)]


def repeat(function: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> None:
    """Call a function with each of the arguments; results go at once, so that memory is used again."""
    for each in arguments:
        function(*each)


class Rows:
    """Work to measure, by name, and the GB/s of every round."""

    def __init__(self) -> None:
        self._work: dict[str, tuple[int, Work]] = {}
        self._rates: dict[str, list[float]] = {}

    def add(self, name: str, size: int, function: Callable[..., object], *arguments: tuple[object, ...]) -> None:
        """Add a row whose calls go over `size` bytes."""
        self._work[name] = size, partial(repeat, function, arguments)

    def measure(self) -> None:
        """Run every row once unmeasured, then ROUNDS times in turns."""
        for number in range(-1, ROUNDS):
            for name, (size, work) in self._work.items():
                began = time.thread_time()
                work()
                seconds = time.thread_time() - began
                if number >= 0:
                    self._rates.setdefault(name, []).append(size / seconds / GB)

    def rate(self, name: str) -> float:
        """Return the median of a row."""
        return statistics.median(self._rates[name])

    def show(self, base: str) -> None:
        """Print every row, and its ratio to the row `base`."""
        for name, rates in self._rates.items():
            ratio = self.rate(name) / self.rate(base)
            print(f"{name:<26} {self.rate(name):7.2f} GB/s ({min(rates):.2f}-{max(rates):.2f}), {ratio:.3f} of {base}")


def goals() -> None:
    """Measure and print what the speed benchmark has of the kernels: cutting with AVX2, and what is found again."""
    kernel = available_kernels().get("avx2")
    if kernel is None:
        print("skip kernel: this machine, or this build, has no AVX2")
        return
    rows = Rows()
    rows.add("cut", FILE_SIZE, kernel.cut, (weights("fp32", FILE_SIZE), *LIMITS, True))
    rows.measure()
    line(f"cut, avx2, {FILE_SIZE // MIB} MiB, GB/s", rows.rate("cut"), ">=", CUT_GOAL)
    found = {
        (kind, inserted): found_again(kernel, kind, inserted)
        for kind, inserted in itertools.product(("fp32", "bf16"), INSERTIONS)
    }
    kind, inserted = min(found, key=found.__getitem__)
    detail = f"the least of fp32 and bf16 behind {', '.join(map(str, INSERTIONS))} bytes: {kind}, {inserted}"
    line("found again behind an insertion, %", found[kind, inserted], ">=", FOUND_GOAL, detail)


def all_rows(kernels: Sequence[Kernel]) -> Rows:
    """Return every row; `kernels` are those to compare, the fastest first."""
    rows = Rows()
    data = weights("fp32", FILE_SIZE)
    rows.add("touch", FILE_SIZE, np.sum, (np.frombuffer(data, np.uint64),))
    even = [data[start : start + HASHED_SIZE] for start in range(0, FILE_SIZE, HASHED_SIZE)]
    rows.add("xxhash alone", FILE_SIZE, xxhash.xxh3_128_digest, *((piece, SEED) for piece in even))
    pieces = [data[start : start + PIECE_SIZE] for start in range(0, FILE_SIZE, PIECE_SIZE)]
    for kernel in kernels:
        rows.add(f"cut, {kernel.title}", FILE_SIZE, kernel.cut, (data, *LIMITS, True))
        # Where the least and the greatest size are one, nothing is searched for.
        alone = (data, HASHED_SIZE, SIZES.mean_bits, HASHED_SIZE, True, SEED)
        rows.add(f"hash, {kernel.title}", FILE_SIZE, kernel.cut_and_hash, alone)
        arguments = ((piece, *LIMITS, True, SEED) for piece in pieces)
        rows.add(f"cut and hash, {kernel.title}", FILE_SIZE, kernel.cut_and_hash, *arguments)
    fastest = kernels[0]
    chunks = pieces_of(data, fastest.cut(data, *LIMITS, True))
    for width in (2, 4):
        rows.add(
            f"split planes of {width}", FILE_SIZE, fastest.split_planes, *((chunk, width, True) for chunk in chunks)
        )
        rows.add(f"join planes of {width}", FILE_SIZE, fastest.join_planes, *((chunk, width, True) for chunk in chunks))
    for kind in ("fp32", "bf16"):
        data = weights(kind, ENCODED_SIZE)
        chunks = pieces_of(data, fastest.cut(data, *LIMITS, True))
        rows.add(f"encode {kind}", ENCODED_SIZE, codec.encode, *((chunk,) for chunk in chunks))
        stored = [(*codec.encode(chunk), len(chunk)) for chunk in chunks]
        rows.add(f"decode {kind}", ENCODED_SIZE, codec.decode, *stored)
        size = sum(len(payload) for _, payload, _ in stored)
        add_coders(rows, kind, data, chunks)
        mean = ENCODED_SIZE / len(stored) / KIB
        print(f"encoded {kind}: {size / ENCODED_SIZE:.3f} of its size, mean chunk {mean:.1f} KiB")
    return rows


def add_coders(rows: Rows, kind: str, data: memoryview, chunks: Sequence[memoryview]) -> None:
    """Add the rows of coded bytes and differences; the base of each float is what a step of training may make of it."""
    width = 2 if kind == "bf16" else 4
    starts = itertools.accumulate((len(chunk) for chunk in chunks), initial=0)
    phases = [-start % width for start in starts]  # chunks are cut at any byte of an element
    exponents = [bytes(chunk[phase + width - 1 :: width]) for chunk, phase in zip(chunks, phases, strict=False)]
    coded = [(encode_bytes(plane), len(plane)) for plane in exponents]
    rows.add(f"encode {kind} exponents", sum(map(len, exponents)), encode_bytes, *((each,) for each in exponents))
    rows.add(f"decode {kind} exponents", sum(map(len, exponents)), decode_bytes, *coded)
    for compress, title in ((zstd_entropy(), "zstd"), (encode_bytes, "coded")):
        ratio = sum(len(compress(plane)) for plane in exponents) / sum(map(len, exponents))
        print(f"exponents of {kind}, {title}: {ratio:.4f} of their size")
    steps = np.random.default_rng(SEED + 1).standard_normal(len(data) // width, dtype=np.float32) * np.float32(2e-5)
    bits = np.frombuffer(data, np.uint16).astype(np.uint32) << 16 if kind == "bf16" else np.frombuffer(data, np.uint32)
    moved = (bits.view(np.float32) + steps).view(np.uint32)
    base = memoryview((moved >> 16).astype(np.uint16) if kind == "bf16" else moved).cast("B")
    bases = pieces_of(base, [len(chunk) for chunk in chunks])
    pairs = [(chunk, each, width, phase) for chunk, each, phase in zip(chunks, bases, phases, strict=False)]
    deltas = [(encode_difference(*pair), *pair[1:]) for pair in pairs]
    rows.add(f"encode difference, {kind}", len(data), encode_difference, *pairs)
    rows.add(f"decode difference, {kind}", len(data), decode_difference, *deltas)
    print(f"difference of {kind}: {sum(len(each) for each, *_ in deltas) / len(data):.4f} of its size")


def zstd_entropy() -> Callable[[bytes], bytes]:
    """Return zstd set up to find next to no matches, so that only its entropy stage is left."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, hash_log=6, min_match=7, strategy=zstandard.STRATEGY_FAST, target_length=0
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress


def found_again(kernel: Kernel, kind: str, inserted: int) -> float:
    """Return which percentage of the bytes is in known chunks after an insertion, the mean over several places."""
    old = bytes(weights(kind, SHIFTED_SIZE))
    known = set(kernel.cut_and_hash(old, *LIMITS, True, SEED)[1])
    shares = []
    for where in range(SHIFT_STEP // 2, SHIFTED_SIZE, SHIFT_STEP):
        noise = np.random.default_rng((SEED, where)).bytes(inserted)
        lengths, ids = kernel.cut_and_hash(old[:where] + noise + old[where:], *LIMITS, True, SEED)
        shares.append(sum(length for length, each in zip(lengths, ids, strict=True) if each in known) / SHIFTED_SIZE)
    return 100 * statistics.mean(shares)


def report() -> None:
    """Measure and print every row; python itself is too slow to be one."""
    kernels = [kernel for name, kernel in available_kernels().items() if name != "python"]
    if not kernels:
        raise SystemExit("the C extension is not built: there is nothing to compare")
    print(f"{FILE_SIZE // MIB} MiB of fp32, medians of {ROUNDS} rounds of processor time (least-greatest), seed {SEED}")
    rows = all_rows(kernels)
    rows.measure()
    rows.show("touch")
    for kernel in kernels:
        if kernel.title == "portable":
            continue
        line(f"cut, {kernel.title}, GB/s", rows.rate(f"cut, {kernel.title}"), ">=", CUT_GOAL, "")
        both = rows.rate(f"cut and hash, {kernel.title}")
        line(f"cut and hash, {kernel.title}, GB/s", both, ">=", CUT_AND_HASH_GOAL, "")
        ratio = rows.rate(f"hash, {kernel.title}") / rows.rate("xxhash alone")
        line(f"hash, {kernel.title}, over the xxhash package", ratio, ">=", HASH_GOAL, "")
    for kind, inserted in itertools.product(("fp32", "bf16"), INSERTIONS):
        found = found_again(kernels[0], kind, inserted)
        line(f"{kind} found again behind {inserted} bytes inserted, %", found, ">=", FOUND_GOAL, "")
