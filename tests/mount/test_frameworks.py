"""What training jobs and people use on files works unchanged: frameworks, array formats, databases, tools."""

import gc
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.mount.running import RunningMount, tree_of

WORKER = Path(__file__).with_name("dcp_worker.py")


def training_state(seed: int) -> dict[str, object]:
    """Return what a training loop saves: weights of several types, an optimizer, plain values."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer{index}.weight": torch.randn(256, 300, generator=generator) for index in range(4)}
    weights["half"] = torch.randn(1000, generator=generator).to(torch.bfloat16)
    weights["empty"] = torch.empty(0, 3)
    return {"model": weights, "exp_avg": torch.randn(256, 300, generator=generator), "step": seed, "lr": 3e-4}


def same(one: object, other: object) -> bool:
    """Compare nested states bit by bit."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def test_torch_saves_and_loads_by_path(place: Path) -> None:
    for seed in (1, 2):
        torch.save(training_state(seed), place / "state.pt")
        assert same(torch.load(place / "state.pt"), training_state(seed))


def test_torch_saves_and_loads_through_a_file_object(place: Path) -> None:
    with open(place / "state.pt", "wb") as file:
        torch.save(training_state(1), file)
    with open(place / "state.pt", "rb") as file:
        assert same(torch.load(file), training_state(1))


def test_torch_saves_and_loads_the_legacy_format(place: Path) -> None:
    torch.save(training_state(1), place / "state.pt", _use_new_zipfile_serialization=False)
    assert same(torch.load(place / "state.pt"), training_state(1))


def test_torch_loads_by_memory_map(place: Path) -> None:
    torch.save(training_state(1), place / "state.pt")
    loaded = torch.load(place / "state.pt", mmap=True)
    assert same(loaded, training_state(1))
    del loaded
    gc.collect()  # nothing may hold the mapping when the mount ends


def test_safetensors_saved_over_the_same_name_keep_every_version(mount: RunningMount) -> None:
    names = []
    for seed in (1, 2, 3):
        before = mount.versions()
        save_file(training_state(seed)["model"], mount.path / "model.safetensors")
        names.append(mount.wait_for_version(before))
    for seed, name in zip((1, 2, 3), names, strict=True):
        assert same(load_file(mount.at(name, "model.safetensors")), training_state(seed)["model"])
        assert os.listdir(mount.at(name)) == ["model.safetensors"]
    assert same(load_file(mount.path / "model.safetensors"), training_state(3)["model"])
    gc.collect()


def test_two_ranks_save_and_load_one_distributed_checkpoint(unmounted: RunningMount, tmp_path: Path) -> None:
    mount = unmounted
    mount.mount(settle=2)  # the ranks wait for each other between their files and .metadata
    before = mount.versions()
    target = mount.path / "step-100"
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), "2", tmp_path / "rendezvous", target],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    name = mount.wait_for_version(before)
    assert set(os.listdir(target)) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert tree_of(mount.at(name, "step-100")) == tree_of(target)


def test_numpy_saves_loads_and_maps(place: Path) -> None:
    array = np.random.default_rng(1).standard_normal((400, 500))
    np.save(place / "one.npy", array)
    np.savez(place / "many.npz", a=array, b=array.astype(np.float16))
    np.savez_compressed(place / "small.npz", a=array)
    assert np.array_equal(np.load(place / "one.npy"), array)
    with np.load(place / "many.npz") as loaded:
        assert np.array_equal(loaded["a"], array)
        assert np.array_equal(loaded["b"], array.astype(np.float16))
    with np.load(place / "small.npz") as loaded:
        assert np.array_equal(loaded["a"], array)
    mapped = np.lib.format.open_memmap(place / "one.npy", mode="r+")
    mapped[100:300] = 7.0
    mapped.flush()
    del mapped
    array[100:300] = 7.0
    assert np.array_equal(np.load(place / "one.npy"), array)
    fresh = np.memmap(place / "raw", dtype=np.float32, mode="w+", shape=(1000, 1000))
    fresh[::7] = 3.0
    fresh.flush()
    del fresh
    assert np.fromfile(place / "raw", dtype=np.float32).sum() == 3.0 * 1000 * len(range(0, 1000, 7))


