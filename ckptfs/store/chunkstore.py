"""The door to a store: chunks by number, rows by key, and what is kept when.

ChunkStore owns the order of durability: chunks and then the rows that speak of them are appended to the packs; a
kill of the process loses nothing appended; `sync` makes it durable; a checkpoint then brings LMDB up to it, and
opening replays what came after the last checkpoint. It does not know files, names or snapshots.
`ingest`, `read`, `sync`, `stats`, `deltas_among` and all `reencode` may be called from any thread; `append_journal`,
`checkpoint`, sweeps and reclaiming from any one thread at a time each; `tables`, `commit` and `close`
belong to the owner's thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import accumulate, count, pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ckptfs.config import FORMAT_VERSION, StoreConfig
from ckptfs.errors import DamagedError, NoSpaceError, NotAStoreError, StoreReadOnlyError, StoreVersionError
from ckptfs.store import codec, description, kernels, records
from ckptfs.store.check import StructureReport, Verified, check_structure
from ckptfs.store.compare import COMPARED, differences, lacks
from ckptfs.store.condensed import Condensed
from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.disk import Disk, Space
from ckptfs.store.environment import TREE_TABLES, Environment, Table, View
from ckptfs.store.fetch import Fetcher
from ckptfs.store.freed import FreedPlaces, build_row
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import NO_CHUNK, Chunk, Known, Location
from ckptfs.store.lock import LOCK_NAME, StoreLock
from ckptfs.store.packs import PACK_SIZE_MAX, PackIdentity, Packs
from ckptfs.store.reclaim import Reclaimer
from ckptfs.store.records import EncodedChunk, Position, RecordBytes, RecordType, Row, WaitingRecords
from ckptfs.store.reencode import DeltaCandidate, Deltas, Reencoded, Reencoder, never
from ckptfs.store.replay import Replay
from ckptfs.store.reserve import Reserve
from ckptfs.store.seal import Seal
from ckptfs.store.spans import Decoded
from ckptfs.store.state import STATE_KEY, Mark, State, pack_state, unpack_state
from ckptfs.store.sweep import Sweeper
from ckptfs.store.tables import Changes, Frozen, Tables

logger = logging.getLogger(__name__)

PACKS_NAME = "packs"
INDEX_NAME = "index.lmdb"
_ASIDE_SUFFIX = ".before-rebuild"
_VERIFY_CHUNKS = 16


class StoreStats(NamedTuple):
    """How much a store holds, in bytes: `raw_bytes` of distinct chunks take `stored_bytes` of the disk below.

    `waiting_bytes` of them, in `waiting_chunks`, were put raw and are encoded by `ChunkStore.reencode`;
    `delta_bytes`, in `delta_chunks`, are stored as deltas.
    """

    chunks: int
    raw_bytes: int
    stored_bytes: int
    kernel: str
    waiting_chunks: int
    waiting_bytes: int
    delta_chunks: int
    delta_bytes: int


class Opening(NamedTuple):
    """What happened when a store was opened: what a salvage found lost, and what a rebuild changed.

    `differences` counts, by the name of the table, the rows that are not the same as in the index before; None where
    none was rebuilt, or there was nothing to compare with.
    """

    losses: list[str]
    differences: dict[str, int] | None = None


class Chunked(NamedTuple):
    """The chunks at the start of some bytes, one behind the other, by their lengths and ids."""

    lengths: list[int]
    ids: list[bytes]


class Ingested(NamedTuple):
    """The chunks at the start of some bytes, one behind the other."""

    numbers: list[int]
    lengths: list[int]


class ChunkStore:
    """An open store; made by `create` or `open`, and a context manager that commits when its body succeeds."""

    def __init__(
        self,
        path: Path,
        config: StoreConfig,
        packs: Packs,
        environment: Environment,
        seal: Seal,
        lock: StoreLock,
        *,
        disk: Disk,
        read_only: bool,
    ) -> None:
        self.path = path
        self.config = config
        self.read_only = read_only
        self.tables = Tables(environment)
        self._disk = disk
        self._packs = packs
        self._environment = environment
        self._index = ChunkIndex(environment)
        self._freed = FreedPlaces(environment)
        self._condensed = Condensed(path, disk, packs.identity)
        self._damaged = DamagedChunks(environment, self._index)
        self._fetcher = Fetcher(self._index, packs, config.seed, self._damaged.note)
        self._reencoder = Reencoder(self._index, self._fetcher, self._append_again)
        self._reserve = Reserve(path, disk)
        self.sweeper = Sweeper(self._index, self._release)
        self.reclaimer = Reclaimer(
            packs,
            environment,
            self._freed,
            self._condensed,
            self._reencoder,
            end_pack=self._end_pack,
            damaged=self._damaged.numbers,
            room=self.room,
        )
        self._again_bytes = 0
        self._resources = ExitStack()
        self._seal = seal
        self._lock = lock
        self._journal_lock = threading.Lock()
        self._append_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._closed = False
        self._checkpoint_on_close = True
        self._mark = Mark(packs.position)
        self._state = State(self._mark, self._mark.position)
        self._index_cut = self._mark
        self._first_marks: dict[int, Mark] = {}
        self.opening = Opening([])

    @classmethod
    def create(cls, path: Path, *, disk: Disk | None = None, config: StoreConfig | None = None) -> Self:
        """Make a store in a directory that is missing or empty, and open it."""
        disk = disk or Disk()
        disk.make_directory(path)
        leftovers = {description.NAME, description.NAME + ".new", LOCK_NAME, PACKS_NAME}
        if not leftovers.issuperset(disk.list_names(path)) or (path / description.NAME).exists():
            raise NotAStoreError(f"{path} is not empty; a new store needs a directory of its own")
        with StoreLock(path, disk, shared=False):
            disk.make_directory(path / PACKS_NAME)
            # The description is last: a directory without one is not a store yet.
            description.write(path, config or description.new_config(time.time_ns()), disk)
            disk.sync_directory(path.parent)
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
        disk = disk or Disk()
        config = description.read(path, disk)
        with ExitStack() as resources:
            lock = resources.enter_context(StoreLock(path, disk, shared=read_only))
            packs = Packs(
                path / PACKS_NAME,
                disk,
                PackIdentity(description.fingerprint(config), config.seed),
                pack_size_max=pack_size_max,
            )
            resources.callback(packs.close)
            index_path = path / INDEX_NAME
            aside = index_path.with_name(INDEX_NAME + _ASIDE_SUFFIX)
            undo = resources.enter_context(ExitStack())
            if aside.exists() and not read_only:
                # A rebuild was cut short: the index before it is whole.
                disk.rename(aside, index_path)
            outdated = config.version < FORMAT_VERSION
            if outdated and read_only and index_path.exists():
                raise StoreVersionError(
                    f"the index of {path} has the format {config.version}; mount the store for writing once, or run "
                    "`ckptfs repair --rebuild-index`"
                )
            rebuild = (rebuild or outdated) and index_path.exists()
            seal = Seal(index_path, disk)
            damage = seal.damage()
            if damage is not None and not rebuild:
                raise DamagedError(
                    f"the index {index_path} is not what was written ({damage}); "
                    "`ckptfs repair --rebuild-index` makes it anew from the packs"
                )
            if damage is None and not read_only:
                seal.remove()
            resources.callback(seal.close)
            if rebuild:
                disk.rename(index_path, aside)
                undo.callback(disk.rename, aside, index_path)
            environment = Environment(index_path, disk, read_only=read_only)
            resources.callback(environment.close)
            store = cls(path, config, packs, environment, seal, lock, disk=disk, read_only=read_only)
            store._replay(salvage=salvage, follow=follow)
            if rebuild:
                if damage is None and not outdated:  # LMDB is not to be trusted with a damaged one
                    store._compare_index(aside)
                undo.pop_all()
                disk.unlink(aside)
                seal.remove()
            if not read_only:
                # Last: until then the index that an older version reads is put back after a crash.
                store.config = description.raise_version(path, config, disk)
            store._resources = resources.pop_all()
            return store

    def _compare_index(self, before: Path) -> None:
        """Note how the index that was rebuilt differs from the one before; DamagedError when that has more."""
        try:
            with (
                closing(Environment(before, self._disk, read_only=True)) as environment,
                environment.view({table: {} for table in COMPARED}) as old,
                self.view() as new,
            ):
                self.opening = self.opening._replace(differences=differences(old, new))
                has_less = bool(self.opening.losses) and lacks(new, old)
        except DamagedError as error:
            logger.info("there is nothing to compare the index with: %s", error)
            return
        if has_less:
            lost = "; ".join(self.opening.losses)
            raise DamagedError(f"the packs do not have all that the index has, which stays as it is: {lost}")

    def _replay(self, *, salvage: bool, follow: bool) -> None:
        """Bring tables and index up to the packs, and cut off what follows the last thing that counts."""
        packed = self._environment.read_one(Table.STORE, STATE_KEY)
        state = self._state if packed is None else unpack_state(packed)
        condensed = self._condensed.mark
        if packed is not None and condensed is not None and state.replay_from.position < condensed.position:
            raise DamagedError(
                f"the index of {self.path} is older than its condensed journal; "
                "`ckptfs repair --rebuild-index` makes it anew from the packs"
            )
        replay = Replay(self._packs, self._condensed, self.tables, self._index, self._freed, self.config.seed)
        endangered: list[int] = []
        if salvage:
            salvaged = replay.salvage(state, self._damaged, index_lost=packed is None)
            self._mark = salvaged.mark
            self._packs.make_missing(self._condensed.first_pack, self._mark.position.pack)
            self.opening = Opening(salvaged.losses)
            endangered = salvaged.endangered
        else:
            self._mark = replay.run(state, index_lost=packed is None)
        self._damaged.heal()
        self._state = state
        if self.read_only:
            return
        self._packs.truncate(self._mark.position)
        self._packs.resume(min(state.kept_until, self._mark.position), self._mark.position)
        if follow and (endangered or self._freed.superseded()):
            self._checkpoint_on_close = False
            return
        for number in endangered:
            self._store_again(number)
        if packed is None:
            # An index without a state, be it new, lost or half rebuilt, forbids cutting off even a harmless torn
            # tail; so it gets one now, and a name that a power cut does not take.
            self._finish_checkpoint(self.tables.freeze())
            self._disk.sync_directory(self.path)

    def _store_again(self, number: int) -> None:
        """Store a chunk anew as it is, out of a place that is called free; one that cannot be read stays damaged."""
        with suppress(DamagedError):
            raw, chunk_id = self._fetcher.read_with_id(number)
            check = records.payload_check(raw)
            self._append_again([EncodedChunk(chunk_id, len(raw), codec.Encoding.WAITING, raw, check)], [number])

    # Chunks

    def cut(self, data: memoryview, final: bool, cuts: Sequence[int] = ()) -> Chunked:
        """Cut `data`, which begins where a chunk begins, into chunks, and return their lengths and ids.

        A chunk ends at each position in `cuts` too (in order, each inside `data`), and cutting begins anew there.
        Unless it is `final`, the bytes behind the last complete chunk are left over: give them again, at the front of
        more.
        """
        sizes = self.config.chunk_sizes
        found = Chunked([], [])
        for start, stop in pairwise((0, *cuts, len(data))):
            lengths, ids = kernels.cut_and_hash(
                data[start:stop],
                sizes.size_min,
                sizes.mean_bits,
                sizes.size_max,
                final or stop < len(data),
                self.config.seed,
            )
            found.lengths.extend(lengths)
            found.ids.extend(ids)
        return found

    def knows(self, chunks: Chunked) -> bool:
        """Tell whether all these chunks are stored already, so that storing them takes no room."""
        return NO_CHUNK not in self._damaged.left_out(self._index.lookup(chunks.ids))

    def store(self, data: memoryview, chunks: Chunked, *, encode: bool = True) -> list[int]:
        """Store the chunks that `data` was cut into and return their numbers.

        A chunk that is stored already, also by a call under way in another thread, is not stored again. `data` is not
        needed any more on return. On an error none of the new chunks is stored. Without `encode`, which costs ten times
        what all else does, new chunks are stored raw and wait for `reencode`.
        """
        numbers = self._index.lookup(chunks.ids)
        if self._damaged:
            numbers = self._damaged.left_out(numbers)
        if NO_CHUNK not in numbers:
            return numbers
        self._check_writable()
        spans = {
            chunk_id: (end - length, length)
            for chunk_id, number, length, end in zip(
                chunks.ids, numbers, chunks.lengths, accumulate(chunks.lengths), strict=True
            )
            if not number
        }
        views = {chunk_id: data[start : start + length] for chunk_id, (start, length) in spans.items()}
        if encode or self._damaged or not all(map(codec.can_wait, views.values())):
            stored = self._store(views, codec.encode if encode else codec.encode_later)
        else:
            stored = self._store_waiting(data, spans)
        return [number or stored[chunk_id] for chunk_id, number in zip(chunks.ids, numbers, strict=True)]

    def ingest(self, data: memoryview, final: bool, *, encode: bool = True, cuts: Sequence[int] = ()) -> Ingested:
        """Cut data and store its chunks, as `cut` and `store` do; return their numbers and lengths."""
        chunks = self.cut(data, final, cuts)
        return Ingested(self.store(data, chunks, encode=encode), chunks.lengths)

    def _store(self, fresh: dict[bytes, memoryview], encode: Callable[[memoryview], codec.Encoded]) -> dict[bytes, int]:
        """Encode and append chunks, but those that another thread was faster with; return all their numbers.

        A damaged chunk is stored anew under its number, and so heals the files that use it.
        """
        encoded = []
        for chunk_id, view in fresh.items():
            encoding, payload = encode(view)
            encoded.append(EncodedChunk(chunk_id, len(view), encoding, payload, records.payload_check(payload)))
        with self._append_lock:
            numbers = dict(zip(fresh, self._index.lookup(list(fresh)), strict=True))
            if damaged := self._damaged.among(numbers.values()):
                again = {numbers[chunk.id]: chunk for chunk in encoded if numbers[chunk.id] in damaged}
                self._append_chunks(list(again.values()), list(again))
                self._damaged.heal()
            missing = [chunk for chunk in encoded if not numbers[chunk.id]]
            if missing:
                first = self._mark.number
                new = range(first, first + len(missing))
                self._append_chunks(missing, new)
                numbers.update(zip((chunk.id for chunk in missing), new, strict=True))
        return numbers

    def _store_waiting(self, data: memoryview, spans: dict[bytes, tuple[int, int]]) -> dict[bytes, int]:
        """Append chunks of `data`, by offset and size, as they are; return their numbers, as `_store` does.

        This is what a save does, some ten thousand times a second: nothing here is done for one chunk that can be done
        for all.
        """
        with self._append_lock:
            numbers = dict(zip(spans, self._index.lookup(list(spans)), strict=True))
            missing = [chunk_id for chunk_id, number in numbers.items() if not number]
            if missing:
                first = self._mark.number
                batch = WaitingRecords(data, [spans[chunk_id] for chunk_id in missing], missing, first)
                (position,) = self._packs.append([batch])
                self._index.register_waiting(first, missing, [size for _, size in batch.spans], position)
                self._mark = self._mark._replace(position=self._packs.position, number=first + len(missing))
                numbers.update(zip(missing, count(first), strict=False))
        return numbers

    def _append_again(self, chunks: Sequence[EncodedChunk], numbers: Sequence[int]) -> int:
        """Append better records of chunks, but where they or their bases were released meanwhile; return how many."""
        with self._append_lock:
            before = self._packs.appended_bytes
            there = [
                (chunk, number)
                for chunk, number in zip(chunks, numbers, strict=True)
                if self._index.has_all((number, *chunk.bases))
            ]
            if there:
                self._append_chunks(*zip(*there, strict=True))
            self._again_bytes += self._packs.appended_bytes - before
        return len(there)

    def _append_chunks(self, chunks: Sequence[EncodedChunk], numbers: Sequence[int]) -> None:
        """Append and register chunks under their numbers, under the append lock."""
        batch: list[RecordBytes] = [
            records.build(
                RecordType.CHUNK,
                number,
                chunk.id,
                chunk.raw_size,
                chunk.encoding,
                chunk.payload,
                check=chunk.check,
                bases=records.pack_bases(chunk.bases),
            )
            for number, chunk in zip(numbers, chunks, strict=True)
        ]
        positions = self._packs.append(batch)
        registered = [
            Chunk(
                number, chunk.id, Location(*position, len(chunk.payload), chunk.raw_size, chunk.encoding, chunk.bases)
            )
            for number, chunk, position in zip(numbers, chunks, positions, strict=True)
        ]
        self._freed.supersede(self._index.register(registered))
        self._mark = self._mark._replace(position=self._packs.position, number=max(self._mark.number, numbers[-1] + 1))

    def read(self, number: int) -> bytes:
        """Return the bytes of a chunk, verified against its id; DamagedError names the place when they do not hold."""
        return self._fetcher.read(number)

    def read_many(self, numbers: Sequence[int]) -> list[Decoded]:
        """Return the bytes of several chunks, verified as `read`; those stored together are read together."""
        return self._fetcher.read_many(numbers)

    def expect(self, numbers: Sequence[int]) -> None:
        """Have the disk below begin to read chunks that will be asked for soon."""
        self._fetcher.expect(numbers)

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
        return check_structure(view, self._packs, self._condensed, self._mark.number, self._damaged.numbers())

    def verify(self, start: int, stop: int, size_max: int) -> Verified:
        """Read chunks numbered from `start` to `stop` (not included), about `size_max` bytes, and verify each.

        What is damaged is remembered, and stored anew when the same bytes come in again.
        """
        located: dict[int, Location] = {}
        raw_bytes = 0
        while start < stop and raw_bytes < size_max:
            end = min(start + _VERIFY_CHUNKS, stop)
            found = self._index.locate_many(range(start, end))
            located |= found
            raw_bytes += sum(location.raw_size for location in found.values())
            start = end
        in_order = sorted(located, key=lambda number: located[number].position)
        return Verified(start, raw_bytes, self._fetcher.verify(in_order))

    def damaged(self) -> list[int]:
        """Return the numbers of the chunks that somebody has found damaged and nobody has stored anew."""
        return self._damaged.numbers()

    @property
    def position(self) -> Position:
        """Where the next record goes; all that is journalled lies before."""
        return self._mark.position

    @property
    def punch_count(self) -> int:
        """How often places of the packs were punched, or packs removed, since the store was opened."""
        return self._packs.punch_count

    # Space

    def reencode(self, limit_bytes: int, stop: Callable[[], bool] = never) -> Reencoded:
        """Encode about `limit_bytes` of waiting chunks; ends early, within a chunk's time, when `stop()` is true.

        Takes what a checkpoint has brought to LMDB. `Reencoded.chunks` is 0 when none of that waits any more.
        """
        self._check_writable()
        return self._reencoder.run(limit_bytes, stop)

    def reencode_deltas(self, candidates: Iterable[DeltaCandidate], stop: Callable[[], bool] = never) -> Deltas:
        """Store chunks as deltas against others where that is smaller; ends early, within a chunk's time, at `stop()`.

        Left as they are: deltas, chunks that one of their bases rests on, and those whose chain of deltas would become
        longer than DELTA_CHAIN_MAX. A waiting chunk gets its plain encoding where that is smaller. As durable as
        `reencode`: the old record stays until a checkpoint. A sweep keeps the bases for as long as it keeps the deltas.
        """
        self._check_writable()
        return self._reencoder.run_deltas(candidates, stop)

    def deltas_among(self, numbers: Iterable[int]) -> list[int]:
        """Return those of the chunks that are stored as deltas."""
        return [number for number in numbers if self._index.bases(number)]

    def reencode_plain(self, numbers: Iterable[int], stop: Callable[[], bool] = never) -> int:
        """Store deltas by themselves again and return their raw bytes; as durable as `reencode`, and stopped like it.

        What is not a delta is passed over.
        """
        self._check_writable()
        return self._reencoder.run_plain(numbers, stop)

    def _release(self, chunks: Sequence[Known]) -> list[Chunk]:
        """Journal that chunks are none any more, and take them out; but those that are watched."""
        self._check_writable()
        with self._journal_lock, self._append_lock:
            # First out of the index: an `ingest` that misses one appends it anew, behind this record.
            released = self._index.take_out(chunks)
            if released:
                rows = [row for chunk in released for row in Known(chunk.id, chunk.number).release_rows]
                try:
                    record = self._metadata(rows)
                    self._with_reserve(lambda: self._append_metadata(record))
                except BaseException:
                    self._index.register(released)
                    raise
                self._freed.supersede(chunk.location.place(chunk.number) for chunk in released)
                self._damaged.heal()
            return released

    def _end_pack(self) -> None:
        """Let the last pack get no more records."""
        with self._append_lock:
            self._with_reserve(self._packs.begin_next)
            self._mark = self._mark._replace(position=self._packs.position)

    # Durability

    def append_journal(self, changes: Changes) -> None:
        """Append rows as one metadata record; when this raises, nothing was appended and the caller gives them back.

        On a full disk it takes the room that `hold_reserve` has kept back.
        """
        if not changes.rows:
            return
        self._check_writable()
        with self._journal_lock:
            record = self._metadata(changes.rows)
            with self._append_lock:
                before = self._mark
                self._with_reserve(lambda: self._append_metadata(record))
                self._first_marks.setdefault(changes.generation, before)

    def _metadata(self, rows: Sequence[Row]) -> RecordBytes:
        """Build the next metadata record, under the journal lock."""
        return records.build_metadata(self._mark.sequence, self._packs.synced, rows, self.config.seed)

    def _append_metadata(self, record: RecordBytes) -> None:
        self._packs.append([record])
        self._mark = self._mark._replace(position=self._packs.position, sequence=self._mark.sequence + 1)

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
        with self._checkpoint_lock:
            with self._journal_lock, self._append_lock:
                if not self._index.is_frozen:
                    # The index that calls places free has to have the new ones, and the packs have to tell without it.
                    if rows := [build_row(place) for place in self._freed.superseded()]:
                        record = self._metadata(rows)
                        self._with_reserve(lambda: self._append_metadata(record))
                        self._freed.free(rows)
                    self._freed.freeze()
                    self._damaged.freeze()
                    self._index.freeze()
                    self._index_cut = self._mark
                # Rows younger than the frozen ones may be journalled already: the replay begins before them.
                younger = [mark for generation, mark in self._first_marks.items() if generation > frozen.generation]
                state = State(min([self._index_cut, *younger]), self._index_cut.position, self._index.frozen_summary)
            self._packs.sync()
            *ahead, ids = self._index.frozen_ids()
            for part in ahead:
                # Their chunks may not be cut off any more, or the numbers would be given again: the replay finds them.
                self._state = self._state._replace(kept_until=state.kept_until)
                self._write_index(self._state, [(Table.CHUNK_IDS, part)])
            tables = [(table, memtable.items()) for table, memtable in frozen.memtables.items()]
            indexed = [(Table.CHUNKS, self._index.frozen_locations()), (Table.CHUNK_IDS, ids)]
            own = [self._freed.frozen_rows(), self._damaged.frozen_rows()]
            self._write_index(state, [*tables, *indexed, *own])
            self._reserve.hold_again()
            self._index.release()
            self._freed.release()
            self._damaged.release()
            with self._append_lock:
                self._state = state
                for generation in [each for each in self._first_marks if each <= frozen.generation]:
                    del self._first_marks[generation]

    def _write_index(self, state: State, tables: Sequence[tuple[Table, Iterable[tuple[bytes, bytes | None]]]]) -> None:
        """Write rows, and what is true of LMDB with them, in one transaction."""
        rows = [*tables, (Table.STORE, [(STATE_KEY, pack_state(state))])]
        self._with_reserve(lambda: self._environment.write(rows))

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
        own_rows = self._index.row_count + self._freed.row_count + self._damaged.row_count
        if self._state.replay_from != self._mark or own_rows:
            self._finish_checkpoint(self.tables.freeze())

    def _finish_checkpoint(self, frozen: Frozen) -> None:
        self.checkpoint(frozen)
        self.tables.release(frozen)

    def close(self, *, commit: bool = True) -> None:
        """Commit with a checkpoint, unless told otherwise, and let go of the store; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._resources:
            if commit and self._checkpoint_on_close and not self.read_only:
                self.commit(checkpoint=True)
                self._seal.set_on_close()
                self._lock.note_end()

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

    def _with_reserve(self, write: Callable[[], None]) -> None:
        """Write what has to succeed on a full disk too: with the room kept back for it, if that is what it takes."""
        try:
            write()
        except NoSpaceError:
            if not self._reserve.give_up():
                raise
            write()

    # Accounting

    @property
    def appended_bytes(self) -> int:
        """The bytes appended to the packs since the store was opened, for what was new."""
        return self._packs.appended_bytes - self._again_bytes

    @property
    def next_number(self) -> int:
        """The number that the next new chunk gets; those of all others are smaller."""
        return self._mark.number

    @property
    def waiting_rows(self) -> int:
        """How many rows a checkpoint would bring to LMDB."""
        own_rows = self._index.row_count + self._freed.row_count + self._damaged.row_count
        return self.tables.row_count + own_rows

    @property
    def waiting_bytes(self) -> int:
        """The bytes of chunks that were put raw and wait for `reencode`."""
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
