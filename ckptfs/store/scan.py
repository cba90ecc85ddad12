"""A scan: all records of the packs, from front to back, and where there is none.

It tells intact records from everything else, and what was freed from what is damaged. It refuses to know what chunks
or metadata mean. A scan may be used from any thread, by one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptfs.store import records
from ckptfs.store.packfile import Found, Gap, PackFile, PackWindow, PayloadWanted, Run, Skipped
from ckptfs.store.records import Place, Position, RecordType

if TYPE_CHECKING:
    from ckptfs.disk import Disk
    from ckptfs.store.packs import Packs

FreedAt = Callable[[Position], Place | None]
"""Tells of a position without an intact record in which freed place it lies, if it does."""


def nothing_freed(_position: Position) -> Place | None:
    """Say that there is no freed place."""
    return None


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan of some packs; `Packs.scan` says what for. Records of chunks come as Runs where those are wanted."""

    packs: Packs
    disk: Disk
    freed_at: FreedAt
    payload_wanted: PayloadWanted | None = None
    on_read: Callable[[int], None] | None = None
    in_runs: bool = False

    def run(self, start: Position) -> Iterator[Run | Found | Gap | Skipped]:
        """Yield what there is from `start` on."""
        existing = set(self.packs.numbers())
        last = max(existing | {start.pack}) if start.offset else max(existing, default=0)
        for pack in range(start.pack, last + 1):
            if pack in existing:
                yield from self._run_pack(pack, start.offset if pack == start.pack else 0)
            else:
                yield Gap(Position(pack, 0), "the pack is missing")

    def _run_pack(self, pack: int, offset: int) -> Iterator[Run | Found | Gap | Skipped]:
        path = self.packs.path(pack)
        file = PackFile(self.disk, path, self.disk.open_read(path))
        window = PackWindow(self.disk, file, self.payload_wanted, self.on_read)
        if window.size < max(offset, records.HEADER_SIZE):
            yield Gap(Position(pack, min(offset, window.size)), "the pack ends too early")
            return
        while offset < window.size:
            position = Position(pack, offset)
            if self.in_runs and offset and (run := window.run(position)):
                yield run
                offset = run.end.offset
                continue
            record = window.record(position)
            if isinstance(record, Gap):
                place = self.freed_at(position)
                if place is not None:
                    yield Skipped(position, place)
                    offset = place.end.offset
                    continue
                yield record
                offset = window.next_magic(offset + records.ALIGNMENT)
                continue
            offset += record.header.size
            if position.offset:
                found = Found(position, Position(pack, offset), record)
                yield Run.of(found) if self.in_runs and record.header.type == RecordType.CHUNK else found
            elif not records.is_pack_header(record, pack, self.packs.identity.fingerprint):
                yield Gap(position, "the pack belongs to another store or has another number")
            elif (previous := self.packs.size(pack - 1)) < records.previous_size(record):
                # A power cut may take the end of a pack and leave the next one: what is missing leaves no other trace.
                yield Gap(Position(pack - 1, previous), "the pack ends too early")
