"""What deleting each version would free: the chunks that nothing else uses. Reads one view, in any thread.

One pass over the inode rows says which manifests only one version sees, one over the manifests which chunks only that
version uses: the time is that of reading the rows, whatever the number of versions, and the memory some bytes for each
chunk and manifest. The live tree counts as a version, which is not told of. What only an open file keeps, and the pages
that records share, are not looked at.
"""

from bisect import bisect_left

from ckptfs.store import ChunkStore, Owners, Table, View
from ckptfs.tree.extents import part_numbers
from ckptfs.tree.inode import manifest_of
from ckptfs.tree.rows import LIVE, with_next

QUICK_ROWS = 200_000
"""Reading so many rows takes about half a second."""

_NUMBER_SIZE = 8
_MANIFEST_BYTES = 256
"""So much of a manifest is read in the time of a row of another table."""


def is_quick(store: ChunkStore) -> bool:
    """Tell whether `exclusive_sizes` takes at most about half a second, without reading a row; in any thread."""
    rows = store.count(Table.CHUNKS) + store.count(Table.INODES) + store.waiting_rows
    return rows + store.table_size(Table.MANIFESTS) // _MANIFEST_BYTES <= QUICK_ROWS


def exclusive_sizes(view: View, manifests_end: int, chunks_end: int) -> dict[int, int]:
    """Return by the id of each snapshot the bytes that it alone keeps; their manifests and chunks are below the ends.

    Deleting several frees what they share, too, so more than the sum.
    """
    epochs = [int.from_bytes(key, "big") for key, _ in view.scan(Table.SNAPSHOTS)]
    live = len(epochs)
    manifests = Owners(manifests_end)
    for _, row, until in with_next(view.scan(Table.INODES)):
        if row.value:
            first, stop = bisect_left(epochs, row.epoch), bisect_left(epochs, until)
            is_live = until >= LIVE  # also where a live-only row hides it
            if stop - first + is_live == 1:
                manifests.add(manifest_of(row.value), first if stop > first else live)
            elif stop > first:
                manifests.add_shared(manifest_of(row.value))
    chunks = Owners(chunks_end)
    for key, value in view.scan(Table.MANIFESTS):
        chunks.add_all(part_numbers(value), manifests, int.from_bytes(key[:_NUMBER_SIZE], "big"))
    return dict(zip(epochs, chunks.exclusive_sizes(view, live + 1), strict=False))
