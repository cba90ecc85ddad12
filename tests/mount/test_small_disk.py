"""A small real disk that fills up anywhere in a session, and what a save gets back from it before it is refused."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ckptfs.errors import DaemonError
from ckptfs.mount.client import Client
from tests.mount.running import RunningMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk below")

KIB = 1024
MIB = 1024 * KIB
DISK_SIZE = 48 * MIB
SAVE_SIZE = 4 * MIB
SAVES = 20
STEP = 256 * KIB
STEPS = 28
FULL = "disk below the store is full|interrupted"


@pytest.fixture
def small(fuse: None, tmp_path: Path) -> Iterator[RunningMount]:
    """Give a ckptfs that is not mounted yet and whose store lies on a small disk, which punches holes."""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", tmp_path / "disk"], check=True)
    mount = RunningMount(tmp_path / "ckpt", tmp_path / "disk" / "store")
    mount.expected_in_log.append(FULL)
    try:
        yield mount
        # Where the disk is still full the last checkpoint has no room, and the exit code says so; nothing is lost.
        assert mount.ckptfs("umount", mount.path, check=False).returncode in (0, DaemonError.exit_code)
        assert not mount.unexpected_in_log()
        mount.ckptfs("check", mount.store, "--read-data")
    finally:
        mount.clean_up()
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def save(mount: RunningMount, count: int) -> bytes:
    """Save a new model `count` times, each of which makes a version, and return the last one."""
    for _ in range(count):
        data = os.urandom(SAVE_SIZE)
        (mount.path / "model.pt").write_bytes(data)
    return data


def test_the_oldest_automatic_versions_give_way_and_named_ones_never(small: RunningMount) -> None:
    small.mount("--keep", "last=2,named=no", "--on-full", "prune", settle=60)
    first = save(small, 1)
    small.snapshot("first")
    save(small, 4)
    small.run("snapshot", "create", "--label", "the good one")
    save(small, 1)
    assert len(small.versions()) == 5  # while the disk has room it keeps all
    last = save(small, SAVES)
    assert (small.path / "model.pt").read_bytes() == last
    assert small.at("first", "model.pt").read_bytes() == first
    rows = small.snapshots()
    automatic = [row["id"] for row in rows if row["trigger"] == "auto"]
    assert automatic == list(range(rows[-1]["id"] - len(automatic) + 1, rows[-1]["id"] + 1))
    assert [row["label"] for row in rows if row["trigger"] == "manual"] == ["", "the good one"]
    assert 2 <= len(automatic) < SAVES
    assert "deleted, the disk is full" in small.log()


def test_by_default_a_full_disk_costs_no_version(small: RunningMount) -> None:
    small.mount("--keep", f"last={SAVES}", settle=60)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        save(small, SAVES)
    rows = small.snapshots()
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 5


def test_what_the_policy_keeps_stays_when_the_disk_is_full(small: RunningMount) -> None:
    small.mount("--keep", f"last={SAVES}", "--on-full", "prune", settle=60)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        save(small, SAVES)
    assert 5 < len(small.versions()) < SAVES


def test_what_was_deleted_makes_room_for_the_next_save_at_once(small: RunningMount) -> None:
    small.mount(settle=60)
    for _ in range(5):
        data = os.urandom(DISK_SIZE * 2 // 3)
        (small.path / "large").write_bytes(data)
        assert (small.path / "large").read_bytes() == data
        (small.path / "large").unlink()


def test_a_save_that_was_refused_gives_its_room_back_when_it_is_deleted(small: RunningMount) -> None:
    small.mount(settle=60)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        (small.path / "large").write_bytes(os.urandom(DISK_SIZE))
    (small.path / "large").unlink()
    small.run("gc")
    assert os.statvfs(small.store).f_bavail * os.statvfs(small.store).f_frsize > DISK_SIZE * 3 // 4
    save(small, 1)


def new_names(directory: Path) -> None:
    """Make names without an end."""
    for number in range(100_000):
        (directory / str(number)).mkdir()


def new_attributes(directory: Path) -> None:
    """Make extended attributes without an end, each in a file of its own."""
    for number in range(100_000):
        (directory / str(number)).touch()
        os.setxattr(directory / str(number), "user.x", os.urandom(200))


@pytest.mark.parametrize("make", [new_names, new_attributes])
def test_names_and_attributes_are_refused_on_a_full_disk_before_nothing_can_be_deleted(
    small: RunningMount, make: Callable[[Path], None]
) -> None:
    small.mount(settle=600)
    for version in ("first", "second"):
        save(small, 1)
        small.snapshot(version)
    (small.path / "directory").mkdir()
    take_all(small)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        make(small.path / "directory")
    (small.path / "model.pt").unlink()
    small.run("snapshot", "delete", "first")
    take_all(small)
    small.run("gc")
    assert os.statvfs(small.store).f_bavail * os.statvfs(small.store).f_frsize > SAVE_SIZE // 2
    (small.path / "directory" / "another").mkdir()
    assert small.at("second", "model.pt").stat().st_size == SAVE_SIZE


def leave(mount: RunningMount, size: int) -> Path:
    """Leave the disk below so many bytes, by a file that takes the rest; return that file."""
    status = os.statvfs(mount.store)
    filler = mount.store.parent / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - size)
    return filler


class Session:
    """A session of saves, each in another way, that remembers what its versions have to show."""

    def __init__(self, mount: RunningMount) -> None:
        self.mount = mount
        self.versions: dict[str, dict[str, bytes]] = {}
        self.closed: dict[str, bytes] = {}
        """What was in each file when its last close or sync returned."""

    def run(self, number: int) -> None:
        """Save until all is done, or the disk is full: OSError."""
        for name, save in (("model", self.overwrite), ("state", self.replace), ("log", self.append)):
            save(name)
            self.snapshot(f"{number}-{name}")

    def overwrite(self, name: str) -> None:
        """Write a file in place, in small pieces, and sync it."""
        data = os.urandom(2 * MIB)
        self.closed.pop(name, None)  # between the versions a file that is written in place may be torn
        with open(self.mount.path / name, "wb", buffering=0) as file:
            for start in range(0, len(data), 256 * KIB):
                file.write(data[start : start + 256 * KIB])
            os.fsync(file.fileno())
        self.closed[name] = data

    def replace(self, name: str) -> None:
        """Write another file and rename it over the one before."""
        data = os.urandom(2 * MIB)
        (self.mount.path / "temporary").write_bytes(data)
        (self.mount.path / "temporary").rename(self.mount.path / name)
        self.closed[name] = data

    def append(self, name: str) -> None:
        """Append to a log, to a new one where the last append was refused."""
        data = os.urandom(64 * KIB)
        if name not in self.closed:
            (self.mount.path / name).unlink(missing_ok=True)
        before = self.closed.pop(name, b"")
        with open(self.mount.path / name, "ab") as file:
            file.write(data)
        self.closed[name] = before + data

    def snapshot(self, name: str) -> None:
        """Take a version."""
        self.mount.snapshot(name)
        self.versions[name] = dict(self.closed)

    def verify(self) -> None:
        """Compare every version, and what was closed, with what was saved."""
        assert self.mount.versions() == set(self.versions)
        for version, files in self.versions.items():
            for name, data in files.items():
                assert self.mount.at(version, name).read_bytes() == data, (version, name)
        for name, data in self.closed.items():
            assert (self.mount.path / name).read_bytes() == data, name

    def delete(self, version: str) -> None:
        """Delete a version."""
        self.mount.at(version).rmdir()
        del self.versions[version]


def take_all(mount: RunningMount) -> None:
    """Take all room of the disk below, as another program that fills it would."""
    with open(mount.store.parent / "others", "ab", buffering=0) as file:
        for size in (MIB, 4 * KIB):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    assert os.statvfs(mount.store).f_bavail == 0


def room_kept_from(mount: RunningMount) -> int:
    """Return how much less room a mount says it has than the disk below it, of which it says the rest as it is."""
    ours, below = os.statvfs(mount.path), os.statvfs(mount.store)
    assert ours.f_bsize == ours.f_frsize == 4 * KIB
    assert ours.f_blocks * ours.f_frsize == below.f_blocks * below.f_frsize == DISK_SIZE
    assert ours.f_bfree == ours.f_bavail
    assert ours.f_files == ours.f_ffree == ours.f_favail > 1_000_000
    return below.f_bavail * below.f_frsize - ours.f_bavail * ours.f_frsize


def test_statvfs_tells_of_the_disk_below_less_what_is_spoken_for(small: RunningMount) -> None:
    small.mount(settle=600)
    reserve = small.store / "reserve"
    reserve_size = reserve.stat().st_size

    def missing() -> int:
        return reserve_size - reserve.stat().st_blocks * 512

    assert room_kept_from(small) == 0
    file = os.open(small.path / "in memory", os.O_WRONLY | os.O_CREAT)
    os.write(file, os.urandom(MIB))
    assert room_kept_from(small) == MIB
    take_all(small)
    assert room_kept_from(small) == 0, "there is less than no room"
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        os.close(file)
    for number in range(40):  # each is written down
        os.rename(small.path / "in memory", small.path / f"{number}".ljust(200))
        os.rename(small.path / f"{number}".ljust(200), small.path / "in memory")
    before = missing()
    assert before, "nothing was taken of what is kept back"
    os.truncate(small.store.parent / "others", 0)
    assert room_kept_from(small) in (before, missing()), "it may be held again by now"


def test_another_program_that_takes_all_room_again_and_again_keeps_nobody_from_making_room(small: RunningMount) -> None:
    small.mount(settle=600)
    for version in ("first", "second", "third"):
        save(small, 1)
        small.snapshot(version)
    kept = (small.path / "model.pt").read_bytes()
    take_all(small)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        (small.path / "more").write_bytes(os.urandom(MIB))
    for act in (
        (small.path / "more").unlink,
        lambda: small.run("snapshot", "delete", "first"),
        lambda: small.run("prune", "--keep-last", "1", "--no-keep-named"),
    ):
        take_all(small)
        act()
    assert small.versions() == {"third"}
    take_all(small)
    # The mount process collects in idle time, too: what counts is what there is in the end.
    small.run("gc")
    assert os.statvfs(small.store).f_bavail * os.statvfs(small.store).f_frsize > 2 * SAVE_SIZE - MIB
    assert (small.path / "model.pt").read_bytes() == small.at("third", "model.pt").read_bytes() == kept
    save(small, 1)


@pytest.mark.timeout(240)
def test_a_disk_that_is_full_at_any_point_keeps_what_it_has_and_is_used_again(small: RunningMount) -> None:
    small.mount(settle=600)
    client, session, filled = Client(str(small.store)), Session(small), set()
    for number in range(STEPS):
        (small.path / "spare").write_bytes(os.urandom(4 * MIB))
        filler = leave(small, number * STEP)
        try:
            session.run(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            filled.add(number)
        session.verify()
        # The disk is as full as it was: what is given back is what makes the room.
        (small.path / "spare").unlink()
        for version in list(session.versions)[:-1]:
            session.delete(version)
        client.prune("last=3", dry_run=False)
        client.gc(dry_run=False)
        session.closed.pop("model", None)
        session.overwrite("model")
        session.snapshot(f"{number}-after")
        session.verify()
        filler.unlink()
    assert filled == set(range(max(filled) + 1)) and 5 < max(filled) < STEPS - 1  # full at the steps, and then no more
