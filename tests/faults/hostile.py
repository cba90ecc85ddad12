"""Stores that somebody has tampered with: bytes changed anywhere, and rows that are well sealed and make no sense.

Whatever is in a store, opening it, reading all of it and saving end, in bounded time and memory, as they should or with
an error of `ckptfs.errors` or an OSError, which the mount turns into an errno. Where only the index was tampered with,
what is shown is what was written. A process of its own does it: a crash of the interpreter, or one that goes on for
ever, is seen as well.
"""

import logging
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import zstandard

from ckptfs.cli.main import main
from ckptfs.config import FORMAT_VERSION, GIB, KIB
from ckptfs.errors import CkptfsError, DamagedError, NotAStoreError, StoreReadOnlyError, StoreVersionError
from ckptfs.store import ChunkStore, Disk, description, never, records
from ckptfs.store.codec import Encoding
from ckptfs.store.compare import COMPARED
from ckptfs.store.condensed import NAME, Condensed
from ckptfs.store.packs import PackIdentity
from ckptfs.store.records import RecordBytes, RecordType, Row
from ckptfs.store.schema import TREE_TABLES, Table
from ckptfs.store.tables import KEY_SIZE_MAX, Changes
from ckptfs.tree.gc import collect
from ckptfs.tree.optimize import Optimizer, optimize_part
from tests.faults.crashes import scratch
from tests.faults.workload import Promises, State, Workload, state_of
from tests.unit import tree_support as support

