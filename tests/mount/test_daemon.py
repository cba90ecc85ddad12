"""The life of a mount: it starts or says why not, ends cleanly in every way, and survives being killed."""

import errno
import json
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.mount.running import PATIENCE_SECONDS, ROOT, SETTLE_SECONDS, RunningMount, mount_entry, process_runs, tree_of


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@contextmanager
def foreground(mount: RunningMount, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run the mount process as a service manager would, with a socket for its messages."""
    address = tmp_path / "notify"
    command = [sys.executable, "-P", "-m", "ckptfs", "mount", "--foreground", "--settle", str(SETTLE_SECONDS)]
    command += ["--store", str(mount.store), str(mount.path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(address)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        with contextmanager(_short_path)(tmp_path):
            manager.bind("notify")
        manager.settimeout(PATIENCE_SECONDS)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            yield process, manager
        finally:
            process.kill()
            process.communicate()


def _short_path(directory: Path) -> Iterator[None]:
    """Work in a directory for a moment: the path of a socket that is bound has at most 107 bytes."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def message_with(manager: socket.socket, state: str) -> str:
    """Return the first message that has this line."""
    while True:
        message = manager.recv(4096).decode()
        if state in message.splitlines():
            return message


def test_the_mount_table_shows_type_and_store(mount: RunningMount) -> None:
    assert mount_entry(mount.path) == (str(mount.store), "fuse.ckptfs")


@pytest.mark.expects_log("WARNING .* slower .* python .slow: no C extension")
def test_without_the_c_extension_log_and_stats_call_the_kernel_slow(unmounted: RunningMount, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "ckptfs", tmp_path / "built" / "ckptfs", ignore=shutil.ignore_patterns("_kernels*"))
    unmounted.package = tmp_path / "built"
    unmounted.mount()
    (unmounted.path / "file").write_bytes(noise(300_000))
    assert (unmounted.path / "file").read_bytes() == noise(300_000)
    assert unmounted.run("stats").stdout.count("python (slow: no C extension") == 1
    assert unmounted.log().count("WARNING") == 1
    unmounted.umount()


def test_the_map_of_the_index_grows_while_it_is_mounted(unmounted: RunningMount, tmp_path: Path) -> None:
    """A copy of ckptfs with a map of 1 MiB, rather than 64 GiB, gets an index of several."""
    unmounted.package = tmp_path / "small"
    shutil.copytree(ROOT / "ckptfs", unmounted.package / "ckptfs")
    environment = unmounted.package / "ckptfs" / "store" / "environment.py"
    code = environment.read_text()
    assert "MAP_SIZE = 64 * GIB" in code
    environment.write_text(code.replace("MAP_SIZE = 64 * GIB", "MAP_SIZE = 1 << 20"))
    unmounted.mount()
    for step in range(6):
        path = unmounted.path / f"file-{step}"
        path.touch()
        for number in range(6):
            os.setxattr(path, f"user.{number}", bytes([step, number]) * 32_000)
        if step >= 3:
            unmounted.run("backup", tmp_path / "backup")  # it begins with a checkpoint, the first one above the map
    assert (unmounted.store / "index.lmdb").stat().st_size > 2 << 20
    unmounted.remount()
    for step in range(6):
        for number in range(6):
            assert os.getxattr(unmounted.path / f"file-{step}", f"user.{number}") == bytes([step, number]) * 32_000


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_manager_is_told(unmounted: RunningMount, tmp_path: Path, signum: int) -> None:
    with foreground(unmounted, tmp_path) as (process, manager):
        assert "STATUS=" in message_with(manager, "READY=1")
        (unmounted.path / "file").write_bytes(noise(500_000))
        process.send_signal(signum)
        message_with(manager, "STOPPING=1")
        assert process.wait(PATIENCE_SECONDS) == 0
    assert not unmounted.is_mounted()
    unmounted.mount()
    assert (unmounted.path / "file").read_bytes() == noise(500_000)


@pytest.mark.expects_log("interrupted")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_is_being_written_when_a_signal_comes_is_kept_and_in_no_version(mount: RunningMount, signum: int) -> None:
    for name in ("last.pt", "mapped.pt"):
        (mount.path / name).write_bytes(b"previous")
    mount.snapshot("before")
    written = {"last.pt": noise(3_000_000), "new.pt": b"new", "train.log": b"line", "mapped.pt": b"in pages"}
    with suppress(OSError), ExitStack() as stack:  # the connection is gone when they are closed
        for name, data in written.items():
            if name == "mapped.pt":
                file = stack.enter_context(open(mount.path / name, "r+b"))
                stack.enter_context(mmap.mmap(file.fileno(), len(data)))[:] = data
            else:
                mode = "ab" if name == "train.log" else "wb"
                stack.enter_context(open(mount.path / name, mode, buffering=0)).write(data)
        os.kill(mount.daemon, signum)
        mount.wait_for(lambda: not process_runs(mount.daemon))
    assert not mount.is_mounted()
    mount.mount()
    assert {path.name: path.read_bytes() for path in mount.path.iterdir()} == written
    assert sorted(mount.json("stats")["interrupted"]) == ["last.pt", "mapped.pt", "new.pt"]
    after = mount.at(mount.snapshot("after"))
    expected = {"last.pt": b"previous", "mapped.pt": b"previous", "train.log": b"line"}
    assert {path.name: path.read_bytes() for path in after.iterdir()} == expected


def test_the_mount_is_usable_when_the_manager_hears_that_it_is_ready(unmounted: RunningMount, tmp_path: Path) -> None:
    with foreground(unmounted, tmp_path) as (process, manager):
        message_with(manager, "READY=1")
        assert unmounted.is_mounted()
        assert os.listdir(unmounted.path) == []
        unmounted.umount()
        assert process.wait(PATIENCE_SECONDS) == 0


def umount_commands() -> list[str]:
    """Return the ways to unmount that this user has; umount(8) itself is root's."""
    return ["ckptfs umount", "fusermount3 -u", *(["umount"] if os.geteuid() == 0 else [])]


@pytest.mark.parametrize("command", umount_commands())
def test_every_way_to_unmount_leaves_everything_in_the_store(mount: RunningMount, command: str) -> None:
    content = noise(3_000_000)
    pid = mount.pid()
    (mount.path / "file").write_bytes(content)
    (mount.path / "directory").mkdir()
    if command == "ckptfs umount":
        mount.umount()
    else:
        subprocess.run([*command.split(), mount.path], check=True)
    assert not mount.is_mounted()
    mount.wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    mount.mount()
    assert (mount.path / "file").read_bytes() == content
    assert (mount.path / "directory").is_dir()


def test_a_remount_shows_the_same_tree_and_versions(mount: RunningMount) -> None:
    for index in range(3):
        before = mount.versions()
        (mount.path / f"step-{index}.pt").write_bytes(noise(300_000, index))
        mount.wait_for_version(before)
    tree, versions = tree_of(mount.path), mount.snapshots()
    mount.remount()
    assert tree_of(mount.path) == tree
    assert mount.snapshots() == versions
    for index, version in enumerate(versions):
        assert len(os.listdir(mount.at(version["name"]))) == index + 1


def test_a_killed_daemon_loses_nothing_that_was_closed(mount: RunningMount) -> None:
    before = mount.versions()
    (mount.path / "old").write_bytes(noise(2_000_000, 1))
    name = mount.wait_for_version(before)
    (mount.path / "run").mkdir()
    (mount.path / "run" / "new").write_bytes(noise(2_000_000, 2))
    (mount.path / "old").rename(mount.path / "run" / "moved")
    mount.kill()
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTCONN):
        os.listdir(mount.path)
    mount.mount()
    assert os.listdir(mount.path) == ["run"]
    assert (mount.path / "run" / "new").read_bytes() == noise(2_000_000, 2)
    assert (mount.path / "run" / "moved").read_bytes() == noise(2_000_000, 1)
    assert mount.at(name, "old").read_bytes() == noise(2_000_000, 1)


