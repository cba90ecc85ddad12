"""Appending to packs: where records go, what a failure leaves, and what a sync promises."""

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ckptfs.disk import Disk
from ckptfs.errors import DamagedError, NoSpaceError
from ckptfs.store import records
from ckptfs.store.location import Location
from ckptfs.store.packfile import Found, Gap, Run, Skipped
from ckptfs.store.packs import PackIdentity, Packs
from ckptfs.store.records import HEADER_SIZE, Position, RecordBytes, RecordType

IDENTITY = PackIdentity(fingerprint=77, seed=5)
PACK_HEADER_SIZE = 64
START = Position(1, 0)


class FailingDisk(Disk):
    """A disk that fills up in the middle of a write, refuses to truncate, or fails to sync, when told to."""

    def __init__(self) -> None:
        self.write_limit: int | None = None
        self.truncate_error: OSError | None = None
        self.sync_error: OSError | None = None
        self.synced: list[str] = []
        self.before_sync: Callable[[], None] = lambda: None

    def pwrite(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, path: Path) -> None:
        if self.write_limit is None:
            return super().pwrite(fd, buffers, offset, path)
        super().pwrite(fd, [b"".join(buffers)[: self.write_limit]], offset, path)
        raise NoSpaceError("full")

    def truncate(self, fd: int, size: int, path: Path) -> None:
        if self.truncate_error is not None:
            raise self.truncate_error
        super().truncate(fd, size, path)

    def fdatasync(self, fd: int, path: Path) -> None:
        self.before_sync()
        if self.sync_error is not None:
            raise self.sync_error
        super().fdatasync(fd, path)
        self.synced.append(path.name)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.synced.append("directory")


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


def chunk(number: int, size: int = 100) -> RecordBytes:
    return records.build(RecordType.CHUNK, number, bytes(16), size, 0, bytes([number]) * size)


def numbers(packs: Packs, start: Position = START) -> list[int]:
    """Return the record numbers that a scan finds, with -1 for a gap."""
    return [found.record.header.number if isinstance(found, Found) else -1 for found in packs.scan(start)]


def test_records_are_found_where_append_says(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    positions = packs.append([chunk(1), chunk(2, 33)]) + packs.append([chunk(3)])
    assert positions[0] == Position(1, PACK_HEADER_SIZE)
    assert all(position.offset % 8 == 0 for position in positions)
    assert bytes(packs.read_record(positions[1], 33, 0).payload) == b"\x02" * 33
    assert numbers(packs) == [1, 2, 3]
    assert numbers(packs, positions[2]) == [3]
    assert packs.path(1).stat().st_size == packs.position.offset == packs.appended_bytes


def test_a_full_pack_is_followed_by_a_new_one(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=300)
    positions = [packs.append([chunk(number)])[0] for number in range(1, 7)]
    assert {position.pack for position in positions} == {1, 2, 3}
    assert numbers(packs) == [1, 2, 3, 4, 5, 6]
    packs.sync()
    assert disk.synced == ["00000001.pack", "00000002.pack", "00000003.pack", "directory"]
    packs.sync()
    assert disk.synced[4:] == []


@pytest.mark.parametrize("written", [0, 10, HEADER_SIZE, 150])
@pytest.mark.parametrize("pack_size_max", [300, 10_000])
@pytest.mark.parametrize("truncate_fails", [False, True])
def test_a_failed_append_leaves_nothing(
    tmp_path: Path, disk: FailingDisk, written: int, pack_size_max: int, truncate_fails: bool
) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=pack_size_max)
    packs.append([chunk(1), chunk(2)])
    before = packs.position
    disk.write_limit = written
    disk.truncate_error = OSError(errno.EIO, "no truncate") if truncate_fails else None
    with pytest.raises(NoSpaceError):
        packs.append([chunk(3), chunk(4)])
    assert packs.position == before
    disk.write_limit = disk.truncate_error = None
    # Shorter than what failed: were the torn bytes left, record 4 of the failed append would be found again.
    packs.append([chunk(5)])
    assert numbers(packs) == [1, 2, 5]
    packs.sync()


