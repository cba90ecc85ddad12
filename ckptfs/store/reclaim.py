"""Space in the packs that nothing needs any more, given back to the disk below.

Reclaimer takes what is free durably and for good, and knows nothing of why it is. A crash leaves it for another try.
Works in the caller's thread, one at a time; saves and loads go on meanwhile.
"""

from collections.abc import Callable
from itertools import chain

from ckptfs.store.freed import FreedPlaces, merge, pieces
from ckptfs.store.packs import Packs
from ckptfs.store.reencode import never

_PUNCH_PLACES = 64
"""So many places are looked up, and those of them that touch are punched as one."""


class Reclaimer:
    """What gives the space of one store back."""

    def __init__(self, packs: Packs, freed: FreedPlaces, check_writable: Callable[[], None]) -> None:
        self._packs = packs
        self._freed = freed
        self._check_writable = check_writable

    def punch(self, stop: Callable[[], bool] = never) -> int:
        """Give what is free since a checkpoint back to the disk below; return its bytes, 0 where the disk cannot.

        Ends early, within milliseconds, when `stop()` is true; the next call goes on.
        StoreReadOnlyError.
        """
        self._check_writable()
        size = 0
        while self._packs.can_punch and (places := self._freed.take(_PUNCH_PLACES)):
            for piece in chain.from_iterable(map(pieces, merge(places))):
                if stop():
                    return size
                size += self._packs.punch(piece)
            if self._packs.can_punch:
                self._freed.punched(places)
        return size