STEPS = 25
STORE_SEED = 3
REPAIRED_EVERY = 3
"""One of so many stores goes through `ckptfs repair` before it is opened."""
SECONDS_MAX = 20
MEMORY_MAX = 1 * GIB
"""What a child may take besides what its parent, a worker with other tests behind it, had taken before."""
REFUSALS = (0, DamagedError.exit_code, NotAStoreError.exit_code, StoreVersionError.exit_code)
"""What a repair of a store that was tampered with may end with."""
CLEAN_ERRORS = (CkptfsError, OSError)
"""What a store may end with; the mount turns either into an errno."""
_COUNT = struct.Struct("Q")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGING = {
    **dict.fromkeys(("os.chmod", "os.chown", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime"), 1),
    **dict.fromkeys(("os.link", "os.rename", "os.symlink", "os.setxattr"), 2),
}
"""Audit events of calls that change files, and how many of their arguments are paths."""


def make_store(path: Path, seed: int) -> None:
    """Make a store with a bit of everything; half of it is in the index, the rest only in the packs."""
    Workload(path, seed, Promises().mark, Disk()).run(STEPS)


def change_bytes(path: Path, source: random.Random, names: tuple[str, ...]) -> None:
    """Change, cut off or repeat some bytes of one of these files."""
    file = path / source.choice(names)
    data = bytearray(file.read_bytes())
    for _ in range(source.randint(1, 8)):
        at = source.randrange(len(data))
        kind = source.randrange(4)
        if kind == 0:
            data[at] = source.randrange(256)
        elif kind == 1:
            data[at : at + 8] = source.choice((bytes(8), b"\xff" * 8, source.randbytes(8)))
        elif kind == 2:
            start = source.randrange(len(data))
            data[at : at + 64] = data[start : start + 64]
        elif source.random() < 0.2:
            del data[max(at, 1) :]
    file.write_bytes(data)


def change_rows(path: Path, source: random.Random) -> None:
    """Journal rows that are sealed as they should be, and are nonsense."""
    with ChunkStore.open(path) as store:
        rows = [(table, key, value) for table in TREE_TABLES for key, value in store.tables.scan(table)]
        changed = [Row(*_distorted(source, *source.choice(rows))) for _ in range(source.randint(1, 4))]
        store.append_journal(Changes(store.tables.take_changes().generation, tuple(changed)))
        store.close(commit=False)


def add_records(path: Path, source: random.Random) -> None:
    """Append records of chunks that are sealed as they should be, and say what no store says."""
    with ChunkStore.open(path) as store:
        batch = [_forged(source, store) for _ in range(source.randint(1, 3))]
        with store._end.lock:
            store._end.append_chunks(batch, store.next_number)
        store.append_journal(Changes(store.tables.take_changes().generation, (Row(Table.META, b"forged", b""),)))
        store.close(commit=False)


@cache
def _bomb() -> bytes:
    """Return a frame of a few kilobytes that is 2 GiB of zeros."""
    size, part = 1 << 31, bytes(1 << 20)
    compressor = zstandard.ZstdCompressor().compressobj(size=size)
    return b"".join([*(compressor.compress(part) for _ in range(size // len(part))), compressor.flush()])


def change_indexed(path: Path, source: random.Random) -> None:
    """Write rows to the index that have the check that they should have, and are nonsense."""
    with ChunkStore.open(path) as store:
        store.commit(checkpoint=True)
        with store.view() as view:
            rows = [(table, *row) for table in COMPARED for row in view.scan(table)]
        for _ in range(source.randint(1, 4)):
            table, key, value = _distorted(source, *source.choice(rows))
            if table == Table.CHUNK_IDS:  # all of one size
                key, value = key[:16].ljust(16), (value or b"")[:8].rjust(8, b"\0")
            if key and len(key) <= KEY_SIZE_MAX:
                store._environment.write([(table, [(key, value)])])
        store.close(commit=False)


def condense(path: Path) -> tuple[Condensed, PackIdentity]:
    """Condense the journal of a store, and lose its index: a rebuild begins with what is condensed."""
    with ChunkStore.open(path) as store:
        store.commit(checkpoint=True)
        assert store._condensed.write(store._environment, never)
        identity = PackIdentity(description.fingerprint(store.config), store.config.seed)
        condensed = store._condensed
        store.close(commit=False)
    (path / "index.lmdb").unlink()
    return condensed, identity


def seal_condensed(condensed: Condensed, identity: PackIdentity, *parts: Sequence[Row]) -> None:
    """Write a condensed journal of rows as they are given, sealed as it should be: its state, its rows, its state."""
    assert condensed.mark is not None
    position, seed = condensed.mark.position, identity.seed
    built = [
        records.build_pack_header(0, FORMAT_VERSION, identity.fingerprint, seed, 0),
        *(records.build_metadata(number, position, rows, seed) for number, rows in enumerate(parts, 1)),
    ]
    condensed.path.write_bytes(b"".join(buffer for each in built for buffer in each.buffers))


def change_condensed(path: Path, source: random.Random) -> None:
    """Condense the journal, and lose the index: to nonsense that is sealed as it should be, or with bytes changed."""
    condensed, identity = condense(path)
    if source.random() < 0.3:
        change_bytes(path, source, (NAME,))
        return
    first, *rows, last = condensed.rows()
    for at in source.sample(range(len(rows)), source.randint(1, 4)):
        table, key, value = rows[at]
        rows[at] = Row(*_distorted(source, table, key, value or b""))
    if source.random() < 0.2:
        first = last = Row(*_distorted(source, *first))
    seal_condensed(condensed, identity, [first], rows, [last])


def _forged(source: random.Random, store: ChunkStore) -> RecordBytes:
    """Return a record that takes the place of that of a chunk, or comes next."""
    number = source.randint(1, store.next_number)
    raw, chunk_id = store._fetcher.read_with_id(number) if number < store.next_number else (b"new" * 99, bytes(16))
    encoding, payload = source.choice(
        (
            (Encoding.RAW, raw),
            (Encoding.ZSTD, source.choice((_bomb(), zstandard.ZstdCompressor().compress(raw)))),
            (source.choice(list(Encoding)), source.randbytes(source.randrange(200))),
            (source.choice(list(Encoding)), raw[: source.randrange(len(raw) + 1)]),
            (source.randrange(256), raw),
        )
    )
    bases = [
        source.choice((number, source.randint(1, store.next_number), source.getrandbits(64)))
        for _ in range(source.choice((0, 0, 1, 2, 255)))
    ]
    raw_size = source.choice((len(raw), len(raw), 0, 1 << 31, (1 << 32) - 1))
    return records.build(
        RecordType.CHUNK, number, chunk_id, raw_size, encoding, payload, bases=records.pack_bases(bases)
    )


def _distorted(source: random.Random, table: int, key: bytes, value: bytes) -> tuple[int, bytes, bytes | None]:
    kind = source.randrange(6)
    if kind == 0:
        return table, key, source.randbytes(source.randrange(100))
    if kind == 1:
        return table, key, value[: source.randrange(len(value) + 1)]
    if kind == 2 and value:
        at = source.randrange(len(value))
        return table, key, value[:at] + source.choice((b"\xff", b"\0", b"/")) + value[at + 1 :]
    if kind == 3:
        return table, source.choice((source.randbytes(source.randint(1, 40)), b"", bytes(600))), value
    if kind == 4:
        at = source.randrange(len(key))
        return table, key[:at] + source.choice((b"\xff", b"\0", b"/", b"\1")) + key[at + 1 :], value
    return table, key, None


def change_packs(path: Path, source: random.Random) -> None:
    """Change bytes of a pack."""
    change_bytes(path, source, tuple(f"packs/{name}" for name in sorted(os.listdir(path / "packs"))))


def change_packs_alone(path: Path, source: random.Random) -> None:
    """Change bytes of a pack, and lose the index."""
    change_packs(path, source)
    (path / "index.lmdb").unlink()


class Way(NamedTuple):
    """A way to tamper with a store; one of a greater `weight` is taken more often."""

    weight: int
    tamper: Callable[[Path, random.Random], None]


WAYS = {
    "packs": Way(1, change_packs),
    "packs without an index": Way(1, change_packs_alone),
    "rows": Way(2, change_rows),
    "records": Way(2, add_records),
    "description": Way(1, lambda path, source: change_bytes(path, source, ("store.json",))),
    "index": Way(2, lambda path, source: change_bytes(path, source, ("index.lmdb",))),
    "indexed": Way(2, change_indexed),
    "condensed": Way(2, change_condensed),
}


def judge_hostile(seeds: Iterable[int]) -> list[str]:
    """Tamper with a store in a way drawn from each seed; return what did not end as it should."""
    logging.disable()  # a store like these has much to say
    losses = []
    with scratch() as name:
        original, path = Path(name) / "original", Path(name) / "changed"
        make_store(original, STORE_SEED)
        written = read_state(original)
        for seed in seeds:
            source = random.Random(seed)
            shutil.copytree(original, path)
            (way,) = source.choices([*WAYS], [each.weight for each in WAYS.values()])
            WAYS[way].tamper(path, source)
            repaired = seed % REPAIRED_EVERY == 0
            said = outcome(path, repaired=repaired, written=written if way == "index" else None)
            if left := {each.name for each in Path(name).iterdir()} - {"original", "changed"}:
                said += f"files outside of the store: {left}"
            if said:
                losses.append(f"--tampering {seed}: {way}: {said}")
            shutil.rmtree(path)
    return losses


def judge_flips(seed: int, count: int) -> list[str]:
    """Flip bits, drawn from a seed, of an index as a kill leaves it; return what was shown and not written."""
    logging.disable()
    source = random.Random(seed)
    with scratch() as name:
        path = Path(name) / "store"
        make_store(path, STORE_SEED)
        size = (path / "index.lmdb").stat().st_size
        flips = [(source.randrange(size), source.randrange(8)) for _ in range(count)]
        return [f"--seed {seed} --flips {count}: {shown}" for shown in flips_shown(path, read_state(path), flips)]


def read_state(path: Path) -> State:
    """Return all that a store shows; it is not changed."""
    tree = support.open_tree(path, read_only=True)
    with closing(tree.store):
        return state_of(tree)


def outcome(path: Path, *, repaired: bool = False, written: State | None = None) -> str:
    """Open a store, read all of it and save, in a child; return what is not as it should be, "" for nothing.

    With `written`, what is shown has to be just that, or an error. It is `repaired` before, where that is asked for,
    by the command that also verifies every byte.
    """

    def use() -> None:
        if repaired:
            _repair(path)
        else:
            code = main(["check", str(path), "--read-data"])
            assert code in (*REFUSALS, StoreReadOnlyError.exit_code), f"a check ended with {code}"
        tree = support.open_tree(path)
        shown = state_of(tree)
        assert written in (None, shown), "other bytes or names are shown than were written"
        support.save(tree, "afterwards", b"saved" * 500)
        tree.store.commit(checkpoint=True)
        with suppress(*CLEAN_ERRORS):
            collect(tree)
        with suppress(*CLEAN_ERRORS):
            optimize_part(Optimizer(tree), tree.store, never)
        tree.store.close(commit=False)
        if written is not None:
            after = read_state(path)
            assert after.live.pop("/afterwards").data == b"saved" * 500
            assert (after.live, after.snapshots) == (shown.live, shown.snapshots), "a save changed the rest"

    def use_without_error() -> None:
        with suppress(*CLEAN_ERRORS):
            use()

    return said_by_child(path, use_without_error)


def flips_shown(path: Path, written: State, flips: Sequence[tuple[int, int]]) -> list[str]:
    """Flip bits of the index of a store, one at a time, and return which made it show anything but what was written.

    A flip is an offset and the number of a bit. An error is as good as what was written. The store has no seal.
    """
    index = path / "index.lmdb"
    whole = index.read_bytes()
    shown: list[str] = []
    with mmap.mmap(-1, _COUNT.size) as done:  # shared with the children
        while (begun := _COUNT.unpack_from(done)[0]) < len(flips):

            def look(begun: int = begun) -> None:
                with open(index, "rb+", 0) as file:
                    for number, (offset, bit) in enumerate(flips[begun:], begun):
                        _COUNT.pack_into(done, 0, number + 1)
                        signal.alarm(SECONDS_MAX)
                        os.pwrite(file.fileno(), bytes([whole[offset] ^ 1 << bit]), offset)
                        with suppress(*CLEAN_ERRORS):
                            assert read_state(path) == written, "other bytes or names are shown than were written"
                        os.pwrite(file.fileno(), whole[offset : offset + 1], offset)
                assert read_state(path) == written, "a flip left something behind, and those after it meant nothing"

            if said := said_by_child(path, look):
                offset, bit = flips[_COUNT.unpack_from(done)[0] - 1]
                shown.append(f"bit {bit} at {offset} of the index: {said}")
                index.write_bytes(whole)
    return shown


def data_size() -> int:
    """Return how many bytes of private memory this process has, as RLIMIT_DATA counts them."""
    status = Path("/proc/self/status").read_text()
    return KIB * int(status.partition("VmData:")[2].split()[0])


def said_by_child(path: Path, use: Callable[[], None]) -> str:
    """Use a store in a child whose time and memory are bounded; return how that went wrong, "" where it did not.

    It goes wrong, too, when anything is written that does not lie in the store.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        memory_max = data_size() + MEMORY_MAX
        resource.setrlimit(resource.RLIMIT_DATA, (memory_max, memory_max))
        signal.alarm(SECONDS_MAX)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        outside = written_outside(path)
        try:
            use()
            assert not outside, f"written outside of the store: {outside}"
        except BaseException as error:  # the child says what it met, and ends without the parent's clean-up
            os.write(writing, "".join(traceback.format_exception(error)).encode()[-1500:])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    return f"ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else said


def written_outside(path: Path) -> list[str]:
    """Return a list that gets, from now on, whatever this process does to a file that does not lie below `path`."""
    outside: list[str] = []
    store = os.path.realpath(path)

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            name, _, flags = arguments
            names: tuple[object, ...] = (name,) if isinstance(flags, int) and flags & _WRITING else ()
        elif event in _CHANGING:
            names = arguments[: _CHANGING[event]]
        else:
            return
        for name in names:
            if isinstance(name, int):
                continue  # a descriptor, which was opened before
            where = os.path.realpath(os.fsdecode(name))  # type: ignore[arg-type]
            if not (where == store or where.startswith(f"{store}/")):
                outside.append(f"{event} {where}")

    sys.addaudithook(note)
    return outside


def _repair(path: Path) -> None:
    """Run `ckptfs repair --rebuild-index`; it may find damage, and not fail over it."""
    code = main(["repair", str(path), "--rebuild-index"])
    assert code in REFUSALS, f"a repair ended with {code}"
