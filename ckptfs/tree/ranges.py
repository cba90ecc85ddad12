"""Byte ranges that lie over a file: written, and not yet in extents. No two of them overlap or touch."""

from collections.abc import Iterator

from sortedcontainers import SortedDict

_NONE: SortedDict[int, bytearray] = SortedDict()
"""What nobody changes: most files are never written but from front to end, and each would have to make its own."""


class Ranges:
    """A sparse map from offsets to bytes; the latest write wins."""

    def __init__(self) -> None:
        self._ranges = _NONE
        self.size = 0
        """Number of bytes held."""

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __iter__(self) -> Iterator[tuple[int, bytearray]]:
        yield from self._ranges.items()

    @property
    def count(self) -> int:
        """The number of ranges."""
        return len(self._ranges)

    @property
    def end(self) -> int:
        """The offset behind the last byte held, 0 where there is none."""
        if not self._ranges:
            return 0
        offset, data = self._ranges.peekitem(-1)
        return int(offset) + len(data)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Hold `data` at `offset`, over what was held there."""
        if self._ranges is _NONE:
            self._ranges = SortedDict()
        index = self._ranges.bisect_right(offset) - 1
        if index >= 0:
            start, held = self._ranges.peekitem(index)
            if offset <= start + len(held):
                covered = min(len(data), start + len(held) - offset)
                if covered < len(data):
                    self.clip(start + len(held), offset + len(data))
                held[offset - start : offset - start + covered] = data[:covered]
                held += data[covered:]
                self.size += len(data) - covered
                self._join_next(start)
                return
        self.clip(offset, offset + len(data))
        self._ranges[offset] = bytearray(data)
        self.size += len(data)
        self._join_next(offset)

    def _join_next(self, start: int) -> None:
        held = self._ranges[start]
        following = self._ranges.pop(start + len(held), None)
        if following is not None:
            held += following

    def clip(self, start: int, stop: int) -> None:
        """Forget what is held in [start, stop)."""
        if start >= stop:
            return
        index = max(self._ranges.bisect_right(start) - 1, 0)
        while index < len(self._ranges):
            offset, held = self._ranges.peekitem(index)
            end = offset + len(held)
            if offset >= stop:
                return
            if end <= start:
                index += 1
                continue
            del self._ranges[offset]
            self.size -= min(end, stop) - max(offset, start)
            if offset < start:
                self._ranges[offset] = held[: start - offset]
                index += 1
            if end > stop:
                self._ranges[stop] = held[stop - offset :]
                return

    def take_at(self, offset: int) -> bytearray | None:
        """Remove and return the range that begins at `offset`, if there is one."""
        held: bytearray | None = self._ranges.pop(offset, None)
        if held is not None:
            self.size -= len(held)
        return held

    def between(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of what is held in [start, stop), cut to it."""
        for index in range(max(self._ranges.bisect_right(start) - 1, 0), len(self._ranges)):
            offset, held = self._ranges.peekitem(index)
            if offset >= stop:
                return
            low, high = max(offset, start), min(offset + len(held), stop)
            if low < high:
                yield low, memoryview(held)[low - offset : high - offset]
