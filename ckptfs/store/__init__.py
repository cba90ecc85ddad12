"""Bytes: chunks, packs, the chunk index and the rows of the tree. ChunkStore is the door."""

from ckptfs.disk import Disk, Space
from ckptfs.store.backup import BackupResult, Cut, back_up
from ckptfs.store.bitmap import Bitmap
from ckptfs.store.budget import Budget
from ckptfs.store.buffers import new_buffer
from ckptfs.store.check import PROBLEMS_MAX, Verified
from ckptfs.store.chunkstore import ChunkStore
from ckptfs.store.codec import Encoding, element_width
from ckptfs.store.composition import composition
from ckptfs.store.delta import DELTA_CHAIN_MAX, Alignment
from ckptfs.store.ingest import Chunked
from ckptfs.store.journal_check import JournalPart
from ckptfs.store.location import NO_CHUNK
from ckptfs.store.owners import Owners
from ckptfs.store.reader import View
from ckptfs.store.reclaim import Reclamation
from ckptfs.store.records import Position
from ckptfs.store.reencode import DeltaCandidate, Deltas, Reencoded, never
from ckptfs.store.schema import Table
from ckptfs.store.spans import Decoded, Room
from ckptfs.store.sweep import Swept
from ckptfs.store.tables import Changes, Frozen, Tables
from ckptfs.store.totals import StoreStats

__all__ = [
    "DELTA_CHAIN_MAX",
    "NO_CHUNK",
    "PROBLEMS_MAX",
    "Alignment",
    "BackupResult",
    "Bitmap",
    "Budget",
    "Changes",
    "ChunkStore",
    "Chunked",
    "Cut",
    "Decoded",
    "DeltaCandidate",
    "Deltas",
    "Disk",
    "Encoding",
    "Frozen",
    "JournalPart",
    "Owners",
    "Position",
    "Reclamation",
    "Reencoded",
    "Room",
    "Space",
    "StoreStats",
    "Swept",
    "Table",
    "Tables",
    "Verified",
    "View",
    "back_up",
    "composition",
    "element_width",
    "never",
    "new_buffer",
]
