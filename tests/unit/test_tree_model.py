"""The tree against a model: names, contents and versions stay right through commits, kills, crashes and rollbacks."""

import copy
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptfs.errors import OpenFilesError, UsageError
from ckptfs.store import Frozen, Reclamation
from ckptfs.tree.extents import load_manifest
from ckptfs.tree.files import OpenFile
from ckptfs.tree.gc import Collection, collect
from ckptfs.tree.inode import Inode
from ckptfs.tree.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from ckptfs.tree.rows import LIVE
from ckptfs.tree.snapshots import Snapshot
from tests.unit import tree_support as support
from tests.unit.tree_model import ModelTree, Node
from tests.unit.tree_support import OWNER, Clock, Seen

PACK_SIZE_MAX = 3000
SNAPSHOTS_MAX = 5
HANDLES_MAX = 3

names = st.sampled_from("abc")
picks = st.integers(0, 1 << 16)
contents = st.tuples(st.integers(0, 3), st.integers(0, 1500)).map(lambda each: bytes([65 + each[0]]) * each[1])


@dataclass
class ModelHandle:
    """A handle for writing: the real file, its node, and the bytes that whoever opened it sees."""

    file: OpenFile
    node: int


@dataclass
class Taken:
    """A snapshot and what it showed when it was taken, which it has to show for ever."""

    snapshot: Snapshot
    model: ModelTree
    seen: dict[str, Seen]
    inodes: dict[int, Inode]


