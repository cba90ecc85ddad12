"""Every completed save becomes a version: automatic snapshots, `.snapshots`, and the commands on a live mount."""

import errno
import os
import random
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch

from tests.mount.running import RunningMount, tree_of

KIB = 1024


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def save(mount: RunningMount, path: str, content: bytes) -> str:
    """Write one file and return the name of the version that holds it."""
    before = mount.versions()
    (mount.path / path).parent.mkdir(parents=True, exist_ok=True)
    (mount.path / path).write_bytes(content)
    name = mount.wait_for_version(before)
    assert mount.at(name, path).read_bytes() == content
    return name


def automatic(mount: RunningMount) -> list[dict[str, object]]:
    """Return the automatic snapshots; a manual one is taken first, so that none is still to come."""
    mount.snapshot("nothing-is-pending")
    return [snapshot for snapshot in mount.snapshots() if snapshot["trigger"] == "auto"]


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_each_torch_save_becomes_a_version_without_being_asked_for(mount: RunningMount) -> None:
    names = []
    for step in (1, 2, 3):
        before = mount.versions()
        torch.save({"w": torch.full((200, 300), float(step)), "step": step}, mount.path / "last.pt")
        names.append(mount.wait_for_version(before))
    assert [snapshot["name"] for snapshot in automatic(mount)] == names
    for step, name in zip((1, 2, 3), names, strict=True):
        old = torch.load(mount.at(name, "last.pt"))
        assert old["step"] == step
        assert torch.equal(old["w"], torch.full((200, 300), float(step)))


def test_a_save_of_several_files_is_one_version(mount: RunningMount) -> None:
    before = mount.versions()
    directory = mount.path / "checkpoint-100"
    directory.mkdir()
    for index, name in enumerate(["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"]):
        (directory / name).write_bytes(noise(200 * KIB, index))
    name = mount.wait_for_version(before)
    assert tree_of(mount.at(name, "checkpoint-100")) == tree_of(directory)
    assert [snapshot["name"] for snapshot in automatic(mount)] == [name]
    (snapshot,) = [entry for entry in mount.snapshots() if entry["name"] == name]
    assert snapshot["changed_files"] == 4
    assert snapshot["written_bytes"] == 4 * 200 * KIB


def test_a_job_that_keeps_only_its_last_checkpoint_loses_none_to_its_haste(unmounted: RunningMount) -> None:
    """Saves that follow each other faster than a version is due, each of which removes the one before."""
    mount = unmounted
    mount.mount(settle=60)
    saved = {}
    for step in range(1, 6):
        directory = mount.path / f"checkpoint-{step}"
        directory.mkdir()
        for index, name in enumerate(["config.json", "model.safetensors", "optimizer.pt"]):
            (directory / name).write_bytes(noise(200 * KIB if index else 100, 10 * step + index))
        saved[directory.name] = tree_of(directory)
        shutil.rmtree(mount.path / f"checkpoint-{step - 1}", ignore_errors=True)
    kept = [mount.at(snapshot["name"], ".") for snapshot in automatic(mount)]
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"):
        assert saved[name] in [tree_of(version / name) for version in kept if (version / name).exists()]
    assert len(kept) == 2


def test_a_log_that_goes_on_does_not_hold_back_a_version_and_is_in_it_as_it_stands(mount: RunningMount) -> None:
    with open(mount.path / "train.log", "ab", buffering=0) as log:
        log.write(b"step 1\n")
        before = mount.versions()
        (mount.path / "step-1.pt").write_bytes(noise(100 * KIB, 1))
        name = None
        lines = 1

        def appended_until_a_version_shows_the_save() -> bool:
            nonlocal name, lines
            lines += 1
            log.write(f"step {lines}\n".encode())
            name = next((new for new in mount.versions() - before if mount.at(new, "step-1.pt").exists()), None)
            return name is not None

        mount.wait_for(appended_until_a_version_shows_the_save)
        logged = mount.at(name, "train.log").read_text().splitlines()
        assert 1 <= len(logged) <= lines
        assert logged == [f"step {line}" for line in range(1, len(logged) + 1)]


