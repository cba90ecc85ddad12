"""The door to a store: chunks by number, rows by key, and what is kept when.

ChunkStore owns the order of durability: chunks and then the rows that speak of them are appended to the packs; a
kill of the process loses nothing appended; `sync` makes it durable; a checkpoint then brings LMDB up to it, and
opening replays what came after the last checkpoint. It does not know files, names or snapshots.
`ingest`, `read`, `sync`, `stats`, `verify`, `check_journal` and the `reencoder` may be called from any thread;
`append_journal`, `checkpoint`, the `sweeper` and the `reclaimer` from any one thread at a time each; `tables`, `commit`
and `close` belong to the owner's thread.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ckptfs.config import MIB, StoreConfig
from ckptfs.disk import Disk, Space
from ckptfs.errors import DamagedError, StoreReadOnlyError
from ckptfs.store import kernels
from ckptfs.store.budget import Budget
from ckptfs.store.check import StructureReport, Verified, check_structure
from ckptfs.store.checkpoint import Checkpoints
from ckptfs.store.condensed import Condensed
from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.directory import Directory, make_store
from ckptfs.store.fetch import Fetcher
from ckptfs.store.freed import FreedPlaces
from ckptfs.store.index import ChunkIndex
from ckptfs.store.ingest import Chunked, Ingest, Ingested
from ckptfs.store.journal_check import JournalCheck, JournalPart
from ckptfs.store.pack_end import PackEnd
from ckptfs.store.packs import PACK_SIZE_MAX
from ckptfs.store.reader import View
from ckptfs.store.reclaim import Reclaimer
from ckptfs.store.records import Position
from ckptfs.store.reencode import Reencoder, never
from ckptfs.store.replay import Replay
from ckptfs.store.reserve import Reserve
from ckptfs.store.schema import TREE_TABLES, Table
from ckptfs.store.spans import Decoded, Room
from ckptfs.store.state import FIRST_SEQUENCE
from ckptfs.store.sweep import Sweeper
from ckptfs.store.tables import Changes, Frozen, Tables
from ckptfs.store.totals import StoreStats


class Opening(NamedTuple):
    """What happened when a store was opened: what a salvage found lost, and what a rebuild changed.

    The tree adds to `losses` what it makes anew.
    `differences` counts, by the name of the table, the rows that are not the same as in the index before; None where
    none was rebuilt, or there was nothing to compare with.
    """

    losses: list[str]
    differences: dict[str, int] | None = None


_ROW_SIZE = 256
"""What a row takes in the index, about, and its change in the journal."""


class ChunkStore:
    """An open store; made by `create` or `open`, and a context manager that commits when its body succeeds."""

    def __init__(self, directory: Directory) -> None:
        """Take the directory of a store; what `open` made of it is a store when it has replayed the packs."""
        self.path = path = directory.path
        self.config = config = directory.config
        self.read_only = directory.read_only
        self._directory = directory
        self._disk = disk = directory.disk
        self._packs = packs = directory.packs
        self._environment = environment = directory.environment
        self.tables = Tables(environment)
        self._index = ChunkIndex(environment)
        self._freed = FreedPlaces(environment)
        self._condensed = Condensed(path, disk, packs.identity)
        self._damaged = DamagedChunks(environment, self._index)
        self._fetcher = Fetcher(self._index, packs, config.seed, self._damaged.note)
        self._reserve = Reserve(path, disk)
        self._end = PackEnd(packs, self._reserve, config.seed)
        self._ingest = Ingest(
            config, packs, self._end, self._index, self._freed, self._damaged, check_writable=self._check_writable
        )
        self.reencoder = Reencoder(
            self._index, self._fetcher, self._ingest.append_again, check_writable=self._check_writable
        )
        self._checkpoints = Checkpoints(
            self._end, packs, environment, self._index, self._freed, self._damaged, self._reserve
        )
        self.sweeper = Sweeper(self._index, self._ingest.release)
        self.reclaimer = Reclaimer(
            packs,
            environment,
            self._freed,
            self._condensed,
            self.reencoder,
            end_pack=self._end.begin_pack,
            damaged=self._damaged.numbers,
            room=self.room,
        )
        self._closed = False
        self._checkpoint_on_close = True
        self.opening = Opening([])
        self.is_salvaged = False
        """Whether all rows of this store come from a salvage of its packs."""

    @classmethod
    def create(cls, path: Path, *, disk: Disk | None = None, config: StoreConfig | None = None) -> Self:
        """Make a store in a directory that is missing or empty, and open it."""
        disk = disk or Disk()
        make_store(path, disk, config)
        return cls.open(path, disk=disk)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        disk: Disk | None = None,
        rebuild: bool = False,
        salvage: bool = False,
        follow: bool = False,
        pack_size_max: int = PACK_SIZE_MAX,
    ) -> Self:
        """Open a store and replay what its index does not have yet; `rebuild` makes the whole index anew.

        A `salvage` takes what is there where records are lost, and names it in `opening`. It leaves the index as it is
        when that has more than a rebuild finds. With `follow` nothing is appended, since another store's records come
        next: an index that would need it stays as it is, and the next opening replays more.
        Raises NotAStoreError, StoreVersionError, StoreInUseError, StoreReadOnlyError, and DamagedError when durable
        records are not what was written. An index of an older version is made anew.
        """
        with ExitStack() as resources:
            directory = resources.enter_context(
                Directory(path, disk or Disk(), read_only=read_only, rebuild=rebuild, pack_size_max=pack_size_max)
            )
            store = cls(directory)
            store._replay(salvage=salvage, follow=follow)
            if directory.is_rebuilding:
                with store.view() as view:
                    differences = directory.index_file.replaced(view, store.opening.losses)
                store.opening = store.opening._replace(differences=differences)
            if not read_only:
                # Last: until then the index that an older version reads is put back after a crash.
                directory.raise_version()
                store.config = directory.config
            resources.pop_all()  # it stays open
            return store

    def _replay(self, *, salvage: bool, follow: bool) -> None:
        """Bring tables and index up to the packs, and cut off what follows the last thing that counts."""
        state, index_lost = self._checkpoints.state, self._checkpoints.index_lost
        condensed = self._condensed.mark
        if not index_lost and condensed is not None and state.replay_from.position < condensed.position:
            raise DamagedError(
                f"the index of {self.path} is older than its condensed journal; "
                "`ckptfs repair --rebuild-index` makes it anew from the packs"
            )
        replay = Replay(self._packs, self._condensed, self.tables, self._index, self._freed, self.config.seed)
        endangered: list[int] = []
        if salvage:
            self.is_salvaged = index_lost
            salvaged = replay.salvage(state, self._damaged, index_lost=index_lost)
            mark = salvaged.mark
            self._packs.make_missing(self._condensed.first_pack, mark.position.pack)
            self.opening = Opening(salvaged.losses)
            endangered = salvaged.endangered
        else:
            mark = replay.run(state, index_lost=index_lost)
        if self._index.next_number > mark.number:
            raise DamagedError(
                f"the index of {self.path} has a chunk {self._index.next_number - 1}, and {mark.number} comes next; "
                "`ckptfs repair --rebuild-index` makes it anew from the packs"
            )
        self._end.mark = mark
        self._damaged.heal()
        if self.read_only:
            return
        self._packs.truncate(mark.position)
        self._packs.resume(min(state.kept_until, mark.position), mark.position)
        if follow and (endangered or self._freed.superseded()):
            self._checkpoint_on_close = False
            return
        self.reencoder.store_again(endangered)
        if index_lost:
            # An index without a state, be it new, lost or half rebuilt, forbids cutting off even a harmless torn
            # tail; so it gets one now, and a name that a power cut does not take.
            self._finish_checkpoint(self.tables.freeze())
            self._disk.sync_directory(self.path)

    # Chunks

    def cut(self, data: memoryview, final: bool, cuts: Sequence[int] = ()) -> Chunked:
        """Cut `data`, which begins where a chunk begins, into chunks, and return their lengths and ids.

        A chunk ends at each position in `cuts` too (in order, each inside `data`), and cutting begins anew there.
        Unless it is `final`, the bytes behind the last complete chunk are left over: give them again, at the front of
        more.
        """
        return self._ingest.cut(data, final, cuts)

    def knows(self, chunks: Chunked) -> bool:
        """Tell whether all these chunks are stored already, so that storing them takes no room."""
        return self._ingest.knows(chunks)

    def store(self, data: memoryview, chunks: Chunked, *, encode: bool = True) -> list[int]:
        """Store the chunks that `data` was cut into and return their numbers.

        A chunk that is stored already, also by a call under way in another thread, is not stored again. `data` is not
        needed any more on return. On an error none of the new chunks is stored. Without `encode`, which costs ten times
        what all else does, new chunks are stored raw and wait for the `reencoder`.
        """
        return self._ingest.store(data, chunks, encode=encode)

    def ingest(self, data: memoryview, final: bool, *, encode: bool = True, cuts: Sequence[int] = ()) -> Ingested:
        """Cut data and store its chunks, as `cut` and `store` do; return their numbers and lengths."""
        chunks = self.cut(data, final, cuts)
        return Ingested(self.store(data, chunks, encode=encode), chunks.lengths)

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk, verified against its id; DamagedError names the place when they do not hold."""
        return self._fetcher.read(number)

    def read_first(
        self, numbers: Sequence[int], room: Room | None = None, budget: Budget | None = None
    ) -> list[Decoded]:
        """Return the bytes of the first of some chunks, one at least, verified as `read`; together they have some MiB.

        Those stored together are read together.
        Those that are no deltas come to lie one behind the other: in `room`, if it is large enough, which the caller
        has to itself and may use again when it needs the bytes no more. What they cost is taken from the budget.
        """
        return self._fetcher.read_first(numbers, room, budget)

    # Checking

    @contextmanager
    def view(self, tables: Collection[Table] = TREE_TABLES, *, chunks: bool = True) -> Iterator[View]:
        """Give the rows of some tables of the tree as they are now, to be read by one thread at a time.

        With those of the chunks and freed places, which need that no checkpoint is under way, unless told otherwise.
        For the owner's thread.
        """
        overlays = self.tables.rows_in_memory(tables)
        if chunks:
            overlays |= {**self._index.rows_in_memory(), **self._freed.rows_in_memory()}
        with self._environment.view(overlays) as view:
            yield view

    def check(self, view: View) -> StructureReport:
        """Tell whether the rows about chunks agree with each other and with the packs; reads no chunk."""
        return check_structure(view, self._packs, self._condensed, self.next_number, self._damaged.numbers())

    def check_journal(self, size: int = 8 * MIB) -> Iterator[JournalPart]:
        """Look for places where the journal is not what was written, so that a lost index would not come back.

        Each part reads about `size` bytes: headers, metadata and records that nobody needs; `verify` reads the chunks.
        Any thread may do a part, one at a time, and everything goes on in between.
        """
        check = JournalCheck(self._packs, self._condensed, self._index, self._freed, self.config.seed)
        return check.parts(self.position, size)

    def mend_journal(self) -> None:
        """Write the journal anew from the index, durably, so that none of the metadata before now is needed."""
        self.commit(checkpoint=True)
        self.reclaimer.condense(never)

    def verify(self, start: int, stop: int, size_max: int) -> Verified:
        """Read chunks numbered from `start` to `stop` (not included), about `size_max` bytes, and verify each.

        What is damaged is remembered, and stored anew when the same bytes come in again.
        """
        return self._fetcher.verify_range(start, stop, size_max)

    def damaged(self) -> list[int]:
        """Return the numbers of the chunks that somebody has found damaged and nobody has stored anew."""
        return self._damaged.numbers()

    @property
    def position(self) -> Position:
        """Where the next record goes; all that is journalled lies before."""
        return self._end.mark.position

    @property
    def punch_count(self) -> int:
        """How often places of the packs were punched, or packs removed, since the store was opened."""
        return self._packs.punch_count

    # Durability

    def append_journal(self, changes: Changes) -> None:
        """Append rows as one metadata record; when this raises, nothing was appended and the caller gives them back.

        On a full disk it takes the room that `hold_reserve` has kept back.
        """
        if changes.rows:
            self._check_writable()
            self._end.journal(changes)

    def sync(self) -> None:
        """Make durable what was put and journalled before this call."""
        self._check_writable()
        self._packs.sync()

    def checkpoint(self, frozen: Frozen) -> None:
        """Bring LMDB up to rows that are journalled, durably; the owner releases them afterwards.

        When this raises, nothing is lost and the same rows are tried again. Chunks may be put and younger rows
        journalled meanwhile: those are replayed after a crash.
        """
        self._check_writable()
        self._checkpoints.run(frozen)

    def commit(self, *, durable: bool = True, checkpoint: bool = False) -> None:
        """Journal the changed rows and, when `durable`, sync; `checkpoint` also brings LMDB up to all of it."""
        changes = self.tables.take_changes()
        try:
            self.append_journal(changes)
        except BaseException:
            self.tables.give_back(changes)
            raise
        if not checkpoint:
            if durable:
                self.sync()
            return
        if self.tables.frozen is not None:
            self._finish_checkpoint(self.tables.frozen)
        if self._checkpoints.is_due:
            self._finish_checkpoint(self.tables.freeze())

    def _finish_checkpoint(self, frozen: Frozen) -> None:
        self.checkpoint(frozen)
        self.tables.release(frozen)

    def close(self, *, commit: bool = True) -> None:
        """Commit with a checkpoint, unless told otherwise, and let go of the store; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._directory:
            if commit and self._checkpoint_on_close and not self.read_only:
                self.commit(checkpoint=True)
                self._directory.note_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(commit=kind is None)

    def _check_writable(self) -> None:
        if self.read_only:
            raise StoreReadOnlyError(f"{self.path} is open for reading only")

    # Room

    def hold_reserve(self) -> bool:
        """Keep some of the disk's room back for the journal and the index; False where there is none to keep."""
        self._check_writable()
        return self._reserve.hold()

    def room(self) -> int:
        """Return how many bytes of data the disk below still takes, what is to be kept back taken off."""
        return max(self.space().free - self._reserve.missing, 0)

    def takes_rows(self) -> bool:
        """Whether a new row has a place on a full disk, too: what is kept back also has to do for those that wait."""
        return self._reserve.spare > self.waiting_rows * _ROW_SIZE

    # Accounting

    @property
    def appended_bytes(self) -> int:
        """The bytes appended to the packs since the store was opened, for what was new."""
        return self._ingest.appended_bytes

    @property
    def has_journal(self) -> bool:
        """Whether any rows were ever journalled."""
        return self._end.mark.sequence > FIRST_SEQUENCE

    @property
    def next_number(self) -> int:
        """The number that the next new chunk gets; those of all others are smaller."""
        return self._end.mark.number

    def count(self, table: Table) -> int:
        """Return how many rows a table has on the disk, as of the last checkpoint."""
        return self._environment.count(table)

    def table_size(self, table: Table) -> int:
        """Return the bytes of a table on the disk, as of the last checkpoint."""
        return self._environment.table_size(table)

    @property
    def waiting_rows(self) -> int:
        """How many rows a checkpoint would bring to LMDB."""
        return self.tables.row_count + self._checkpoints.row_count

    @property
    def waiting_bytes(self) -> int:
        """The bytes of chunks that were put raw and wait for the `reencoder`."""
        return self._index.totals.waiting_bytes

    def stats(self) -> StoreStats:
        """Return how much the store holds and takes."""
        totals = self._index.totals
        stored_bytes = (
            sum(map(self._packs.stored_size, self._packs.numbers()))
            + self._environment.stored_size()
            + self._condensed.stored_size
        )
        return StoreStats(self._index.count, totals.raw_bytes, stored_bytes, kernels.NAME, *totals[1:])

    def space(self) -> Space:
        """Return the size and the free bytes of the disk below."""
        return self._disk.space(self.path)
