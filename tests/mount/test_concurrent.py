"""Several processes at once, and one file against a bytearray under whatever a program may do to it."""

import hashlib
import itertools
import mmap
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.mount.running import RunningMount, tree_of

KIB = 1024
MIB = 1024 * KIB
RANKS = 8
RANK_SIZE = 4 * MIB

RANK = """
import os, pathlib, random, sys
directory, rank, step, size = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
content = random.Random(f"{rank}-{step}").randbytes(size)
with open(directory / f"rank-{rank}.bin", "wb") as own:
    for offset in range(0, size, 100_000):
        own.write(content[offset : offset + 100_000])
together = directory / f"step-{step}"
together.mkdir(exist_ok=True)
(together / f"part-{rank}").write_bytes(content[:size // 4])
"""


def content_of(rank: int, step: int) -> bytes:
    return random.Random(f"{rank}-{step}").randbytes(RANK_SIZE)


def start_ranks(directory: Path, step: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of one distributed save."""
    arguments = [(str(directory), str(rank), str(step), str(RANK_SIZE)) for rank in range(RANKS)]
    return [subprocess.Popen([sys.executable, "-c", RANK, *each]) for each in arguments]


def expected_tree(step: int) -> dict[str, str]:
    """Return the tree of the run directory after this step's save, as `tree_of` does."""
    sha256 = {(rank, at): content_of(rank, at) for rank in range(RANKS) for at in range(step + 1)}
    tree = {f"rank-{rank}.bin": sha256[rank, step] for rank in range(RANKS)}
    tree |= {f"step-{at}/part-{rank}": content[: RANK_SIZE // 4] for (rank, at), content in sha256.items()}
    return {path: hashlib.sha256(content).hexdigest() for path, content in tree.items()}


def test_eight_ranks_save_at_once_while_one_process_reads_a_snapshot(unmounted: RunningMount) -> None:
    mount = unmounted
    mount.mount(settle=1)  # the ranks of one save do not end at the same time
    run = mount.path / "run"
    run.mkdir()
    for rank in start_ranks(run, 0):
        assert rank.wait() == 0
    mount.snapshot("first")
    expected = expected_tree(0)
    assert tree_of(mount.at("first", "run")) == expected
    is_over = threading.Event()
    seen = []

    def read_the_snapshot() -> None:
        while not is_over.is_set():
            seen.append(tree_of(mount.at("first", "run")))

    reader = threading.Thread(target=read_the_snapshot)
    reader.start()
    try:
        for rank in start_ranks(run, 1):
            assert rank.wait() == 0
    finally:
        is_over.set()
        reader.join()
    assert seen
    assert all(tree == expected for tree in seen)
    mount.snapshot("second")
    assert tree_of(mount.at("second", "run")) == tree_of(run) == expected_tree(1)
    assert tree_of(mount.at("first", "run")) == expected


def test_processes_that_make_and_remove_names_in_one_directory_do_not_disturb_each_other(place: Path) -> None:
    worker = """
import os, sys
own = sys.argv[1]
for index in range(150):
    with open(f"{own}-{index}.tmp", "wb") as file:
        file.write(own.encode() * index)
    os.rename(f"{own}-{index}.tmp", f"{own}-{index}")
    if index % 3:
        os.unlink(f"{own}-{index}")
"""
    workers = [subprocess.Popen([sys.executable, "-c", worker, name], cwd=place) for name in "abcd"]
    assert [each.wait() for each in workers] == [0] * 4
    left = {f"{name}-{index}": name.encode() * index for name in "abcd" for index in range(0, 150, 3)}
    assert {path.name: path.read_bytes() for path in place.iterdir()} == left


def test_two_processes_that_write_halves_of_one_file_lose_nothing(place: Path) -> None:
    worker = """
import os, random, sys
path, half = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_WRONLY | os.O_CREAT)
for offset in range(half * 10_000, 4_000_000, 20_000):
    os.pwrite(file, random.Random(offset).randbytes(10_000), offset)
os.close(file)
"""
    workers = [subprocess.Popen([sys.executable, "-c", worker, place / "file", str(half)]) for half in (0, 1)]
    assert [each.wait() for each in workers] == [0, 0]
    expected = b"".join(random.Random(offset).randbytes(10_000) for offset in range(0, 4_000_000, 10_000))
    assert (place / "file").read_bytes() == expected


OFFSETS = st.one_of(
    st.integers(0, 1 * MIB),
    st.builds(lambda step, off: max(0, step * 64 * KIB + off), st.integers(0, 16), st.integers(-2, 2)),
)
SIZES = st.one_of(st.integers(0, 10), st.integers(0, 300 * KIB))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, SIZES, st.integers(0, 3)),
        st.tuples(st.just("write_only"), OFFSETS, SIZES, st.integers(0, 3)),
        st.tuples(st.just("append"), SIZES, st.integers(0, 3)),
        st.tuples(st.just("map"), OFFSETS, SIZES, st.integers(0, 3)),
        st.tuples(st.just("truncate"), OFFSETS),
        st.tuples(st.just("read"), OFFSETS, SIZES),
        st.tuples(st.sampled_from(["fsync", "reopen", "rename", "snapshot"])),
    ),
    min_size=1,
    max_size=12,
)
POOL = random.Random(7).randbytes(2 * MIB)