def test_a_file_that_is_being_written_is_in_no_version_yet(mount: RunningMount) -> None:
    save(mount, "last.pt", b"complete")
    with open(mount.path / "last.pt", "r+b", buffering=0) as writer:
        writer.write(b"half of")
        mount.snapshot("meanwhile")
        assert mount.at("meanwhile", "last.pt").read_bytes() == b"complete"
        assert (mount.path / "last.pt").read_bytes() == b"half ofe"


def test_what_fsync_confirmed_is_committed_while_the_file_stays_open(mount: RunningMount) -> None:
    with open(mount.path / "file", "wb", buffering=0) as writer:
        writer.write(b"confirmed")
        os.fsync(writer.fileno())
        writer.write(b", and not")
        mount.snapshot("now")
        assert mount.at("now", "file").read_bytes() == b"confirmed"


def test_mkdir_takes_and_rmdir_deletes_a_snapshot(mount: RunningMount) -> None:
    save(mount, "file", b"one")
    mount.at("before-lr-change").mkdir()
    (mount.path / "file").write_bytes(b"two")
    assert mount.at("before-lr-change", "file").read_bytes() == b"one"
    assert mount.snapshots()[1]["trigger"] == "manual"
    with fails_with(errno.EEXIST):
        mount.at("before-lr-change").mkdir()
    mount.at("before-lr-change").rmdir()
    assert "before-lr-change" not in mount.versions()
    assert not mount.at("before-lr-change").exists()
    assert (mount.path / "file").read_bytes() == b"two"


def test_latest_points_at_the_newest_snapshot(mount: RunningMount) -> None:
    first = save(mount, "file", b"one")
    assert os.readlink(mount.at("latest")) == first
    mount.snapshot("second")
    assert os.readlink(mount.at("latest")) == "second"
    mount.at("second").rmdir()
    assert os.readlink(mount.at("latest")) == first
    assert mount.at("latest", "file").read_bytes() == b"one"


def test_the_history_is_hidden_from_listings_and_yet_reachable(mount: RunningMount) -> None:
    name = save(mount, "file", b"one")
    assert os.listdir(mount.path) == ["file"]
    assert [path.name for path in mount.path.rglob("*")] == ["file"]
    assert set(os.listdir(mount.path / ".snapshots")) == {name, "latest"}
    assert (mount.path / ".snapshots").is_dir()
    (mount.path / "sub").mkdir()
    with fails_with(errno.ENOENT):
        os.listdir(mount.path / "sub" / ".snapshots")


def test_everything_below_a_snapshot_is_read_only(mount: RunningMount) -> None:
    name = save(mount, "run/file", b"one")
    directory, file = mount.at(name, "run"), mount.at(name, "run/file")
    for attempt in (
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        lambda: file.write_bytes(b"two"),
        (directory / "new").touch,
        (directory / "new").mkdir,
        directory.rmdir,
        file.unlink,
        lambda: file.rename(directory / "other"),
        lambda: file.chmod(0o600),
        lambda: os.utime(file),
        lambda: os.truncate(file, 0),
        lambda: os.symlink("x", directory / "link"),
        lambda: os.setxattr(file, "user.a", b""),
    ):
        with fails_with(errno.EROFS):
            attempt()
    with pytest.raises(OSError, check=lambda error: error.errno in (errno.EXDEV, errno.EROFS)):
        os.link(file, mount.path / "link")
    assert file.read_bytes() == b"one"


def test_a_version_keeps_names_links_and_attributes(mount: RunningMount) -> None:
    (mount.path / "deep" / "er").mkdir(parents=True)
    (mount.path / "deep" / "er" / "file").write_bytes(b"content")
    (mount.path / "deep" / "er" / "file").chmod(0o640)
    os.setxattr(mount.path / "deep" / "er" / "file", "user.run", b"7")
    (mount.path / "link").symlink_to("deep/er")
    os.utime(mount.path / "deep" / "er" / "file", ns=(123, 10**18 + 1))
    mount.snapshot("then")
    (mount.path / "link").unlink()
    (mount.path / "deep").rename(mount.path / "moved")
    (mount.path / "moved" / "er" / "file").unlink()
    old = mount.at("then", "deep/er/file")
    assert old.read_bytes() == b"content"
    assert (old.stat().st_mode & 0o7777, old.stat().st_mtime_ns) == (0o640, 10**18 + 1)
    assert os.getxattr(old, "user.run") == b"7"
    assert mount.at("then", "link/file").read_bytes() == b"content"
    assert set(os.listdir(mount.at("then"))) == {"deep", "link"}


