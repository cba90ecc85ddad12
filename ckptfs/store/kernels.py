"""Choose the kernel that this machine runs, once, and hand its functions out.

Owns the choice and the contract of the functions; what they compute is defined by reference.py, reference_coders.py,
reference_differences.py and reference_records.py, and done by kernels.c.
The environment variable CKPTFS_KERNEL (avx512, avx2, portable, python) forces a choice. Pure functions without state:
any number of threads may be inside, and the C ones hold the GIL only to build their result.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from mmap import mmap

from ckptfs.errors import UsageError
from ckptfs.store import reference, reference_coders, reference_differences, reference_records
from ckptfs.store.reference import Buffer

VARIABLE = "CKPTFS_KERNEL"

PLACE = reference_records.PLACE
"""A place for `take_chunks`."""
LINK = reference_records.LINK
"""A link for `take_chains`."""
NO_PLACE = reference_records.NO_PLACE


Room = bytearray | mmap | memoryview


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of the functions of the reference, all bit-identical; `title` is what `ckptfs stats` shows."""

    title: str
    cut: Callable[[Buffer, int, int, int, bool], list[int]]
    cut_and_hash: Callable[[Buffer, int, int, int, bool, int], tuple[list[int], list[bytes]]]
    hash_chunks: Callable[[Buffer, list[int], int], list[bytes]]
    split_planes: Callable[[Buffer, int, bool], bytes]
    join_planes: Callable[[Buffer, int, bool], bytes]
    plane_entropies: Callable[[Buffer, int, bool], list[float]]
    mark: Callable[[bytearray, Buffer], None]
    raw_records: Callable[[memoryview, int, Buffer, Buffer, Buffer, int], None]
    take_chunks: Callable[[Buffer, Buffer, bytearray | memoryview, int], bytes]
    scan_chunks: Callable[[Buffer, int, int, int], tuple[int, list[int], list[bytes], list[bytes]]]
    take_chains: Callable[[Buffer, Buffer, Buffer, Room, memoryview, int], bytes]
    encode_bytes: Callable[[Buffer], bytes]
    decode_bytes: Callable[[Buffer, int], bytes]
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
                partial(native.take_chunks, name),
                native.scan_chunks,
                partial(native.take_chains, name),
                partial(native.encode_bytes, name),
                partial(native.decode_bytes, name),
                partial(native.encode_difference, name),
                partial(native.decode_difference, name),
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
        reference_records.raw_records,
        reference_records.take_chunks,
        reference_records.scan_chunks,
        reference_records.take_chains,
        reference_coders.encode_bytes,
        reference_coders.decode_bytes,
        reference_differences.encode_difference,
        reference_differences.decode_difference,
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


def split_planes(data: Buffer, width: int, turned: bool) -> bytes:
    """Return the byte planes of `data`, taken as elements of `width` (2, 4 or 8) bytes, and then its tail.

    Plane k, `len(data) // width` bytes long, has byte k of every element; the tail is what does not fill an element.
    `turned` elements are rotated left by a bit first: the sign of a float comes to lie below its mantissa, and the last
    plane has 8 bits of its exponent.
    """
    return _KERNEL.split_planes(data, width, turned)


def join_planes(data: Buffer, width: int, turned: bool) -> bytes:
    """Undo `split_planes`."""
    return _KERNEL.join_planes(data, width, turned)


def plane_entropies(data: Buffer, width: int, turned: bool) -> list[float]:
    """Estimate, for every plane of `data` (width 1 to 8), the order-0 entropy in bits per byte; it may exceed 8."""
    return _KERNEL.plane_entropies(data, width, turned)


def encode_bytes(data: Buffer) -> bytes:
    """Return bytes entropy-coded, by their order-0 statistics: never more than a byte larger, mostly smaller.

    docs/format.md, "Coded bytes".
    """
    return _KERNEL.encode_bytes(data)


def decode_bytes(coded: Buffer, size: int) -> bytes:
    """Undo `encode_bytes` for `size` bytes; ValueError when `coded` is not a coding of so many."""
    return _KERNEL.decode_bytes(coded, size)


def encode_difference(target: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Return what `target` differs in from `base`, which is of the same size, entropy-coded.

    Both are taken as floats (or integers) of `width` bytes, 1, 2, 4 or 8, from `phase` (below `width`) on. How far a
    float moves depends above all on its exponent, which the base tells both sides: floats of other exponents have
    statistics of their own, and the result is smaller than the order-0 entropy of all steps. Where the two have nothing
    in common it may be larger than `target`.
    """
    return _KERNEL.encode_difference(target, base, width, phase)


def decode_difference(coded: Buffer, base: Buffer, width: int, phase: int) -> bytes:
    """Undo `encode_difference`; ValueError when `coded` is not a difference from such a base."""
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


def take_chunks(data: Buffer, places: Buffer, out: bytearray | memoryview, seed: int) -> bytes:
    """Put chunks into `out`, one behind the other, from their records in `data`; return a byte for each.

    `places` has where in the data each record begins, its chunk number, and its size in bytes, packed as little-endian
    u64 (`PLACE`). The byte is 1 where the record is the chunk's, and its bytes have the id. It is 0 where that does not
    hold, or where the chunk is stored in another way than raw or in planes that are raw or coded; what `out` has in its
    place then means nothing. One call without the GIL for all of them. ValueError: the sizes are not that of `out`.
    """
    return _KERNEL.take_chunks(data, places, out, seed)


def scan_chunks(
    data: Buffer, size_most: int, pack: int, offset: int
) -> tuple[int, list[int], list[bytes], list[bytes]]:
    """Return how many bytes at the start of `data` are intact records of chunks; their numbers, ids and locations.

    A record whose header does not hold or says a raw or a stored size above `size_most` or more than BASES_MAX bases,
    that does not end in `data`, that is not what its check says, or that is of another kind ends the run. A location is
    the row of the table `chunks` as it is before anything rests on the chunk; the first record lies at `offset` in the
    pack.
    """
    return _KERNEL.scan_chunks(data, size_most, pack, offset)


def take_chains(data: Buffer, links: Buffer, bases: Buffer, out: Room, work: memoryview, seed: int) -> bytes:
    """Put chunks into `out` from deltas and all that they rest on; return a byte for each link.

    A link (`LINK`) is a chunk: where in `data` its payload begins, its number, its place in `out` (NO_PLACE: it is only
    rested on), its stored and its raw size in bytes, its level, its encoding, and how many bases it has. Which links
    those are is in `bases`, of one link behind the other, packed as little-endian u64; they have higher levels. Before
    the payload of a link that has a place there is the record's header and the list of its bases. The byte is 1 where
    a place was asked for, and has the bytes that the record is of. Otherwise it is 0: also where a chunk that is rested
    on has an encoding that `take_chunks` would not take, and where `work`, memory that means nothing before and behind,
    has too little room for the bases of a delta. One call without the GIL for all of them. ValueError: payloads, bases
    or places that are not there.
    """
    return _KERNEL.take_chains(data, links, bases, out, work, seed)