@pytest.mark.parametrize("complete", ["close", "rename"])
def test_not_even_a_kill_at_the_moment_a_save_completes_loses_it(mount: RunningMount, complete: str) -> None:
    daemon = mount.pid()
    for index in range(5):
        path = mount.path / f"{index}.pt"
        writer = os.open(f"{path}.tmp" if complete == "rename" else path, os.O_WRONLY | os.O_CREAT)
        os.write(writer, noise(300_000, index))
        os.close(writer)
        if complete == "rename":
            os.rename(f"{path}.tmp", path)
        os.kill(daemon, signal.SIGKILL)
        mount.wait_for(mount.is_dead)
        mount.mount()
        daemon = mount.pid()
        assert path.read_bytes() == noise(300_000, index)
        assert mount.json("stats", mount.path)["interrupted"] == []


def test_a_killed_daemon_loses_nothing_that_fsync_confirmed(mount: RunningMount) -> None:
    writer = os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(writer, noise(1_000_000))
    os.fsync(writer)
    mount.kill()
    with suppress(OSError):  # the connection is gone
        os.close(writer)
    mount.mount()
    assert (mount.path / "file").read_bytes() == noise(1_000_000)


def test_fsync_confirms_what_others_have_written(mount: RunningMount) -> None:
    """Whoever wrote it, and whether the kernel has told of the last close already or not."""
    path = mount.path / "file"
    for index in range(10):
        writer = os.open(path, os.O_WRONLY | os.O_CREAT)
        inherited = os.dup(writer)
        os.write(writer, noise(1_000_000, index))
        if index % 2:
            os.close(writer)
            os.close(inherited)
        reader = os.open(path, os.O_RDONLY)
        os.fsync(reader)
        mount.kill()
        for fd in {reader} if index % 2 else {reader, writer, inherited}:
            with suppress(OSError):  # the connection is gone
                os.close(fd)
        mount.mount()
        assert path.read_bytes() == noise(1_000_000, index)


