"""What a mount does to a store, drawn from a seed: saves, renames, snapshots, rollbacks, kills, and what is
done when it is idle: encoding, differences between versions, collections with saves and kills among their steps.

Beside the tree a model of it goes on (`tests/unit/tree_model`). After every step that was journalled, what the model
shows then is one *state*. `mark` is told which states have begun to be possible and which are promised to be kept.
"""

import copy
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptfs.config import KIB, ChunkSizes
from ckptfs.store import ChunkStore, Disk, Frozen
from ckptfs.tree import Tree
from ckptfs.tree.commands import Commands
from ckptfs.tree.files import OpenFile
from ckptfs.tree.gc import ROWS_PER_STEP, Collection, collect
from ckptfs.tree.optimize import Optimizer
from ckptfs.tree.snapshots import Snapshot
from tests.unit import tree_support as support
from tests.unit.tree_model import ModelTree, Node
from tests.unit.tree_support import Clock, Seen

PACK_SIZE_MAX = 24 * KIB
SAVE_SIZE_MAX = 9 * KIB
ELEMENT_SIZE = 4
CONFIG = support.CONFIG._replace(chunk_sizes=ChunkSizes(size_min=128, mean_bits=9, size_max=2048))
SNAPSHOTS_MAX = 3
FILES = ("last.pt", "best.pt", "run/a", "run/b", "run/c")


class State(NamedTuple):
    """What the live tree, the next snapshot, and each snapshot by its name show."""

    live: dict[str, Seen]
    committed: dict[str, Seen]
    snapshots: dict[str, dict[str, Seen]]


def state_of(tree: Tree) -> State:
    """Read everything that a tree shows."""
    known: dict[tuple[int, int], bytes] = {}
    return State(
        support.dump(tree, known=known),
        support.dump(tree, tree.rows.open_epoch, known),
        {snapshot.name: support.dump(tree, snapshot.id, known) for snapshot in tree.snapshots.all()},
    )


class ZeroingDisk(Disk):
    """A disk for a filesystem without holes: what is punched becomes zeros, which is all that a reader sees of one.

    Holes are of whole units of `unit` bytes; where that is a byte, all of what is called free is gone.
    """

    def __init__(self, unit: int) -> None:
        self._unit = unit

    def can_punch(self, fd: int) -> bool:
        """Say that it can."""
        return True

    def punch(self, fd: int, offset: int, size: int, path: Path) -> int:
        """Write zeros over the whole units of a range."""
        start, end = offset + -offset % self._unit, offset + size
        end -= end % self._unit
        if start >= end:
            return 0
        self.pwrite(fd, [bytes(end - start)], start, path)
        return end - start


class Promises:
    """The marks of a workload: the youngest state that it was promised, -1 for not even a store, and that began."""

    def __init__(self) -> None:
        self.first, self.last = -1, 0

    def mark(self, kind: str, state: int) -> None:
        """Take one mark."""
        if kind == "kept":
            self.first = state
        else:
            self.last = state


class _Open(NamedTuple):
    """A file open for writing: its node in the model, and the bytes that its writer sees."""

    file: OpenFile
    node: int
    data: bytes


