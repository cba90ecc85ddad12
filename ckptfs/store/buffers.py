"""Memory that begins at a page, as reads and writes past the page cache need, and that is used again and again.

Memory that is touched for the first time costs as much as copying into it. Any thread may call.
"""

import mmap
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def new_buffer(size: int) -> mmap.mmap:
    """Return `size` bytes that begin at a page; they take memory, in huge pages where there are some, when touched."""
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if (huge := getattr(mmap, "MADV_HUGEPAGE", None)) is not None:
        with suppress(OSError):  # a kernel without them
            buffer.madvise(huge)
    return buffer


class Buffers:
    """Buffers of one size in bytes, of which some are kept for the next ones who need one."""

    def __init__(self, size: int, kept: int) -> None:
        self.size = size
        self._spare: deque[memoryview] = deque(maxlen=kept)

    @contextmanager
    def taken(self, size: int = 0) -> Iterator[memoryview]:
        """Give a buffer, with any content, to the body, which has it to itself; one of its own where `size` is more."""
        if size > self.size:
            yield memoryview(new_buffer(size))
            return
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = memoryview(new_buffer(self.size))
        try:
            yield buffer
        finally:
            self._spare.append(buffer)
