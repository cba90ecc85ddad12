"""How a batch of records gets to the disk: past the page cache where the disk is fast, through it elsewhere.

A checkpoint is far larger than a cache, and written to be kept, not to be read soon. Through the page cache each of
its bytes is copied into memory that the kernel has to find first, which has been the largest single cost of a save;
and it puts out of the cache what the training does read again. Direct writes cost no processor time, but take as
long as the disk: so a disk that is slower than bytes come in gets them through the cache, and is tried again later.

What is not whole pages, at both ends of a batch, always goes through the cache. No page is written both ways at once,
because the ends of a batch lie in other pages than its middle. `write` is for whoever holds the lock for appending;
any thread may `prepare` a batch meanwhile.
"""

import logging
import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ckptfs.config import KIB, MIB
from ckptfs.disk import NOT_DIRECT, Disk, whole_pages
from ckptfs.store.buffers import Buffers
from ckptfs.store.packfile import PackFile
from ckptfs.store.records import Appendable

logger = logging.getLogger(__name__)

DIRECT_RATE_MIN = 500 * MIB
"""Bytes per second that a disk has to take directly: about half of what one process writes into a FUSE mount."""
_DIRECT_SIZE_MIN = 256 * KIB
_STAGING_SIZE = 10 * MIB
"""Room for a full piece of a stream, what the one before left over and all headers; more goes through the cache."""
_STAGINGS_KEPT = 2
_CACHED_BYTES = 1024 * MIB
"""What a disk that was too slow gets through the cache before it is tried again."""
_TRIAL_WRITES = 8
"""After how many writes a disk is judged; it is slow when most of them were, whatever one or two of them met."""


class Prepared:
    """Records that were built ahead, in memory where whole pages of a file are whole pages too, as direct writes need.

    They can be written anywhere, but best at an offset with the `alignment` (in its page) that they were built for.
    """

    __slots__ = ("alignment", "data", "size", "staging")

    def __init__(self, staging: memoryview, batch: Sequence[Appendable], offset: int) -> None:
        self.staging = staging
        self.alignment = offset % mmap.PAGESIZE
        self.size = sum(records.size for records in batch)
        self.data = staging[self.alignment : self.alignment + self.size]
        end = 0
        for records in batch:
            records.fill(self.data[end : end + records.size])
            end += records.size

    def fill(self, out: memoryview) -> None:
        """Copy the records to `out`, which has their size."""
        out[:] = self.data


class Appender:
    """Writes batches to packs, directly as long as that is fast enough."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._stagings = Buffers(_STAGING_SIZE, _STAGINGS_KEPT)
        self._cached_left = 0
        self._writes = 0
        self._slow_writes = 0

    def write(self, file: PackFile, batch: Sequence[Appendable], offset: int) -> None:
        """Write records one behind the other at `offset`; on an error an unknown part of them is written."""
        only = batch[0] if len(batch) == 1 else None
        if isinstance(only, Prepared) and only.alignment == offset % mmap.PAGESIZE:
            self._write(file, only, offset)
        else:
            with self.prepare(batch, offset) as prepared:
                self._write(file, prepared, offset)

    @contextmanager
    def prepare(self, batch: Sequence[Appendable], offset: int) -> Iterator[Prepared]:
        """Build records in memory for the body, which writes them, at `offset` if that is still free then."""
        size = sum(records.size for records in batch)
        if size > _STAGING_SIZE - mmap.PAGESIZE:
            yield Prepared(memoryview(bytearray(mmap.PAGESIZE + size)), batch, offset)
            return
        with self._stagings.taken() as staging:
            yield Prepared(staging, batch, offset)

    def _write(self, file: PackFile, prepared: Prepared, offset: int) -> None:
        pages = whole_pages(offset, prepared.size)
        fits = len(prepared.staging) == _STAGING_SIZE
        if file.direct_fd is None or len(pages) < _DIRECT_SIZE_MIN or not fits:
            self._disk.pwrite(file.fd, [prepared.data], offset, file.path)
        elif self._cached_left > 0:
            self._cached_left -= prepared.size
            self._disk.pwrite(file.fd, [prepared.data], offset, file.path)
        else:
            self._write_directly(file, prepared.data, offset, pages)

    def _write_directly(self, file: PackFile, staged: memoryview, offset: int, pages: range) -> None:
        """Write the middle of a batch, `pages` of the file, past the cache, and the ends through it."""
        assert file.direct_fd is not None
        middle = staged[pages.start - offset : pages.stop - offset]
        begun = time.monotonic()
        try:
            self._disk.pwrite(file.direct_fd, [middle], pages.start, file.path)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
            logger.info("%s: the disk below takes no direct writes: %s", file.path, error)
            file.direct_fd = None
            self._disk.pwrite(file.fd, [staged], offset, file.path)
            return
        self._judge(len(middle), time.monotonic() - begun)
        self._disk.pwrite(file.fd, [staged[: pages.start - offset]], offset, file.path)
        self._disk.pwrite(file.fd, [staged[pages.stop - offset :]], pages.stop, file.path)

    def _judge(self, size: int, seconds: float) -> None:
        """Leave direct writes for a while when most of the last of them were too slow."""
        self._writes += 1
        self._slow_writes += size < DIRECT_RATE_MIN * seconds
        if self._writes == _TRIAL_WRITES:
            if 2 * self._slow_writes > _TRIAL_WRITES:
                self._cached_left = _CACHED_BYTES
            self._writes = self._slow_writes = 0
