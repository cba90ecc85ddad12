"""The chunk index takes many chunks at once as it takes them one by one; damage is found however they are linked."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptfs.disk import Disk
from ckptfs.errors import DamagedError
from ckptfs.store.codec import Encoding
from ckptfs.store.damaged import DamagedChunks
from ckptfs.store.delta import DELTA_CHAIN_MAX
from ckptfs.store.environment import Environment
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import NO_CHUNK, Chunk, Location, build_location
from ckptfs.store.records import Place
from ckptfs.store.schema import Table

ENCODINGS = (Encoding.WAITING, Encoding.RAW, Encoding.PLANES, Encoding.DELTA)


def drawn_chunks(source: random.Random, count: int) -> list[Chunk]:
    """Draw chunks as a replay meets them: most are new and come in order, some again, some rest on others."""
    chunks, following, offset = [], source.randrange(1, 4), 64
    for _ in range(count):
        number = following if source.random() < 0.9 else source.randrange(1, following + 1)
        size, encoding = source.randrange(1, 500), source.choice(ENCODINGS)
        bases = (source.randrange(1, following + 3),) if encoding == Encoding.DELTA else ()
        chunk_id = number.to_bytes(16, "big")
        chunks.append(Chunk(number, chunk_id, Location(1, offset, size, 2 * size, encoding, bases)))
        offset += 1000
        following += number == following
    return chunks


@pytest.mark.parametrize("seed", range(40))
def test_chunks_are_taken_at_once_as_one_by_one(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    chunks = [chunk for chunk in drawn_chunks(source, 40) if chunk.location.encoding != Encoding.DELTA or seed % 2]
    environments = [Environment(tmp_path / name, Disk(), read_only=False) for name in ("one", "many")]
    one, many = map(ChunkIndex, environments)
    replaced: tuple[list[Place], list[Place]] = ([], [])
    at = 0
    while at < len(chunks):
        run = chunks[at : at + source.randrange(1, 12)]
        at += len(run)
        numbers, ids, locations = zip(*run, strict=True)
        replaced[1].extend(many.register_rows(numbers, ids, [*map(build_location, locations)]))
        for chunk in run:
            replaced[0].extend(one.register([chunk]))
        assert many.rows_in_memory() == one.rows_in_memory()
        assert (many.totals, many.count, many.next_number) == (one.totals, one.count, one.next_number)
    assert replaced[0] == replaced[1]
    assert len(chunks) > 10
    for environment in environments:
        environment.close()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment(tmp_path / "index", Disk(), read_only=False)
    yield environment
    environment.close()


def linked(environment: Environment, bases: dict[int, tuple[int, ...]]) -> ChunkIndex:
    """Return an index of chunks that rest on one another."""
    index = ChunkIndex(environment)
    for number, below in bases.items():
        encoding = Encoding.DELTA if below else Encoding.RAW
        index.register([Chunk(number, number.to_bytes(16), Location(1, 1000 * number, 9, 9, encoding, below))])
    return index


@pytest.mark.timeout(20)
def test_damage_is_looked_for_among_chunks_that_rest_on_themselves(environment: Environment) -> None:
    """As it may be in an index that somebody has tampered with."""
    damaged = DamagedChunks(environment, linked(environment, {1: (2,), 2: (1,), 3: (), 4: (4,)}))
    damaged.note(3, Location(1, 3000, 9, 9, Encoding.RAW))
    damaged.note(4, Location(1, 4000, 9, 9, Encoding.DELTA, (4,)))
    assert damaged.among([1, 2, 3, 4]) == {3, 4}
    assert damaged.left_out([1, 2, 3, 4]) == [1, 2, NO_CHUNK, NO_CHUNK]


def test_what_rests_on_a_damaged_chunk_through_as_many_deltas_as_there_may_be_cannot_be_read(
    environment: Environment,
) -> None:
    last = DELTA_CHAIN_MAX + 1
    chain = {number: (number + 1,) for number in range(1, last)} | {last: ()}
    damaged = DamagedChunks(environment, linked(environment, chain))
    damaged.note(last, Location(1, 1000 * last, 9, 9, Encoding.RAW))
    assert damaged.among(chain) == {*chain}
    damaged.note(1, Location(1, 1000, 9, 9, Encoding.DELTA, (2,)))
    assert damaged.numbers() == [last], "what it rests on is to blame"


def test_damage_that_is_met_again_is_not_written_again(environment: Environment) -> None:
    damaged = DamagedChunks(environment, linked(environment, {1: ()}))
    damaged.note(1, Location(1, 1000, 9, 9, Encoding.RAW))
    assert damaged.row_count == 1
    damaged.freeze()
    damaged.note(1, Location(1, 1000, 9, 9, Encoding.RAW))
    assert damaged.row_count == 0
    damaged.note(1, Location(1, 2000, 9, 9, Encoding.RAW))
    assert damaged.row_count == 1


@pytest.mark.parametrize("row", [(b"1234567", build_location(Location(1, 64, 9, 9, 0))), (bytes(8), b"no location")])
def test_a_row_of_a_damaged_chunk_that_makes_no_sense_is_named(
    environment: Environment, row: tuple[bytes, bytes]
) -> None:
    index = linked(environment, {})
    environment.write([(Table.DAMAGED, [row])])
    with pytest.raises(DamagedError, match="has another size than it must have"):
        DamagedChunks(environment, index)
