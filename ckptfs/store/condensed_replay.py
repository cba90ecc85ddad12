"""The replay of the condensed journal: what an index that was lost had before the mark from which the packs go on.

It takes over rows of the tree as they are, and chunks whose records lie where the condensed journal says. A chunk whose
record does not has to come again behind the mark, stored anew or released; it remembers which these are. It writes
nothing to the disk, and runs once, in one thread, before the replay of the packs and as a part of it.
"""

from collections.abc import Iterable, Mapping

from ckptfs.errors import DamagedError
from ckptfs.store.condensed import Condensed
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import NUMBER, Location, parse_location, parse_number
from ckptfs.store.packs import Packs
from ckptfs.store.records import Header, RecordType, Row
from ckptfs.store.schema import TREE_TABLES, Table
from ckptfs.store.state import Mark, State, unpack_state
from ckptfs.store.tables import Tables, is_key

_BATCH_CHUNKS = 1024


class CondensedReplay:
    """One replay of the condensed journal into the tables and the chunk index of a store."""

    def __init__(self, packs: Packs, condensed: Condensed, tables: Tables, index: ChunkIndex) -> None:
        self._packs = packs
        self._condensed = condensed
        self._tables = tables
        self._index = index
        self._unfound: dict[int, Location] = {}

    def run(self, losses: list[str] | None = None) -> State | None:
        """Take over the condensed journal, and return from where the packs go on; None where there is none.

        Where it is damaged: DamagedError, or, given `losses`, a sentence there, and what is intact.
        """
        if not self._condensed.path.exists():
            return None
        mark: Mark | None = None
        located: dict[int, bytes] = {}
        for row in self._condensed.rows(losses):
            if row.table == Table.CHUNKS:
                located[parse_number(row.key)] = row.value or b""
                if len(located) >= _BATCH_CHUNKS:
                    self._take_chunks(located)
                    located.clear()
            elif row.table == Table.STORE:
                mark = unpack_state(row.value or b"").replay_from
            elif row.table in TREE_TABLES and is_key(row.key):
                self._tables.apply([row])
            elif losses is None:
                raise DamagedError(f"{self._condensed.path}: a row that no journal has")
            else:
                losses.append(f"{self._condensed.path}: a row that no journal has")
        self._take_chunks(located)
        return None if mark is None else State(mark, mark.position)

    def _take_chunks(self, rows: Mapping[int, bytes]) -> None:
        """Take over chunks, by their numbers, whose records are where the rows say."""
        locations = {number: parse_location(row) for number, row in rows.items()}
        in_order = sorted(locations, key=lambda number: locations[number][:2])
        headers = self._packs.read_headers(locations[number].position for number in in_order)
        ids = {
            number: header.id
            for number, header in zip(in_order, headers, strict=True)
            if header is not None and _is_at(header, number, locations[number])
        }
        found = [number for number in rows if number in ids]
        self._index.register_rows(found, [ids[number] for number in found], [rows[number] for number in found])
        self._unfound |= {number: location for number, location in locations.items() if number not in ids}

    def release(self, rows: Iterable[Row]) -> None:
        """Look for no chunk that the rows of a later metadata record release."""
        for row in rows if self._unfound else ():
            if row.table == Table.CHUNKS:
                self._unfound.pop(NUMBER.unpack(row.key)[0], None)

    def lost(self) -> str | None:
        """Say which chunk is neither where the condensed journal says nor behind its mark; None where there is none."""
        unfound = {number: at for number, at in self._unfound.items() if self._index.locate(number) is None}
        if not unfound:
            return None
        number, location = next(iter(unfound.items()))
        others = f", and so are {len(unfound) - 1} others" if len(unfound) > 1 else ""
        return f"{self._packs.place(location.position)}: chunk {number} is lost{others}"


def _is_at(header: Header, number: int, location: Location) -> bool:
    """Tell whether the record at a location is that of a chunk."""
    sizes = (header.stored_size, header.raw_size, header.base_count)
    is_chunk = header.type == RecordType.CHUNK and header.number == number
    return is_chunk and sizes == (location.stored_size, location.raw_size, len(location.bases))
