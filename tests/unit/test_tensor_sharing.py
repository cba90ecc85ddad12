"""The same tensors have the same chunks, whichever format and header they are in."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ckptfs.config import KIB, MIB
from ckptfs.store import ChunkStore
from ckptfs.store.reference import Buffer
from ckptfs.tree import Tree
from ckptfs.tree.files import OpenFile
from tests.unit.tree_support import NoSyncDisk, close_file, create, open_path, read

WRITE_SIZE = MIB


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a tree in a store with chunks as large as real ones."""
    tree = Tree(ChunkStore.create(tmp_path / "store", disk=NoSyncDisk()))
    yield tree
    tree.store.close()


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return about 100 MB of tensors of 1 MB and more, in bf16 and fp32."""
    torch.manual_seed(seed)
    weights = {f"layers.{number}.weight": torch.randn(512, 1024).bfloat16() for number in range(24)}
    weights |= {f"layers.{number}.up": torch.randn(1000, 1001).bfloat16() for number in range(10)}
    return weights | {f"state.{number}.exp_avg": torch.randn(700, 1024) for number in range(20)}


def as_torch(tensors: dict[str, torch.Tensor]) -> bytes:
    return torch_bytes({"step": 100, "model": tensors})


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def run_jobs(file: OpenFile) -> None:
    """Do the work on a file that is due, as the mount does while it is written."""
    while (job := file.content.take_job()) is not None:
        job.run()
        file.content.finish_job()


def stored_by(tree: Tree, path: str, data: bytes) -> int:
    """Write a file as a program does, call by call; return the bytes that the store grew by."""
    before = tree.store.appended_bytes
    file = create(tree, path)
    for offset in range(0, len(data), WRITE_SIZE):
        tree.files.write(file, offset, data[offset : offset + WRITE_SIZE])
        run_jobs(file)
    close_file(tree, file)
    assert read(tree, path) == data
    return tree.store.appended_bytes - before


def test_a_state_saved_in_another_format_shares_its_chunks(tree: Tree) -> None:
    tensors = state()
    first, second = as_torch(tensors), safetensors.torch.save(tensors)
    assert len(first) > 100 * 1000 * 1000
    assert stored_by(tree, "state.pt", first) >= len(first)
    assert stored_by(tree, "state.safetensors", second) <= 0.05 * len(second)
    assert len(first) / tree.store.stats().chunks > 64 * KIB, "chunks around the tensors are few"


def test_a_header_that_grows_leaves_the_tensors_shared(tree: Tree) -> None:
    tensors = dict(list(state().items())[:8])
    data = safetensors.torch.save(tensors)
    stored_by(tree, "a", data)
    assert stored_by(tree, "b", safetensors.torch.save(tensors, metadata={"note": "n" * 999})) <= 0.01 * len(data)


def test_a_saved_file_that_is_changed_in_place_reads_back(tree: Tree) -> None:
    tensors = dict(list(state().items())[:8])
    data = bytearray(as_torch(tensors))
    stored_by(tree, "state.pt", bytes(data))
    dice = random.Random(1)
    file = open_path(tree, "state.pt")
    for _ in range(20):
        offset, patch = dice.randrange(len(data)), dice.randbytes(dice.randrange(1, 50_000))
        tree.files.write(file, offset, patch)
        data[offset : offset + len(patch)] = patch
    close_file(tree, file)
    assert read(tree, "state.pt") == data


def test_a_file_written_anew_after_truncation_is_cut_at_its_tensors(tree: Tree) -> None:
    tensors = dict(list(state().items())[:8])
    stored_by(tree, "a", as_torch(tensors))
    file = create(tree, "b")
    tree.files.write(file, 0, b"something else")
    tree.files.truncate(file, 0)
    before = tree.store.appended_bytes
    data = safetensors.torch.save(tensors)
    tree.files.write(file, 0, data)
    close_file(tree, file)
    assert read(tree, "b") == data
    assert tree.store.appended_bytes - before <= 0.05 * len(data)


def test_a_version_has_the_layout_of_its_tensors_until_it_is_written_anew(tree: Tree) -> None:
    """Whatever format they are saved in; what is changed in place has the tensors that it had."""
    tensors = dict(list(state().items())[:3])
    layouts = []
    for path, data in (("a.pt", torch_bytes(tensors)), ("a.safetensors", safetensors.torch.save(tensors))):
        stored_by(tree, path, data)
        layouts.append(tree.names.resolve(path).layout)
    assert layouts[0] == layouts[1] != 0
    file = open_path(tree, "a.pt")
    tree.files.write(file, 2 * MIB, b"other")
    close_file(tree, file)
    assert tree.names.resolve("a.pt").layout == layouts[0]
    file = open_path(tree, "a.pt")
    tree.files.truncate(file, 0)
    tree.files.write(file, 0, b"no tensors")
    close_file(tree, file)
    assert tree.names.resolve("a.pt").layout == 0


class Written(io.RawIOBase):
    """An open file of the tree as a program writes it, going back where it likes."""

    def __init__(self, tree: Tree, file: OpenFile) -> None:
        self._tree, self._file, self._offset = tree, file, 0

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = offset + (self._file.content.size if whence == io.SEEK_END else 0)
        return self._offset

    def write(self, data: Buffer) -> int:
        size = memoryview(data).nbytes
        self._tree.files.write(self._file, self._offset, bytes(data))
        run_jobs(self._file)
        self._offset += size
        return size


def test_headers_that_are_written_again_keep_the_cuts(tree: Tree) -> None:
    """numpy goes back to the header of a zip member once the member is there."""
    tensors = dict(list(state().items())[:12])
    stored_by(tree, "a", as_torch(tensors))
    before = tree.store.appended_bytes
    file = create(tree, "b")
    np.savez(Written(tree, file), **{name: tensor.view(torch.uint8).numpy() for name, tensor in tensors.items()})
    close_file(tree, file)
    with np.load(io.BytesIO(read(tree, "b"))) as arrays:
        assert all((arrays[name] == tensor.view(torch.uint8).numpy()).all() for name, tensor in tensors.items())
    assert tree.store.appended_bytes - before <= 0.05 * file.content.size
