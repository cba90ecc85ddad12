"""Which versions a policy keeps, by the rules that restic has for its `forget --keep-*`.

Pure: it looks at names, times and triggers of versions and deletes nothing. Hours, days and weeks are those of the
local calendar.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Protocol, TypeVar

from ckptfs.errors import UsageError

_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?")
_TIME_NAME = re.compile(r"\d{8}-\d{6}(-\d+)?")
_DAY_SECONDS, _HOUR_SECONDS = 86400, 3600


class Version(Protocol):
    """What a policy looks at."""

    @property
    def name(self) -> str:
        """The name of the version."""

    @property
    def created_ns(self) -> int:
        """When it was taken, nanoseconds since 1970."""

    @property
    def trigger(self) -> str:
        """What took it: auto, manual or rollback."""

    @property
    def label(self) -> str:
        """A note, or nothing."""


V = TypeVar("V", bound=Version)


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep: a version that any one of the rules keeps is kept.

    The `last` ones; the newest of each of the last `hourly` hours that have one, and so for days and weeks; those not
    older than `within` seconds before the newest; and, with `named`, those that somebody has given a name or a label.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    within: int = 0
    named: bool = True

    def removable(self, versions: Sequence[V]) -> list[V]:
        """Return those of the versions, given oldest first, that no rule keeps."""
        periods = [
            _Period(self.last, lambda version: version),
            _Period(self.hourly, lambda version: _local(version).strftime("%Y-%j-%H")),
            _Period(self.daily, lambda version: _local(version).date()),
            _Period(self.weekly, lambda version: _local(version).isocalendar()[:2]),
        ]
        removable = []
        since_ns = versions[-1].created_ns - self.within * 1_000_000_000 if versions else 0
        for version in reversed(versions):
            # Every period is asked, since each one counts what it keeps; so is the oldest, to reach back furthest.
            kept = [period.keeps(version, is_oldest=version is versions[0]) for period in periods]
            kept.append(bool(self.within) and version.created_ns >= since_ns)
            kept.append(self.named and is_named(version))
            if not any(kept):
                removable.append(version)
        return removable[::-1]


class _Period:
    """A count of hours (or days ...) with versions, of which the newest is kept, and how many are left to keep."""

    def __init__(self, count: int, period_of: Callable[[Version], object]) -> None:
        self._left = count
        self._period_of = period_of
        self._last: object = None

    def keeps(self, version: Version, *, is_oldest: bool) -> bool:
        """Tell whether this version is kept; asked from the newest on."""
        if not self._left:
            return False
        period = self._period_of(version)
        if period == self._last and not is_oldest:
            return False
        self._last = period
        self._left -= 1
        return True


def _local(version: Version) -> datetime:
    return datetime.fromtimestamp(version.created_ns // 1_000_000_000).astimezone()


def is_named(version: Version) -> bool:
    """Tell whether somebody gave the version its name or a label; those that rollbacks get do not count."""
    return version.trigger == "manual" and bool(version.label or not _TIME_NAME.fullmatch(version.name))


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as `3d`, `12h` or `1d12h`; UsageError."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise UsageError(f"{text!r} is no duration of days and hours, such as 3d, 12h or 1d12h")
    return int(match[1] or 0) * _DAY_SECONDS + int(match[2] or 0) * _HOUR_SECONDS


def parse_policy(text: str) -> Policy:
    """Return the policy of a text such as `last=5,daily=7,within=3d`; `named=no` gives up named ones. UsageError."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in {field.name for field in fields(Policy)} or key in values:
            raise UsageError(f"{part!r} in the policy {text!r} is no rule; rules are like last=5,daily=7,within=3d")
        if key == "within":
            values[key] = parse_duration(value)
        elif key == "named" and value in ("yes", "no"):
            values[key] = value == "yes"
        elif key != "named" and value.isascii() and value.isdigit():
            values[key] = int(value)
        else:
            raise UsageError(f"{value!r} in the policy {text!r} is not what {key} can be")
    return Policy(**values)
