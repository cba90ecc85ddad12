"""Which format a file has, by how it begins, and the layout of one that is there in full."""

from collections.abc import Callable

from ckptfs.config import MIB
from ckptfs.formats import gguf, hdf5, npy, torch_legacy, zipped
from ckptfs.formats.gguf import walk_gguf
from ckptfs.formats.hdf5 import walk_hdf5
from ckptfs.formats.layout import MalformedError, Request, Tensor, Walk, take
from ckptfs.formats.npy import walk_npy
from ckptfs.formats.safetensors import walk_safetensors
from ckptfs.formats.torch_legacy import walk_torch_legacy
from ckptfs.formats.zipped import walk_zip

READ_BYTES_MAX = 64 * MIB
REQUESTS_MAX = 1 << 19
"""What a walk may cost; it ends there, and what it has found counts."""

_MAGIC_SIZE = 9
_WALKS: dict[bytes, Callable[[], Walk]] = {
    zipped.MAGIC: walk_zip,
    npy.MAGIC: walk_npy,
    gguf.MAGIC: walk_gguf,
    hdf5.MAGIC: walk_hdf5,
    torch_legacy.MAGIC: walk_torch_legacy,
}


def walk() -> Walk:
    """Yield the tensors of a file of any known format; MalformedError when it has none."""
    start = yield from take(0, _MAGIC_SIZE)
    for magic, walk_format in _WALKS.items():
        if start.startswith(magic):
            yield from walk_format()
            return
    if start.endswith(b"{"):
        yield from walk_safetensors()


class _Window:
    """The bytes that a walk asked for last, because it asks for some of them again."""

    def __init__(self, read: Callable[[int, int], bytes], file_size: int) -> None:
        self._read = read
        self._file_size = file_size
        self._offset = 0
        self._data = b""
        self._left_bytes = READ_BYTES_MAX

    def answer(self, request: Request) -> bytes:
        """Return what is asked for, as far as the file goes; MalformedError when a walk costs too much."""
        kept = b""
        if self._offset <= request.offset <= self._offset + len(self._data):
            kept = self._data[request.offset - self._offset :]
        start = request.offset + len(kept)
        missing = min(request.offset + request.size, self._file_size) - start
        if missing > 0:
            self._left_bytes -= missing
            if self._left_bytes < 0:
                raise MalformedError("the headers are too long")
            kept += self._read(start, missing)
        self._offset, self._data = request.offset, kept
        return kept[: request.size]


def parse(read: Callable[[int, int], bytes], file_size: int) -> list[Tensor] | None:
    """Return the tensors of a file in the order of their offsets; None when it is opaque or has none.

    `read(offset, size)` is asked for headers only, within the bounds above; what it raises passes. The tensors lie
    inside the file and do not overlap. Nothing of the file is believed otherwise: names may be anything, and equal.
    """
    tensors: list[Tensor] = []
    window = _Window(read, file_size)
    steps = walk()
    try:
        step = next(steps)
        for _ in range(REQUESTS_MAX):
            while isinstance(step, Tensor):
                tensors.append(step)
                step = next(steps)
            step = steps.send(window.answer(step))
    except (StopIteration, MalformedError):
        pass
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    starts = [*(tensor.offset for tensor in tensors), file_size]
    inside = all(end <= start for end, start in zip(ends, starts, strict=True))
    return tensors if tensors and inside else None
