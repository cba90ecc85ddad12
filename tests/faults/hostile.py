"""Stores that somebody has tampered with: bytes changed anywhere, and rows that are well sealed and make no sense.

Whatever is in a store, opening it, reading all of it and saving end, in bounded time and memory, as they should or with
an error of `ckptfs.errors` or an OSError, which the mount turns into an errno. Where only the index was tampered with,
what is shown is what was written. A process of its own does it: a crash of the interpreter, or one that goes on for
ever, is seen as well.
"""

import logging
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from ckptfs.cli.main import main
from ckptfs.config import GIB
from ckptfs.errors import CkptfsError, DamagedError, NotAStoreError, StoreVersionError
from ckptfs.store import ChunkStore, Disk
from ckptfs.store.records import Row
from ckptfs.store.schema import TREE_TABLES
from ckptfs.store.tables import Changes
from tests.faults.crashes import scratch
from tests.faults.workload import Promises, State, Workload, state_of
from tests.unit import tree_support as support

STEPS = 25
STORE_SEED = 3
WAYS = ("packs", "packs without an index", "rows", "rows", "description", "index", "index", "index")
REPAIRED_EVERY = 3
"""One of so many stores goes through `ckptfs repair` before it is opened."""
SECONDS_MAX = 20
MEMORY_MAX = 1 * GIB
REFUSALS = (0, DamagedError.exit_code, NotAStoreError.exit_code, StoreVersionError.exit_code)
"""What a repair of a store that was tampered with may end with."""
_WHOLE, _ERROR, _BUG = 0, 1, 2


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
        return table, source.randbytes(source.randint(1, 40)), value
    if kind == 4:
        at = source.randrange(len(key))
        return table, key[:at] + source.choice((b"\xff", b"\0", b"/", b"\1")) + key[at + 1 :], value
    return table, key, None


def judge_hostile(seeds: Iterable[int]) -> list[str]:
    """Tamper with a store in a way drawn from each seed; return what did not end as it should."""
    logging.disable()  # a store like these has much to say
    losses = []
    with scratch() as name:
        original, path = Path(name) / "original", Path(name) / "changed"
        make_store(original, STORE_SEED)
        written = read_state(original)
        packs = tuple(f"packs/{pack.name}" for pack in (original / "packs").iterdir())
        for seed in seeds:
            source = random.Random(seed)
            shutil.copytree(original, path)
            way = source.choice(WAYS)
            if way == "rows":
                change_rows(path, source)
            elif way == "description":
                change_bytes(path, source, ("store.json",))
            elif way == "index":
                change_bytes(path, source, ("index.lmdb",))
            else:
                change_bytes(path, source, packs)
                if way == "packs without an index":
                    (path / "index.lmdb").unlink()
            repaired = seed % REPAIRED_EVERY == 0
            said = outcome(path, repaired=repaired, written=written if way == "index" else None)
            if left := {each.name for each in Path(name).iterdir()} - {"original", "changed"}:
                said += f"files outside of the store: {left}"
            if said:
                losses.append(f"--tampering {seed}: {way}: {said}")
            shutil.rmtree(path)
    return losses


def read_state(path: Path) -> State:
    """Return all that a store shows; it is not changed."""
    tree = support.open_tree(path, read_only=True)
    with closing(tree.store):
        return state_of(tree)


def outcome(path: Path, *, read_only: bool = False, repaired: bool = False, written: State | None = None) -> str:
    """Open a store, read all of it and save, in a child; return what is not as it should be, "" for nothing.

    Nothing is saved when it is opened `read_only`. With `written`, what is shown has to be just that, or an error.
    It is `repaired` before, where that is asked for, by the command that also verifies every byte.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX, MEMORY_MAX))
        signal.alarm(SECONDS_MAX)
        code = _BUG
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            if repaired:
                _repair(path)
            tree = support.open_tree(path, read_only=read_only)
            shown = state_of(tree)
            assert written in (None, shown), "other bytes or names are shown than were written"
            if not read_only:
                support.save(tree, "afterwards", b"saved" * 500)
                tree.store.commit(checkpoint=True)
                tree.store.close(commit=False)
                if written is not None:
                    after = read_state(path)
                    assert after.live.pop("/afterwards").data == b"saved" * 500
                    assert (after.live, after.snapshots) == (shown.live, shown.snapshots), "a save changed the rest"
            code = _WHOLE
        except (CkptfsError, OSError):
            code = _ERROR
        except BaseException as error:  # the child says what it met, and ends without the parent's clean-up
            os.write(writing, "".join(traceback.format_exception(error)).encode()[-1500:])
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return said if os.WEXITSTATUS(status) == _BUG else ""


def _repair(path: Path) -> None:
    """Run `ckptfs repair --rebuild-index`; it may find damage, and not fail over it."""
    code = main(["repair", str(path), "--rebuild-index"])
    assert code in REFUSALS, f"a repair ended with {code}"