class Workload:
    """One run on the store at `path`, which it makes. `states` grows; promises go to `mark` as numbers of states."""

    def __init__(
        self, path: Path, seed: int, mark: Callable[[str, int], None], disk: Disk, *, reserve: bool = False
    ) -> None:
        self.path = path
        self.states = [State(*(2 * [ModelTree().seen()]), {})]
        self._tree: Tree | None = None
        self._source = random.Random(seed)
        self._mark = mark
        self._disk = disk
        self._reserve = reserve
        self._clock = Clock()
        self._model = ModelTree()
        self._taken: dict[str, tuple[Snapshot, ModelTree]] = {}
        self._journalled = copy.deepcopy((self._model, self._taken))
        self._open: dict[str, _Open] = {}
        self._frozen: Frozen | None = None
        self._collection: Collection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a tree."""
        return self._tree is not None

    @property
    def tree(self) -> Tree:
        """The tree, which is there but before the store is made and while it is opened again."""
        assert self._tree is not None
        return self._tree

    def crash(self) -> None:
        """End as a kill does: only what was journalled stays."""
        tree, self._tree = self.tree, None
        if self._collection is not None:
            with self._collection:
                self._collection = None
        tree.store.close(commit=False)

    def run(self, steps: int) -> None:
        """Make the store, take this many steps, and end as a kill does."""
        self.begin()
        for _ in range(steps):
            self.step()
        self.crash()

    def begin(self) -> None:
        """Make the store and its directory `run`."""
        self._mark("begun", 0)
        ChunkStore.create(self.path, disk=self._disk, config=CONFIG).close(commit=False)
        self._mark("kept", 0)
        self._open_tree()
        support.make_directory(self.tree, "run")
        self._model.create("run", Node(stat.S_IFDIR | 0o755))
        self.journal(durable=True)

    def _open_tree(self, *, rebuild: bool = False) -> None:
        store = ChunkStore.open(self.path, disk=self._disk, pack_size_max=PACK_SIZE_MAX, rebuild=rebuild)
        if self._reserve:
            store.hold_reserve()
        self._tree = Tree(store, wall_ns=self._clock.wall_ns, monotonic=self._clock.monotonic)
        self._optimizer = Optimizer(self._tree)

    # Promises

    def _begin_state(self) -> int:
        """Note that what is journalled next may be found from now on."""
        self._journalled = copy.deepcopy((self._model, self._taken))
        snapshots = {name: model.seen() for name, (_, model) in self._taken.items()}
        self.states.append(State(self._model.seen(), self._model.snapshot().seen(), snapshots))
        self._mark("begun", len(self.states) - 1)
        return len(self.states) - 1

    def _keep(self, state: int) -> None:
        self._mark("kept", state)

    def journal(self, *, durable: bool) -> None:
        """Journal what has changed; when `durable`, it is promised."""
        state = self._begin_state()
        self.tree.store.commit(durable=durable)
        if durable:
            self._keep(state)

    # Steps

    def step(self) -> None:
        """Take one step, and journal what came of it, or leave that to the next one."""
        source = self._source
        actions: Sequence[tuple[int, Callable[[], None]]] = (
            (12, self.save),
            (8, self.train),
            (3, self.save_killed),
            (4, self.open),
            (6, self.write),
            (3, self.fsync),
            (4, self.close),
            (5, self.rename),
            (3, self.unlink),
            (5, self.take_snapshot),
            (2, self.delete_snapshot),
            (1, self.prune),
            (2, self.roll_back),
            (3, self.checkpoint),
            (2, self.begin_checkpoint),
            (2, self.end_checkpoint),
            (3, self.encode),
            (2, self.collect),
            (4, self.optimize),
            (2, self.begin_collection),
            (3, self.end_collection),
            (2, self.kill),
            (1, self.rebuild),
        )
        (action,) = source.choices([action for _, action in actions], [weight for weight, _ in actions])
        action()
        if source.random() < 0.7:
            self.journal(durable=source.random() < 0.15)

    def _stops(self) -> bool:
        """Tell whether a save interrupts the work of idle time."""
        return self._source.random() < 0.05

    def _data(self) -> bytes:
        """Return bytes for a save: half of them such that encoding makes them smaller."""
        size = self._source.randint(0, SAVE_SIZE_MAX)
        if self._source.random() < 0.5:
            return self._source.randbytes(size)
        return bytes(self._source.choices(b"ab\0\xff", k=size))

    def _trained(self, data: bytes) -> bytes:
        """Return the bytes that a step of training makes of those before: of each float only the last bits change."""
        changed = int.from_bytes(self._source.randbytes(len(data)), "little")
        last_bits = int.from_bytes(b"\3".ljust(ELEMENT_SIZE, b"\0") * len(data), "little")
        return (int.from_bytes(data, "little") ^ changed & last_bits).to_bytes(len(data), "little")

    def _closed_path(self, *, existing: bool) -> str | None:
        """Return the path of a file that nobody has open."""
        there = [path for path, _ in self._model.walk() if path in FILES]
        candidates = [path for path in (there if existing else FILES) if path not in self._open]
        return self._source.choice(candidates) if candidates else None

    def _node(self, path: str) -> int:
        try:
            return self._model.at(path)
        except OSError:
            return self._model.create(path, Node(stat.S_IFREG | 0o644, b"", None))

    def _save(self, path: str, data: bytes) -> None:
        support.save(self.tree, path, data)
        self._model.commit(self._node(path), data)

    def save(self) -> None:
        """Write a whole file and close it."""
        if path := self._closed_path(existing=False):
            self._save(path, self._data())

    def train(self) -> None:
        """Save what training makes of a checkpoint, of which there is a version already."""
        if path := self._closed_path(existing=True):
            self.take_snapshot()
            self._save(path, self._trained(self._model.nodes[self._node(path)].data))

    def save_killed(self) -> None:
        """Write a file whose writer is killed."""
        if path := self._closed_path(existing=False):
            data = self._data() + b"torn"
            support.save(self.tree, path, data, killed=True)
            self._model.nodes[self._node(path)].data = data

    def open(self) -> None:
        """Open a file, new or not, and leave it open."""
        path = self._closed_path(existing=self._source.random() < 0.5)
        if path is None or len(self._open) == 2:
            return
        exists = any(found == path for found, _ in self._model.walk())
        file = (support.open_path if exists else support.create)(self.tree, path)
        node = self._node(path)
        self._open[path] = _Open(file, node, self._model.nodes[node].data)

    def write(self) -> None:
        """Write somewhere into an open file."""
        if self._open:
            path, (file, node, old) = self._source.choice(list(self._open.items()))
            offset, data = self._source.randint(0, len(old)), self._data()
            self.tree.files.write(file, offset, data)
            self._open[path] = _Open(file, node, old[:offset] + data + old[offset + len(data) :])

    def _commit(self, opened: _Open) -> None:
        """Note that the version of an open file is one."""
        if opened.file.dirty:
            self._model.commit(opened.node, opened.data)

    def fsync(self) -> None:
        """Make the version of an open file durable."""
        if self._open:
            opened = self._source.choice(list(self._open.values()))
            self._commit(opened)
            support.fsync(self.tree, opened.file)
            self.journal(durable=True)

    def close(self) -> None:
        """Close an open file."""
        if self._open:
            path = self._source.choice(list(self._open))
            self._commit(self._open[path])
            support.close_file(self.tree, self._open.pop(path).file)

    def rename(self) -> None:
        """Rename a file, over another one or not."""
        old, new = self._closed_path(existing=True), self._closed_path(existing=False)
        if old and new and old != new:
            support.rename(self.tree, old, new)
            self._model.rename(old, new, 0)

    def unlink(self) -> None:
        """Remove a file."""
        if path := self._closed_path(existing=True):
            support.unlink(self.tree, path)
            self._model.unlink(path)

    def take_snapshot(self) -> None:
        """Take a snapshot as the command does: it is promised."""
        if len(self._taken) < SNAPSHOTS_MAX:
            self._take(self.tree.take_snapshot(), self._model.snapshot())
            self.journal(durable=True)

    def _take(self, snapshot: Snapshot, model: ModelTree) -> None:
        self._taken[snapshot.name] = (snapshot, model)

    def delete_snapshot(self) -> None:
        """Delete a snapshot as the command does."""
        if self._taken:
            snapshot, _ = self._taken.pop(self._source.choice(list(self._taken)))
            self.tree.snapshots.delete(snapshot)
            self.journal(durable=True)

    def prune(self) -> None:
        """Delete the snapshots that a policy does not keep, as the command does."""
        for pruned in Commands(self.tree).prune(f"last={self._source.randint(1, 2)},named=no", dry_run=False):
            del self._taken[pruned["name"]]
        self.journal(durable=True)

    def roll_back(self) -> None:
        """Roll everything, or one directory, back."""
        while self._open:
            self.close()
        if not self._taken:
            return
        target, model = self._source.choice(list(self._taken.values()))
        path = self._source.choice(["", "run"])
        before = self._model.snapshot()
        saved, _ = self.tree.roll_back(target, path)
        self._take(saved, before)
        self._model.put_back(path, model)
        self.journal(durable=True)

    def begin_checkpoint(self) -> None:
        """Freeze what a later step brings to LMDB."""
        if self._frozen is None:
            self._begin_state()
            changes = self.tree.store.tables.take_changes()
            self._frozen = self.tree.store.tables.freeze()
            self.tree.store.append_journal(changes)

    def end_checkpoint(self) -> None:
        """Bring to LMDB what was frozen; younger changes are journalled already, or not yet."""
        if self._frozen is not None:
            state = len(self.states) - 1
            self.tree.store.checkpoint(self._frozen)
            self.tree.store.tables.release(self._frozen)
            self._frozen = None
            self._keep(state)

    def checkpoint(self) -> None:
        """Journal everything and bring the index up to it."""
        self.end_checkpoint()
        state = self._begin_state()
        self.tree.store.commit(checkpoint=True)
        self._keep(state)

    def encode(self) -> None:
        """Do what a mount does first when it is idle: encode what went out as it was."""
        self.checkpoint()
        self.tree.store.reencoder.encode_waiting(1 << 20, self._stops)
        self._free()

    def optimize(self) -> None:
        """Store earlier versions as differences, or some of them."""
        if self._collection is None:  # collections take turns with it
            for _ in range(self._source.randint(1, 6)):
                if (work := self._optimizer.take()) is None:
                    break
                try:
                    work(self._stops)
                finally:
                    self._optimizer.finish()
            self._free()

    def begin_collection(self) -> None:
        """Look which chunks nothing needs; they go later, with other steps in between."""
        if self._collection is None:
            self._collection = Collection(self.tree)
            self._collection.look()
            self._collection.mark()

    def end_collection(self) -> None:
        """Release what a collection has found, or some of it."""
        if self._collection is not None:
            with self._collection as collection:
                self._collection = None
                while collection.delete_rows(ROWS_PER_STEP):
                    pass
                self.journal(durable=False)
                collection.sweep(self._stops)
            self._free()

    def _free(self) -> None:
        """Free the places of records that have successors, or were released."""
        self.tree.store.reclaimer.punch()  # nothing that has just lost its use may go before the next checkpoint
        if self._source.random() < 0.7:
            self.checkpoint()
            self.tree.store.reclaimer.punch()

    def collect(self) -> None:
        """Free what nothing needs: condense the journal, rewrite packs and remove them."""
        self.checkpoint()
        collect(self.tree)

    def rebuild(self) -> None:
        """Be killed, and make the index anew from the packs."""
        self.kill(rebuild=True)

    def kill(self, *, rebuild: bool = False) -> None:
        """End without a word and open the store again: only what was journalled is there."""
        self.crash()
        self._open.clear()
        self._frozen = None
        self._open_tree(rebuild=rebuild)
        self._model, self._taken = copy.deepcopy(self._journalled)
