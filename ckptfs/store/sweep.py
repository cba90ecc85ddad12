"""The sweep: chunks that nothing needs are taken out of the index, in the journal first, and their places freed.

Whoever knows what is needed marks it in a bitmap; Sweeper adds what that rests on and walks the index for the rest. It
knows no files. `ingest` goes on meanwhile, and what it hands out is never taken: a chunk stored since `begin` has a
number behind the bitmap's limit, and one that was found by its id since then is *watched*; both are told apart under
the lock under which it was found. So is the making of deltas: their bases are watched, and so is all that a watched
chunk rests on. A crash leaves a chunk whole or released, and the next sweep takes up the rest. Works in the caller's
thread; one sweep at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ckptfs.store.bitmap import Bitmap
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Chunk, Known
from ckptfs.store.reencode import never

_BATCH_CHUNKS = 256
"""So many chunks are released by one metadata record."""


class Swept(NamedTuple):
    """What a call did: `chunks` of `raw_bytes` together are released."""

    chunks: int = 0
    raw_bytes: int = 0


class Sweeper:
    """The sweeps of one store; `release` journals and takes out those of some chunks that nobody watches."""

    def __init__(self, index: ChunkIndex, release: Callable[[Sequence[Known]], list[Chunk]]) -> None:
        self._index = index
        self._release = release

    def begin(self) -> Bitmap:
        """Begin to look for chunks that nothing needs, and return the empty set of those needed.

        To be marked in it is every chunk that somebody knew before this call; what `ingest` returns when it was called
        after this one is kept anyway, and so is what a delta made after it rests on. `end` is called in any case.
        """
        return Bitmap(self._index.watch())

    def end(self) -> None:
        """End what `begin` began."""
        self._index.end_watch()

    def need_bases(self, needed: Bitmap, stop: Callable[[], bool] = never) -> bool:
        """Add to the chunks that are needed those that they rest on, and those in turn; False where it was stopped."""
        start: int | None = 0
        while start is not None:
            if stop():
                return False
            numbers, start = self._index.walk_encoded_against(start)
            pending = [number for number in numbers if number in needed]
            while pending:
                for base in self._index.bases(pending.pop()):
                    if base < needed.limit and base not in needed:
                        needed.add(base)
                        pending.append(base)
        return True

    def sweep(self, needed: Bitmap, stop: Callable[[], bool] = never) -> Swept:
        """Release the chunks that are not needed; the rows that spoke of them have to be journalled before.

        What is released is journalled on return; a checkpoint frees the places, for `Reclaimer.punch`. Ends early,
        within milliseconds, when `stop()` is true. StoreReadOnlyError.
        """
        done = Swept()
        for known in self._walk(needed):
            if stop():
                break
            released = self._release(known)
            raw_bytes = sum(chunk.location.raw_size for chunk in released)
            done = Swept(done.chunks + len(released), done.raw_bytes + raw_bytes)
        return done

    def _walk(self, needed: Bitmap) -> Iterator[list[Known]]:
        """Yield the chunks that are not needed, some (or none) at a time, and every delta before what it rests on.

        So what is in the index can be read, and may be handed out. A base is higher than the deltas that rest on it.
        """
        height: int | None = 0
        while height is not None:
            above: set[int] = set()
            start: bytes | None = b""
            while start is not None:
                known, start = self._index.walk_known(
                    start, lambda number: number < needed.limit and number not in needed
                )
                level = []
                for chunk in known:
                    location = self._index.locate(chunk.number)
                    if location is not None and location.height == height:
                        level.append(chunk)
                    elif location is not None and location.height > height:
                        above.add(location.height)
                for at in range(0, len(level) or 1, _BATCH_CHUNKS):
                    yield level[at : at + _BATCH_CHUNKS]
            height = min(above, default=None)