def test_rollback_is_seen_by_the_next_open_with_size_and_time_and_a_warm_cache(mount: RunningMount) -> None:
    one, two = noise(700 * KIB, 1), noise(300 * KIB, 2)
    first = save(mount, "last.pt", one)
    time_then = (mount.path / "last.pt").stat().st_mtime_ns
    save(mount, "last.pt", two)
    (mount.path / "since").write_bytes(b"new")
    assert (mount.path / "last.pt").read_bytes() == two
    assert set(os.listdir(mount.path)) == {"last.pt", "since"}
    mount.run("snapshot", "rollback", first)
    info = (mount.path / "last.pt").stat()
    assert (info.st_size, info.st_mtime_ns) == (len(one), time_then)
    assert (mount.path / "last.pt").read_bytes() == one
    assert os.listdir(mount.path) == ["last.pt"]
    assert not (mount.path / "since").exists()


def test_a_rollback_brings_back_what_was_deleted_and_can_be_undone(mount: RunningMount) -> None:
    first = save(mount, "run/step-1.pt", b"one")
    (mount.path / "run" / "step-1.pt").unlink()
    (mount.path / "run").rmdir()
    save(mount, "other", b"two")
    answer = mount.json("snapshot", "rollback", first)
    assert answer["target"]["name"] == first
    assert answer["saved"]["trigger"] == "rollback"
    assert (mount.path / "run" / "step-1.pt").read_bytes() == b"one"
    assert not (mount.path / "other").exists()
    mount.json("snapshot", "rollback", answer["saved"]["name"])
    assert not (mount.path / "run").exists()
    assert (mount.path / "other").read_bytes() == b"two"


def test_a_rollback_of_one_directory_leaves_its_neighbours(mount: RunningMount) -> None:
    save(mount, "run-a/last.pt", b"a1")
    first = save(mount, "run-b/last.pt", b"b1")
    save(mount, "run-a/last.pt", b"a2")
    save(mount, "run-b/last.pt", b"b2")
    mount.run("snapshot", "rollback", first, mount.path / "run-a")
    assert (mount.path / "run-a" / "last.pt").read_bytes() == b"a1"
    assert (mount.path / "run-b" / "last.pt").read_bytes() == b"b2"


def test_a_rollback_refuses_while_a_file_that_it_changes_is_open_for_writing(mount: RunningMount) -> None:
    first = save(mount, "run/last.pt", b"one")
    save(mount, "run/last.pt", b"two")
    save(mount, "run/untouched", b"same")
    with open(mount.path / "run" / "last.pt", "r+b"):
        refused = mount.run("snapshot", "rollback", first, check=False)
        assert refused.returncode == 13
        assert "run/last.pt" in refused.stderr
        assert (mount.path / "run" / "last.pt").read_bytes() == b"two"
    mount.run("snapshot", "rollback", first)
    assert (mount.path / "run" / "last.pt").read_bytes() == b"one"


def test_a_reader_that_had_the_file_open_reads_on_after_a_rollback(mount: RunningMount) -> None:
    first = save(mount, "last.pt", b"one")
    save(mount, "last.pt", b"two, longer")
    with open(mount.path / "last.pt", "rb") as reader:
        mount.run("snapshot", "rollback", first)
        assert reader.read() in (b"one", b"two, longer")


def test_snapshots_are_named_in_every_way_that_the_help_promises(mount: RunningMount) -> None:
    names = [save(mount, "file", content) for content in (b"one", b"two", b"three")]
    listed = mount.snapshots()
    for index, name in enumerate(names):
        for reference in (name, str(listed[index]["id"]), f"latest~{2 - index}"):
            assert mount.json("snapshot", "show", reference)["name"] == name
    assert mount.json("snapshot", "show", "latest")["name"] == names[-1]


