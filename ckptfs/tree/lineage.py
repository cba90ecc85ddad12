"""Lineage: which earlier file version each version succeeds, found from records, paths and sizes.

Owns the rules, in this order: the version that was recorded as the predecessor; the version before at the same path;
the sibling with the next smaller step number (`step-100.pt` before `step-200.pt`, `checkpoint-100/model.safetensors`
before `checkpoint-200/model.safetensors`); the newest file whose tensors have the same names and shapes, wherever it
is. A wrong answer costs space and never content, so what is in doubt is tried. Pure: it reads neither rows nor files.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

_NUMBER = re.compile(rb"\d+")
_PARTS = re.compile(
    rb"\d+[-_]of[-_]\d+|__\d+_\d+\.distcp|(?<![a-z])(?:rank|shard|part|worker|tp|pp|dp|mp)[-_=]?\d+", re.IGNORECASE
)
"""Numbers that tell the parts of one save from each other, not one save from the next."""
_STEPS = re.compile(
    rb"(?:steps?|checkpoint|ckpt|epoch|iter|iteration|save)[-_=.]?(\d+)|(?<![^/])(\d+)(?=/)", re.IGNORECASE
)
"""Numbers that say which save it is: behind a word for it, or a directory's whole name."""


class FileVersion(NamedTuple):
    """One content of a file: its manifest, that of its recorded predecessor (0: none), its last path, size in bytes.

    `live` says whether the live tree shows it; `layout` is the fingerprint of its tensors, 0 for none.
    """

    manifest: int
    predecessor: int
    path: bytes
    size: int
    live: bool
    layout: int = 0


class Pair(NamedTuple):
    """Two versions, `newer` succeeding `older`; manifests are numbered in the order in which versions came about."""

    older: FileVersion
    newer: FileVersion

    @property
    def stamp(self) -> int:
        """When the pair came about: the greater number of its two manifests."""
        return max(self.older.manifest, self.newer.manifest)


class _Series(NamedTuple):
    """A path with its step numbers taken out, and these."""

    key: bytes
    steps: tuple[int, ...]


def pairs(versions: Iterable[FileVersion]) -> list[Pair]:
    """Return for every version that succeeds another one the pair of them, in the order of their stamps.

    A version that the live tree shows is older than none of its own path: after a rollback it is what is in use.
    """
    by_path: dict[bytes, list[FileVersion]] = defaultdict(list)
    for version in sorted(versions):
        by_path[version.path].append(version)
    known = {version.manifest: version for of_path in by_path.values() for version in of_path}
    siblings = _Siblings(by_path)
    found, first = [], set()
    for path, of_path in by_path.items():
        for index, newer in enumerate(of_path):
            older = known.get(newer.predecessor) or (of_path[index - 1] if index else siblings.before(path))
            if older is None:
                first.add(newer)
            elif older is not newer and not (older.live and older.path == path):
                found.append(Pair(older, newer))
    found += _look_alikes(set(known.values()).difference(pair.older for pair in found), first)
    return sorted(found, key=lambda pair: (pair.stamp, pair.newer.manifest))


def _look_alikes(last: Set[FileVersion], first: Set[FileVersion]) -> Iterator[Pair]:
    """Yield pairs of a version in `last`, which nothing succeeds, and the next one in `first` that has its tensors.

    What is in use and has a history stays the newest of its lineage, which goes on to be read and written. Of a save in
    parts, which may all have tensors of the same names and shapes, only the same part is alike.
    """
    waiting: dict[tuple[int, tuple[bytes, ...]], list[FileVersion]] = defaultdict(list)
    for version in sorted(last | first):
        if version.layout:
            alike = waiting[version.layout, tuple(_PARTS.findall(version.path))]
            if version in first and alike:
                yield Pair(alike.pop(), version)
            if version in last and (version in first or not version.live):
                alike.append(version)


class _Siblings:
    """The paths of one tree by the series that they are in."""

    def __init__(self, by_path: dict[bytes, list[FileVersion]]) -> None:
        self._by_path = by_path
        self._series: dict[bytes, list[tuple[tuple[int, ...], bytes]]] = defaultdict(list)
        for path in by_path:
            for key, steps in _series(path):
                self._series[key].append((steps, path))
        for members in self._series.values():
            members.sort()

    def before(self, path: bytes) -> FileVersion | None:
        """Return the last version of the file that is the next smaller step of some series."""
        for key, steps in _series(path):
            members = self._series[key]
            index = bisect_left(members, (steps,))
            if index:
                return self._by_path[members[index - 1][1]][-1]
        return None


def _series(path: bytes) -> Iterator[_Series]:
    """Yield the series that a path is in, the surest first."""
    fixed = [match.span() for match in _PARTS.finditer(path)]
    surely = [match.span(match.lastindex or 0) for match in _STEPS.finditer(path)]
    in_name = [match.span() for match in _NUMBER.finditer(path, path.rfind(b"/") + 1)]
    for spans in (surely, in_name):
        free = [span for span in spans if not any(start < span[1] and span[0] < stop for start, stop in fixed)]
        if free:
            yield _without(path, free)


def _without(path: bytes, spans: list[tuple[int, int]]) -> _Series:
    """Return the series of a path whose numbers at `spans` are the steps."""
    key, end = b"", 0
    for start, stop in spans:
        key += path[end:start] + b"\0"
        end = stop
    return _Series(key + path[end:], tuple(int(path[start:stop]) for start, stop in spans))
