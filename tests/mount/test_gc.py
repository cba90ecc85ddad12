"""Deleted versions give their disk space back, by themselves or when asked, while saves and loads go on."""

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from tests.mount.running import RunningMount, tree_of

MIB = 1 << 20
SIZE = 24 * MIB


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def store_blocks(mount: RunningMount) -> int:
    return sum(file.stat().st_blocks * 512 for file in (mount.store / "packs").iterdir())


def test_a_deleted_snapshot_shrinks_the_store_by_itself(mount: RunningMount) -> None:
    (mount.path / "model").write_bytes(noise(1))
    mount.snapshot("first")
    (mount.path / "model").write_bytes(noise(2))
    mount.snapshot("second")
    assert store_blocks(mount) >= 2 * SIZE
    os.rmdir(mount.at("first"))
    mount.wait_for(lambda: mount.versions() == {"second"})
    mount.wait_for(lambda: store_blocks(mount) < 1.1 * SIZE)
    assert mount.at("second", "model").read_bytes() == noise(2)
    mount.remount()
    assert (mount.path / "model").read_bytes() == noise(2)


def test_a_deleted_file_that_no_version_holds_shrinks_the_store(mount: RunningMount) -> None:
    (mount.path / "model").write_bytes(noise(1))
    mount.snapshot("first")
    mount.run("snapshot", "delete", "first")
    (mount.path / "model").unlink()
    mount.wait_for(lambda: store_blocks(mount) < SIZE / 10)


def test_a_reader_of_a_version_that_is_collected_gets_its_bytes_or_an_error(mount: RunningMount) -> None:
    (mount.path / "model").write_bytes(noise(1))
    mount.snapshot("first")
    (mount.path / "model").write_bytes(noise(2))
    mount.snapshot("second")
    mount.remount()  # nothing of the file is in memory
    rng = random.Random(3)
    errors = set()

    def read(fd: int) -> None:
        offset = rng.randrange(SIZE)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the daemon is to answer, not the page cache
            found = os.pread(fd, MIB, offset)
        except OSError as error:
            errors.add(error.errno)
        else:
            assert found == noise(1)[offset : offset + MIB]

    reader = os.open(mount.at("first", "model"), os.O_RDONLY)
    read(reader)
    collecting = threading.Thread(target=lambda: (os.rmdir(mount.at("first")), mount.ckptfs("gc", mount.path)))
    collecting.start()
    while collecting.is_alive():
        read(reader)
    collecting.join()
    for _ in range(20):
        read(reader)
    os.close(reader)
    assert errors <= {errno.ESTALE}
    with pytest.raises(OSError, match="No such file"):
        mount.at("first", "model").read_bytes()
    assert mount.at("second", "model").read_bytes() == noise(2)


def test_who_is_in_a_version_that_is_deleted_is_shown_no_other_one(mount: RunningMount) -> None:
    for number, version in enumerate(("first", "second", "third")):
        (mount.path / "model").write_bytes(noise(number))
        mount.snapshot(version)
    mount.remount()  # the kernel knows nothing of the file
    directory = os.open(mount.at("second"), os.O_RDONLY | os.O_DIRECTORY)
    mount.ckptfs("snapshot", "delete", "second", "--at", mount.path)
    mount.ckptfs("gc", mount.path)
    for look in (lambda: os.open("model", os.O_RDONLY, dir_fd=directory), lambda: os.listdir(directory)):
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            look()
    os.close(directory)
    assert mount.at("first", "model").read_bytes() == noise(0)


def test_gc_says_exactly_what_it_frees(mount: RunningMount) -> None:
    (mount.path / "model").write_bytes(noise(1))
    mount.snapshot("first")
    (mount.path / "model").write_bytes(noise(2))
    mount.snapshot("second")
    mount.umount()
    before = store_blocks(mount)
    mount.ckptfs("snapshot", "delete", "first", "--at", mount.store)
    said = mount.json("gc", mount.store, "--dry-run")
    assert "This would free" in mount.ckptfs("gc", mount.store, "--dry-run").stdout
    assert mount.json("gc", mount.store) == said
    assert before - said["freed_bytes"] <= store_blocks(mount) <= before - said["freed_bytes"] + 65536
    assert said["freed_bytes"] >= SIZE
    assert mount.ckptfs("gc", mount.store).stdout == "There is nothing to free.\n"
    mount.mount()
    assert mount.json("gc", "--dry-run") == {"chunks": 0, "raw_bytes": 0, "freed_bytes": 0}
    assert mount.at("second", "model").read_bytes() == noise(2)


@pytest.mark.parametrize("killed", [False, True])
def test_saves_and_loads_go_on_during_collections(mount: RunningMount, tmp_path: Path, killed: bool) -> None:
    """Versions that share most of their chunks come and go under gc; every one that is kept stays bit-exact."""
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            mount.ckptfs("gc", mount.path)

    collecting = threading.Thread(target=collect)
    collecting.start()
    pieces = [noise(seed, 2 * MIB) for seed in range(8)]
    chance = random.Random(77)
    print("seed 77")
    kept: dict[str, dict[str, str]] = {}
    try:
        for step in range(14):
            for name in ("model", f"step-{step % 3}"):
                data = b"".join(chance.choices(pieces, k=4))
                (mount.path / name).write_bytes(data)
                assert (mount.path / name).read_bytes() == data
            version = mount.snapshot(f"v{step}")
            kept[version] = tree_of(mount.at(version))
            if len(kept) > 3:
                doomed = chance.choice(sorted(kept))
                del kept[doomed]
                os.rmdir(mount.at(doomed))
    finally:
        done.set()
        collecting.join()
    if killed:
        mount.kill()
        mount.mount()
    else:
        mount.remount()
    mount.ckptfs("gc", mount.path)
    for version, files in kept.items():
        assert tree_of(mount.at(version)) == files
    assert mount.versions() >= set(kept)


def test_a_mount_with_a_policy_keeps_what_it_says(unmounted: RunningMount) -> None:
    mount = unmounted
    mount.mount("--keep", "last=2")
    mount.snapshot("by-hand")
    for step in range(4):
        known = mount.versions()
        (mount.path / "model").write_bytes(noise(step, MIB))
        mount.wait_for(lambda known=known: mount.versions() - known)
    rows = mount.snapshots()
    assert [row["trigger"] for row in rows] == ["manual", "auto", "auto"]
    assert [mount.at(row["name"], "model").read_bytes() for row in rows[1:]] == [noise(2, MIB), noise(3, MIB)]
    mount.wait_for(lambda: store_blocks(mount) < 3 * MIB)
    assert "Deleted 1 version." in mount.run("prune", "--keep-last", "1").stdout
    assert [row["name"] for row in mount.snapshots()] == ["by-hand", rows[-1]["name"]]
