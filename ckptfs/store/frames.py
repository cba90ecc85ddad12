"""zstd frames, as chunks and planes hold them: one each, which says its content's size.

Owns the zstd contexts, which are not thread-safe: one set per thread, so any number of threads may call.
"""

import threading

import zstandard

from ckptfs.errors import DamagedError

WINDOW_LEAST = 1 << zstandard.WINDOWLOG_MIN


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


def compress_matches(data: bytes | memoryview) -> bytes:
    """Return a frame of data that may repeat itself."""
    return _contexts.matches.compress(data)


def compress_entropy(data: bytes | memoryview) -> bytes:
    """Return a frame of data in which only some bytes are more frequent than others."""
    return _contexts.entropy.compress(data)


def decompress(frame: bytes | memoryview, raw_size: int) -> bytes:
    """Return the content of one frame, which has to be all of the buffer and say that it has `raw_size` bytes.

    DamagedError otherwise, and for an empty content: nothing empty is ever compressed. Nothing larger than `raw_size`
    is allocated.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
        # zstd allocates both of them before it reads on; in a frame made here the window is never the larger one.
        if raw_size <= 0 or parameters.content_size != raw_size or parameters.window_size > max(raw_size, WINDOW_LEAST):
            raise DamagedError(f"zstd frame that is not one of {raw_size} bytes")
        raw = _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError(f"zstd frame that cannot be read: {error}") from error
    if len(raw) != raw_size:
        raise DamagedError(f"zstd frame of {len(raw)} bytes where {raw_size} were stored")
    return raw
