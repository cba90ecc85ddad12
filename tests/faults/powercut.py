"""What a disk may hold after a power cut: a model of durability over the operations that `recorder` wrote down.

What was synced is there. Of everything else any part may be: each page of a file as it was at any moment since the
last sync of that file, its size likewise, a page torn at a sector, and of the changed names of a directory the first
few. `Pages reach the disk in any order` is all that is assumed, and that a sector of 512 bytes is written whole,
which LMDB relies on too.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import xxhash

from tests.faults.recorder import Mark, Names, Operation, Sync, Truncate, Write

PAGE = 4096
SECTOR = 512
_ROOT_INO = 1

KEPT, LOST, TORN = "kept", "lost", "torn"
"""The ways to be cut off: everything reached the disk (a kill), nothing that was not synced, or any part of it."""


class Image(NamedTuple):
    """A directory as it is found: the bytes of each file by relative path, and the directories."""

    files: dict[str, bytes]
    directories: tuple[str, ...]

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Return the image of a directory."""
        found = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*"))}
        return cls(
            {name: path.read_bytes() for name, path in found.items() if path.is_file()},
            tuple(name for name, path in found.items() if path.is_dir()),
        )

    def digest(self) -> bytes:
        """Return what tells this image from others."""
        digest = xxhash.xxh3_128()
        for path, data in sorted(self.files.items()):
            digest.update(b"%d %d " % (len(path), len(data)))
            digest.update(path.encode())
            digest.update(data)
        return digest.digest()

    def write(self, target: Path) -> None:
        """Make the directory."""
        target.mkdir(exist_ok=True)
        for path in self.directories:
            (target / path).mkdir()
        for path, data in self.files.items():
            (target / path).write_bytes(data)


@dataclass
class _File:
    """The bytes of a file now, and what the disk may have instead."""

    current: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pages: dict[int, list[bytes]] = field(default_factory=dict)
    """Each page changed since the last sync, in every state since, the durable one first."""
    sizes: list[int] = field(default_factory=lambda: [0])

    def _page(self, number: int) -> bytes:
        return bytes(self.current[number * PAGE : (number + 1) * PAGE])

    def write(self, offset: int, data: bytes) -> None:
        """Write as the recorder did."""
        start, end = min(offset, len(self.current)), offset + len(data)
        self._change(start, end)
        self.current += bytes(max(offset - len(self.current), 0))
        self.current[offset:end] = data
        self._changed(start, end)

    def truncate(self, size: int) -> None:
        """Cut or lengthen."""
        start, end = min(size, len(self.current)), max(size, len(self.current))
        self._change(start, end)
        del self.current[size:]
        self.current += bytes(size - len(self.current))
        self._changed(start, end)

    def _change(self, start: int, end: int) -> None:
        for number in range(start // PAGE, -(-end // PAGE)):
            if number not in self.pages:
                self.pages[number] = [self._page(number)]

    def _changed(self, start: int, end: int) -> None:
        for number in range(start // PAGE, -(-end // PAGE)):
            self.pages[number].append(self._page(number))
        self.sizes.append(len(self.current))

    def sync(self) -> None:
        """Make durable what is there."""
        if self.pages:
            self.durable = bytes(self.current)
            self.pages.clear()
            self.sizes = [len(self.current)]

    def after(self, how: str, source: random.Random) -> bytes:
        """Return what the disk has of it."""
        if how == KEPT or not self.pages:
            return bytes(self.current)
        if how == LOST:
            return self.durable
        size = source.choice((self.sizes[0], self.sizes[-1], source.choice(self.sizes)))
        data = bytearray(self.durable[:size].ljust(size, b"\0"))
        for number, states in self.pages.items():
            page = source.choice((states[0], states[-1], source.choice(states))).ljust(PAGE, b"\0")
            if source.random() < 0.2:
                sectors = SECTOR * source.randrange(PAGE // SECTOR)
                page = page[:sectors] + source.choice(states).ljust(PAGE, b"\0")[sectors:]
            stop = min(size - number * PAGE, PAGE)
            if stop > 0:
                data[number * PAGE : number * PAGE + stop] = page[:stop]
        return bytes(data)


@dataclass
class _Directory:
    """The names of a directory that are durable, and what happened to them since."""

    durable: dict[str, int] = field(default_factory=dict)
    pending: list[Names] = field(default_factory=list)

    def after(self, how: str, source: random.Random) -> dict[str, int]:
        """Return the names that the disk has; filesystems keep the order in which names changed."""
        count = {KEPT: len(self.pending), LOST: 0, TORN: source.randint(0, len(self.pending))}[how]
        names = dict(self.durable)
        for change in self.pending[:count]:
            for name, ino in change.changed:
                if ino is None:
                    names.pop(name, None)
                else:
                    names[name] = ino
        return names


class CutDisk:
    """The disk, operation by operation, and what a power cut would leave of it. `volatile` names are left empty."""

    def __init__(self, volatile: tuple[str, ...] = ()) -> None:
        self._volatile = volatile
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {_ROOT_INO: _Directory()}

    def apply(self, operation: Operation) -> bool:
        """Let one operation happen; tell whether it could change what is found later."""
        match operation:
            case Write(ino, offset, data) if ino in self._files:
                self._files[ino].write(offset, data)
            case Truncate(ino, size) if ino in self._files:
                self._files[ino].truncate(size)
            case Sync(ino) if ino in self._files:
                self._files[ino].sync()
            case Sync(ino) if ino in self._directories:
                directory = self._directories[ino]
                directory.durable = directory.after(KEPT, random.Random())
                directory.pending.clear()
            case Names(parent, changed, is_directory):
                self._directories[parent].pending.append(operation)
                for name, ino in changed:
                    if ino is not None and is_directory:
                        self._directories.setdefault(ino, _Directory())
                    elif ino is not None and name not in self._volatile:
                        self._files.setdefault(ino, _File())
            case _:
                return False
        return True

    def cut(self, how: str, source: random.Random) -> Image:
        """Return what a power cut now leaves below the root."""
        files: dict[str, bytes] = {}
        directories: list[str] = []

        def visit(ino: int, path: str) -> None:
            for name, child in sorted(self._directories[ino].after(how, source).items()):
                if child in self._directories:
                    directories.append(path + name)
                    visit(child, path + name + "/")
                else:
                    files[path + name] = self._files[child].after(how, source) if child in self._files else b""

        visit(_ROOT_INO, "")
        return Image(files, tuple(directories))


def moments(trace: list[Operation], disk: CutDisk) -> Iterator[tuple[int, list[bytes]]]:
    """Let the operations happen one by one; count those that matter, and yield the marks made since the one before.

    What was marked right behind an operation had been said by then: it comes with that operation.
    """
    marks: list[bytes] = []
    count, waiting = 0, False
    for operation in [*trace, None]:
        if isinstance(operation, Mark):
            marks.append(operation.text)
            continue
        if waiting:
            yield count, marks
            count, marks = count + 1, []
        waiting = operation is not None and disk.apply(operation)
