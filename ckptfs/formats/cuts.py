"""Where a file that is just being written has to be cut, so that its tensors get chunks of their own.

The same tensor then has the same chunks in a file of another format, and behind another header. Follows the same walks
as `parse`, from header to header, and holds the bytes of one header at most.
"""

from bisect import bisect_left, bisect_right

from ckptfs.config import KIB
from ckptfs.formats.layout import MalformedError, Request, Tensor, Walk, add_fingerprint
from ckptfs.formats.recognise import walk

TENSOR_SIZE_MIN = 256 * KIB
"""Tensors of fewer bytes are not cut out: the chunk between two of them, a header, costs a record of its own."""

Bytes = bytes | bytearray | memoryview


class TensorCuts:
    """The cuts of one file, found as its bytes are fed in order from offset 0."""

    def __init__(self) -> None:
        self._walk: Walk | None = walk()
        self._request = Request(0, 0)
        self._window = bytearray()
        """Of the bytes asked for, those that were fed."""
        self._fed = 0
        self._offsets: list[int] = []
        self.layout = 0
        """The fingerprint of the tensors found so far; 0 after a gap, behind which there may be more."""
        self._go_on(None)

    def feed(self, offset: int, data: Bytes) -> None:
        """Take bytes of the file. What was fed before is passed over; after a gap, no more cuts are found."""
        view = memoryview(data)[max(self._fed - offset, 0) :]
        start = max(self._fed, offset)
        if start > self._fed:
            self._walk = None
            self.layout = 0
        self._fed = start + len(view)
        while self._walk is not None:
            wanted, missing = self._request, self._request.offset + len(self._window)
            self._window += view[max(missing - start, 0) : max(wanted.offset + wanted.size - start, 0)]
            if len(self._window) < wanted.size:
                return
            self._go_on(bytes(self._window[: wanted.size]))

    def between(self, start: int, stop: int) -> list[int]:
        """Return the offsets found so far of which a chunk has to begin at each, in (start, stop), in order."""
        return self._offsets[bisect_right(self._offsets, start) : bisect_left(self._offsets, stop)]

    def _go_on(self, answer: bytes | None) -> None:
        """Let the walk go on with what it asked for, until it asks for more."""
        assert self._walk is not None
        try:
            step = next(self._walk) if answer is None else self._walk.send(answer)
            while isinstance(step, Tensor):
                self._cut_out(step)
                self.layout = add_fingerprint(self.layout, step)
                step = next(self._walk)
            if step.offset < self._request.offset:
                raise MalformedError("what it asks for has passed")
        except (StopIteration, MalformedError):
            self._walk = None
            self._window.clear()
            return
        del self._window[: step.offset - self._request.offset]
        self._request = step

    def _cut_out(self, tensor: Tensor) -> None:
        if tensor.size < TENSOR_SIZE_MIN:
            return
        for offset in (tensor.offset, tensor.offset + tensor.size):
            if offset > (self._offsets[-1] if self._offsets else 0):
                self._offsets.append(offset)