def test_hdf5_files_are_written_extended_and_patched(place: Path) -> None:
    data = np.random.default_rng(1).standard_normal((300, 200))
    with h5py.File(place / "data.h5", "w") as file:
        file.create_dataset("weights", data=data, maxshape=(None, 200), chunks=(50, 200))
        file.attrs["step"] = 1
    with h5py.File(place / "data.h5", "r+") as file:
        file["weights"].resize((600, 200))
        file["weights"][300:] = data * 2
        file["weights"][10] = 0.0
        file.attrs["step"] = 2
        file.create_dataset("more", data=data[:10], compression="gzip")
    with h5py.File(place / "data.h5", "r") as file:
        assert file.attrs["step"] == 2
        assert np.array_equal(file["weights"][300:], data * 2)
        assert np.array_equal(file["weights"][11:300], data[11:])
        assert not file["weights"][10].any()
        assert np.array_equal(file["more"][:], data[:10])


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_commits_rolls_back_and_stays_whole(place: Path, journal: str) -> None:
    path = place / "runs.db"
    for first in (0, 500):
        connection = sqlite3.connect(path)
        connection.execute(f"pragma journal_mode = {journal}")
        connection.execute("create table if not exists runs (step integer primary key, loss real)")
        with connection:
            connection.executemany("insert into runs values (?, ?)", ((first + n, n / 7) for n in range(500)))
        connection.execute("delete from runs")
        connection.rollback()
        connection.close()
    connection = sqlite3.connect(path)
    assert connection.execute("select count(*), max(step) from runs").fetchone() == (1000, 999)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


def run(*command: object, cwd: Path) -> str:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "LC_ALL": "C"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_a_git_repository_lives_here(place: Path) -> None:
    who = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")
    run("git", "init", "--quiet", cwd=place)
    for number in range(3):
        for name in ("train.py", "config.yaml", "deep/er/notes.txt"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(f"{name} {number}\n" * 200)
        run("git", "add", ".", cwd=place)
        run("git", *who, "commit", "--quiet", "-m", f"change {number}", cwd=place)
    run("git", "gc", "--quiet", cwd=place)
    run("git", "fsck", "--strict", cwd=place)
    assert run("git", "status", "--porcelain", cwd=place) == ""
    assert len(run("git", "log", "--oneline", cwd=place).splitlines()) == 3


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tree with everything that copying tools care about."""
    root = tmp_path_factory.mktemp("source") / "run"
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "weights.bin").write_bytes(np.random.default_rng(1).bytes(900_000))
    (root / "deep" / "notes.txt").write_text("notes\n")
    (root / "deep" / "read-only").write_text("do not touch")
    (root / "deep" / "read-only").chmod(0o440)
    (root / "latest").symlink_to("weights.bin")
    os.link(root / "weights.bin", root / "deep" / "same.bin")
    with open(root / "sparse", "wb") as file:
        file.truncate(3_000_000)
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**18, 10**18 + 123_456_789), follow_symlinks=False)
    return root


def attributes(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return mode, time of change, link count (of files) and link target of everything below a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        links = 0 if path.is_dir() else info.st_nlink
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (info.st_mode, info.st_mtime_ns, links, target)
    return found


def test_cp_keeps_everything(source: Path, place: Path) -> None:
    run("cp", "-a", source, place / "copy", cwd=place)
    assert attributes(place / "copy") == attributes(source)
    assert tree_of(place / "copy") == tree_of(source)


def test_a_second_rsync_has_nothing_to_do(source: Path, place: Path) -> None:
    run("rsync", "-aH", f"{source}/", place / "copy", cwd=place)
    assert attributes(place / "copy") == attributes(source)
    assert tree_of(place / "copy") == tree_of(source)
    assert run("rsync", "-aH", "--itemize-changes", f"{source}/", place / "copy", cwd=place) == ""
    assert run("rsync", "-aH", "--itemize-changes", "--checksum", f"{source}/", place / "copy", cwd=place) == ""


def test_tar_packs_and_unpacks(source: Path, place: Path) -> None:
    run("tar", "--posix", "-cf", place / "run.tar", "-C", source.parent, "run", cwd=place)
    run("tar", "-xpf", place / "run.tar", "-C", place, cwd=place)
    assert attributes(place / "run") == attributes(source)
    assert tree_of(place / "run") == tree_of(source)
