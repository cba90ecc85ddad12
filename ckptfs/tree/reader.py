"""Reading: decoded chunks, a byte-bounded cache of them, and the plan of one read.

A plan is made by the owner of the file (so that it sees one state of it) and may be carried out in any thread.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from ckptfs.config import MIB
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore

CACHE_SIZE = 64 * MIB

Bytes = bytes | bytearray | memoryview


class ChunkReader:
    """Decoded chunks of a store, the recently used ones from memory. Thread-safe."""

    def __init__(self, store: ChunkStore, cache_size: int = CACHE_SIZE) -> None:
        self._store = store
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_size = 0
        self._cache_size = cache_size
        self._lock = Lock()

    def cached(self, number: int) -> bool:
        """Whether a read of this chunk touches no disk."""
        return number in self._cache

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk; DamagedError where the store cannot vouch for them."""
        with self._lock:
            data = self._cache.get(number)
            if data is not None:
                self._cache.move_to_end(number)
                return data
        data = self._store.read(number)
        with self._lock:
            if number not in self._cache:
                self._cache[number] = data
                self._cached_size += len(data)
                while self._cached_size > self._cache_size:
                    self._cached_size -= len(self._cache.popitem(last=False)[1])
        return data


@dataclass(frozen=True, slots=True)
class ChunkSlice:
    """`length` bytes of a chunk from `start` on, which belong at `position` of the reply."""

    number: int
    start: int
    length: int
    position: int


@dataclass(slots=True)
class ReadPlan:
    """What one read needs: slices of chunks below, and copies of bytes not yet in chunks over them."""

    size: int
    slices: list[ChunkSlice] = field(default_factory=list)
    patches: list[tuple[int, bytes]] = field(default_factory=list)

    def in_memory(self, reader: ChunkReader) -> bool:
        """Whether the read touches no disk."""
        return all(reader.cached(piece.number) for piece in self.slices)

    def run(self, reader: ChunkReader) -> Bytes:
        """Return the `size` bytes; what nothing covers is zero. DamagedError passes."""
        if len(self.slices) == 1 and not self.patches and self.slices[0].length == self.size:
            piece = self.slices[0]
            return memoryview(self._chunk(reader, piece))[piece.start : piece.start + piece.length]
        reply = bytearray(self.size)
        for piece in self.slices:
            data = memoryview(self._chunk(reader, piece))[piece.start : piece.start + piece.length]
            reply[piece.position : piece.position + piece.length] = data
        for position, patch in self.patches:
            reply[position : position + len(patch)] = patch
        return reply

    @staticmethod
    def _chunk(reader: ChunkReader, piece: ChunkSlice) -> bytes:
        data = reader.read(piece.number)
        if len(data) < piece.start + piece.length:
            raise DamagedError(f"chunk {piece.number} has {len(data)} bytes, a file uses more of it")
        return data
