"""What the calls of a mount promise is on the disk below when they return: nothing else survives the cut here.

`tests/faults/test_power_cut.py` cuts the power below a store, at every operation. Here it goes below a mount, with
everything lost that was not synced, right after each call whose return is a promise. The last test has an ext4 below,
and what its block device has is what is found.
"""

import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import powercut, recorder
from tests.faults.crashes import STORE
from tests.faults.powercut import LOST, CutDisk
from tests.mount.calls import RW, R, W, libc, opened
from tests.mount.running import RunningMount
from tests.unit.tree_support import crash, open_tree, read

NEW = os.O_CREAT
BACKUP = "backup"
CONTENT = b"promised" * 1000
"""More than a page, and nothing that a background task would be in a hurry to store."""


def synced(flags: int, sync: Callable[[int], object]) -> Callable[[Path], object]:
    """Return an act that writes a new file and syncs it in some way."""
    return lambda path: opened(str(path), flags | NEW, lambda fd: (os.write(fd, CONTENT), sync(fd)))


def synced_by_another(path: Path) -> None:
    """Write through one descriptor and sync through another, which may only read."""
    opened(str(path), W | NEW, lambda fd: (os.write(fd, CONTENT), opened(str(path), R, os.fsync)))


def mapped(path: Path) -> None:
    """Write through a mapping, and sync that."""

    def write(fd: int) -> None:
        os.truncate(fd, len(CONTENT))
        with mmap.mmap(fd, 0) as mapping:
            mapping[:] = CONTENT
            mapping.flush()

    opened(str(path), RW | NEW, write)


def directory_synced(path: Path) -> None:
    """Save as careful programs do, but sync the directory only."""
    path.with_suffix(".tmp").write_bytes(CONTENT)
    path.with_suffix(".tmp").rename(path)
    opened(str(path.parent), R, os.fsync)


def snapshot_taken(path: Path) -> None:
    """Save, and take a snapshot by making its directory."""
    path.write_bytes(CONTENT)
    (path.parent / ".snapshots" / path.name).mkdir()


PROMISES: dict[str, Callable[[Path], object]] = {
    "fsync": synced(W, os.fsync),
    "fdatasync": synced(W, os.fdatasync),
    "fsync of a handle that reads and writes": synced(RW, os.fsync),
    "fsync by another": synced_by_another,
    "msync": mapped,
    "O_SYNC": synced(W | os.O_SYNC, lambda fd: None),
    "O_DSYNC": synced(W | os.O_DSYNC, lambda fd: None),
    "O_DSYNC and O_APPEND": synced(W | os.O_DSYNC | os.O_APPEND, lambda fd: None),
    "O_DSYNC and O_DIRECT": synced(W | os.O_DSYNC | os.O_DIRECT, lambda fd: None),
    "O_SYNC of a handle that reads and writes": synced(RW | os.O_SYNC, lambda fd: None),
    "RWF_DSYNC of a handle that reads and writes": synced(RW, lambda fd: os.pwritev(fd, [CONTENT], 0, os.RWF_DSYNC)),
    "fsync of the directory": directory_synced,
    "mkdir in .snapshots": snapshot_taken,
}


def snapshot_created(mount: RunningMount, path: Path) -> None:
    """Save, and take a snapshot by a command."""
    path.write_bytes(CONTENT)
    mount.run("snapshot", "create")


def rolled_back(mount: RunningMount, path: Path) -> None:
    """Sync another content over one that a snapshot has, and go back to that."""
    path.write_bytes(CONTENT)
    mount.snapshot("earlier")
    opened(str(path), W | os.O_TRUNC, lambda fd: (os.write(fd, b"other"), os.fsync(fd)))
    mount.run("snapshot", "rollback", "earlier", path)


def backed_up(mount: RunningMount, path: Path) -> None:
    """Save, and back everything up to the same disk."""
    path.write_bytes(CONTENT)
    mount.run("backup", mount.store.parent / BACKUP, mount.path)


def unmounted(mount: RunningMount, path: Path) -> None:
    """Save and unmount."""
    path.write_bytes(CONTENT)
    mount.umount()


COMMANDS: dict[str, Callable[[RunningMount, Path], object]] = {
    "snapshot create": snapshot_created,
    "snapshot rollback": rolled_back,
    BACKUP: backed_up,
    "umount": unmounted,
}


def test_what_a_call_has_promised_outlives_a_power_cut(fuse: None, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    trace: list[recorder.Operation] = []
    with recorder.recording(tmp_path, trace) as below, open(below / recorder.MARKS, "wb", 0) as marks:
        mount = RunningMount(tmp_path / "ckpt", below / STORE)
        try:
            mount.mount()
            for name, act in PROMISES.items():
                act(mount.path / name)
                marks.write(name.encode())
            for name, act in COMMANDS.items():
                act(mount, mount.path / name)
                marks.write(name.encode())
        finally:
            mount.clean_up()
    promised: list[str] = []
    disk = CutDisk()
    for number, (_, said) in enumerate(powercut.moments(trace, disk)):
        promised += [name.decode() for name in said]
        if said:
            found = tmp_path / f"found-{number}"
            disk.cut(LOST, random.Random(0)).write(found)
            for store in (STORE, BACKUP) if promised[-1] == BACKUP else (STORE,):
                tree = open_tree(found / store)
                for name in promised:
                    assert read(tree, name) == CONTENT, f"{name} in the {store}, when {promised[-1]} returned"
                crash(tree)
    assert promised == [*PROMISES, *COMMANDS]


@contextmanager
def mounted_image(image: Path, at: Path) -> Iterator[Path]:
    """Mount the ext4 of an image."""
    at.mkdir()
    # It is not to sync by itself before a test is over.
    subprocess.run(["mount", "-o", "loop,commit=300", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def closed_and_synced_below(mount: RunningMount, path: Path) -> None:
    """Close a file, and sync the filesystem below; `sync` does this to every one of the machine."""
    path.write_bytes(CONTENT)
    opened(str(mount.store), R, lambda fd: libc("syncfs", fd))


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop devices")
@pytest.mark.parametrize(
    "keep",
    [
        closed_and_synced_below,
        lambda mount, path: PROMISES["fsync"](path),
        lambda mount, path: PROMISES["mkdir in .snapshots"](path),
    ],
    ids=["sync below", "fsync", "mkdir in .snapshots"],
)
def test_what_was_promised_is_on_the_block_device_of_an_ext4_below(
    unmounted: RunningMount, tmp_path: Path, keep: Callable[[RunningMount, Path], object]
) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted_image(image, tmp_path / "below") as below:
        unmounted.store = below / STORE
        try:
            unmounted.mount()
            keep(unmounted, unmounted.path / "last.pt")
            shutil.copy(image, copy)
        finally:
            unmounted.clean_up()
    with mounted_image(copy, tmp_path / "found") as found:
        tree = open_tree(found / STORE)
        assert read(tree, "last.pt") == CONTENT
        tree.store.close()
