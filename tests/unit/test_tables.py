"""Tables against a plain dict: memtables, checkpoints and reopening must not show."""

import random
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptfs.disk import Disk
from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Frozen, Table
from ckptfs.store.environment import Environment
from ckptfs.store.reader import Cursor, Reader
from ckptfs.store.schema import PACKED_KEY_SIZE
from ckptfs.store.tables import END, KEY_SIZE_MAX, Tables

keys = st.binary(min_size=1, max_size=3).map(lambda key: key.translate(bytes(97 + byte % 3 for byte in range(256))))
values = st.binary(max_size=3)
CHECKS = ("a934f56c", "d9702311")
tables_used = st.sampled_from([Table.INODES, Table.DIRENTS])


class TablesModel(RuleBasedStateMachine):
    """A store's tables and a dict of (table, key) that should be the same at any time."""

    @initialize()
    def create(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = ChunkStore.create(self.directory / "store")
        self.model: dict[tuple[Table, bytes], bytes] = {}
        self.committed: dict[tuple[Table, bytes], bytes] = {}
        self.frozen: Frozen | None = None

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    @rule(table=tables_used, key=keys, value=values)
    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.store.tables.put(table, key, value)
        self.model[table, key] = value

    @rule(table=tables_used, key=keys)
    def delete(self, table: Table, key: bytes) -> None:
        self.store.tables.delete(table, key)
        self.model.pop((table, key), None)

    @rule(give_back=st.booleans())
    def commit(self, give_back: bool) -> None:
        if give_back:
            self.store.tables.give_back(self.store.tables.take_changes())
        self.store.commit(durable=False)
        self.committed = dict(self.model)

    @precondition(lambda self: self.frozen is None)
    @rule()
    def freeze(self) -> None:
        self.commit(give_back=False)
        self.frozen = self.store.tables.freeze()

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def checkpoint(self) -> None:
        assert self.frozen is not None
        self.store.checkpoint(self.frozen)
        self.store.tables.release(self.frozen)
        self.frozen = None

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        self.store.close(commit=clean)
        self.model = dict(self.model if clean else self.committed)
        self.committed = dict(self.model)
        self.frozen = None
        self.store = ChunkStore.open(self.directory / "store")

    @rule(table=tables_used, key=keys)
    def get(self, table: Table, key: bytes) -> None:
        assert self.store.tables.get(table, key) == self.model.get((table, key))

    @rule(table=tables_used, start=keys | st.just(b""), stop=keys | st.just(END))
    def ranges(self, table: Table, start: bytes, stop: bytes) -> None:
        rows = sorted((key, value) for (of, key), value in self.model.items() if of == table and start <= key < stop)
        assert list(self.store.tables.scan(table, start, stop)) == rows
        assert self.store.tables.last(table, start, stop) == (rows[-1] if rows else None)

    @invariant()
    def everything(self) -> None:
        for table in (Table.INODES, Table.DIRENTS):
            rows = sorted((key, value) for (of, key), value in self.model.items() if of == table)
            assert list(self.store.tables.scan(table)) == rows


TablesModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, print_blob=True)
test_tables_are_a_dict = TablesModel.TestCase


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "index.lmdb", Disk(), read_only=False)


def bring_down(tables: Tables, environment: Environment) -> None:
    """Checkpoint the tables without a store."""
    frozen = tables.freeze()
    environment.write((table, memtable.items()) for table, memtable in frozen.memtables.items())
    tables.release(frozen)


