"""Byte ranges: the latest write wins, nothing overlaps or touches, and the size is that of what is held."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ckptfs.tree.ranges import Ranges

FILE_SIZE = 60

offsets = st.integers(0, FILE_SIZE)
writes = st.tuples(st.just("write"), offsets, st.integers(0, 20))
clips = st.tuples(st.just("clip"), offsets, st.integers(0, 20))
takes = st.tuples(st.just("take"), offsets, st.just(0))


def check(ranges: Ranges, model: dict[int, int]) -> None:
    held = list(ranges)
    assert {start + at: byte for start, data in held for at, byte in enumerate(data)} == model
    assert all(data for _, data in held)
    for (start, data), (following, _) in pairwise(held):
        assert start + len(data) < following
    assert ranges.size == len(model)
    assert bool(ranges) == bool(model)
    assert ranges.end == max(model, default=-1) + 1


@given(st.lists(st.one_of(writes, writes, clips, takes), max_size=30))
def test_ranges_hold_what_was_written_last(steps: list[tuple[str, int, int]]) -> None:
    ranges, model = Ranges(), dict[int, int]()
    for number, (action, offset, size) in enumerate(steps):
        if action == "write":
            ranges.write(offset, bytes([number]) * size)
            model.update(dict.fromkeys(range(offset, offset + size), number))
        elif action == "clip":
            ranges.clip(offset, offset + size)
            model = {at: byte for at, byte in model.items() if not offset <= at < offset + size}
        else:
            taken = ranges.take_at(offset)
            starts_here = offset in model and offset - 1 not in model
            assert (taken is not None) == starts_here
            for at in range(offset, offset + len(taken or b"")):
                assert taken is not None and taken[at - offset] == model.pop(at)
            assert not starts_here or offset + len(taken or b"") not in model
        if action != "clip" or size:
            check(ranges, model)
    for start, stop in ((0, FILE_SIZE + 20), (7, 31), (30, 30)):
        seen = {low + at: byte for low, data in ranges.between(start, stop) for at, byte in enumerate(data)}
        assert seen == {at: byte for at, byte in model.items() if start <= at < stop}


def test_a_range_written_across_others_takes_them_in() -> None:
    ranges = Ranges()
    for offset in (0, 10, 20):
        ranges.write(offset, b"old")
    ranges.write(2, bytes(18))
    assert [(offset, bytes(data)) for offset, data in ranges] == [(0, b"ol" + bytes(18) + b"old")]
