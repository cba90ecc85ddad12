"""Where chunks are stored: the rows of the chunk index as values, and as bytes.

Pure; `docs/format.md`, "Location", has the byte table. Any thread may call.
"""

import struct
from typing import NamedTuple

from ckptfs.config import BASES_MAX, CHUNK_SIZE_MAX
from ckptfs.errors import DamagedError
from ckptfs.store.records import HEADER_SIZE, Place, Position, Row, pack_bases, record_size
from ckptfs.store.schema import Table

NO_CHUNK = 0
"""The number of no chunk: a hole in a manifest, an id that is not known."""

FIRST_NUMBER = 1

LOCATION = struct.Struct("<IQIIHBB")
NUMBER = struct.Struct(">Q")
HEIGHT_MAX = 255

OFFSET_MAX = 1 << 62
"""No pack is as large."""


class Location(NamedTuple):
    """Where a chunk is stored and how; sizes in bytes.

    `bases` are the chunks that a delta needs to be read, `height` is how long the chain of deltas is that rest on this
    chunk: at least, since it does not become lower when a delta is stored anew as something else.
    """

    pack: int
    offset: int
    stored_size: int
    raw_size: int
    encoding: int
    bases: tuple[int, ...] = ()
    height: int = 0

    @property
    def position(self) -> Position:
        """The position of the chunk's record."""
        return Position(self.pack, self.offset)

    @property
    def read_size(self) -> int:
        """The bytes of the record, without the padding behind it."""
        return HEADER_SIZE + 8 * len(self.bases) + self.stored_size

    @property
    def larger_size(self) -> int:
        """The larger of both sizes, for bounds: what ckptfs writes is decoded to more, but a row may say anything."""
        return max(self.stored_size, self.raw_size)

    def place(self, number: int) -> Place:
        """The place that the record of this chunk takes."""
        return Place(self.pack, self.offset, record_size(self.stored_size, len(self.bases)), number)


def build_location(location: Location) -> bytes:
    """Return the value of a row of the table `chunks`."""
    pack, offset, stored_size, raw_size, encoding, bases, height = location
    fixed = LOCATION.pack(pack, offset, stored_size, raw_size, len(bases), encoding, height)
    return fixed + pack_bases(bases) if bases else fixed


def parse_location(packed: bytes) -> Location:
    """Undo `build_location`; DamagedError when it is no such row."""
    try:
        pack, offset, stored_size, raw_size, base_count, encoding, height = LOCATION.unpack_from(packed)
        # Most have none, and a million of them are read at a time.
        bases = (
            struct.unpack(f"<{base_count}Q", packed[LOCATION.size :])
            if base_count or len(packed) > LOCATION.size
            else ()
        )
    except struct.error as error:
        raise DamagedError("the location of a chunk has another size than it must have; rebuild the index") from error
    if raw_size > CHUNK_SIZE_MAX or stored_size > CHUNK_SIZE_MAX or offset > OFFSET_MAX:
        raise DamagedError(f"a chunk of {raw_size} bytes in {stored_size} at {offset} cannot be; rebuild the index")
    if base_count > BASES_MAX:
        raise DamagedError(f"a chunk that rests on {base_count} others cannot be; rebuild the index")
    return Location(pack, offset, stored_size, raw_size, encoding, bases, height)


def parse_number(packed: bytes) -> int:
    """Return the chunk number of a row; DamagedError when it is none."""
    if len(packed) != NUMBER.size:
        raise DamagedError("the number of a chunk has another size than it must have; rebuild the index")
    return int.from_bytes(packed, "big")


class Chunk(NamedTuple):
    """A stored chunk as the index takes it."""

    number: int
    id: bytes
    location: Location


class Known(NamedTuple):
    """A chunk as the dedup knows it."""

    id: bytes
    number: int

    @property
    def release_rows(self) -> tuple[Row, Row]:
        """The rows of the journal by which the chunk is no chunk any more."""
        return Row(Table.CHUNKS, NUMBER.pack(self.number), None), Row(Table.CHUNK_IDS, self.id, None)
