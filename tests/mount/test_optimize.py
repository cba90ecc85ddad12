"""Earlier versions become differences behind the back of a training job, and nothing else about them changes."""

import hashlib
import os
from pathlib import Path

import torch

from ckptfs.store import DELTA_CHAIN_MAX
from tests.mount.running import RunningMount

SAVES = 10


def train(mount: RunningMount, count: int) -> list[tuple[str, str]]:
    """Save so often over one path, each time as a version of its own; return (version, SHA-256) of each."""
    random = torch.Generator().manual_seed(3)
    weights = {f"layer.{index}": torch.randn(256, 1024, generator=random) for index in range(4)}
    versions = []
    for step in range(count):
        for tensor in weights.values():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 2e-3)
        before = mount.versions()
        state = {"step": step, "model": {name: tensor.bfloat16() for name, tensor in weights.items()}}
        torch.save(state, mount.path / "last.pt")
        name = mount.wait_for_version(before)
        versions.append((name, digest(mount.path / "last.pt")))
    return versions


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def loads(mount: RunningMount, versions: list[tuple[str, str]]) -> None:
    """Assert that every version is what was saved, and that torch reads it."""
    for step, (name, expected) in enumerate(versions):
        assert digest(mount.at(name, "last.pt")) == expected
        assert torch.load(mount.at(name, "last.pt"))["step"] == step


def test_every_version_loads_and_takes_much_less_after_optimize(unmounted: RunningMount) -> None:
    mount = unmounted
    mount.mount("--no-optimize")
    versions = train(mount, SAVES)
    mount.wait_for(lambda: mount.json("stats")["waiting_bytes"] == 0)
    before = mount.json("stats")
    assert before["uncompared_bytes"] == (SAVES - 1) * os.stat(mount.path / "last.pt").st_size
    report = mount.json("optimize")
    after = mount.json("stats", "--chains")
    assert after["uncompared_bytes"] == 0
    assert report["done_bytes"] == before["uncompared_bytes"]
    assert report["after_bytes"] == after["stored_bytes"] < 0.5 * before["stored_bytes"]
    assert sum(share["chunk_bytes"] for share in after["encodings"].values()) == after["chunk_bytes"]
    assert after["encodings"]["delta"]["chunk_bytes"] == after["delta_bytes"]
    assert len(after["depths"]) == 1 + DELTA_CHAIN_MAX
    mount.umount()
    mount.mount("--no-optimize")
    loads(mount, versions)
    assert mount.json("optimize")["done_bytes"] == 0
    loads(mount, versions)


def test_a_mount_optimizes_when_nobody_asks_it_for_anything(mount: RunningMount) -> None:
    versions = train(mount, 3)
    mount.wait_for(lambda: mount.json("stats")["uncompared_bytes"] == 0)
    mount.kill()
    mount.mount()
    loads(mount, versions)


def test_a_store_that_is_not_mounted_is_optimized_in_place(unmounted: RunningMount) -> None:
    mount = unmounted
    mount.mount("--no-optimize")
    versions = train(mount, 3)
    mount.umount()
    done = mount.ckptfs("optimize", mount.store)
    assert "gone through; the store had" in done.stdout
    assert mount.json("stats", mount.store)["uncompared_bytes"] == 0
    mount.mount()
    loads(mount, versions)
