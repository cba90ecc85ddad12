"""The stream of a file: bytes that continue its extents, gathered into pieces that are cut and stored one by one.

A large piece lies in a buffer of a pool, filled once and used again: fresh memory costs more than the copy into it.
In front of a piece's bytes there is room for what the piece before leaves over, so that no piece is copied again.
Belongs to the thread that owns the file; a piece that is out is only read meanwhile.
"""

from collections import deque
from collections.abc import Iterator

from ckptfs.config import KIB, MIB
from ckptfs.tree.reader import Bytes

PIECE_SIZE = 8 * MIB
"""Bytes that are cut and stored at once."""
HEADROOM = 512 * KIB
"""Room in front of a piece; a rest that is longer is copied together with the piece."""
SMALL_SIZE = 64 * KIB
"""A piece of no more bytes than this lies in memory of its own."""
POOLED_MAX = 8


class BufferPool:
    """Buffers for pieces, used again and again; a few are kept when nobody needs them."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """Return a buffer of HEADROOM + PIECE_SIZE bytes with anything in it."""
        return self._free.pop() if self._free else bytearray(HEADROOM + PIECE_SIZE)

    def give(self, buffer: bytearray) -> None:
        """Take back a buffer that nobody uses any more."""
        if len(self._free) < POOLED_MAX:
            self._free.append(buffer)


class Piece:
    """Consecutive bytes of a stream, `buffer[start:end]`; small ones fill a buffer that grows with them."""

    __slots__ = ("_pool", "buffer", "end", "start")

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self.buffer = bytearray()
        self.start = self.end = 0

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def _is_pooled(self) -> bool:
        return len(self.buffer) == HEADROOM + PIECE_SIZE

    @property
    def room(self) -> int:
        """How many bytes still fit behind the others."""
        return HEADROOM + PIECE_SIZE - self.end if self._is_pooled else PIECE_SIZE - len(self)

    def view(self) -> memoryview:
        """Return the bytes; no byte may be added while the view is in use."""
        return memoryview(self.buffer)[self.start : self.end]

    def append(self, data: Bytes) -> None:
        """Add no more bytes than there is room for."""
        end = self.end + len(data)
        if not self._is_pooled:
            if len(self) + len(data) <= SMALL_SIZE:
                self.buffer += data
                self.end = end
                return
            pooled = self._pool.take()
            pooled[HEADROOM : HEADROOM + len(self)] = self.buffer
            self.buffer, self.start, self.end = pooled, HEADROOM, HEADROOM + len(self)
            end = self.end + len(data)
        self.buffer[self.end : end] = data
        self.end = end

    def patch(self, position: int, data: Bytes) -> None:
        """Overwrite bytes that are there, from `position` of the piece on."""
        start = self.start + position
        self.buffer[start : start + len(data)] = data

    def prepend(self, data: Bytes) -> None:
        """Put bytes in front of the others."""
        if self._is_pooled and len(data) <= self.start:
            self.buffer[self.start - len(data) : self.start] = data
            self.start -= len(data)
            return
        joined = bytearray().join((data, self.view()))
        self.release()
        self.buffer, self.start, self.end = joined, 0, len(joined)

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes."""
        self.end = min(self.end, self.start + size)
        if not self._is_pooled:
            del self.buffer[self.end :]

    def shorten(self, size: int) -> None:
        """Leave out the last `size` bytes of a piece that gets no more; views of it stay as they are."""
        self.end -= size

    def release(self) -> None:
        """Give the buffer back; the piece is empty then."""
        if self._is_pooled:
            self._pool.give(self.buffer)
        self.buffer = bytearray()
        self.start = self.end = 0


class Stream:
    """The pieces of one file, one behind the other: those that are out, full ones, and the tail that is filled."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._out: deque[Piece] = deque()
        self._full: deque[Piece] = deque()
        self._tail = Piece(pool)

    def __len__(self) -> int:
        return self.tail_position + len(self._tail)

    def __bool__(self) -> bool:
        return bool(self._out or self._full or len(self._tail))

    def _pieces(self) -> Iterator[Piece]:
        yield from self._out
        yield from self._full
        yield self._tail

    @property
    def tail_position(self) -> int:
        """Where in the stream the bytes begin that `write` may change."""
        return sum(map(len, self._out)) + sum(map(len, self._full))

    def write(self, position: int, data: Bytes) -> None:
        """Write at a position of the stream, from `tail_position` to the end of the stream."""
        view = memoryview(data)
        inside = position - self.tail_position
        covered = min(len(view), len(self._tail) - inside)
        if covered:
            self._tail.patch(inside, view[:covered])
        while covered < len(view):
            if not self._tail.room:
                self._full.append(self._tail)
                self._tail = Piece(self._pool)
            added = min(self._tail.room, len(view) - covered)
            self._tail.append(view[covered : covered + added])
            covered += added
        if len(self._tail) >= PIECE_SIZE:
            self._full.append(self._tail)
            self._tail = Piece(self._pool)

    def take(self, *, final: bool) -> Piece | None:
        """Give out the next piece: a full one, or any when `final`; None where there is none."""
        if self._full:
            piece = self._full.popleft()
        elif final and len(self._tail):
            piece, self._tail = self._tail, Piece(self._pool)
        else:
            return None
        self._out.append(piece)
        return piece

    @property
    def is_last_out(self) -> bool:
        """Whether nothing follows the pieces that are out."""
        return not self._full and not len(self._tail)

    def hand_on(self, rest: Bytes) -> None:
        """Move the `rest` of the piece that was given out last, which is not stored with it, to what follows."""
        if len(rest):
            self._out[-1].shorten(len(rest))
            (self._full[0] if self._full else self._tail).prepend(rest)

    def finish(self) -> None:
        """Take back the first of the pieces that are out; its bytes are stored."""
        self._out.popleft().release()

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes; only while no piece is out."""
        assert not self._out
        for piece in self._pieces():
            piece.truncate(max(size, 0))
            size -= len(piece)
        while self._full and not len(self._tail):
            self._tail.release()
            self._tail = self._full.pop()

    def clear(self) -> None:
        """Forget all bytes; the buffers of pieces that are out are left to whoever still reads them."""
        self._out.clear()
        for piece in self._pieces():
            piece.release()
        self._full.clear()

    def between(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield (position, bytes) of what lies in [start, stop) of the stream."""
        position = 0
        for piece in self._pieces():
            low, high = max(start - position, 0), min(stop - position, len(piece))
            if low < high:
                yield position + low, piece.view()[low:high]
            position += len(piece)