def key_of(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_scan_survives_puts_deletions_and_checkpoints_between_its_steps(environment: Environment) -> None:
    tables = Tables(environment)
    for number in range(0, 2000, 2):
        tables.put(Table.INODES, key_of(number), b"stored")
    bring_down(tables, environment)
    for number in range(1, 2000, 4):
        tables.put(Table.INODES, key_of(number), b"active")
    tables.delete(Table.INODES, key_of(600))
    seen = []
    for step, (key, _) in enumerate(tables.scan(Table.INODES)):
        seen.append(int.from_bytes(key, "big"))
        tables.put(Table.DIRENTS, key, b"")
        if step % 500 == 100:
            bring_down(tables, environment)
    assert seen == sorted({*range(0, 2000, 2), *range(1, 2000, 4)} - {600})


def test_the_youngest_changes_win_when_older_ones_are_given_back(environment: Environment) -> None:
    tables = Tables(environment)
    tables.put(Table.INODES, b"a", b"old")
    tables.put(Table.INODES, b"b", b"old")
    taken = tables.take_changes()
    assert not tables.changed_rows
    tables.delete(Table.INODES, b"a")
    tables.give_back(taken)
    assert {(row.key, row.value) for row in tables.take_changes().rows} == {(b"a", None), (b"b", b"old")}


def test_only_one_checkpoint_is_under_way(environment: Environment) -> None:
    tables = Tables(environment)
    frozen = tables.freeze()
    with pytest.raises(RuntimeError):
        tables.freeze()
    tables.release(frozen)
    with pytest.raises(RuntimeError):
        tables.release(frozen)


def test_packed_rows_are_put_replaced_and_deleted_by_their_keys(environment: Environment) -> None:
    source = random.Random(1)
    reader = environment.reader(threading.Lock())
    model: dict[bytes, bytes] = {}
    keys = [source.randbytes(PACKED_KEY_SIZE) for _ in range(500)]
    for _ in range(20):
        changed = {key: source.choice([None, source.randbytes(8)]) for key in source.sample(keys, 100)}
        environment.write([(Table.CHUNK_IDS, sorted(changed.items()))])
        for key, value in changed.items():
            model.pop(key, None)
            if value is not None:
                model[key] = value
        with reader.lock:
            assert reader.find_packed(sorted(keys)) == model
            assert_walks(reader, model)


def assert_walks(reader: Reader, rows: dict[bytes, bytes]) -> None:
    """Walk packed rows from their begin and from each of some keys, there or not."""
    expected = sorted(rows.items())
    for start in (b"\0", b"\x80" * PACKED_KEY_SIZE, *[key for key, _ in expected[::50]], b"\xff" * PACKED_KEY_SIZE):
        assert list(reader.rows_from(Table.CHUNK_IDS, start)) == [row for row in expected if row[0] >= start]


def test_rows_lie_in_lmdb_as_the_format_says(environment: Environment) -> None:
    environment.write([(Table.META, [(b"key", b"value")]), (Table.CHUNK_IDS, [(b"i" * PACKED_KEY_SIZE, key_of(7))])])
    environment.close()
    with lmdb.open(str(environment.path), subdir=False, max_dbs=16) as plain, plain.begin() as transaction:
        meta, chunk_ids = (
            transaction.cursor(plain.open_db(name, transaction, dupsort=packed, dupfixed=packed))
            for name, packed in ((b"meta", False), (b"chunk_ids", True))
        )
        assert list(meta) == [(b"key", b"value" + bytes.fromhex(CHECKS[0]))]
        assert list(chunk_ids) == [(b"\0", b"i" * PACKED_KEY_SIZE + key_of(7) + bytes.fromhex(CHECKS[1]))]


def test_a_row_that_is_not_what_was_written_is_not_read(environment: Environment) -> None:
    ids = [bytes([number]) * PACKED_KEY_SIZE for number in (1, 2)]
    environment.write([(Table.META, [(b"key", b"value")]), (Table.CHUNK_IDS, [(each, key_of(7)) for each in ids])])
    environment.close()
    data = environment.path.read_bytes()
    environment.path.write_bytes(data.replace(b"keyvalue", b"keyVALUE").replace(ids[0] + key_of(7), ids[0] + key_of(6)))
    environment = Environment(environment.path, Disk(), read_only=True)
    reader = environment.reader(threading.Lock())
    with environment.view({Table.META: {}, Table.CHUNK_IDS: {}}) as view, reader.lock:
        assert reader.find_packed([ids[1]]) == {ids[1]: key_of(7)}
        for read in (
            lambda: reader.get(Table.META, b"key"),
            lambda: view.get(Table.META, b"key"),
            lambda: list(view.scan(Table.META)),
            lambda: environment.read_one(Table.META, b"key"),
            lambda: reader.find_packed(ids),
            lambda: list(reader.rows_from(Table.CHUNK_IDS, ids[0])),
            lambda: list(view.scan(Table.CHUNK_IDS)),
        ):
            with pytest.raises(DamagedError, match="is not what was written"):
                read()
    environment.close()


@pytest.mark.parametrize("table", [Table.META, Table.CHUNK_IDS])
@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_a_view_shows_all_rows_before_one_that_is_not_what_was_written(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, table: Table, batch_rows: int
) -> None:
    monkeypatch.setattr("ckptfs.store.reader._BATCH_ROWS", batch_rows)
    rows = [(bytes([number]) * PACKED_KEY_SIZE, key_of(number)) for number in range(1, 9)]
    environment.write([(table, rows)])
    with environment.view({table: {}}) as view:
        assert list(view.scan(table)) == rows
    environment.close()
    data = environment.path.read_bytes()
    changed = data.replace(b"".join(rows[4]), rows[4][0] + key_of(77))
    assert changed != data
    environment.path.write_bytes(changed)
    environment = Environment(environment.path, Disk(), read_only=True)
    shown = []
    with environment.view({table: {}}) as view, pytest.raises(DamagedError, match="is not what was written"):
        for row in view.scan(table):
            shown.append(row)
    assert shown == rows[:4]
    environment.close()


@pytest.mark.parametrize("table", [Table.META, Table.CHUNK_IDS])
def test_the_first_rows_of_a_table_are_written_as_later_ones_are(environment: Environment, table: Table) -> None:
    rows = [(bytes([number]) * PACKED_KEY_SIZE, key_of(number)) for number in range(1, 9)]
    environment.write([(table, [*rows[:3], (rows[3][0], None), *rows[4:]])])
    environment.write([(table, [(rows[0][0], None), rows[3]])])
    with environment.view({table: {}}) as view:
        assert list(view.scan(table)) == rows[1:]
    environment.write([(table, [(key, None) for key, _ in rows])])
    with pytest.raises(ValueError, match="are not sorted"):
        environment.write([(table, [rows[2], rows[1]])])
    with environment.view({table: {}}) as view:
        assert list(view.scan(table)) == []


@pytest.mark.parametrize("key", [b"", bytes(KEY_SIZE_MAX + 1)])
def test_a_key_that_lmdb_cannot_hold_is_refused_at_once(environment: Environment, key: bytes) -> None:
    tables = Tables(environment)
    with pytest.raises(ValueError, match="511"):
        tables.put(Table.INODES, key, b"")
    with pytest.raises(ValueError, match="511"):
        tables.delete(Table.INODES, key)


@pytest.mark.parametrize("seed", range(8))
def test_the_latest_rows_are_the_last_ones_of_each_group(environment: Environment, seed: int) -> None:
    """Groups as names have them, which end in a zero, and rows of up to 20 epochs, in memory, frozen and stored."""
    generator = random.Random(seed)
    tables = Tables(environment)
    groups = [b"\1" + generator.randbytes(generator.randrange(3)).replace(b"\0", b"") + b"\0" for _ in range(30)]
    rows: dict[bytes, bytes] = {}
    frozen: Frozen | None = None
    for step in range(600):
        key = generator.choice(groups) + key_of(generator.choice((generator.randrange(20), (1 << 32) - 1)))
        if generator.random() < 0.3:
            tables.delete(Table.DIRENTS, key)
            rows.pop(key, None)
        else:
            tables.put(Table.DIRENTS, key, b"%d" % step)
            rows[key] = b"%d" % step
        if step % 97 == 50 + generator.randrange(20) and frozen is None:
            frozen = tables.freeze()
        elif frozen is not None and generator.random() < 0.05:
            environment.write((table, memtable.items()) for table, memtable in frozen.memtables.items())
            tables.release(frozen)
            frozen = None
        if step % 25 == 0:
            suffix = key_of(generator.choice((0, generator.randrange(20), (1 << 32) - 1)))
            start, stop = sorted((generator.choice(groups), generator.choice((*groups, b"\2"))))
            latest = {key[:-4]: (key, rows[key]) for key in sorted(rows) if start <= key < stop and key[-4:] <= suffix}
            assert list(tables.scan_latest(Table.DIRENTS, start, stop, suffix)) == [*latest.values()], step


def test_the_latest_rows_take_as_long_as_there_are_groups(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(environment)
    for number in range(300):
        for epoch in range(number % 50 + 1):
            tables.put(Table.DIRENTS, b"\1%d\0" % number + key_of(epoch), b"")
    bring_down(tables, environment)
    moves = 0
    move = Cursor._move

    def counted(*arguments: Any) -> bool:
        nonlocal moves
        moves += 1
        return move(*arguments)

    monkeypatch.setattr(Cursor, "_move", counted)
    assert len(list(tables.scan_latest(Table.DIRENTS, b"\1", b"\2", key_of(1000)))) == 300
    assert 0 < moves <= 302


def test_keys_of_the_greatest_length_are_scanned(environment: Environment) -> None:
    tables = Tables(environment)
    longest = [key_of(number) + b"\xff" * (KEY_SIZE_MAX - 4) for number in range(600)]
    for key in longest:
        tables.put(Table.NAMES, key, b"")
    bring_down(tables, environment)
    assert [key for key, _ in tables.scan(Table.NAMES)] == longest


def test_the_map_grows_while_readers_are_in_use(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "index.lmdb", Disk(), read_only=False, map_size=1 << 20)
    tables = Tables(environment)
    for step in range(40):
        for number in range(20):
            tables.put(Table.MANIFESTS, key_of(step * 20 + number), bytes(8192))
        assert tables.get(Table.MANIFESTS, key_of(0)) == bytes(8192)
        bring_down(tables, environment)
    assert sum(1 for _ in tables.scan(Table.MANIFESTS)) == 800


@pytest.mark.parametrize("table", [Table.MANIFESTS, Table.CHUNK_IDS])
def test_the_map_grows_for_one_transaction_that_is_larger(tmp_path: Path, table: Table) -> None:
    environment = Environment(tmp_path / "index.lmdb", Disk(), read_only=False, map_size=1 << 20)
    reader = environment.reader(threading.Lock())
    size = 8192 if table == Table.MANIFESTS else 8
    rows = [(key_of(number).rjust(16, b"\0"), bytes(size)) for number in range(700 if size > 8 else 60_000)]
    environment.write([(table, rows[:9])])
    with reader.lock:
        assert [next(reader.rows_from(table, rows[0][0]))] == rows[:1]
    environment.write([(table, rows), (Table.META, [(b"key", b"value")])])
    with reader.lock:
        assert list(reader.rows_from(table, rows[0][0])) == rows
    assert environment.read_one(Table.META, b"key") == b"value"
    environment.close()


def test_a_full_map_under_a_view_grows_when_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Environment.__init__.__kwdefaults__, "map_size", 1 << 20)
    with ChunkStore.create(tmp_path / "store") as store:
        for number in range(8000):
            store.tables.put(Table.INODES, key_of(number), bytes(200))
        with store.view() as view:
            with pytest.raises(OSError, match="cannot grow while somebody reads all of it"):
                store.commit(checkpoint=True)
            assert len(list(view.scan(Table.INODES))) == 8000
            store.tables.put(Table.INODES, b"later", b"")
            store.commit()
        store.commit(checkpoint=True)
        assert store.waiting_rows == 0
        assert len(list(store.tables.scan(Table.INODES))) == 8001


def test_the_map_grows_while_readers_and_views_are_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Environment.__init__.__kwdefaults__, "map_size", 1 << 20)
    with ChunkStore.create(tmp_path / "store") as store:
        for step in range(24):
            for number in range(500):
                store.tables.put(Table.INODES, b"%d-%d" % (step, number), bytes(200))
            held = store.tables.scan(Table.INODES)
            first = next(held)
            store.commit(checkpoint=True)
            assert store.tables.get(Table.INODES, first[0]) == first[1]
            assert len(list(held)) == 500 * (step + 1) - 1
        assert (tmp_path / "store" / "index.lmdb").stat().st_size > 2 << 20
        with store.view() as view:
            store.tables.put(Table.INODES, b"later", b"")
            store.commit(checkpoint=True)  # does not move the map under the view
            assert len(list(view.scan(Table.INODES))) == 500 * 24
    with ChunkStore.open(tmp_path / "store") as store:
        assert len(list(store.tables.scan(Table.INODES))) == 500 * 24 + 1


