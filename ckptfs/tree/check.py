"""Checking a store: whether its rows agree with each other in every version, and which files damage touches.

Check reads rows and manifests of one view, no file's bytes; it changes nothing. A view and its check belong to one
thread, which need not be the tree's owner, and everything goes on meanwhile.
"""

import json
import stat
from array import array
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from typing import NamedTuple

from ckptfs.errors import DamagedError
from ckptfs.store import PROBLEMS_MAX, ChunkStore, Table, View
from ckptfs.tree.extents import Extent, Extents, join_parts
from ckptfs.tree.image import Image, Span
from ckptfs.tree.inode import ROOT_INO, Inode
from ckptfs.tree.rows import CHANGE

VERSIONED = (Table.INODES, Table.DIRENTS, Table.XATTRS)


class Structure(NamedTuple):
    """What a check of the structure found: a sentence for each problem, and how much there is to verify.

    `damaged` pairs the number of each chunk that is known to be damaged with what is known of it.
    """

    problems: list[str]
    damaged: list[tuple[int, str]]
    chunks: int
    raw_bytes: int
    numbers_end: int


class FileDamage(NamedTuple):
    """A range of a file that cannot be read, the versions that have it, and why."""

    path: str
    versions: list[str]
    offset: int
    size: int
    reason: str