def test_an_append_waits_until_the_torn_end_is_cut_off(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    packs.append([chunk(1)])
    disk.write_limit, disk.truncate_error = 200, OSError(errno.EIO, "no truncate")
    with pytest.raises(NoSpaceError):
        packs.append([chunk(2)])
    disk.write_limit = None
    with pytest.raises(OSError, match="no truncate"):
        packs.append([chunk(3)])
    disk.truncate_error = None
    packs.append([chunk(4)])
    assert numbers(packs) == [1, 4]


def test_after_a_failed_sync_every_later_one_fails(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    packs.append([chunk(1)])
    disk.sync_error = OSError(errno.EIO, "pages lost")
    with pytest.raises(OSError, match="pages lost"):
        packs.sync()
    disk.sync_error = None
    with pytest.raises(OSError, match="earlier sync failed"):
        packs.sync()
    assert packs.synced == Position(1, 0)


def test_a_sync_does_not_return_before_one_under_way_that_covers_its_bytes(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    packs.append([chunk(1)])
    began, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert go_on.wait(10)

    disk.before_sync = hold
    first = threading.Thread(target=packs.sync)
    first.start()
    assert began.wait(10)
    second = threading.Thread(target=packs.sync)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    # An append goes on during the sync, and belongs to the next one.
    packs.append([chunk(2)])
    go_on.set()
    first.join(10)
    second.join(10)
    assert packs.synced == packs.position
    assert disk.synced == ["00000001.pack", "directory", "00000001.pack"]


def test_a_scan_goes_on_behind_a_hole_and_behind_damage(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    positions = packs.append([chunk(number, 20_000) for number in range(1, 6)])
    with packs.path(1).open("r+b") as file:
        # As a punched hole reads: zeros, header included.
        file.seek(positions[1].offset)
        file.write(bytes(positions[2].offset - positions[1].offset))
        file.seek(positions[3].offset + HEADER_SIZE + 7)
        file.write(b"!")
    found = list(packs.scan(Position(1, 0)))
    assert [gap.position for gap in found if isinstance(gap, Gap)] == [positions[1], positions[3]]
    assert numbers(packs) == [1, -1, 3, -1, 5]
    with pytest.raises(DamagedError, match=f"00000001.pack at offset {positions[1].offset}"):
        packs.read_record(positions[1], 20_000, 0)


def test_a_magic_inside_a_payload_is_no_record(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    payload = records.MAGIC * 1000
    first, second = packs.append([records.build(RecordType.CHUNK, 1, bytes(16), 4000, 0, payload), chunk(2)])
    with packs.path(1).open("r+b") as file:
        file.seek(first.offset)
        file.write(b"damage")
    assert [found.position for found in packs.scan(first)] == [first, second]
    assert numbers(packs, first) == [-1, 2]


def in_single_records(packs: Packs) -> list[tuple[Position, Position, object] | Gap | Skipped]:
    """Return what a scan finds, chunks as the index takes them."""
    return [
        (item.position, item.end, Run.of(item).chunk(0) if item.record.header.type == RecordType.CHUNK else item.record)
        if isinstance(item, Found)
        else item
        for item in packs.scan(START)
    ]


def from_runs(packs: Packs) -> list[tuple[Position, Position, object] | Gap | Skipped]:
    found: list[tuple[Position, Position, object] | Gap | Skipped] = []
    for item in packs.scan_runs(START):
        if isinstance(item, Run):
            parts = [item.part(index, index + 1) for index in range(len(item.numbers))]
            found += [(part.position, part.end, part.chunk(0)) for part in parts]
        else:
            found.append((item.position, item.end, item.record) if isinstance(item, Found) else item)
    return found


def test_runs_are_the_records_that_a_scan_finds(
    tmp_path: Path, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptfs.store.packfile._SCAN_WINDOW", 4096)
    seed = random.Random(11)
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=20_000)
    number = 0
    for _ in range(150):
        kind = seed.choice([RecordType.CHUNK] * 5 + [RecordType.METADATA])
        bases = records.pack_bases([1, 2][: seed.choice([0, 0, 2])] if kind == RecordType.CHUNK else [])
        payload = seed.randbytes(seed.choice([20, 300, 300, 5000]))
        packs.append([records.build(kind, number, payload[:16], len(payload), 0, payload, bases=bases)])
        number += 1
    assert len([item for item in packs.scan_runs(START) if isinstance(item, Run)]) < 100 < number
    assert from_runs(packs) == in_single_records(packs)
    assert sum(isinstance(item, tuple) for item in from_runs(packs)) == number
    for _ in range(60):
        path = packs.path(seed.choice(packs.numbers()))
        data = bytearray(path.read_bytes())
        at = seed.randrange(PACK_HEADER_SIZE, len(data))
        data[at] ^= 1 << seed.randrange(8)
        path.write_bytes(data)
        assert from_runs(packs) == in_single_records(packs), (path, at)
    assert any(isinstance(item, Gap) for item in from_runs(packs))


def test_a_run_is_parted_where_its_records_end(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY)
    positions = packs.append([chunk(number) for number in range(1, 5)])
    (run,) = packs.scan_runs(START)
    assert isinstance(run, Run)
    assert [run.count_until(position) for position in positions] == [0, 1, 2, 3]
    assert run.count_until(positions[1]._replace(offset=positions[1].offset - 1)) == 0
    assert run.count_until(START) == 0
    assert run.count_until(packs.position) == run.count_until(Position(2, 0)) == 4
    middle = run.part(1, 3)
    assert (middle.position, middle.end, middle.numbers) == (positions[1], positions[3], [2, 3])
    assert middle.chunk(1) == (3, bytes(16), Location(*positions[2], 100, 100, 0))
    assert run.part(2, 4).end == packs.position


def test_a_scan_names_a_missing_pack_and_a_foreign_one(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=100)
    for number in range(1, 5):
        packs.append([chunk(number)])
    os.unlink(packs.path(2))
    os.replace(packs.path(3), packs.path(3).with_name("kept"))
    stranger = Packs(tmp_path, disk, IDENTITY._replace(fingerprint=1))
    packs.path(3).write_bytes(b"".join(records.build_pack_header(3, 1, 1, 5, 0).buffers))
    assert numbers(packs) == [1, -1, -1, -1, 4]  # missing, foreign, and shorter than the fourth says
    assert numbers(stranger, Position(3, 0)) == [-1, 4]


def test_a_pack_that_lost_whole_records_at_its_end_is_a_gap(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=300)
    positions = [packs.append([chunk(number)])[0] for number in range(1, 5)]
    assert positions[1].pack == 1 and positions[2].pack == 2
    os.truncate(packs.path(1), positions[1].offset)
    assert numbers(packs) == [1, -1, 3, 4]
    os.unlink(packs.path(2))
    assert numbers(packs) == [1]


def test_truncate_removes_what_follows(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=300)
    positions = [packs.append([chunk(number)])[0] for number in range(1, 7)]
    packs.truncate(positions[3])
    packs.resume(Position(1, 0), positions[3])
    assert numbers(packs) == [1, 2, 3]
    packs.append([chunk(9)])
    assert numbers(packs) == [1, 2, 3, 9]
    disk.synced.clear()
    packs.sync()
    assert disk.synced == ["00000001.pack", "00000002.pack", "directory"]


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Packs(tmp_path, Disk(), IDENTITY).append([chunk(1)])
        Disk().make_directory(tmp_path / "inner")
    finally:
        os.umask(before)
    assert (tmp_path / "00000001.pack").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "inner").stat().st_mode & 0o777 == 0o700


def test_many_packs_are_read_with_few_open_files(tmp_path: Path, disk: FailingDisk) -> None:
    packs = Packs(tmp_path, disk, IDENTITY, pack_size_max=1)
    positions = [packs.append([chunk(number % 256)])[0] for number in range(150)]
    packs.sync()
    before = len(os.listdir("/proc/self/fd"))
    for number, position in enumerate(positions):
        assert packs.read_record(position, 100, 0).payload[0] == number % 256
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    packs.close()
    assert len(os.listdir("/proc/self/fd")) <= before
