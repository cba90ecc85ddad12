"""Which version succeeds which: records first, then the same path, then step numbers, then the same tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.tree.lineage import FileVersion, pairs

MODEL, OTHER = 77, 78
"""Fingerprints of tensors."""


def version(manifest: int, path: str, predecessor: int = 0, *, live: bool = False, layout: int = 0) -> FileVersion:
    return FileVersion(manifest, predecessor, path.encode(), 1 << 20, live, layout)


def found(*versions: FileVersion) -> list[tuple[int, int]]:
    """Return the pairs as (older, newer) manifests."""
    return [(pair.older.manifest, pair.newer.manifest) for pair in pairs(versions)]


def test_the_recorded_predecessor_counts_more_than_the_path() -> None:
    assert found(version(1, "a.pt"), version(2, "b.pt"), version(3, "b.pt", predecessor=1)) == [(1, 3)]


def test_without_its_recorded_predecessor_a_version_succeeds_the_one_before_at_its_path() -> None:
    assert found(version(1, "a.pt"), version(5, "a.pt", predecessor=3)) == [(1, 5)]


def test_what_is_in_use_is_older_than_nothing_of_its_own_path() -> None:
    rolled_back, left = version(1, "a.pt", live=True), version(2, "a.pt", predecessor=1)
    assert found(rolled_back, left) == []
    assert found(rolled_back._replace(live=False), left, version(3, "a.pt", predecessor=1, live=True)) == [
        (1, 2),
        (1, 3),
    ]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("step-100.pt", "step-200.pt"),
        ("step-900.pt", "step-1000.pt"),
        ("run/_100.pt", "run/_200.pt"),
        ("checkpoint-100/model.safetensors", "checkpoint-200/model.safetensors"),
        ("checkpoint-100/model-00002-of-00004.safetensors", "checkpoint-200/model-00002-of-00004.safetensors"),
        ("checkpoint-100/rng_state_3.pth", "checkpoint-200/rng_state_3.pth"),
        ("100/__1_0.distcp", "200/__1_0.distcp"),
        ("step_5/mp_rank_01_model_states.pt", "step_10/mp_rank_01_model_states.pt"),
        ("epoch=3-step=900-loss=0.31.ckpt", "epoch=4-step=1200-loss=0.29.ckpt"),
        ("run2/ckpt_20.pt", "run2/ckpt_30.pt"),
    ],
)
def test_the_sibling_with_the_next_smaller_step_comes_before(older: str, newer: str) -> None:
    others = ("run1/ckpt_25.pt", "checkpoint-200/model-00001-of-00004.safetensors", "checkpoint-200/rng_state_2.pth")
    versions = [version(8, newer, live=True), version(3, older, live=True)]
    versions += [version(20 + index, path) for index, path in enumerate(others) if path != newer]
    assert (3, 8) in found(*versions)


def test_shards_of_one_save_do_not_succeed_each_other() -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "__0_0.distcp", "__1_0.distcp"]
    assert found(*(version(index + 1, f"last/{name}") for index, name in enumerate(names))) == []


def test_a_sibling_counts_with_its_last_version() -> None:
    first, again = version(1, "step-1.pt"), version(2, "step-1.pt", predecessor=1)
    assert found(first, again, version(3, "step-2.pt")) == [(1, 2), (2, 3)]


def test_pairs_come_in_the_order_in_which_they_came_about() -> None:
    versions = [version(9, "step-100.pt"), version(4, "step-200.pt"), version(5, "step-300.pt")]
    assert found(*versions) == [(4, 5), (9, 4)]


def test_a_file_with_the_same_tensors_elsewhere_comes_before_as_a_last_resort() -> None:
    model = version(1, "models/base.safetensors", live=True, layout=MODEL)
    other = version(2, "models/vocoder.safetensors", live=True, layout=OTHER)
    tuned = [version(3 + number, "run/last.safetensors", live=number == 2, layout=MODEL) for number in range(3)]
    assert found(model, other, *tuned) == [(1, 3), (3, 4), (4, 5)]


def test_the_newest_of_the_files_with_the_same_tensors_comes_before() -> None:
    versions = [version(number, f"{name}.pt", live=True, layout=MODEL) for number, name in enumerate("abcd", 1)]
    assert found(*versions) == [(1, 2), (2, 3), (3, 4)]
    assert found(versions[0], versions[1], version(7, "d.pt", predecessor=2, layout=MODEL)) == [(1, 2), (2, 7)]


def test_the_newest_of_a_run_that_is_in_use_stays_as_it_was_when_another_run_begins() -> None:
    first = [version(1, "a/last.pt", layout=MODEL), version(2, "a/last.pt", live=True, layout=MODEL)]
    second = version(3, "b/last.pt", live=True, layout=MODEL)
    assert found(*first, second) == [(1, 2)]
    removed = first[1]._replace(live=False)
    assert found(first[0], removed, second) == [(1, 2), (2, 3)]


def test_files_without_known_tensors_are_not_alike() -> None:
    assert found(version(1, "a.txt", live=True), version(2, "b.txt", live=True)) == []


def test_only_the_same_parts_of_two_saves_are_alike() -> None:
    """Every rank saves tensors of the same shapes, and DCP names them by their place in the file only."""
    first = [version(number, f"first/__{number}_0.distcp", live=True, layout=MODEL) for number in range(1, 4)]
    assert found(*first) == []
    second = [version(number + 9, f"later/__{number}_0.distcp", live=True, layout=MODEL) for number in range(1, 4)]
    assert found(*first, *second) == [(1, 10), (2, 11), (3, 12)]


@given(
    st.lists(
        st.builds(
            FileVersion,
            manifest=st.integers(1, 40),
            predecessor=st.integers(0, 40),
            path=st.sampled_from([b"a/last.pt", b"b/last.pt", b"step-1.pt", b"step-2.pt", b"__0_0.distcp", b"x", b"y"]),
            size=st.just(1 << 20),
            live=st.booleans(),
            layout=st.integers(0, 2),
        ),
        unique_by=lambda version: version.manifest,
    ),
    st.randoms(use_true_random=False),
)
def test_whatever_there_is_a_version_succeeds_one_at_most(versions: list[FileVersion], random: object) -> None:
    succession = pairs(versions)
    assert len({pair.newer for pair in succession}) == len(succession)
    assert all(pair.older != pair.newer for pair in succession)
    shuffled = versions[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pairs(shuffled) == succession
    # Without what is known of their tensors the same pairs are found, but for those between strangers.
    sure = pairs([version._replace(layout=0) for version in versions])
    newers = {pair.newer.manifest for pair in sure}
    olders = {pair.older.manifest for pair in sure}
    strangers = [pair for pair in succession if pair.newer.manifest not in newers]
    assert len(succession) == len(sure) + len(strangers)
    assert len({pair.older for pair in strangers}) == len(strangers)
    for older, newer in strangers:
        assert older.layout == newer.layout != 0
        assert older.manifest < newer.manifest
        assert older.manifest not in olders
        assert not (older.live and older.manifest in newers)