def test_what_fails_is_taken_back_in_all(environment: Environment) -> None:
    """Rows in LMDB, frozen, active and pending, that were there, deleted, or not there at all."""
    tables = Tables(environment)
    names = [b"stored", b"frozen", b"active", b"deleted", b"missing"]
    for name in (b"stored", b"deleted"):
        tables.put(Table.META, name, b"before")
    tables.take_changes()
    bring_down(tables, environment)
    tables.put(Table.META, b"frozen", b"before")
    frozen = tables.freeze()
    tables.put(Table.META, b"active", b"before")
    tables.delete(Table.META, b"deleted")
    shown = list(tables.scan(Table.META))
    with pytest.raises(KeyError), tables.all_or_none():
        for name in names:
            tables.put(Table.META, name, b"once")
        for name in names[::2]:
            tables.delete(Table.META, name)
        assert [tables.get(Table.META, name) for name in names] == [None, b"once", None, b"once", None]
        raise KeyError
    assert list(tables.scan(Table.META)) == shown
    assert [tables.get(Table.META, name) for name in names] == [b"before"] * 3 + [None] * 2
    changes = {row.key: row.value for row in tables.take_changes().rows}
    assert changes == {b"frozen": b"before", b"active": b"before", b"deleted": None}
    environment.write((table, memtable.items()) for table, memtable in frozen.memtables.items())
    tables.release(frozen)
    bring_down(tables, environment)
    assert list(tables.scan(Table.META)) == shown
    with tables.all_or_none():
        tables.put(Table.META, b"missing", b"put")
    assert tables.get(Table.META, b"missing") == b"put" and tables.changed_rows == 1
