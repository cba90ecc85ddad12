"""Which version succeeds which: records first, then the same path, then step numbers."""

import pytest

from ckptfs.tree.lineage import FileVersion, pairs


def version(manifest: int, path: str, predecessor: int = 0, *, live: bool = False) -> FileVersion:
    return FileVersion(manifest, predecessor, path.encode(), 1 << 20, live)


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
