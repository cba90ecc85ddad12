"""Turn the bytes of one chunk into the payload of its record, and back.

Owns the encodings and the choice between them; what a payload looks like is with planes.py, delta.py and frames.py.
Refuses to know packs, ids and files: what it gets is one chunk, and whether the decoded bytes are the right ones (their
id) is the caller's question. Nothing here touches the disk. Any number of threads may call.
"""

from enum import IntEnum

from ckptfs.errors import DamagedError
from ckptfs.store import frames
from ckptfs.store.delta import decode_delta
from ckptfs.store.kernels import plane_entropies
from ckptfs.store.planes import RATIO_WORTH, WIDTHS, Shape, decode_planes, encode_planes, has_zstd

SIZE_WORTH = 64
"""Below this size nothing is tried: the record around the payload is as large."""

SAMPLE_WINDOWS = 4
SAMPLE_WINDOW_SIZE = 2048
"""The choice is made on this many windows of this many bytes, spread over the chunk."""

SAME_SIZE = 16
"""A chunk whose first and last bytes, this many, are all the same is looked at for being so as a whole."""

WIDTH_MARGIN = 0.01
"""How much smaller (as a part of the raw size) a greater width has to make the sample, and planes against zstd."""

TURNED_MARGIN = 0.003
"""How much smaller turning the elements has to make it: less is within what the sample cannot tell."""


class Encoding(IntEnum):
    """How a chunk is stored; the numbers are on the disk."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3
    """A difference against other chunks, the bases."""
    WAITING = 4
    """The bytes as they are, like RAW; nothing smaller was tried yet."""


Encoded = tuple[Encoding, bytes | memoryview]
"""An encoding and the payload in it."""


def encode(data: bytes | memoryview) -> Encoded:
    """Return the encoding that suits the bytes of a chunk, and the payload; RAW hands back `data` itself, uncopied."""
    size = len(data)
    if size < SIZE_WORTH:
        return Encoding.RAW, data
    view = memoryview(data)
    sample = _sample(view)
    shape, plane_ratios = _best_shape(sample)
    planes_ratio = sum(plane_ratios) / len(plane_ratios)
    zstd_ratio = len(frames.compress_matches(sample)) / len(sample)
    if min(planes_ratio, zstd_ratio) > RATIO_WORTH:
        return Encoding.RAW, data
    if zstd_ratio <= planes_ratio + WIDTH_MARGIN:
        encoding, payload = Encoding.ZSTD, frames.compress_matches(view)
    else:
        encoding, payload = Encoding.PLANES, encode_planes(view, sample[shape.phase :], shape, plane_ratios)
    if len(payload) > size * RATIO_WORTH:
        return Encoding.RAW, data
    return encoding, payload


def can_wait(data: bytes | memoryview) -> bool:
    """Tell whether a chunk is stored as it is until there is time to encode it: not a tiny one, nor all one byte."""
    size = len(data)
    if size < SIZE_WORTH:
        return False
    # The ends tell nearly always; only a chunk that passes is looked at whole.
    first = data[0]
    alike = bytes([first]) * SAME_SIZE
    return not (data[:SAME_SIZE] == alike == data[-SAME_SIZE:] and bytes(data).count(first) == size)


def encode_later(data: bytes | memoryview) -> Encoded:
    """Return WAITING and the bytes of a chunk themselves, or encode it at once where it cannot wait."""
    return (Encoding.WAITING, data) if can_wait(data) else encode(data)


def decode(encoding: int, payload: bytes | memoryview, raw_size: int, base: bytes | memoryview = b"") -> bytes:
    """Return the `raw_size` bytes of a chunk; DamagedError when the payload is not one that could have been made.

    `base` is all bytes of its bases, which only a delta has. Nothing larger than `raw_size` is ever allocated on the
    word of the payload.
    """
    if encoding in (Encoding.RAW, Encoding.WAITING):
        if len(payload) != raw_size:
            raise DamagedError(f"raw payload of {len(payload)} bytes for a chunk of {raw_size}")
        return bytes(payload)
    if encoding == Encoding.ZSTD:
        return frames.decompress(payload, raw_size)
    if encoding == Encoding.PLANES:
        return decode_planes(memoryview(payload), raw_size)
    if encoding == Encoding.DELTA:
        return decode_delta(memoryview(payload), base, raw_size)
    raise DamagedError(f"unknown encoding {encoding}")


def is_known_to_kernels(encoding: int, payload: memoryview) -> bool:
    """Tell whether `kernels.take_chains` can decode a payload: all but what is compressed with zstd."""
    return encoding != Encoding.ZSTD and (encoding != Encoding.PLANES or not has_zstd(payload))


def element_width(data: bytes | memoryview) -> int:
    """Return the element width, in bytes, that suits the bytes of a chunk best; 1 where none stands out."""
    return _best_shape(_sample(memoryview(data)))[0].width if data else 1


def _sample(view: memoryview) -> bytes:
    """Return windows spread over the chunk, each beginning at a multiple of 8 so that all have elements in phase."""
    size = len(view)
    if size <= SAMPLE_WINDOWS * SAMPLE_WINDOW_SIZE:
        return bytes(view)
    last = size - SAMPLE_WINDOW_SIZE
    starts = [last * index // (SAMPLE_WINDOWS - 1) & ~7 for index in range(SAMPLE_WINDOWS)]
    return b"".join([view[start : start + SAMPLE_WINDOW_SIZE] for start in starts])


def _best_shape(sample: bytes) -> tuple[Shape, list[float]]:
    """Return what to take the elements for, and the size that each of their planes promises to have, as a part of its
    raw size."""
    shape, best = Shape(WIDTHS[0]), [1.0 + WIDTH_MARGIN] * WIDTHS[0]
    for width in WIDTHS:
        ratios = _plane_ratios(sample, Shape(width))
        if sum(ratios) / width < sum(best) / len(best) - WIDTH_MARGIN:
            shape, best = Shape(width), ratios
    # The exponent is the plane that gets smallest, and the last one of an element.
    turned = Shape(shape.width, (best.index(min(best)) + 1) % shape.width, turned=True)
    ratios = _plane_ratios(sample, turned)
    gain = (sum(best) - sum(ratios)) / shape.width
    return (turned, ratios) if gain > TURNED_MARGIN else (shape, best)


def _plane_ratios(sample: bytes, shape: Shape) -> list[float]:
    bits = plane_entropies(sample[shape.phase :], shape.width, shape.turned)
    return [min(each / 8, 1.0) for each in bits]