def test_a_prefix_is_enough_where_it_is_unique(mount: RunningMount) -> None:
    mount.snapshot("alpha-one")
    mount.snapshot("alpha-two")
    mount.snapshot("beta")
    assert mount.json("snapshot", "show", "be")["name"] == "beta"
    assert mount.run("snapshot", "show", "alpha", check=False).returncode == 11
    unknown = mount.run("snapshot", "show", "alpha-on3", check=False)
    assert unknown.returncode == 10
    assert "alpha-one" in unknown.stderr


def test_show_tells_what_a_version_changed(mount: RunningMount) -> None:
    save(mount, "stays", b"same")
    save(mount, "goes", b"one")
    (mount.path / "goes").unlink()
    (mount.path / "stays").write_bytes(b"modified")
    (mount.path / "comes").write_bytes(b"new")
    mount.snapshot("changed")
    changes = {change["path"]: change["change"] for change in mount.json("snapshot", "show", "changed")["changes"]}
    assert changes == {"goes": "removed", "stays": "modified", "comes": "added"}


def test_a_created_snapshot_has_its_name_and_label(mount: RunningMount) -> None:
    (mount.path / "file").write_bytes(b"content")
    mount.run("snapshot", "create", "good", "--label", "loss 2.31, lr 3e-4")
    mount.run("snapshot", "create")
    good, unnamed = (entry for entry in mount.snapshots() if entry["trigger"] == "manual")
    assert (good["name"], good["label"]) == ("good", "loss 2.31, lr 3e-4")
    assert unnamed["name"]
    assert mount.run("snapshot", "create", "good", check=False).returncode == 12


def test_deleted_snapshots_are_gone_and_the_others_whole(mount: RunningMount) -> None:
    names = [save(mount, "file", noise(100 * KIB, index)) for index in range(4)]
    mount.run("snapshot", "delete", names[0], names[2])
    assert mount.versions() == {names[1], names[3]}
    assert mount.at(names[1], "file").read_bytes() == noise(100 * KIB, 1)
    assert mount.at(names[3], "file").read_bytes() == noise(100 * KIB, 3)


def test_list_of_a_directory_shows_the_versions_that_changed_it(mount: RunningMount) -> None:
    in_a = save(mount, "run-a/last.pt", b"a")
    in_b = save(mount, "run-b/last.pt", b"b")
    assert [entry["name"] for entry in mount.json("snapshot", "list", mount.path / "run-a")] == [in_a]
    assert [entry["name"] for entry in mount.json("snapshot", "list", mount.path / "run-b")] == [in_b]


def test_every_command_works_on_a_store_that_is_not_mounted(mount: RunningMount) -> None:
    store = mount.store
    names = [save(mount, "file", content) for content in (b"one", b"two", b"three")]
    while_mounted = mount.snapshots()
    mount.umount()
    assert mount.snapshots() == while_mounted
    assert mount.json("stats", store)["snapshots"] == 3
    assert mount.json("snapshot", "show", names[1], "--at", store)["name"] == names[1]
    mount.run("snapshot", "create", "by-hand", "--at", store)
    mount.run("snapshot", "rollback", names[0], store)
    mount.run("snapshot", "delete", names[1], "--at", store)
    mount.mount()
    assert (mount.path / "file").read_bytes() == b"one"
    assert {names[0], names[2], "by-hand"} < mount.versions()
    assert names[1] not in mount.versions()


def test_list_and_stats_speak_the_promised_json(mount: RunningMount) -> None:
    content = noise(500 * KIB, 1)
    save(mount, "one.pt", content)
    save(mount, "two.pt", content)
    first, second = mount.snapshots()
    assert {"id", "name", "created", "trigger", "label", "changed_files", "written_bytes", "stored_bytes"} <= set(first)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", first["created"])
    assert first["id"] < second["id"]
    assert first["written_bytes"] == second["written_bytes"] == len(content)
    assert second["stored_bytes"] < len(content) / 10 < first["stored_bytes"]
    stats = mount.json("stats")
    assert stats["live_bytes"] == 2 * len(content)
    assert stats["version_bytes"] == 2 * len(content)
    assert len(content) * 0.9 < stats["stored_bytes"] < 2 * len(content)
    assert stats["snapshots"] == 2
    assert stats["chunks"] >= len(content) // (256 * KIB)
    assert stats["kernel"]


