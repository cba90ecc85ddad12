"""Choose the kernel that this machine runs, once, and hand its functions out.

Owns the choice and the contract of the functions; what they compute is defined by reference.py and
reference_coders.py, and done by kernels.c.
The environment variable CKPTFS_KERNEL (avx512, avx2, portable, python) forces a choice. Pure functions without state:
any number of threads may be inside, and the C ones hold the GIL only to build their result.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from ckptfs.errors import UsageError
from ckptfs.store import reference, reference_coders
from ckptfs.store.reference import Buffer

VARIABLE = "CKPTFS_KERNEL"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of the functions of the reference, all bit-identical; `title` is what `ckptfs stats` shows."""

    title: str
    cut: Callable[[Buffer, int, int, int, bool], list[int]]
    cut_and_hash: Callable[[Buffer, int, int, int, bool, int], tuple[list[int], list[bytes]]]
    hash_chunks: Callable[[Buffer, list[int], int], list[bytes]]
    split_planes: Callable[[Buffer, int], bytes]
    join_planes: Callable[[Buffer, int], bytes]
    plane_entropies: Callable[[Buffer, int], list[float]]
    mark: Callable[[bytearray, Buffer], None]
    raw_records: Callable[[memoryview, int, Buffer, Buffer, Buffer, int], None]
    encode_runs: Callable[[Buffer], bytes]
    decode_runs: Callable[[Buffer, int], bytes]
    encode_difference: Callable[[Buffer, Buffer, int, int], bytes]
    decode_difference: Callable[[Buffer, Buffer, int, int], bytes]
    is_slow: bool = False


def available_kernels() -> dict[str, Kernel]:
    """Return what this build on this machine can run, by name, fastest first; "python" is always there, and last."""
    kernels: dict[str, Kernel] = {}
    why_slow = "asked for"
    try:
        native = import_module("ckptfs.store._kernels")
    except ImportError as error:
        why_slow = f"no C extension: {error}"
    else:
        for name in native.cut_kernels():
            kernels[name] = Kernel(
                name,
                partial(native.cut, name),
                partial(native.cut_and_hash, name),
                partial(native.hash_chunks, name),
                native.split_planes,
                native.join_planes,
                native.plane_entropies,
                native.mark,
                native.raw_records,
                native.encode_runs,
                native.decode_runs,
                native.encode_difference,
                native.decode_difference,
            )
    kernels["python"] = Kernel(
        f"python (slow: {why_slow})",
        reference.cut,
        reference.cut_and_hash,
        reference.hash_chunks,
        reference.split_planes,
        reference.join_planes,
        reference.plane_entropies,
        reference.mark,
        reference.raw_records,
        reference_coders.encode_runs,
        reference_coders.decode_runs,
        reference_coders.encode_difference,
        reference_coders.decode_difference,
        is_slow=True,
    )
    return kernels


def choose_kernel(kernels: Mapping[str, Kernel], forced: str | None) -> Kernel:
    """Return the kernel named `forced`, or the first; raise UsageError when there is none of that name."""
    if not forced:
        return next(iter(kernels.values()))
    if forced not in kernels:
        raise UsageError(f"{VARIABLE}={forced}: not available here; this machine has {', '.join(kernels)}")
    return kernels[forced]


_KERNEL = choose_kernel(available_kernels(), os.environ.get(VARIABLE))

NAME = _KERNEL.title
"""The kernel in use: "avx512", "avx2", "portable" or "python (slow: why)"."""

IS_SLOW = _KERNEL.is_slow
"""Whether it is plain Python, which stores some hundred times more slowly."""


def cut(data: Buffer, size_min: int, mean_bits: int, size_max: int, final: bool) -> list[int]:
    """Return the lengths in bytes of the complete chunks at the start of `data`, which begins where a chunk begins.

    The bytes behind the last of them are not decided: give them again, at the front of more. With `final` nothing
    more will come, and they become the last chunk. Where a chunk ends depends on its own bytes only, so the cuts are
    the same however the bytes were fed. Chunks are `size_min` to `size_max` long (the final one may be shorter), and a
    position is a candidate with a chance of 2 ** -mean_bits, so a mean chunk of random bytes has about
    size_min + 2 ** mean_bits. Constant bytes, zeros above all, have no candidates. ValueError: sizes that make no sense
    (16 <= size_min <= size_max, 8 <= mean_bits <= 40).

    The idea of the two stages, a prefilter over 4 neighbouring bytes and a hash over 16 where it passes, is that the
    first needs only additions of bytes and so does 64 positions at once.
    """
    return _KERNEL.cut(data, size_min, mean_bits, size_max, final)


