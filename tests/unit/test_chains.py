"""Chains of deltas come out of their records as the reference says, whatever room there is, and nothing else does."""

import random

import pytest

from ckptfs.store import kernels
from ckptfs.store.chains import TRIES_MAX
from ckptfs.store.codec import Encoding
from ckptfs.store.delta import Alignment, encode_delta
from tests.unit.linked_chunks import SEED, Linked, linked_chunks

KERNELS = kernels.available_kernels()


def take(name: str, made: Linked, room: int) -> tuple[bytes, bytes]:
    """Return which links were taken, and all places."""
    out = bytearray(made.out_size)
    taken = KERNELS[name].take_chains(*made.packed, out, memoryview(bytearray(room)), SEED)
    return taken, bytes(out)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("depth", [0, 1, 3, 8])
def test_chains_are_taken_out_of_their_records(name: str, depth: int) -> None:
    for seed in range(8):
        print("seed", seed)
        made = linked_chunks(random.Random(f"{depth} {seed}"), depth)
        taken, out = take(name, made, made.room)
        assert {index for index, is_taken in enumerate(taken) if is_taken} == made.expected.keys()
        assert out == b"".join(made.expected.values())


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "python"])
def test_with_little_room_what_was_written_over_is_decoded_again_or_left_out(name: str) -> None:
    again = 0
    for seed in range(40):
        print("seed", seed)
        made = linked_chunks(random.Random(seed), 3, 300)
        for room in (0, 50, 3 * 300, 3 * 600, 3 * 900):
            taken, out = take(name, made, room)
            for index, raw in made.expected.items():
                place = made.links[index][2]
                assert not taken[index] or out[place : place + len(raw)] == raw
            again += all(taken[index] for index in made.expected) and room < made.room
    assert again > 40, "it was never enough"


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_what_was_written_is_left_out(name: str) -> None:
    generator = random.Random(SEED)
    for seed in range(30 if name != "python" else 3):
        print("seed", seed)
        made = linked_chunks(random.Random(seed), 2, 300)
        for _ in range(10):
            at = generator.randrange(len(made.data))
            made.data[at] ^= 1 << generator.randrange(8)
            taken, out = take(name, made, made.room)
            assert (taken, out) == take("python", made, 0) or not all(taken)
            for index, raw in made.expected.items():
                place = made.links[index][2]
                assert not taken[index] or out[place : place + len(raw)] == raw


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "python"])
def test_what_is_written_over_again_and_again_is_given_up(name: str) -> None:
    """Every level has room for two of its four chunks: twice as many would be decoded on each, for ever on the last."""
    depth, raw, made = 60, b"abcdefgh", Linked()
    payload = encode_delta(raw, raw * 2, Alignment(0, 1, 0))
    for level in range(depth, -1, -1):
        first = len(made.links) - 4
        for index in range(4 if level else 400):
            bases = [first + 2 * (index % 2), first + 2 * (index % 2) + 1] if level < depth else []
            encoding, stored = (Encoding.DELTA, payload) if bases else (Encoding.RAW, raw)
            made.add(raw, level, encoding, stored, bases, asked=not level)
    assert not all(take(name, made, depth * 2 * len(raw))[0][-4:])
    assert take(name, made, depth * 4 * len(raw))[0][-4:] == bytes([1] * 4)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "python"])
def test_a_chunk_is_decoded_as_often_as_a_read_pays_for(name: str) -> None:
    """The two on the lower level are needed in turn, and there is room for one of them."""
    raw, made = b"abcdefgh", Linked()
    payload = encode_delta(raw, raw, Alignment(0, 1, 0))
    for _ in range(2):
        made.add(raw, 1, Encoding.RAW, raw, [], asked=False)
    for index in range(2 * TRIES_MAX + 1):
        made.add(raw, 0, Encoding.DELTA, payload, [index % 2], asked=True)
    assert take(name, made, len(raw))[0][2:] == bytes([1] * 2 * TRIES_MAX + [0])


@pytest.mark.parametrize("name", KERNELS)
def test_a_link_that_rests_on_one_of_no_higher_level_is_left_out(name: str) -> None:
    made = linked_chunks(random.Random(3), 1)
    delta = next(index for index in made.expected if made.links[index][7])
    made.links[made.bases[0]][5] = made.links[delta][5]
    made.bases[:] = [made.bases[0]] * len(made.bases)
    assert take(name, made, made.room)[0][delta] == 0


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("field", "value"), [(0, 2**63), (0, 2**64 - 1), (2, 2**64 - 2), (3, 2**32 - 1), (4, 2**32 - 1), (7, 2**16 - 1)]
)
def test_links_to_what_is_not_there_are_refused(name: str, field: int, value: int) -> None:
    made = linked_chunks(random.Random(4), 1)
    made.links[-1][field] = value
    with pytest.raises(ValueError, match="payloads, bases and places"):
        take(name, made, made.room)


@pytest.mark.parametrize("name", KERNELS)
def test_a_base_that_is_no_link_is_refused(name: str) -> None:
    made = linked_chunks(random.Random(4), 1)
    made.bases.append(len(made.links))
    with pytest.raises(ValueError, match="payloads, bases and places"):
        take(name, made, made.room)