class Check:
    """One check of a store, through one view of it."""

    def __init__(self, store: ChunkStore, view: View) -> None:
        self._store = store
        self._view = view
        self._image = Image(view)

    def structure(self) -> Structure:
        """Return every problem of the structure, up to PROBLEMS_MAX in each layer."""
        report = self._store.check(self._view)
        problems = list(islice(self._problems(report.raw_sizes), PROBLEMS_MAX))
        count = len(report.raw_sizes) - report.raw_sizes.count(0)
        damaged = sorted(report.damaged.items())
        return Structure([*report.problems, *problems], damaged, count, sum(report.raw_sizes), len(report.raw_sizes))

    def files(self, damaged: Mapping[int, str]) -> list[FileDamage]:
        """Return the ranges of files that lie in damaged chunks; `damaged` says by number what is wrong with them.

        A chunk that no version uses is in no file.
        """
        users = self._users()
        ranges: dict[int, list[Extent]] = {}
        for manifest, extents in self._manifests(users):
            if isinstance(extents, Extents) and (hit := list(extents.using(damaged))):
                ranges[manifest] = hit
        found = []
        for ino, spans in self._image.inodes.items():
            for manifest, same in groupby(spans, key=lambda each: each[1].manifest):
                hit = ranges.get(manifest, [])
                seen = [span for span, _ in same] if hit else []
                path = self._image.path(ino, seen[0].start) if hit else ""
                versions = [version for span in seen for version in self._image.seen_by(span)]
                for extent in hit:
                    found.append(FileDamage(path, versions, extent.offset, extent.length, damaged[extent.number]))
        return sorted(found)

    def _problems(self, raw_sizes: "array[int]") -> Iterator[str]:
        return chain(
            self._image.problems,
            self._check_versions(),
            self._check_numbers(),
            self._check_changes(),
            self._check_links(),
            self._check_manifests(raw_sizes),
        )

    def _check_versions(self) -> Iterator[str]:
        """Names and snapshots say the same, and all are older than the open epoch."""
        named = {key: value for key, value in self._view.scan(Table.NAMES)}
        open_epoch = next((value for key, value in self._view.scan(Table.META) if key == b"open_epoch"), b"\1")
        for key, value in self._view.scan(Table.SNAPSHOTS):
            number = int.from_bytes(key, "big")
            try:
                name = str(json.loads(value)["name"])
            except (ValueError, KeyError, TypeError):
                continue  # the image has named it
            if named.pop(name.encode(), None) != key:
                yield f"the name {name!r} does not mean snapshot {number}, which has it"
            if number >= int.from_bytes(open_epoch, "big"):
                yield f"snapshot {number} is not older than the open epoch"
        for key in named:
            yield f"the name {key!r} means a snapshot that is not there"

    def _check_numbers(self) -> Iterator[str]:
        """All inodes and manifests have numbers that were given."""
        next_id = int.from_bytes(self._view.get(Table.META, b"next_id") or b"\2", "big")
        for table in (Table.INODES, Table.MANIFESTS):
            greatest = int.from_bytes(max((key[:8] for key, _ in self._view.scan(table)), default=b""), "big")
            if greatest >= next_id:
                yield f"a row of the table {table.name.lower()} has the number {greatest}, and {next_id} comes next"

    def _check_changes(self) -> Iterator[str]:
        """Every row with an epoch is listed in `changes`, and nothing else is; sums of hashes stand for the sets."""
        rows: dict[Table, int] = defaultdict(int)
        for table in VERSIONED:
            for key, _ in self._view.scan(table):
                rows[table] += hash((key[-4:], key[:-4]))
        listed: dict[Table, int] = defaultdict(int)
        for key, _ in self._view.scan(Table.CHANGES):
            if len(key) < CHANGE.size or key[CHANGE.size - 1] not in VERSIONED:
                yield f"the row {key.hex()} of changes is malformed"
            else:
                listed[Table(key[CHANGE.size - 1])] += hash((key[:4], key[CHANGE.size :]))
        for table in VERSIONED:
            if rows[table] != listed[table]:
                yield f"the table changes does not list the rows of the table {table.name.lower()}"

    def _check_links(self) -> Iterator[str]:
        """Every name leads to an inode of its type, and every inode has as many names as it says, in every version."""
        subdirectories: dict[int, list[Span]] = defaultdict(list)
        for names in self._image.names.values():
            for name in names:
                if name.file_type == stat.S_IFDIR and not name.hidden:
                    subdirectories[name.parent].append(name.span)
        if ROOT_INO not in self._image.inodes:
            yield "the root directory is not there"
        for ino in {**self._image.inodes, **self._image.names}:
            yield from self._check_inode(ino, subdirectories[ino])

    def _check_inode(self, ino: int, subdirectories: Iterable[Span]) -> Iterator[str]:
        """Go through the versions at which something about an inode changes."""
        names = self._image.names.get(ino, ())
        inodes = dict(chain.from_iterable(((s.stop, None), (s.start, i)) for s, i in self._image.inodes.get(ino, ())))
        name_steps = _steps(name.span for name in names)
        directory_steps = _steps(subdirectories)
        inode: Inode | None = None
        name_count = directory_count = 0
        for version in sorted({*inodes, *name_steps, *directory_steps}):
            inode = inodes.get(version, inode)
            name_count += name_steps.get(version, 0)
            directory_count += directory_steps.get(version, 0)
            if version == len(self._image.versions):
                break
            problem = self._link_problem(ino, inode, name_count, directory_count)
            if problem:
                yield f"{self._named(ino, version)} {problem}"
        for name in names:
            for span, inode in self._image.inodes.get(ino, ()):
                first = max(span.start, name.span.start)
                if first < min(span.stop, name.span.stop) and stat.S_IFMT(inode.mode) != name.file_type:
                    yield f"{self._named(ino, first)} is of another type than its name says"

    @staticmethod
    def _link_problem(ino: int, inode: Inode | None, names: int, subdirectories: int) -> str | None:
        if inode is None:
            return "is missing, but a name leads to it" if names else None
        expected = 2 + subdirectories if inode.is_dir else names
        if not names and ino != ROOT_INO:
            return "has no name"
        if inode.is_dir and names != (ino != ROOT_INO):
            return f"is a directory with {names} names"
        return None if inode.nlink == expected else f"says that it has {inode.nlink} links, but it has {expected}"

    def _check_manifests(self, raw_sizes: "array[int]") -> Iterator[str]:
        """Every content is covered by its manifest, and every extent by its chunk."""
        users = self._users()
        checked = set()
        for manifest, extents in self._manifests(users):
            checked.add(manifest)
            where = self._named(*users[manifest][0][:2])
            if isinstance(extents, DamagedError):
                yield f"{where}: {extents}"
                continue
            for extent in extents.overruns(raw_sizes):
                yield (
                    f"{where}: {extent.length} bytes at offset {extent.offset} lie in chunk {extent.number}, "
                    f"which has {raw_sizes[extent.number] if extent.number < len(raw_sizes) else 'no'} bytes"
                )
            for ino, version, size in users[manifest]:
                if size != extents.size:
                    yield f"{self._named(ino, version)}: its manifest covers {extents.size} of {size} bytes"
        for manifest in users.keys() - checked:
            yield f"{self._named(*users[manifest][0][:2])}: its manifest {manifest} is missing"

    def _users(self) -> dict[int, list[tuple[int, int, int]]]:
        """Return (inode, version, size) of every content that each manifest is used for."""
        users: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for ino, spans in self._image.inodes.items():
            for span, inode in spans:
                if inode.manifest:
                    users[inode.manifest].append((ino, span.start, inode.size))
        return users

    def _manifests(self, wanted: Container[int]) -> Iterator[tuple[int, Extents | DamagedError]]:
        """Yield the extents of each manifest that is wanted, or why there are none."""
        for prefix, parts in groupby(self._view.scan(Table.MANIFESTS), key=lambda row: row[0][:8]):
            manifest = int.from_bytes(prefix, "big")
            if manifest in wanted:
                try:
                    yield manifest, join_parts(manifest, parts)
                except DamagedError as error:
                    yield manifest, error

    def _named(self, ino: int, version: int) -> str:
        path = self._image.path(ino, version) or "the root directory"
        return f"{path} in {self._image.versions[version]}"


def _steps(spans: Iterable[Span]) -> dict[int, int]:
    """Return by how much the count of spans changes at each version where it does."""
    steps: dict[int, int] = defaultdict(int)
    for span in spans:
        steps[span.start] += 1
        steps[span.stop] -= 1
    return steps