def test_a_daemon_killed_many_times_stays_whole(mount: RunningMount) -> None:
    for index in range(4):
        (mount.path / f"file-{index}").write_bytes(noise(400_000, index))
        (mount.path / "last").write_bytes(noise(100_000, index))
        mount.kill()
        mount.mount()
        assert set(os.listdir(mount.path)) == {"last", *(f"file-{n}" for n in range(index + 1))}
        assert (mount.path / "last").read_bytes() == noise(100_000, index)
    for index in range(4):
        assert (mount.path / f"file-{index}").read_bytes() == noise(400_000, index)


def test_a_dead_mount_is_named_by_commands_and_cleared_by_umount(mount: RunningMount) -> None:
    (mount.path / "file").write_bytes(b"content")
    mount.kill()
    dead = mount.ckptfs("stats", mount.path, check=False)
    assert dead.returncode == 16
    assert str(mount.path) in dead.stderr
    mount.umount()
    assert not mount.is_mounted()


def test_a_busy_mount_is_not_taken_down_and_the_user_is_named(mount: RunningMount) -> None:
    with open(mount.path / "file", "wb") as file:
        file.write(b"content")
        busy = mount.ckptfs("umount", mount.path, check=False)
        assert busy.returncode == 17
        assert str(os.getpid()) in busy.stderr
        assert mount.is_mounted()


def test_a_second_mount_of_the_same_is_refused(mount: RunningMount, tmp_path: Path) -> None:
    again = mount.ckptfs("mount", mount.path, "--store", mount.store, check=False)
    assert again.returncode == 4
    assert str(mount.path) in again.stderr
    (tmp_path / "elsewhere").mkdir()
    other = mount.ckptfs("mount", tmp_path / "elsewhere", "--store", mount.store, check=False)
    assert other.returncode == 6
    assert str(mount.pid()) in other.stderr
    (mount.store / "lock").unlink()  # what people do with a lock that is in their way
    other = mount.ckptfs("mount", tmp_path / "elsewhere", "--store", mount.store, check=False)
    assert other.returncode == 6
    assert str(mount.path) in other.stderr
    over = mount.ckptfs("mount", mount.path, "--store", tmp_path / "another store", check=False)
    assert over.returncode == 4
    assert not (tmp_path / "another store").exists()


