"""What the chunks of a store consist of is what each of them is, one by one."""

import random
from collections import defaultdict
from dataclasses import asdict

import pytest

from ckptfs.store import Encoding, composition
from ckptfs.store.composition import Share
from ckptfs.tree import Commands, Tree
from tests.unit import tree_support as support
from tests.unit.tree_support import save

SEED = 5
VERSIONS = 30


def one_by_one(tree: Tree) -> tuple[dict[int, Share], dict[int, Share]]:
    """Return shares of the chunks by encoding, and by how many deltas each is read through."""
    by_encoding: dict[int, Share] = defaultdict(Share)
    by_depth: dict[int, Share] = defaultdict(Share)
    for number in range(1, tree.store.next_number):
        location = tree.store._index.locate(number)
        if location is not None:
            sizes = location.raw_size, location.place(number).size
            by_encoding[location.encoding].add(*sizes)
            by_depth[sum(1 for _ in tree.store._index.descend([number])) - 1].add(*sizes)
    return by_encoding, by_depth


@pytest.mark.parametrize("in_index", [False, True])
def test_the_composition_is_that_of_every_chunk(tree: Tree, in_index: bool) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    for step in range(VERSIONS):
        save(tree, "noise", chance.randbytes(chance.randrange(900)))
        save(tree, "text", b"%d" % step * 200)
        tree.take_snapshot(f"v{step}")
    tree.store.commit(checkpoint=True)
    tree.store.reencoder.encode_waiting(2000)
    numbers = range(1, tree.store.next_number)
    for _ in numbers:
        number, base = chance.sample(numbers, 2)
        enough = len(tree.store.read(base)) >= len(tree.store.read(number))
        is_cycle = any(number in level for level in tree.store._index.descend([base]))
        if enough and not is_cycle and not tree.store._index.bases(number):
            support.append_delta(tree.store, number, base)
    if in_index:
        tree.store.commit(checkpoint=True)
    with tree.store.view() as view:
        found = composition(view, tree.store.next_number)
    by_encoding, by_depth = one_by_one(tree)
    assert {encoding: share for encoding, share in found.encodings.items() if share.chunks} == by_encoding
    assert {depth: share for depth, share in enumerate(found.depths) if share.chunks} == by_depth
    assert len(by_depth) > 2 and {Encoding.RAW, Encoding.WAITING, Encoding.DELTA} <= by_encoding.keys()
    answer = Commands(tree).composition()
    assert answer["encodings"]["delta"] == asdict(by_encoding[Encoding.DELTA])
    assert answer["depths"][1] == asdict(by_depth[1])
    assert set(answer["encodings"]) == {"raw", "zstd", "planes", "delta", "waiting"}


def test_a_store_of_nothing_consists_of_nothing(tree: Tree) -> None:
    with tree.store.view() as view:
        found = composition(view, tree.store.next_number)
    assert list(found.encodings.values()) == [Share()] * len(Encoding)
    assert found.depths == [Share()]
