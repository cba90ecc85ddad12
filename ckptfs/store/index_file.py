"""The file of the index from the opening of a store to its end: whole, sealed, or put aside while it is made anew.

Owns `index.lmdb.before-rebuild`, which is the index as long as another one is being made, and goes back to its name
when that fails or is cut short. What is in an index is for `environment.py` and `replay.py` to say.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptfs.disk import Disk
from ckptfs.errors import DamagedError
from ckptfs.store.compare import COMPARED, differences, lacks
from ckptfs.store.environment import Environment
from ckptfs.store.reader import View
from ckptfs.store.seal import Seal

logger = logging.getLogger(__name__)

NAME = "index.lmdb"
_ASIDE_SUFFIX = ".before-rebuild"


class IndexFile:
    """The index of the store in `directory`; as a context it ends behind LMDB, which has the file open in between."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.path = directory / NAME
        self._aside = directory / (NAME + _ASIDE_SUFFIX)
        self._disk = disk
        self._seal = Seal(self.path, disk)
        self._is_aside = False
        self._is_comparable = False

    def exists(self) -> bool:
        """Tell whether there is an index."""
        return self.path.exists()

    def put_back(self) -> None:
        """Undo a rebuild that was cut short: the index before it is whole."""
        if self._aside.exists():
            self._disk.rename(self._aside, self.path)

    def take(self, *, read_only: bool) -> None:
        """Make ready to open the index as it is; DamagedError when it is not what was written."""
        damage = self._seal.damage()
        if damage is not None:
            raise DamagedError(
                f"the index {self.path} is not what was written ({damage}); "
                "`ckptfs repair --rebuild-index` makes it anew from the packs"
            )
        if not read_only:
            self._seal.remove()

    def put_aside(self, *, outdated: bool) -> None:
        """Make ready to make the index anew; the one before comes back unless `replaced` is called."""
        if is_whole := self._seal.damage() is None:
            self._seal.remove()
        self._is_comparable = is_whole and not outdated  # LMDB is not to be trusted with a damaged one
        self._disk.rename(self.path, self._aside)
        self._is_aside = True

    def replaced(self, new: View, losses: Sequence[str]) -> dict[str, int] | None:
        """Let go of the index before; return, by the name of the table, how many rows are not the same in the new one.

        None where there was nothing to compare with. DamagedError when the one before has more than a new one that has
        `losses`: it comes back then.
        """
        found = self._compare(new, losses) if self._is_comparable else None
        self._is_aside = False
        self._disk.unlink(self._aside)
        self._seal.remove()
        return found

    def _compare(self, new: View, losses: Sequence[str]) -> dict[str, int] | None:
        try:
            with (
                closing(Environment(self._aside, self._disk, read_only=True)) as environment,
                environment.view({table: {} for table in COMPARED}) as old,
            ):
                found = differences(old, new)
                has_less = bool(losses) and lacks(new, old)
        except DamagedError as error:
            logger.info("there is nothing to compare the index with: %s", error)
            return None
        if has_less:
            lost = "; ".join(losses)
            raise DamagedError(f"the packs do not have all that the index has, which stays as it is: {lost}")
        return found

    def seal_on_close(self) -> None:
        """Have the end of this context set the seal: the index is whole and durable."""
        self._seal.set_on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seal.close()
        if self._is_aside:
            self._disk.rename(self._aside, self.path)
