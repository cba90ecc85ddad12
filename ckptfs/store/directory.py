"""The directory of a store: its description, lock, packs and index, taken in an order that a crash at any point allows.

Directory owns which files a store has and who comes first, when one is made, opened and let go; refuses to know what is
in packs and index. A directory without a description is no store yet, and one keeps its version until its index is
whole. Belongs to the thread that opens the store.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptfs.config import FORMAT_VERSION, StoreConfig
from ckptfs.disk import Disk
from ckptfs.errors import NotAStoreError, StoreVersionError
from ckptfs.lock import LOCK_NAME, StoreLock
from ckptfs.store import description
from ckptfs.store.environment import Environment
from ckptfs.store.index_file import IndexFile
from ckptfs.store.packs import PackIdentity, Packs

PACKS_NAME = "packs"


def make_store(path: Path, disk: Disk, config: StoreConfig | None = None) -> None:
    """Make a store in a directory that is missing or empty; NotAStoreError where it is neither."""
    disk.make_directory(path)
    leftovers = {description.NAME, description.NAME + ".new", LOCK_NAME, PACKS_NAME}
    if not leftovers.issuperset(disk.list_names(path)) or (path / description.NAME).exists():
        raise NotAStoreError(f"{path} is not empty; a new store needs a directory of its own")
    with StoreLock(path, disk, shared=False):
        disk.make_directory(path / PACKS_NAME)
        # The description is last: a directory without one is not a store yet.
        description.write(path, config or description.new_config(time.time_ns()), disk)
        disk.sync_directory(path.parent)


class Directory:
    """The directory of an open store, as a context that lets go of it.

    With `rebuild` the index before, where there is one, is put aside, and comes back unless `index_file` is told that
    it was replaced. So is that of an older version.
    """

    def __init__(self, path: Path, disk: Disk, *, read_only: bool, rebuild: bool, pack_size_max: int) -> None:
        """Take the directory; NotAStoreError, StoreVersionError, StoreInUseError, StoreReadOnlyError, DamagedError."""
        self.path = path
        self.disk = disk
        self.read_only = read_only
        self.config = description.read(path, disk)
        with ExitStack() as resources:
            self._lock = resources.enter_context(StoreLock(path, disk, shared=read_only))
            identity = PackIdentity(description.fingerprint(self.config), self.config.seed)
            self.packs = Packs(path / PACKS_NAME, disk, identity, pack_size_max=pack_size_max)
            resources.callback(self.packs.close)
            self.index_file = resources.enter_context(IndexFile(path, disk))
            if not read_only:
                self.index_file.put_back()
            outdated = self.config.version < FORMAT_VERSION
            if outdated and read_only and self.index_file.exists():
                raise StoreVersionError(
                    f"the index of {path} has the format {self.config.version}; mount the store for writing once, or "
                    "run `ckptfs repair --rebuild-index`"
                )
            self.is_rebuilding = (rebuild or outdated) and self.index_file.exists()
            if self.is_rebuilding:
                self.index_file.put_aside(outdated=outdated)
            else:
                self.index_file.take(read_only=read_only)
            self.environment = Environment(self.index_file.path, disk, read_only=read_only)
            resources.callback(self.environment.close)
            self._resources = resources.pop_all()

    def raise_version(self) -> None:
        """Note that what is written from here on needs the version of this ckptfs, where the store is older."""
        self.config = description.raise_version(self.path, self.config, self.disk)

    def note_end(self) -> None:
        """Note that everything is in the index, which is durable: nothing is written until this is let go."""
        self.index_file.seal_on_close()
        self._lock.note_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)
