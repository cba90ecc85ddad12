"""The chunk index takes many chunks at once as it takes them one by one."""

import random
from pathlib import Path

import pytest

from ckptfs.store.codec import Encoding
from ckptfs.store.disk import Disk
from ckptfs.store.environment import Environment
from ckptfs.store.index import ChunkIndex
from ckptfs.store.location import Chunk, Location, build_location
from ckptfs.store.records import Place

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
