"""A mounted ckptfs whose disk is full: it says so, keeps what it has, deletes, and saves again when there is room."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckptfs.errors import DaemonError
from tests.faults import recorder
from tests.faults.full import PLENTY, give_room
from tests.mount.running import RunningMount

MIB = 1024 * 1024
ROOM = 48 * MIB
FULL = "disk below the store is full|interrupted"


@pytest.fixture
def small(fuse: None, tmp_path: Path) -> Iterator[RunningMount]:
    """Give a ckptfs whose store lies on a disk with little room."""
    (tmp_path / "ckpt").mkdir()
    with recorder.recording(tmp_path, []) as disk:
        give_room(disk, ROOM)
        mount = RunningMount(tmp_path / "ckpt", disk / "store")
        mount.expected_in_log.append(FULL)
        try:
            mount.mount()
            yield mount
            mount.umount()
            assert not mount.unexpected_in_log()
        finally:
            mount.clean_up()


def fill(mount: RunningMount) -> int:
    """Save into one file until the disk is full, and return the errno of the call that said so."""
    try:
        with open(mount.path / "filling", "wb", buffering=0) as file:
            for _ in range(2 * ROOM // MIB):
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return 0


def test_a_full_disk_is_told_and_costs_no_version(small: RunningMount) -> None:
    data = os.urandom(4 * MIB)
    (small.path / "model.pt").write_bytes(data)
    small.snapshot("before")
    assert fill(small) == errno.ENOSPC
    assert (small.path / "model.pt").read_bytes() == data
    assert small.at("before", "model.pt").read_bytes() == data
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small.path / "one more").write_bytes(os.urandom(8 * MIB))
    fd = os.open(small.path / "model.pt", os.O_RDWR)
    with mmap.mmap(fd, 0) as mapped:
        mapped[:] = os.urandom(len(data))
        for say in (mapped.flush, lambda: os.fsync(fd), lambda: os.close(fd)):  # it is never forgotten
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                say()
    assert small.at("before", "model.pt").read_bytes() == data


def test_data_is_refused_rather_than_accepted_and_lost(small: RunningMount) -> None:
    with (
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
        open(small.path / "filling", "wb", buffering=0) as file,
    ):
        for _ in range(2 * ROOM // MIB):
            file.write(os.urandom(MIB))
    assert "cannot be written" in small.log()
    assert "cannot be stored" not in small.log()


def test_a_save_of_nothing_but_known_bytes_takes_no_room(small: RunningMount) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(300_000, generator=generator) for name in "abcd"}
    torch.save(state, small.path / "model.pt")
    data = (small.path / "model.pt").read_bytes()
    assert fill(small) == errno.ENOSPC
    (small.path / "again.pt").write_bytes(data)
    torch.save(state, small.path / "model.pt")
    assert (small.path / "again.pt").read_bytes() == data
    assert (small.path / "model.pt").read_bytes() == data
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small.path / "one more.pt").write_bytes(data[: 2 * MIB] + os.urandom(8 * MIB))


def test_versions_and_files_are_deleted_on_a_full_disk(small: RunningMount) -> None:
    (small.path / "model.pt").write_bytes(b"small")
    small.snapshot("before")
    assert fill(small) == errno.ENOSPC
    (small.path / "filling").unlink()
    small.run("snapshot", "delete", "before")
    small.snapshot("after")
    assert os.listdir(small.at("after")) == ["model.pt"]
    small.remount()
    assert "before" not in small.versions() and "after" in small.versions()


def test_saving_goes_on_without_a_remount_when_there_is_room(small: RunningMount, tmp_path: Path) -> None:
    assert fill(small) == errno.ENOSPC
    give_room(tmp_path / "recorded", PLENTY)
    data = os.urandom(4 * MIB)
    (small.path / "filling").write_bytes(data)
    small.snapshot("again")
    small.kill()
    small.mount()
    assert small.at("again", "filling").read_bytes() == data
    assert (small.path / "filling").read_bytes() == data


def test_umount_says_when_the_last_of_it_could_not_be_written(small: RunningMount, tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    (small.path / "model.pt").write_bytes(data)
    give_room(tmp_path / "recorded", -PLENTY)
    done = small.ckptfs("umount", small.path, check=False)
    assert done.returncode == DaemonError.exit_code
    assert "its process could not finish" in done.stderr
    assert not small.is_mounted()
    give_room(tmp_path / "recorded", PLENTY)
    small.mount()
    assert (small.path / "model.pt").read_bytes() == data
