"""Turn the bytes of one chunk into the payload of its record, and back.

Owns the encodings, the choice between them and the layout of the planes payload (docs/format.md). Refuses to know
packs, ids and files: what it gets is one chunk, and whether the decoded bytes are the right ones (their id) is the
caller's question. Nothing here touches the disk. Any number of threads may call: the zstd contexts, which are not
thread-safe, are one set per thread.
"""

import struct
import threading
from enum import IntEnum

import zstandard

from ckptfs.errors import DamagedError
from ckptfs.store.kernels import join_planes, plane_entropies, split_planes

SIZE_WORTH = 64
"""Below this size nothing is tried: the record around the payload is as large."""

RATIO_WORTH = 0.97
"""A payload, or a plane, larger than this part of its raw size is stored raw: reading it then costs nothing."""

SAMPLE_WINDOWS = 4
SAMPLE_WINDOW_SIZE = 2048
"""The choice is made on this many windows of this many bytes, spread over the chunk."""

SAME_SIZE = 16
"""A chunk whose first and last bytes, this many, are all the same is looked at for being so as a whole."""

WIDTHS = (2, 4, 8)
WIDTH_MARGIN = 0.01
"""How much smaller (as a part of the raw size) a greater width has to make the sample, and planes against zstd."""


class Encoding(IntEnum):
    """How a chunk is stored; the numbers are on the disk."""

    RAW = 0
    ZSTD = 1
    PLANES = 2
    DELTA = 3
    """Reserved: a difference against another chunk."""
    WAITING = 4
    """The bytes as they are, like RAW; nothing smaller was tried yet."""


class PlaneKind(IntEnum):
    """How one plane of a planes payload is stored; the numbers are on the disk."""

    RAW = 0
    ZSTD = 1


Encoded = tuple[Encoding, bytes | memoryview]
"""An encoding and the payload in it."""

WINDOW_LEAST = 1 << zstandard.WINDOWLOG_MIN

PLANES_HEAD = struct.Struct("<B")
PLANES_ENTRY = struct.Struct("<BI")


class _Contexts(threading.local):
    """The zstd contexts of one thread."""

    def __init__(self) -> None:
        # With 64 hash entries and matches of 7 bytes at least, the match finder finds next to nothing and costs next to
        # nothing: an entropy coder for exponents, smaller and 2-3 times faster than level 1 there.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, hash_log=6, min_match=7, strategy=zstandard.STRATEGY_FAST, target_length=0
        )
        self.entropy = zstandard.ZstdCompressor(compression_params=parameters)
        self.matches = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def encode(data: bytes | memoryview) -> Encoded:
    """Return the encoding that suits the bytes of a chunk, and the payload; RAW hands back `data` itself, uncopied."""
    size = len(data)
    if size < SIZE_WORTH:
        return Encoding.RAW, data
    view = memoryview(data)
    sample = _sample(view)
    plane_ratios = _plane_ratios(sample)
    planes_ratio = sum(plane_ratios) / len(plane_ratios)
    zstd_ratio = len(_contexts.matches.compress(sample)) / len(sample)
    if min(planes_ratio, zstd_ratio) > RATIO_WORTH:
        return Encoding.RAW, data
    if zstd_ratio <= planes_ratio + WIDTH_MARGIN:
        encoding, payload = Encoding.ZSTD, _contexts.matches.compress(view)
    else:
        encoding, payload = Encoding.PLANES, _encode_planes(view, sample, plane_ratios)
    if len(payload) > size * RATIO_WORTH:
        return Encoding.RAW, data
    return encoding, payload


def encode_later(data: bytes | memoryview) -> Encoded:
    """Return WAITING and the bytes of a chunk themselves, but what is all one byte is encoded at once."""
    size = len(data)
    if size < SIZE_WORTH:
        return Encoding.RAW, data
    # The ends tell nearly always; only a chunk that passes is looked at whole.
    first = data[0]
    alike = bytes([first]) * SAME_SIZE
    if data[:SAME_SIZE] == alike == data[-SAME_SIZE:] and bytes(data).count(first) == size:
        return encode(data)
    return Encoding.WAITING, data


def decode(encoding: int, payload: bytes | memoryview, raw_size: int) -> bytes:
    """Return the `raw_size` bytes of a chunk; DamagedError when the payload is not one that `encode` could have made.

    Nothing larger than `raw_size` is ever allocated on the word of the payload.
    """
    if encoding in (Encoding.RAW, Encoding.WAITING):
        if len(payload) != raw_size:
            raise DamagedError(f"raw payload of {len(payload)} bytes for a chunk of {raw_size}")
        return bytes(payload)
    if encoding == Encoding.ZSTD:
        return _decompress(payload, raw_size)
    if encoding == Encoding.PLANES:
        return _decode_planes(memoryview(payload), raw_size)
    if encoding == Encoding.DELTA:
        raise DamagedError("the chunk is a delta, an encoding that this version of ckptfs does not know")
    raise DamagedError(f"unknown encoding {encoding}")


