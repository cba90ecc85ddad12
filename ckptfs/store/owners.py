"""Who uses each chunk: nobody, one owner, or several.

Owners are small numbers that the caller gives out, versions most often. Four bytes for each chunk. Belongs to one
thread at a time.
"""

import struct
from array import array
from typing import Final

from ckptfs.store.location import NUMBER, parse_location
from ckptfs.store.reader import View
from ckptfs.store.records import record_size
from ckptfs.store.schema import Table

_PACKED = struct.Struct("<Q")
_NOBODY: Final = -1
_SEVERAL: Final = -2


class Owners:
    """The owners of chunks, or of anything else that is numbered, below `limit`; nobody's at first."""

    def __init__(self, limit: int) -> None:
        self._owners = array("i", [_NOBODY]) * limit

    def add(self, number: int, owner: int) -> None:
        """Note an owner, of several numbers maybe."""
        before = self._owners[number]
        if before != owner:
            self._owners[number] = owner if before == _NOBODY else _SEVERAL

    def add_shared(self, number: int) -> None:
        """Note that several have it."""
        self._owners[number] = _SEVERAL

    def add_all(self, numbers: memoryview, source: "Owners", number: int) -> None:
        """Give chunks, by packed little-endian u64, the owner that a number has in `source`, if any; holes are none."""
        owner = source._owners[number]
        if owner == _NOBODY:
            return
        owners, limit = self._owners, len(self._owners)
        for (each,) in _PACKED.iter_unpack(numbers):
            if each < limit:
                before = owners[each]
                if before != owner:
                    owners[each] = owner if before == _NOBODY else _SEVERAL

    def exclusive_sizes(self, view: View, owner_count: int) -> list[int]:
        """Return for each owner how many bytes the records of chunks take that nobody else uses.

        What a delta rests on is used by whoever uses the delta. The view has the chunks.
        """
        owners, limit = self._owners, len(self._owners)
        sizes = array("I", bytes(4 * limit))
        deltas: dict[int, array[int]] = {}  # by height, one behind the other: number, count of bases, bases
        for key, value in view.scan(Table.CHUNKS):
            (number,) = NUMBER.unpack(key)
            if number < limit:
                location = parse_location(value)
                sizes[number] = record_size(location.stored_size, len(location.bases))
                if location.bases and owners[number] != _NOBODY:
                    packed = deltas.setdefault(location.height, array("Q"))
                    packed.extend((number, len(location.bases), *location.bases))
        for _, packed in sorted(deltas.items()):  # a base is higher than the deltas that rest on it
            at = 0
            while at < len(packed):
                number, count = packed[at : at + 2]
                for base in packed[at + 2 : at + 2 + count]:
                    if base < limit and owners[number] == _SEVERAL:
                        self.add_shared(base)
                    elif base < limit:
                        self.add(base, owners[number])
                at += 2 + count
        exclusive = [0] * owner_count
        for owner, size in zip(owners, sizes, strict=True):
            if owner >= 0:
                exclusive[owner] += size
        return exclusive