class TreeModel(RuleBasedStateMachine):
    """A tree and its model side by side. Buffers of open files are the model's `buffers`, by node."""

    @initialize(can_punch=st.booleans())
    def begin(self, can_punch: bool) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="tree-model-"))
        self.clock = Clock()
        self.disk = support.NoSyncDisk() if can_punch else support.NoPunchDisk()
        support.new_store(self.base / "store").close()
        self._start_again()
        self.model = ModelTree()
        self.taken: list[Taken] = []
        self.collection: Collection | None = None
        # Not from nothing: most of what can go wrong needs committed files, a hard link and a snapshot to begin with.
        self.make_directory(0, "a", 0o755)
        self.save(1, "b", b"first", False)
        self.save(0, "c", b"second", False)
        self.link(2, 0, "b")
        assert [path for path, _ in self.model.walk()] == ["", "a", "a/b", "b", "c"]
        self.take_snapshot()
        support.journal(self.tree)
        self.note_journalled()

    def teardown(self) -> None:
        if hasattr(self, "tree"):
            try:
                for _ in list(self.handles):
                    self.close(0, killed=False)
                self.same_as_model()
                self.reopen()
                self.same_as_model()
                self.delete_all_snapshots()
                collect(self.tree)
                self.same_as_model()
                self.only_what_is_needed()
            finally:
                self.tree.store.close(commit=False)
                shutil.rmtree(self.base)

    def delete_all_snapshots(self) -> None:
        """Delete what is left, the middle first: the live tree and the others must not notice."""
        while self.taken:
            self.delete_snapshot(len(self.taken) // 2)
            self.same_as_model()

    def only_what_is_needed(self) -> None:
        """Assert that nothing is left but what the live tree shows."""
        needed = set()
        for epoch in (self.tree.rows.open_epoch, LIVE):
            for inode in filter(lambda each: each.is_file, support.raw_inodes(self.tree, epoch).values()):
                extents = load_manifest(self.tree.rows.tables, inode.manifest, inode.size)
                needed |= {extent.number for extent in extents.between(0, inode.size)}
        assert self.tree.store.stats().chunks == len(needed - {0})

    # Choosing

    def choose(self, pick: int, wanted: Callable[[Node], bool] = lambda node: True) -> str | None:
        found = [path for path, number in self.model.walk() if path and wanted(self.model.nodes[number])]
        return found[pick % len(found)] if found else None

    def new_path(self, pick: int, name: str) -> str:
        """Return a name, free or not, in some directory."""
        found = [path for path, number in self.model.walk() if self.model.nodes[number].is_dir]
        directory = found[pick % len(found)]
        return f"{directory}/{name}" if directory.count("/") < 2 and directory else name

    def both(self, real: Callable[[], object], model: Callable[[], object]) -> bool:
        """Do the same to the tree and the model; both work or both fail with the same errno."""
        before = copy.deepcopy(self.model)
        expected: int | None = None
        try:
            model()
        except OSError as error:
            expected = error.errno
            self.model = before
        try:
            real()
        except OSError as error:
            assert error.errno == expected
        else:
            assert expected is None
        return expected is None

    # Names

    @rule(pick=picks, name=names, mode=st.sampled_from([0o755, 0o700]))
    def make_directory(self, pick: int, name: str, mode: int) -> None:
        path = self.new_path(pick, name)
        node = Node(stat.S_IFDIR | mode)
        self.both(lambda: support.make_directory(self.tree, path, mode), lambda: self.model.create(path, node))

    @rule(pick=picks, name=names, points_to=st.sampled_from([b"a", b"b/c"]))
    def symlink(self, pick: int, name: str, points_to: bytes) -> None:
        path = self.new_path(pick, name)
        mode = stat.S_IFLNK | 0o777
        self.both(
            lambda: self.tree.names.create(*support.split(self.tree, path), mode, OWNER, target=points_to),
            lambda: self.model.create(path, Node(mode, points_to)),
        )

    @rule(old=picks, pick=picks, name=names)
    def link(self, old: int, pick: int, name: str) -> None:
        source, path = self.choose(old), self.new_path(pick, name)
        if source:
            self.both(lambda: support.link(self.tree, source, path), lambda: self.model.link(source, path))

    @rule(pick=picks)
    def unlink(self, pick: int) -> None:
        if path := self.choose(pick):
            self.both(lambda: support.unlink(self.tree, path), lambda: self.model.unlink(path))

    @rule(pick=picks)
    def rmdir(self, pick: int) -> None:
        if path := self.choose(pick):
            self.both(lambda: self.tree.names.rmdir(*support.split(self.tree, path)), lambda: self.model.rmdir(path))

    @rule(old=picks, pick=picks, name=names, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: int, pick: int, name: str, flags: int) -> None:
        source, path = self.choose(old), self.new_path(pick, name)
        if source:
            self.both(
                lambda: support.rename(self.tree, source, path, flags), lambda: self.model.rename(source, path, flags)
            )

    @rule(old=picks, new=picks, flags=st.sampled_from([0, 0, RENAME_EXCHANGE]))
    def rename_over(self, old: int, new: int, flags: int) -> None:
        source, path = self.choose(old), self.choose(new)
        if source and path:
            self.both(
                lambda: support.rename(self.tree, source, path, flags), lambda: self.model.rename(source, path, flags)
            )

    # Attributes

    @rule(pick=picks, mode=st.sampled_from([0o600, 0o644, 0o711]))
    def chmod(self, pick: int, mode: int) -> None:
        if path := self.choose(pick, lambda node: not stat.S_ISLNK(node.mode)):
            inode, node = self.tree.names.resolve(path), self.model.nodes[self.model.at(path)]
            self.tree.names.change_attributes(inode._replace(mode=stat.S_IFMT(inode.mode) | mode))
            node.mode = stat.S_IFMT(node.mode) | mode

    @rule(pick=picks, name=st.sampled_from([b"user.x", b"user.y"]), value=st.sampled_from([None, b"", b"v", b"w"]))
    def xattr(self, pick: int, name: bytes, value: bytes | None) -> None:
        if path := self.choose(pick):
            ino, node = self.tree.names.resolve(path).ino, self.model.nodes[self.model.at(path)]
            if value is not None:
                self.tree.xattrs.set(ino, name, value)
                node.xattrs[name] = value
            elif node.xattrs.pop(name, None) is not None:
                self.tree.xattrs.remove(ino, name)

    # Files

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(pick=picks, name=names)
    def create(self, pick: int, name: str) -> None:
        path = self.new_path(pick, name)
        node = Node(stat.S_IFREG | 0o644, b"", None)
        opened: list[OpenFile] = []
        if self.both(lambda: opened.append(support.create(self.tree, path)), lambda: self.model.create(path, node)):
            number = self.model.at(path)
            self.buffers[number] = b""
            self.handles.append(ModelHandle(opened[0], number))

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(pick=picks)
    def open(self, pick: int) -> None:
        if path := self.choose(pick, lambda node: stat.S_ISREG(node.mode)):
            number = self.model.at(path)
            self.buffers.setdefault(number, self.model.nodes[number].data)
            self.handles.append(ModelHandle(support.open_path(self.tree, path), number))

    @precondition(lambda self: self.handles)
    @rule(pick=picks, offset=st.integers(0, 2000), data=contents)
    def write(self, pick: int, offset: int, data: bytes) -> None:
        handle = self.handles[pick % len(self.handles)]
        if not data:
            return
        buffer = self.buffers[handle.node]
        self.tree.files.write(handle.file, offset, data)
        self.buffers[handle.node] = buffer[:offset].ljust(offset, b"\0") + data + buffer[offset + len(data) :]

    @precondition(lambda self: self.handles)
    @rule(pick=picks, size=st.integers(0, 2000))
    def truncate(self, pick: int, size: int) -> None:
        handle = self.handles[pick % len(self.handles)]
        self.tree.files.truncate(handle.file, size)
        self.buffers[handle.node] = self.buffers[handle.node][:size].ljust(size, b"\0")

    def _committed(self, handle: ModelHandle) -> None:
        """Do in the model what a commit of the file does, before it happens."""
        if handle.file.dirty and self.model.links()[handle.node]:
            data = self.buffers[handle.node]
            if handle.file.interrupted:
                self.model.nodes[handle.node].data = data
            else:
                self.model.commit(handle.node, data)

    @precondition(lambda self: self.handles)
    @rule(pick=picks, killed=st.booleans())
    def close(self, pick: int, killed: bool) -> None:
        handle = self.handles.pop(pick % len(self.handles))
        if killed and handle.file.dirty:
            handle.file.interrupted = True
        last = all(other.file is not handle.file for other in self.handles)
        assert last == (handle.file.writers == 1)
        if last:
            self._committed(handle)
            del self.buffers[handle.node]
        support.close_file(self.tree, handle.file, killed=killed)

    @precondition(lambda self: self.handles)
    @rule(pick=picks)
    def fsync(self, pick: int) -> None:
        handle = self.handles[pick % len(self.handles)]
        if not handle.file.interrupted:
            self._committed(handle)
            support.fsync(self.tree, handle.file)

    @rule(pick=picks, name=names, data=contents, killed=st.sampled_from([False, False, True]))
    def save(self, pick: int, name: str, data: bytes, killed: bool) -> None:
        path = self.new_path(pick, name)
        slot = self.model.place(path)[0].slots.get(name)
        if slot is None:
            number = self.model.create(path, Node(stat.S_IFREG | 0o644, b"", None))
        elif stat.S_ISREG(self.model.nodes[slot.node].mode) and slot.node not in self.buffers:
            number = slot.node
        else:
            return
        support.save(self.tree, path, data, killed=killed)
        self._saved(number, data, killed)

    @rule(pick=picks, data=contents, killed=st.booleans())
    def overwrite(self, pick: int, data: bytes, killed: bool) -> None:
        if path := self.choose(pick, lambda node: stat.S_ISREG(node.mode)):
            number = self.model.at(path)
            if number not in self.buffers:
                support.save(self.tree, path, data, killed=killed)
                self._saved(number, data, killed)

    def _saved(self, number: int, data: bytes, killed: bool) -> None:
        if killed:
            self.model.nodes[number].data = data
        else:
            self.model.commit(number, data)

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(pick=picks, data=contents)
    def begin_save_by_rename(self, pick: int, data: bytes) -> None:
        """Leave a file open that is half written and renamed over another, as safetensors does."""
        if path := self.choose(pick, lambda node: not node.is_dir):
            file = support.create(self.tree, "temporary")
            number = self.model.create("temporary", Node(stat.S_IFREG | 0o644, b"", None))
            if data:
                self.tree.files.write(file, 0, data)
            self.buffers[number] = data
            self.handles.append(ModelHandle(file, number))
            support.rename(self.tree, "temporary", path)
            self.model.rename("temporary", path, 0)

    # Versions

    @precondition(lambda self: len(self.taken) < SNAPSHOTS_MAX)
    @rule()
    def take_snapshot(self) -> None:
        self._taken(self.tree.take_snapshot(), self.model.snapshot())

    def _taken(self, snapshot: Snapshot, model: ModelTree) -> None:
        seen = support.dump(self.tree, snapshot.id)
        assert seen == model.seen()
        self.taken.append(Taken(snapshot, model, seen, support.raw_inodes(self.tree, snapshot.id)))

    @precondition(lambda self: self.taken)
    @rule(pick=picks, steps=st.integers(0, 20))
    def begin_to_delete_a_snapshot(self, pick: int, steps: int) -> None:
        """What is left of the deletion comes later, or never."""
        doomed = self.taken.pop(pick % len(self.taken))
        deletion = self.tree.snapshots.deletion(doomed.snapshot, rows_per_step=1)
        next(deletion)
        self.deletions.append(islice(deletion, steps))

    @precondition(lambda self: self.deletions)
    @rule(pick=picks)
    def go_on_deleting(self, pick: int) -> None:
        for _ in self.deletions.pop(pick % len(self.deletions)):
            pass

    @precondition(lambda self: self.taken)
    @rule(pick=picks)
    def delete_snapshot(self, pick: int) -> None:
        doomed = self.taken.pop(pick % len(self.taken))
        self.tree.snapshots.delete(doomed.snapshot)

    @precondition(lambda self: self.taken)
    @rule(pick=picks, whole=st.booleans(), path_pick=picks)
    def roll_back(self, pick: int, whole: bool, path_pick: int) -> None:
        target = self.taken[pick % len(self.taken)]
        known = sorted({path for model in (self.model, target.model) for path, _ in model.walk()})
        path = "" if whole else known[path_pick % len(known)]
        before = self.model.snapshot()
        try:
            saved, _ = self.tree.roll_back(target.snapshot, path)
        except UsageError:
            assert not self._can_go_back(path, target.model)
            return
        except OpenFilesError:
            assert self._open_in(path)
            return
        assert self._can_go_back(path, target.model)
        assert not any(handle.file.dirty for handle in self._open_in(path))
        self._taken(saved, before)
        kept_open = {handle.node for handle in self.handles if not handle.file.unlinked}
        outside = set(kept_open) - {handle.node for handle in self._open_in(path)}
        still = {number: paths for number in outside if (paths := self.model.paths_of(number))}
        inside = {handle.node: self.model.paths_of(handle.node) for handle in self._open_in(path)}
        self.model.put_back(path, target.model)
        self._follow_handles(inside | {n: p for n, p in still.items() if not path})

    def _can_go_back(self, path: str, old: ModelTree) -> bool:
        try:
            old.at(path)
            directory = self.model.place(path)[0]
        except OSError:
            return False
        return directory.is_dir

    def _open_in(self, path: str) -> list[ModelHandle]:
        """Return the handles of files that have a name at or below a path."""
        return [
            handle
            for handle in self.handles
            if any(not path or each == path or each.startswith(path + "/") for each in self.model.paths_of(handle.node))
        ]

    def _follow_handles(self, where: dict[int, list[str]]) -> None:
        """Give handles of files that a rollback left in their place the node that is there in the model now."""
        moved: dict[int, int] = {}
        for handle in self.handles:
            if handle.node in where and not handle.file.unlinked:
                number = next(
                    number
                    for number in (self.model.at(path) for path in where[handle.node] if self._exists(path))
                    if self.model.nodes[number].data == self.model.nodes[handle.node].data
                )
                moved[handle.node] = number
                handle.node = number
        for old, new in moved.items():
            self.buffers[new] = self.buffers.pop(old)

    def _exists(self, path: str) -> bool:
        try:
            self.model.at(path)
        except OSError:
            return False
        return True

    # The store

    def note_journalled(self) -> None:
        self.journalled = copy.deepcopy((self.model, self.taken))

    @rule()
    def journal(self) -> None:
        support.journal(self.tree)
        self.note_journalled()

    @precondition(lambda self: self.frozen is None)
    @rule()
    def begin_checkpoint(self) -> None:
        changes = self.tree.store.tables.take_changes()
        self.frozen = self.tree.store.tables.freeze()
        self.tree.store.append_journal(changes)
        self.note_journalled()

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def end_checkpoint(self) -> None:
        assert self.frozen is not None
        self.tree.store.checkpoint(self.frozen)
        self.tree.store.tables.release(self.frozen)
        self.frozen = None

    def _start_again(self) -> None:
        """Open the store: whatever was open is lost, and what was being created is kept as interrupted."""
        self.tree = support.open_tree(self.base / "store", self.clock, disk=self.disk, pack_size_max=PACK_SIZE_MAX)
        self.handles: list[ModelHandle] = []
        self.buffers: dict[int, bytes] = {}
        self.frozen: Frozen | None = None
        self.reclamation: Reclamation | None = None
        self.deletions: list[Iterator[None]] = []

    @precondition(lambda self: self.collection is None)
    @rule()
    def begin_collection(self) -> None:
        self.collection = Collection(self.tree)
        self.collection.look()

    @precondition(lambda self: self.collection is not None)
    @rule()
    def end_collection(self) -> None:
        collection, self.collection = self.collection, None
        assert collection is not None
        with collection:
            collection.mark()
            while collection.delete_rows(2):
                pass
            self.journal()
            collection.sweep()

    @rule()
    def begin_reclamation(self) -> None:
        self.reclamation = self.tree.store.reclaimer.begin(self.tree.store.position)

    @precondition(lambda self: self.reclamation is not None)
    @rule(steps=st.integers(1, 20), checkpoint=st.booleans())
    def go_on_reclaiming(self, steps: int, checkpoint: bool) -> None:
        """A checkpoint that does not come must cost no more than that something stays."""
        assert self.reclamation is not None
        for _ in range(steps):
            if self.reclamation.is_done:
                return
            if self.reclamation.step() and checkpoint and self.frozen is None:
                self.tree.store.commit(checkpoint=True)
                self.note_journalled()

    def _abandon_collection(self) -> None:
        if self.collection is not None:
            with self.collection:
                self.collection = None

    @rule(loses_index=st.booleans())
    def crash(self, loses_index: bool) -> None:
        self._abandon_collection()
        support.crash(self.tree)
        if loses_index:
            (self.base / "store" / "index.lmdb").unlink()
        self._start_again()
        self.model, self.taken = copy.deepcopy(self.journalled)

    @rule()
    def reopen(self) -> None:
        self._abandon_collection()
        self.tree.close()
        self._start_again()
        self.note_journalled()

    # What holds after every step

    @invariant()
    def same_as_model(self) -> None:
        if not hasattr(self, "tree"):
            return

        def show(number: int) -> bytes:
            return self.buffers.get(number, self.model.nodes[number].data)

        assert support.dump(self.tree) == self.model.seen(show)
        assert support.dump(self.tree, self.tree.rows.open_epoch) == self.model.snapshot().seen()
        for handle in self.handles:
            assert support.read_content(self.tree, handle.file.content) == self.buffers[handle.node]
        assert self.tree.snapshots.all() == [each.snapshot for each in self.taken]
        for each in self.taken:
            assert support.dump(self.tree, each.snapshot.id) == each.seen
            assert support.raw_inodes(self.tree, each.snapshot.id) == each.inodes
        support.check_tree(self.tree)


TreeModel.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, print_blob=True)
TestTreeModel = TreeModel.TestCase
