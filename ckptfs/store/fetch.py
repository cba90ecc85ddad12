"""Chunks by number, read from the packs and verified.

Fetcher follows a chunk to where it is, also when it is stored anew meanwhile and its old place is punched. Whatever it
returns has the length and the id that were stored. It caches nothing. Any thread may call.
"""

import xxhash

from ckptfs.errors import DamagedError
from ckptfs.store import codec
from ckptfs.store.index import ChunkIndex, Location
from ckptfs.store.packs import Packs


class Fetcher:
    """Reads the chunks of one store."""

    def __init__(self, index: ChunkIndex, packs: Packs, seed: int) -> None:
        self._index = index
        self._packs = packs
        self._seed = seed

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk; DamagedError names the place when they are not what was written."""
        return self.read_with_id(number)[0]

    def read_with_id(self, number: int) -> tuple[bytes, bytes]:
        """Return the bytes of a chunk and its id."""
        location = self._index.locate(number)
        while location is not None:
            try:
                return self._read_at(number, location)
            except DamagedError:
                # It may have been stored anew since the look-up, and the old place punched: look again.
                before, location = location, self._index.locate(number)
                if location == before:
                    raise
        raise DamagedError(f"chunk {number} is not in the index")

    def _read_at(self, number: int, location: Location) -> tuple[bytes, bytes]:
        record = self._packs.read_record(location.position, location.stored_size, location.base_count)
        header = record.header
        place = self._packs.place(location.position)
        try:
            raw = codec.decode(header.encoding, record.payload, header.raw_size)
        except DamagedError as error:
            raise DamagedError(f"{place}: chunk {number}: {error}") from error
        if (
            header.number != number
            or len(raw) != location.raw_size
            or xxhash.xxh3_128_digest(raw, self._seed) != header.id
        ):
            raise DamagedError(f"{place}: chunk {number} is not what was written")
        return raw, header.id
