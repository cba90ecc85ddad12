"""The bytes of a record: golden values and bounds."""

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import DamagedError
from ckptfs.store import records
from ckptfs.store.records import Position, Record, RecordType, Row
from ckptfs.store.schema import Table

SEED = 0x0123456789ABCDEF

CHUNK_GOLDEN = (
    "636b5231020002001600000016000000070000000000000068d576c94e1c2caf3cc897e5e69d0891935433604c0e2362"
    "0500000000000000060000000000000061206368756e6b206f662032322062797465732e2e2e0000"
)
METADATA_GOLDEN = (
    "636b5231030000003500000035000000030000000000000071cc2c10d1fbf877b869ee620b0c233be31c1fa433375999"
    "0200000000000000001000000000000001000300050000006b657976616c75650701040000000000676f6e6508000100"
    "0000000065000000"
)


def joined(record: records.RecordBytes) -> bytes:
    data = b"".join(record.buffers)
    assert len(data) == record.size
    return data


def parsed(data: bytes) -> Record:
    header = records.parse_header(data)
    assert header is not None
    return records.parse_body(header, memoryview(data)[records.HEADER_SIZE :])


def chunk_record() -> bytes:
    raw = b"a chunk of 22 bytes..."
    bases = records.pack_bases([5, 6])
    chunk_id = xxhash.xxh3_128_digest(raw, SEED)
    return joined(records.build(RecordType.CHUNK, 7, chunk_id, len(raw), 0, raw, bases=bases))


def metadata_record() -> bytes:
    rows = [Row(Table.INODES, b"key", b"value"), Row(Table.NAMES, b"gone", None), Row(Table.META, b"e", b"")]
    return joined(records.build_metadata(3, Position(2, 4096), rows, SEED))


def test_records_keep_their_bytes() -> None:
    assert chunk_record().hex() == CHUNK_GOLDEN
    assert metadata_record().hex() == METADATA_GOLDEN


def test_a_chunk_record_comes_back_with_its_bases() -> None:
    record = parsed(chunk_record())
    assert record.header.type == RecordType.CHUNK
    assert (record.header.number, record.header.raw_size, record.bases) == (7, 22, (5, 6))
    assert bytes(record.payload) == b"a chunk of 22 bytes..."
    assert records.is_intact(record)
    assert record.header.size == len(chunk_record())


@pytest.mark.parametrize("make", [chunk_record, metadata_record])
def test_every_changed_byte_is_noticed(make: object) -> None:
    good = make()  # type: ignore[operator]
    header = records.parse_header(good)
    assert header is not None
    covered = records.HEADER_SIZE + 8 * header.base_count + header.stored_size
    for at in range(covered):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        if at < records.HEADER_SIZE:
            assert records.parse_header(bytes(damaged)) is None
        else:
            assert not records.is_intact(parsed(bytes(damaged)))


def test_a_pack_header_belongs_to_one_pack_of_one_store() -> None:
    record = parsed(joined(records.build_pack_header(4, 1, 99, SEED, 0)))
    assert records.is_pack_header(record, 4, 99)
    assert not records.is_pack_header(record, 5, 99)
    assert not records.is_pack_header(record, 4, 98)
    assert not records.is_pack_header(parsed(chunk_record()), 7, 99)


row_strategy = st.builds(
    Row, st.sampled_from(Table), st.binary(min_size=1, max_size=511), st.none() | st.binary(max_size=2000)
)


@given(st.lists(row_strategy, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 2**63))
def test_metadata_comes_back(rows: list[Row], pack: int, offset: int) -> None:
    record = parsed(joined(records.build_metadata(1, Position(pack, offset), rows, SEED)))
    journal = records.parse_metadata(record, SEED)
    assert journal.synced == Position(pack, offset)
    assert journal.rows == rows


def test_metadata_of_another_store_is_refused() -> None:
    with pytest.raises(DamagedError, match="not what was written"):
        records.parse_metadata(parsed(metadata_record()), SEED + 1)


@pytest.mark.parametrize("size_said", [0, 999, 1001, 2**32 - 1])
def test_metadata_is_not_decoded_beyond_the_size_that_its_header_says(size_said: int) -> None:
    raw = bytes(1000)
    payload = zstandard.compress(raw)
    record = joined(records.build(RecordType.METADATA, 1, xxhash.xxh3_128_digest(raw, SEED), size_said, 1, payload))
    with pytest.raises(DamagedError, match="another size"):
        records.parse_metadata(parsed(record), SEED)


def test_a_row_that_ends_behind_its_record_is_refused() -> None:
    raw = records.METADATA_PREFIX.pack(1, 0, 0) + records.ROW.pack(1, 0, 3, 2**32 - 1) + b"key"
    record = joined(records.build(RecordType.METADATA, 1, xxhash.xxh3_128_digest(raw, SEED), len(raw), 0, raw))
    with pytest.raises(DamagedError, match="ends behind"):
        records.parse_metadata(parsed(record), SEED)


@pytest.mark.parametrize(
    ("raw", "payload", "encoding", "size_said", "said"),
    [
        (records.METADATA_PREFIX.pack(1, 0, 0) + b"abc", None, 0, None, "ends behind"),
        (bytes(1000), b"no frame of zstd", 1, 1000, "cannot be decompressed"),
        (bytes(1000), zstandard.compress(bytes(1000))[:-3], 1, 1000, "cannot be decompressed"),
        (bytes(1000), None, 0, 1001, "another size"),
        (bytes(1000), None, 2, 1000, "which it cannot have"),
    ],
)
def test_metadata_that_does_not_hold_is_refused(
    raw: bytes, payload: bytes | None, encoding: int, size_said: int | None, said: str
) -> None:
    chunk_id = xxhash.xxh3_128_digest(raw, SEED)
    size = len(raw) if size_said is None else size_said
    record = records.build(RecordType.METADATA, 1, chunk_id, size, encoding, raw if payload is None else payload)
    with pytest.raises(DamagedError, match=said):
        records.parse_metadata(parsed(joined(record)), SEED)


def test_what_has_another_type_size_or_magic_is_no_pack_header() -> None:
    payload = records.PACK_PAYLOAD.pack(1, 0, 99)
    assert records.is_pack_header(parsed(joined(records.build(RecordType.PACK, 4, bytes(16), 16, 0, payload))), 4, 99)
    other = joined(records.build(RecordType.CHUNK, 4, bytes(16), 16, 0, payload))
    assert not records.is_pack_header(parsed(other), 4, 99)
    assert not records.is_pack_header(
        parsed(joined(records.build(RecordType.PACK, 4, bytes(16), 8, 0, bytes(8)))), 4, 99
    )
    head = b"ckR2" + other[4 : records.HEADER.size]
    check = records.HEADER_CHECK.pack(xxhash.xxh3_64_intdigest(head) & 0xFFFFFFFF)
    assert records.parse_header(head + check) is None