def test_a_small_save_takes_less_disk_than_its_bytes_when_it_was_idle(mount: RunningMount) -> None:
    content = bytes(byte & 0x0F for byte in noise(3 * 1024 * KIB, 1))
    save(mount, "small.pt", content)
    mount.wait_for(lambda: mount.json("stats")["stored_bytes"] < len(content) * 0.8)


def test_a_change_of_4_kib_stores_a_few_chunks(mount: RunningMount) -> None:
    save(mount, "large", noise(20 * 1024 * KIB, 1))
    before = mount.versions()
    with open(mount.path / "large", "r+b") as file:
        file.seek(9_999_999)
        file.write(noise(4 * KIB, 2))
    mount.wait_for_version(before)
    assert mount.snapshots()[-1]["stored_bytes"] < 1024 * KIB


def test_the_root_may_not_be_given_a_file_in_place_of_its_history(mount: RunningMount, tmp_path: Path) -> None:
    (mount.path / "file").touch()
    for attempt in (
        (mount.path / ".snapshots").mkdir,
        (mount.path / ".snapshots").rmdir,
        lambda: (mount.path / "file").rename(mount.path / ".snapshots"),
        lambda: (mount.path / ".snapshots").rename(mount.path / "history"),
    ):
        with pytest.raises(OSError):
            attempt()
    assert (mount.path / ".snapshots").is_dir()


def test_a_file_without_a_name_is_not_the_one_that_a_rollback_puts_back(mount: RunningMount) -> None:
    path = mount.path / "model.pt"
    path.write_bytes(b"saved")
    path.chmod(0o640)
    first = mount.snapshot("first")
    with path.open("r+b", buffering=0) as file:
        fd = file.fileno()
        path.unlink()
        file.write(b"nameless")
        mount.run("snapshot", "rollback", first)
        assert path.read_bytes() == b"saved"
        file.write(b" and longer")  # after that the kernel asks for the size
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 19)
        os.fchmod(fd, 0o600)
        os.utime(fd, (5, 7))
        os.ftruncate(fd, 4)
        os.fsync(fd)
        there = os.fstat(fd)
        assert (stat.S_IMODE(there.st_mode), there.st_nlink, there.st_size) == (0o600, 0, 4)
        assert os.pread(fd, 100, 0) == b"name"
        assert path.stat().st_ino != there.st_ino
        with path.open("r+b") as again:
            assert again.read() == b"saved"
    back = path.stat()
    assert (stat.S_IMODE(back.st_mode), back.st_nlink, path.read_bytes()) == (0o640, 1, b"saved")
    mount.run("check", "--read-data")


def test_a_directory_that_was_removed_under_somebody_and_put_back_takes_files(mount: RunningMount) -> None:
    directory = mount.path / "run"
    directory.mkdir()
    (directory / "old").write_bytes(b"old")
    first = mount.snapshot("first")
    fd = os.open(directory, os.O_RDONLY)  # as a shell has it that stands in it
    shutil.rmtree(directory)
    mount.run("snapshot", "rollback", first)
    (directory / "new").write_bytes(b"new")
    assert sorted(os.listdir(directory)) == ["new", "old"]
    assert os.listdir(fd) == []
    os.close(fd)
    mount.run("check")


def test_a_reader_of_what_was_rolled_back_and_then_removed_goes_on_reading(mount: RunningMount) -> None:
    old, new = os.urandom(3 << 20), os.urandom(3 << 20)
    (mount.path / "model").write_bytes(old)
    mount.snapshot("before")
    (mount.path / "model").write_bytes(new)
    with open(mount.path / "model", "rb", buffering=0) as reader:
        mount.run("snapshot", "rollback", "before")
        assert (mount.path / "model").read_bytes() == old
        (mount.path / "model").unlink()
        assert reader.read(len(new)) == new