def cut_and_hash(
    data: Buffer, size_min: int, mean_bits: int, size_max: int, final: bool, seed: int
) -> tuple[list[int], list[bytes]]:
    """Return the lengths of the chunks at the start of `data`, as `cut` does, and their ids.

    An id is the XXH3-128 digest of the chunk's bytes (16 bytes, big-endian), keyed by `seed` (64 bits). One call
    without the GIL for all of it: a hand-over of the GIL per chunk costs more than the hash, and a chunk that was just
    cut is still in the cache.
    """
    return _KERNEL.cut_and_hash(data, size_min, mean_bits, size_max, final, seed)


def hash_chunks(data: Buffer, lengths: list[int], seed: int) -> list[bytes]:
    """Return the ids, as of `cut_and_hash`, of chunks that lie one behind the other and together are `data`.

    One call without the GIL for all of them. ValueError: the lengths do not add up to the bytes.
    """
    return _KERNEL.hash_chunks(data, lengths, seed)


def split_planes(data: Buffer, width: int) -> bytes:
    """Return the byte planes of `data`, taken as elements of `width` (2, 4 or 8) bytes, and then its tail.

    Plane k, `len(data) // width` bytes long, has byte k of every element; the tail is what does not fill an element.
    """
    return _KERNEL.split_planes(data, width)


def join_planes(data: Buffer, width: int) -> bytes:
    """Undo `split_planes`."""
    return _KERNEL.join_planes(data, width)


def plane_entropies(data: Buffer, width: int) -> list[float]:
    """Estimate, for every plane of `data` (width 1 to 8), the order-0 entropy in bits per byte; it may exceed 8."""
    return _KERNEL.plane_entropies(data, width)


def encode_runs(data: Buffer) -> bytes:
    """Return bytes entropy-coded: never more than 8 bytes larger, 1 part in 100 smaller or more where that can be.

    Order 0, by rANS, but a byte that is rare among zeros costs about what its place tells: docs/format.md, "Runs".
    """
    return _KERNEL.encode_runs(data)


def decode_runs(coded: Buffer, size: int) -> bytes:
    """Undo `encode_runs` for `size` bytes; ValueError when `coded` is not a coding of so many."""
    return _KERNEL.decode_runs(coded, size)


def encode_difference(target: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Return what `target` differs in from `base`, which is of the same size, entropy-coded.

    Both are taken as floats (or integers) of `width` bytes, 1, 2, 4 or 8, from `phase` (below `width`) on. How far a
    float moves depends above all on its exponent, which the base tells both sides: floats of one exponent are coded
    together, and smaller than the order-0 entropy of all steps. Where the two have nothing in common the result may
    be larger than `target`.
    """
    return _KERNEL.encode_difference(target, base, width, phase)


def decode_difference(coded: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Undo `encode_difference`: return the target; ValueError when `coded` is not a difference from such a base."""
    return _KERNEL.decode_difference(coded, base, width, phase)


def mark(bits: bytearray, numbers: Buffer) -> None:
    """Set bit `n % 8` of byte `n // 8` of `bits` for each of `numbers`, packed as little-endian u64.

    A number behind the end of `bits` (a hole of a manifest, say) is left out. Nobody else may change `bits` meanwhile.
    """
    _KERNEL.mark(bits, numbers)


def raw_records(out: memoryview, encoding: int, data: Buffer, spans: Buffer, ids: Buffer, number: int) -> None:
    """Fill `out` with the records of chunks of `data`, one behind the other, that are stored as they are.

    `spans` has the offset and the size in bytes of each chunk, packed as little-endian u64, `ids` their ids; the first
    gets the chunk number `number`, the others those behind it. Each record is what `records.build` makes. ValueError:
    a chunk that is not inside the data or has no id, or an `out` that is not as large as the records.
    """
    _KERNEL.raw_records(out, encoding, data, spans, ids, number)