class ModelledFile:
    """A file on ckptfs and the bytearray that it has to equal, with a snapshot of both now and then."""

    _numbers = itertools.count()

    def __init__(self, mount: RunningMount) -> None:
        self.mount = mount
        self.number = next(self._numbers)
        self.path = mount.path / f"model-{self.number}"
        self.expected = bytearray()
        self.snapshots: dict[str, tuple[str, bytes]] = {}
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT)

    def data(self, size: int, seed: int) -> bytes:
        """Return bytes that repeat from call to call (so that chunks are found again), or zeros."""
        return bytes(size) if seed == 0 else POOL[seed * 1000 : seed * 1000 + size]

    def write(self, offset: int, size: int, seed: int) -> None:
        data = self.data(size, seed)
        assert os.pwrite(self.file, data, offset) == size
        if size:
            self.expected.extend(bytes(max(0, offset - len(self.expected))))
            self.expected[offset : offset + size] = data

    def write_only(self, offset: int, size: int, seed: int) -> None:
        """Write past the kernel's page cache, which handles for reading and writing go through."""
        file, self.file = self.file, os.open(self.path, os.O_WRONLY)
        try:
            self.write(offset, size, seed)
        finally:
            os.close(self.file)
            self.file = file

    def append(self, size: int, seed: int) -> None:
        self.write(len(self.expected), size, seed)

    def map(self, offset: int, size: int, seed: int) -> None:
        size = min(size, len(self.expected) - offset)
        if size > 0:
            with mmap.mmap(self.file, 0) as mapping:
                mapping[offset : offset + size] = self.data(size, seed)
            self.expected[offset : offset + size] = self.data(size, seed)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.file, size)
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    def read(self, offset: int, size: int) -> None:
        assert os.pread(self.file, size, offset) == self.expected[offset : offset + size]

    def fsync(self) -> None:
        os.fsync(self.file)

    def reopen(self) -> None:
        os.close(self.file)
        self.file = os.open(self.path, os.O_RDWR)

    def rename(self) -> None:
        new = self.path.with_name(self.path.name + "r")
        self.path.rename(new)
        self.path = new

    def snapshot(self) -> None:
        os.close(self.file)  # a snapshot shows what was committed, and the last close commits
        name = self.mount.snapshot(f"model-{self.number}-{len(self.snapshots)}")
        self.snapshots[name] = (self.path.name, bytes(self.expected))
        self.file = os.open(self.path, os.O_RDWR)

    def check(self) -> None:
        """Compare size and content, live and in every snapshot that was taken."""
        assert os.fstat(self.file).st_size == len(self.expected)
        assert self.path.read_bytes() == self.expected
        for snapshot, (name, content) in self.snapshots.items():
            assert self.mount.at(snapshot, name).read_bytes() == content


def test_readers_with_cached_and_mapped_pages_see_what_a_write_only_descriptor_wrote(place: Path) -> None:
    path, size = place / "file", 4 * MIB
    path.write_bytes(bytes(size))
    rounds = 30
    stop = threading.Event()

    def read_all() -> None:
        while not stop.is_set():
            path.read_bytes()

    noise = threading.Thread(target=read_all)  # fills the page cache while it is written to
    with open(path, "rb", buffering=0) as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        noise.start()
        try:
            for number in range(1, rounds + 1):
                content = bytes([number]) * size
                file = os.open(path, os.O_WRONLY)
                os.pwrite(file, content, 0)
                os.close(file)
                assert os.pread(reader.fileno(), size, 0) == content
                assert mapping[:] == content
        finally:
            stop.set()
            noise.join()


@pytest.mark.timeout(240)
@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_a_file_equals_a_bytearray_whatever_is_done_to_it(
    shared_mount: RunningMount, operations: list[tuple[str, ...]]
) -> None:
    modelled = ModelledFile(shared_mount)
    try:
        for name, *arguments in operations:
            note(f"{name}{tuple(arguments)}")
            getattr(modelled, name)(*arguments)
        modelled.check()
        modelled.reopen()
        modelled.check()
    finally:
        os.close(modelled.file)
        modelled.path.unlink()


def test_files_equal_their_models_after_the_daemon_was_killed(mount: RunningMount) -> None:
    seed = 20_260_101
    print(f"seed {seed}")
    chance = random.Random(seed)
    models = []
    for _ in range(6):
        modelled = ModelledFile(mount)
        for _ in range(12):
            modelled.write(chance.randrange(MIB), chance.randrange(300 * KIB), chance.randrange(4))
            if chance.random() < 0.2:
                modelled.truncate(chance.randrange(MIB))
            if chance.random() < 0.2:
                modelled.snapshot()
        os.close(modelled.file)
        models.append(modelled)
    mount.kill()
    mount.mount()
    for modelled in models:
        modelled.file = os.open(modelled.path, os.O_RDONLY)
        modelled.check()
        os.close(modelled.file)