def _sample(view: memoryview) -> bytes:
    """Return windows spread over the chunk, each beginning at a multiple of 8 so that all have elements in phase."""
    size = len(view)
    if size <= SAMPLE_WINDOWS * SAMPLE_WINDOW_SIZE:
        return bytes(view)
    last = size - SAMPLE_WINDOW_SIZE
    starts = [last * index // (SAMPLE_WINDOWS - 1) & ~7 for index in range(SAMPLE_WINDOWS)]
    return b"".join([view[start : start + SAMPLE_WINDOW_SIZE] for start in starts])


def _plane_ratios(sample: bytes) -> list[float]:
    """Return the size that each plane promises to have, as a part of its raw size, for the best element width.

    The width is the length of the list.
    """
    best = [1.0 + WIDTH_MARGIN] * WIDTHS[0]
    for width in WIDTHS:
        ratios = [min(bits / 8, 1.0) for bits in plane_entropies(sample, width)]
        if sum(ratios) / width < sum(best) / len(best) - WIDTH_MARGIN:
            best = ratios
    return best


def _encode_planes(view: memoryview, sample: bytes, plane_ratios: list[float]) -> bytes:
    """Return the planes payload; the sample says for each plane which way of storing it is worth trying."""
    width = len(plane_ratios)
    count = len(view) // width
    planes = memoryview(split_planes(view, width))
    sample_count = len(sample) // width
    sample_planes = memoryview(split_planes(sample, width))
    table = [PLANES_HEAD.pack(width)]
    bodies: list[bytes | memoryview] = []
    for index, ratio in enumerate(plane_ratios):
        plane = planes[index * count : (index + 1) * count]
        kind, body = PlaneKind.RAW, plane
        if ratio < RATIO_WORTH:
            # Where matches do better on the sample than entropy coding ever can, the plane has a structure.
            sample_plane = sample_planes[index * sample_count : (index + 1) * sample_count]
            matched_size = len(_contexts.matches.compress(sample_plane))
            compressor = _contexts.matches if matched_size < sample_count * ratio else _contexts.entropy
            compressed = compressor.compress(plane)
            if len(compressed) <= count * RATIO_WORTH:
                kind, body = PlaneKind.ZSTD, memoryview(compressed)
        table.append(PLANES_ENTRY.pack(kind, len(body)))
        bodies.append(body)
    return b"".join([*table, *bodies, planes[count * width :]])


def _decode_planes(payload: memoryview, raw_size: int) -> bytes:
    """Undo `_encode_planes`."""
    if len(payload) < PLANES_HEAD.size or payload[0] not in WIDTHS:
        raise DamagedError("planes payload without a width")
    width = payload[0]
    body_start = PLANES_HEAD.size + width * PLANES_ENTRY.size
    if len(payload) < body_start:
        raise DamagedError("planes payload that ends in its table")
    entries = list(PLANES_ENTRY.iter_unpack(payload[PLANES_HEAD.size : body_start]))
    count, tail_size = divmod(raw_size, width)
    if len(payload) != body_start + sum(size for _, size in entries) + tail_size:
        raise DamagedError(f"planes payload of {len(payload)} bytes, which is not what its table says")
    planes: list[bytes | memoryview] = []
    for kind, size in entries:
        body = payload[body_start : body_start + size]
        body_start += size
        if kind == PlaneKind.ZSTD:
            planes.append(_decompress(body, count))
        elif kind == PlaneKind.RAW and size == count:
            planes.append(body)
        else:
            raise DamagedError(f"plane of kind {kind} and {size} bytes for {count} elements")
    planes.append(payload[body_start:])
    return join_planes(b"".join(planes), width)


def _decompress(frame: bytes | memoryview, raw_size: int) -> bytes:
    """Return the content of one zstd frame, which has to be all of the buffer and say that it has `raw_size` bytes.

    An empty content is damage as well: `encode` stores nothing empty as zstd.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
        # zstd allocates both of them before it reads on; in a frame of `encode` the window is never the larger one.
        if raw_size <= 0 or parameters.content_size != raw_size or parameters.window_size > max(raw_size, WINDOW_LEAST):
            raise DamagedError(f"zstd frame that is not one of {raw_size} bytes")
        raw = _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError(f"zstd frame that cannot be read: {error}") from error
    if len(raw) != raw_size:
        raise DamagedError(f"zstd frame of {len(raw)} bytes where {raw_size} were stored")
    return raw