def test_a_read_only_mount_shows_everything_and_changes_nothing(mount: RunningMount) -> None:
    before = mount.versions()
    (mount.path / "file").write_bytes(b"content")
    name = mount.wait_for_version(before)
    mount.umount()
    mount.mount("--read-only")
    assert (mount.path / "file").read_bytes() == b"content"
    assert mount.at(name, "file").read_bytes() == b"content"
    assert [snapshot["name"] for snapshot in mount.snapshots()] == [name]
    for attempt in ((mount.path / "new").touch, (mount.path / "file").unlink, mount.at("new").mkdir):
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            attempt()
    assert mount.run("snapshot", "create", check=False).returncode == 9


def test_the_store_is_next_to_the_mountpoint_when_none_is_named(unmounted: RunningMount) -> None:
    unmounted.ckptfs("mount", unmounted.path)
    assert mount_entry(unmounted.path) == (f"{unmounted.path}.store", "fuse.ckptfs")


def make_nothing(base: Path) -> None:
    """Leave the mountpoint missing."""


def make_file(base: Path) -> None:
    (base / "point").touch()


def make_full_directory(base: Path) -> None:
    (base / "point").mkdir()
    (base / "point" / "precious").touch()


def make_directory(base: Path) -> None:
    (base / "point").mkdir()


def make_other_directory_as_store(base: Path) -> None:
    make_directory(base)
    (base / "store").mkdir()
    (base / "store" / "photo.jpg").touch()


def make_store_file(base: Path) -> None:
    make_directory(base)
    (base / "store").touch()


@pytest.mark.parametrize(
    ("prepare", "store", "code"),
    [
        (make_nothing, "store", 4),
        (make_file, "store", 4),
        (make_full_directory, "store", 4),
        (make_directory, "point/store", 4),
        (make_directory, "point", 4),
        (make_other_directory_as_store, "store", 7),
        (make_store_file, "store", 7),
    ],
)
def test_what_cannot_be_mounted_is_refused_with_a_sentence(
    unmounted: RunningMount, tmp_path: Path, prepare: object, store: str, code: int
) -> None:
    prepare(tmp_path)
    refused = unmounted.ckptfs("mount", tmp_path / "point", "--store", tmp_path / store, check=False)
    assert refused.returncode == code, refused.stderr
    assert refused.stderr.startswith("ckptfs: ")
    assert "Traceback" not in refused.stderr
    assert str(tmp_path) in refused.stderr
    assert mount_entry(tmp_path / "point") is None


def test_a_mountpoint_inside_the_store_is_refused(mount: RunningMount) -> None:
    mount.umount()
    (mount.store / "inside").mkdir()
    assert mount.ckptfs("mount", mount.store / "inside", "--store", mount.store, check=False).returncode == 4


def test_a_store_of_a_newer_version_is_refused(mount: RunningMount) -> None:
    mount.umount()
    description = mount.store / "store.json"
    newer = json.loads(description.read_text())
    newer["version"] += 1
    description.chmod(0o600)
    description.write_text(json.dumps(newer))
    refused = mount.ckptfs("mount", mount.path, "--store", mount.store, check=False)
    assert refused.returncode == 8, refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["snapshot", "show", "no-such-snapshot"], 10),
        (["snapshot", "rollback", "latest~99999"], 10),
        (["snapshot", "delete", "99"], 10),
        (["snapshot", "create", "with/slash"], 12),
        (["snapshot", "create", "latest"], 12),
        (["snapshot", "frobnicate"], 2),
        (["mount"], 2),
        (["stats", "/"], 3),
    ],
)
def test_a_wrong_argument_gets_a_sentence_and_its_exit_code(
    shared_mount: RunningMount, arguments: list[str], code: int
) -> None:
    refused = shared_mount.run(*arguments, check=False)
    assert refused.returncode == code, refused.stderr
    assert refused.stderr.startswith("ckptfs: ")
    assert "Traceback" not in refused.stderr


def test_without_a_path_the_mounts_to_choose_from_are_named(
    shared_mount: RunningMount, mount: RunningMount, tmp_path: Path
) -> None:
    unclear = mount.ckptfs("stats", check=False, cwd=tmp_path)
    assert unclear.returncode == 3
    assert str(mount.path) in unclear.stderr
    assert str(shared_mount.path) in unclear.stderr
