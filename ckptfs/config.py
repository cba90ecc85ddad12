"""What is fixed when a store is made, and the limits and defaults that the layers share.

Sizes are in bytes, times in seconds unless the name says otherwise.
"""

from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

FORMAT_VERSION = 5

CHUNK_SIZE_MAX = 4 * MIB
"""No store has larger chunks: what a record or a row says of its size is the memory that reading it takes."""

BASES_MAX = 8
"""So many chunks a delta rests on at most: each of them is decoded to read it."""

SETTLE_SECONDS = 2.0
"""How long the tree has to be quiet before a completed save becomes an automatic snapshot."""


class ChunkSizes(NamedTuple):
    """Bounds of content-defined chunks; `mean_bits` is the binary logarithm of the mean distance of cut points."""

    size_min: int = 32 * KIB
    mean_bits: int = 17
    size_max: int = 512 * KIB


class StoreConfig(NamedTuple):
    """The description of a store, written once when it is made; `seed` keys the chunk ids and is secret."""

    version: int
    seed: int
    created_ns: int
    chunk_sizes: ChunkSizes
