"""When an automatic snapshot is due, by a clock that the test sets."""

from pathlib import Path

import pytest

from ckptfs.errors import DamagedError
from ckptfs.store import ChunkStore, Table
from ckptfs.tree import Tree
from ckptfs.tree.epoch import HOLD_SECONDS, HOLD_SECONDS_MAX, OpenEpoch
from ckptfs.tree.rows import LIVE
from tests.unit import tree_support as support
from tests.unit.tree_support import Clock

SETTLE = 2.0


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return support.new_store(tmp_path / "store")


@pytest.fixture
def epoch(store: ChunkStore, clock: Clock) -> OpenEpoch:
    return OpenEpoch(store, clock.monotonic)


def test_nothing_is_due_before_a_worthy_commit(epoch: OpenEpoch) -> None:
    assert epoch.due_in(SETTLE, None) is None
    epoch.active()
    epoch.committed(7, "log", 100, worthy=False)
    assert epoch.due_in(SETTLE, None) is None
    assert (epoch.changed, epoch.written_bytes) == ({7: "log"}, 100)


def test_due_when_the_tree_has_been_quiet(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    assert epoch.due_in(SETTLE, None) == SETTLE
    clock.advance(1.5)
    assert epoch.due_in(SETTLE, None) == 0.5
    epoch.active()
    assert epoch.due_in(SETTLE, None) == SETTLE
    clock.advance(SETTLE)
    assert epoch.due_in(SETTLE, None) == 0
    clock.advance(100)
    assert epoch.due_in(SETTLE, None) == 0


def test_a_log_does_not_hold_it_back(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    clock.advance(1)
    epoch.committed(8, "log", worthy=False)
    assert epoch.due_in(SETTLE, None) == 1


def test_steady_activity_holds_it_back_for_a_while_only(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    waited = 0.0
    while epoch.due_in(SETTLE, None) != 0:
        clock.advance(1)
        waited += 1
        epoch.committed(8, "other")
        assert waited <= HOLD_SECONDS
    assert waited == HOLD_SECONDS


def test_a_settle_time_longer_than_the_hold_is_kept(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    clock.advance(HOLD_SECONDS)
    assert epoch.due_in(2 * HOLD_SECONDS, None) == HOLD_SECONDS


def test_a_half_written_file_holds_it_back(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    for _ in range(10):
        clock.advance(HOLD_SECONDS - 1)
        assert epoch.due_in(SETTLE, clock.now) == HOLD_SECONDS
    last_write = clock.now
    clock.advance(HOLD_SECONDS)
    assert epoch.due_in(SETTLE, last_write) == 0
    assert epoch.due_in(SETTLE, None) == 0


def test_a_half_written_file_does_not_hold_it_back_for_ever(epoch: OpenEpoch, clock: Clock) -> None:
    epoch.committed(7, "model")
    clock.advance(HOLD_SECONDS_MAX - 1)
    epoch.active()
    assert epoch.due_in(SETTLE, clock.now) == 1
    clock.advance(1)
    assert epoch.due_in(SETTLE, clock.now) == 0


def test_a_new_epoch_begins_with_nothing(epoch: OpenEpoch, store: ChunkStore) -> None:
    store.ingest(memoryview(bytes(range(100))), True)
    epoch.committed(7, "model", 100)
    assert epoch.stored_bytes > 0
    epoch.begin()
    assert (epoch.changed, epoch.written_bytes, epoch.stored_bytes) == ({}, 0, 0)
    assert epoch.due_in(SETTLE, None) is None


def test_settled_means_that_the_present_is_a_version(epoch: OpenEpoch) -> None:
    epoch.committed(7, "model", 100)
    epoch.settle()
    assert epoch.due_in(SETTLE, None) is None
    assert epoch.written_bytes == 100


def test_the_counters_outlive_the_process(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "s"
    store = support.new_store(path)
    first = OpenEpoch(store, clock.monotonic)
    store.ingest(memoryview(bytes(range(100))), True)
    first.committed(7, "model", 100)
    stored = first.stored_bytes
    store.close()
    clock.advance(1000)
    with ChunkStore.open(path) as store:
        again = OpenEpoch(store, clock.monotonic)
        assert (again.written_bytes, again.stored_bytes, again.pending) == (100, stored, True)
        assert again.due_in(SETTLE, None) == SETTLE


@pytest.mark.parametrize("number", [0, LIVE, 1 << 40])
def test_an_open_epoch_that_cannot_be_is_damage(store: ChunkStore, number: int) -> None:
    store.tables.put(Table.META, b"open_epoch", number.to_bytes(8, "big"))
    with pytest.raises(DamagedError, match=f"says {number}, which cannot be"):
        Tree(store)
