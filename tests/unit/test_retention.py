"""Policies keep what restic's rules keep."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import UsageError
from ckptfs.retention import Policy, parse_duration, parse_policy

NOON = datetime(2026, 3, 18, 12, 0).astimezone()  # a Wednesday


@dataclass(frozen=True)
class Taken:
    """A version as a policy sees it."""

    created_ns: int
    name: str = "20260318-120000"
    trigger: str = "auto"
    label: str = ""


def ago(hours: float, **fields: str) -> Taken:
    return Taken(int((NOON - timedelta(hours=hours)).timestamp() * 1e9), **fields)


def kept(policy: Policy, *versions: Taken) -> list[Taken]:
    removable = policy.removable(versions)
    assert [version for version in versions if version in removable] == removable
    return [version for version in versions if version not in removable]


def test_the_last_ones() -> None:
    versions = [ago(hours) for hours in (5, 4, 3, 2, 1)]
    assert kept(Policy(last=2), *versions) == versions[-2:]
    assert kept(Policy(last=9), *versions) == versions
    assert kept(Policy(last=1)) == []


def test_the_newest_of_each_hour_day_and_week() -> None:
    versions = [ago(hours) for hours in (200, 50, 49, 26, 25, 1.75, 1.5, 0.5, 0.25)]
    assert kept(Policy(hourly=2), *versions) == [ago(1.5), ago(0.25)]
    assert kept(Policy(daily=2), *versions) == [ago(25), ago(0.25)]
    assert kept(Policy(daily=3), *versions) == [ago(49), ago(25), ago(0.25)]
    assert kept(Policy(weekly=1), *versions) == [ago(0.25)]
    assert kept(Policy(weekly=2), *versions) == [ago(200), ago(0.25)]


def test_the_oldest_fills_what_is_left_of_a_count() -> None:
    versions = [ago(hours) for hours in (3.75, 3.5, 3.25)]
    assert kept(Policy(hourly=2), *versions) == [ago(3.75), ago(3.25)]


def test_rules_add_up() -> None:
    versions = [ago(hours) for hours in (72, 48, 24, 3, 2, 1)]
    assert kept(Policy(last=2, daily=2), *versions) == [ago(24), ago(2), ago(1)]


def test_what_is_not_older_than_the_newest_by_more_than_a_duration() -> None:
    versions = [ago(hours) for hours in (80, 73, 72, 71, 1)]
    assert kept(Policy(within=parse_duration("3d")), *versions) == [ago(73), ago(72), ago(71), ago(1)]
    assert kept(Policy(within=parse_duration("2d23h")), *versions) == [ago(72), ago(71), ago(1)]


def test_named_and_labelled_ones_stay_unless_told_otherwise() -> None:
    named = ago(9, name="before-lr-change", trigger="manual")
    labelled = ago(8, trigger="manual", label="loss 2.1")
    by_hand = ago(7, trigger="manual")
    rollback = ago(6, trigger="rollback", label="before the rollback to x")
    newest = ago(0)
    assert kept(Policy(last=1), named, labelled, by_hand, rollback, newest) == [named, labelled, newest]
    assert kept(Policy(last=1, named=False), named, labelled, by_hand, rollback, newest) == [newest]


@given(st.lists(st.integers(0, 10_000), unique=True), *[st.integers(0, 5)] * 4)
def test_counts_bound_what_is_kept(minutes: list[int], last: int, hourly: int, daily: int, weekly: int) -> None:
    versions = [ago(minute / 60) for minute in sorted(minutes, reverse=True)]
    found = kept(Policy(last, hourly, daily, weekly), *versions)
    assert min(last, len(versions)) <= len(found) <= last + hourly + daily + weekly
    if last + hourly + daily + weekly and versions:
        assert versions[-1] in found


@pytest.mark.parametrize(("text", "seconds"), [("3d", 259200), ("12h", 43200), ("1d12h", 129600), ("0d", 0)])
def test_a_duration_is_days_and_hours(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "d", "12h1d", "-1d", "1w", "1.5d", "३d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text)


def test_a_policy_in_one_text() -> None:
    assert parse_policy("last=5,daily=7,within=3d") == Policy(last=5, daily=7, within=259200)
    assert parse_policy("hourly=24,weekly=2,named=no") == Policy(hourly=24, weekly=2, named=False)


@pytest.mark.parametrize("text", ["", "last", "last=", "last=-1", "last=x", "last=1,last=2", "monthly=1", "named=5"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text)


def test_days_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    late, early = (datetime.fromisoformat(f"2026-03-{text}+00:00") for text in ("17T23:30", "18T00:30"))
    versions = [Taken(int(moment.timestamp()) * 10**9) for moment in (late - timedelta(days=9), late, early)]
    for zone, expected in (("UTC", versions[1:]), ("Asia/Tokyo", [versions[0], versions[2]])):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert kept(Policy(daily=2), *versions) == expected
    monkeypatch.undo()
    time.tzset()
