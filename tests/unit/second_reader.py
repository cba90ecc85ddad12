"""A second implementation of reading a store, written from docs/format.md alone: it imports nothing of ckptfs.

It reads the packs and `store.json`, keeps everything in dicts, and is strict: whatever the document does not allow
fails. Slow, and for small stores.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash
import zstandard

LIVE = 0xFFFFFFFF
ROOT = 1
HOLE = 1 << 63
INODES, DIRENTS, XATTRS, MANIFESTS, CHANGES, SNAPSHOTS, NAMES, META, CHUNKS, CHUNK_IDS = range(1, 11)
FREED = 12


class Record(NamedTuple):
    """A record and what it was decoded to."""

    type: int
    number: int
    encoding: int
    raw_size: int
    id: bytes
    bases: tuple[int, ...]
    payload: bytes


class SecondReader:
    """A store in memory: `tables` by number, `chunks` and the records `stored` for them by number."""

    def __init__(self, path: Path) -> None:
        description = json.loads((path / "store.json").read_text())
        assert description["kind"] == "ckptfs store"
        assert description["version"] in (1, 2, 4, 5)
        self.seed = int(description["seed"], 16)
        self.tables: dict[int, dict[bytes, bytes]] = {table: {} for table in (*range(1, 9), FREED)}
        self.chunks: dict[int, bytes] = {}
        self.stored: dict[int, Record] = {}
        self.released: set[int] = set()
        self.encodings: set[int] = set()
        packs = {int(file.stem): file.read_bytes() for file in sorted((path / "packs").iterdir())}
        self.located: dict[int, tuple[int, int]] = {}
        first, start, sequence, next_number = 1, 0, 1, 1
        if (path / "journal.condensed").exists():
            first, start, sequence, next_number = self._condensed((path / "journal.condensed").read_bytes())
            self._locate(packs)
        assert [pack for pack in packs if pack >= first] == list(range(first, max(packs) + 1))
        self.freed = self._freed_places(packs, first, start, sequence)
        for pack in range(first, max(packs) + 1):
            others = list(self._records(packs[pack], pack, start if pack == first else 0))
            if pack != first or start == 0:
                header = others.pop(0)
                assert (header.type, header.number) == (1, pack)
            for record in others:
                if record.type == 0:
                    next_number = max(next_number, record.number + 1)
                elif record.type == 2:
                    assert 1 <= record.number <= next_number
                    next_number = max(next_number, record.number + 1)
                    if record.encoding != 3:
                        self._raw(record, b"")
                    self.stored[record.number] = record
                    self.encodings.add(record.encoding)
                else:
                    assert (record.type, record.number) == (3, sequence)
                    sequence += 1
                    self._apply(self._raw(record, b""))
        assert self.released.isdisjoint(self.stored)
        known = self.released | set(self.stored)
        assert known >= set(self.located)
        assert first > 1 or start > 0 or known == set(range(1, next_number))
        self._decode_chunks()

    def _decode_chunks(self) -> None:
        """Decode every chunk once its bases are: as many rounds as the longest chain of deltas has links."""
        for _ in range(1 + 8):
            for number, record in self.stored.items():
                if number not in self.chunks and all(base in self.chunks for base in record.bases):
                    self.chunks[number] = self._raw(record, b"".join(self.chunks[base] for base in record.bases))
        assert set(self.chunks) == set(self.stored)

    def _raw(self, record: Record, base: bytes) -> bytes:
        """Return what a record holds; `base` is all bytes of its bases."""
        assert bool(record.bases) == (record.encoding == 3)
        raw = decode(record.encoding, record.payload, record.raw_size, base)
        assert len(raw) == record.raw_size
        assert xxhash.xxh3_128_digest(raw, self.seed) == record.id
        return raw

    def _condensed(self, data: bytes) -> tuple[int, int, int, int]:
        """Take over the rows of the condensed journal; return pack and offset of its mark, and what is next there."""
        header, *parts = self._records(data, 0)
        assert (header.type, header.number) == (1, 0)
        assert [(part.type, part.number) for part in parts] == [(3, number) for number in range(1, len(parts) + 1)]
        states = []
        for part in parts:
            for table, key, value in rows(self._raw(part, b"")):
                assert value is not None
                if table == CHUNKS:
                    self.located[int.from_bytes(key, "big")] = struct.unpack_from("<IQ", value)
                elif table == 11:
                    states.append(value)
                else:
                    self.tables[table][key] = value
        assert len(states) == 2 and states[0] == states[1]
        pack, _, offset, sequence, number = struct.unpack_from("<IIQQQ", states[0])
        return pack, offset, sequence, number

    def _locate(self, packs: dict[int, bytes]) -> None:
        """Take the chunks that lie where the condensed journal says; the others have to come behind its mark."""
        for number, (pack, offset) in self.located.items():
            head = packs.get(pack, b"")[offset : offset + 48]
            if head[:5] == b"ckR1\x02" and head[16:24] == number.to_bytes(8, "little"):
                record = next(self._records(packs[pack], 0, offset))
                self.stored[number] = record

    def _freed_places(
        self, packs: dict[int, bytes], first: int, start: int, sequence: int
    ) -> dict[tuple[int, int], tuple[int, int]]:
        """Return (pack, offset) -> (end, highest chunk number), from the metadata at whatever place it is found."""
        places = {}
        for number_of_pack, pack in packs.items():
            if number_of_pack < first:
                continue
            for at in range(start if number_of_pack == first else 0, len(pack) - 47, 8):
                head = pack[at : at + 48]
                if head[:5] != b"ckR1\x03" or int.from_bytes(head[16:24], "little") != sequence:
                    continue
                if int.from_bytes(head[44:], "little") == xxhash.xxh3_64_intdigest(head[:44]) & 0xFFFFFFFF:
                    (record,) = self._records(pack[at : at + 48 + int.from_bytes(head[12:16], "little")], 0)
                    sequence += 1
                    for table, key, value in rows(self._raw(record, b"")):
                        if table == FREED:
                            number, offset = struct.unpack(">IQ", key)
                            size, last = struct.unpack("<QQ", value)
                            places[number, offset] = offset + size, last
        return places

    def _records(self, pack: bytes, number_of_pack: int, at: int = 0) -> Iterator[Record]:
        while at < len(pack):
            if freed := number_of_pack and self.freed.get((number_of_pack, at)):
                at, number = freed
                yield Record(0, number, 0, 0, b"", (), b"")
                continue
            head = pack[at : at + 48]
            magic, kind, encoding, bases, raw_size, stored_size, number, raw_id, payload_check, header_check = (
                struct.unpack("<4sBBHIIQ16sII", head)
            )
            assert magic == b"ckR1"
            assert header_check == xxhash.xxh3_64_intdigest(head[:44]) & 0xFFFFFFFF
            end = at + 48 + 8 * bases + stored_size
            assert payload_check == xxhash.xxh3_64_intdigest(pack[at + 48 : end]) & 0xFFFFFFFF
            numbers = struct.unpack_from(f"<{bases}Q", pack, at + 48)
            yield Record(kind, number, encoding, raw_size, raw_id, numbers, pack[at + 48 + 8 * bases : end])
            at = end + -end % 8
            assert not any(pack[end:at])

    def _apply(self, raw: bytes) -> None:
        for table, key, value in rows(raw):
            if table in (CHUNKS, CHUNK_IDS):
                assert value is None
                if table == CHUNKS:
                    number = int.from_bytes(key, "big")
                    assert number not in self.released
                    self.released.add(number)
                    self.stored.pop(number, None)
            elif value is None:
                self.tables[table].pop(key, None)
            else:
                self.tables[table][key] = value

    def snapshots(self) -> dict[str, int]:
        """Return name -> epoch."""
        return {name.decode(): int.from_bytes(epoch, "big") for name, epoch in self.tables[NAMES].items()}

    def see(self, table: int, prefix: bytes, epoch: int) -> bytes:
        """Return what an epoch sees under a prefix, b"" for nothing."""
        rows = self.tables[table]
        seen = [key for key in rows if key[:-4] == prefix and int.from_bytes(key[-4:], "big") <= epoch]
        return rows[max(seen)] if seen else b""

    def files(self, epoch: int) -> dict[str, bytes]:
        """Return path -> content of all regular files, or target of all symbolic links, that an epoch sees."""
        return dict(self._walk(ROOT, "", epoch))

    def _walk(self, directory: int, path: str, epoch: int) -> Iterator[tuple[str, bytes]]:
        start = struct.pack(">Q", directory)
        for prefix in sorted({key[:-4] for key in self.tables[DIRENTS] if key.startswith(start)}):
            if entry := self.see(DIRENTS, prefix, epoch):
                ino, kind = struct.unpack("<QB", entry)
                child = path + prefix[8:-1].decode()
                inode = self.see(INODES, struct.pack(">Q", ino), epoch)
                mode, *_, size, _, _, _, _, manifest, _ = struct.unpack_from("<6I3Q3q2Q", inode)
                assert mode >> 12 == kind
                if kind == 0o04:
                    yield from self._walk(ino, child + "/", epoch)
                elif kind == 0o12:
                    yield child, inode[88:]
                else:
                    yield child, self._content(manifest, size)

    def _content(self, manifest: int, size: int) -> bytes:
        content = b""
        start = struct.pack(">Q", manifest)
        for key, value in sorted(self.tables[MANIFESTS].items()):
            if manifest and key.startswith(start):
                assert int.from_bytes(key[8:], "big") == len(content)
                count = len(value) // 12
                numbers = struct.unpack_from(f"<{count}Q", value)
                lengths = struct.unpack_from(f"<{count}I", value, 8 * count)
                for number, length in zip(numbers, lengths, strict=True):
                    content += bytes(number - HOLE) if number & HOLE else self.chunks[number][:length]
        assert len(content) == size
        return content


def rows(raw: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield table, key and value of each row of a metadata payload; None deletes."""
    at = 16
    while at < len(raw):
        table, flags, key_size, value_size = struct.unpack_from("<BBHI", raw, at)
        key = raw[at + 8 : at + 8 + key_size]
        at += 8 + key_size + value_size
        yield table, key, None if flags & 1 else raw[at - value_size : at]


def decode(encoding: int, payload: bytes, raw_size: int, base: bytes) -> bytes:
    """Return the bytes of a payload; `base` is all bytes of its bases."""
    if encoding in (0, 4):
        return payload
    if encoding == 1:
        return zstandard.decompress(payload)
    if encoding == 3:
        return apply_delta(payload, raw_size, base)
    assert encoding == 2
    width, phase, turned = payload[0] & 15, payload[0] >> 4 & 7, payload[0] >> 7
    table = [struct.unpack_from("<BI", payload, 1 + 5 * plane) for plane in range(width)]
    at = 1 + 5 * width
    planes = []
    for kind, size in table:
        body = payload[at : at + size]
        at += size
        if kind == 2:
            body, rest = take_coded(body, bytes((raw_size - phase) // width))
            assert not rest
        planes.append(zstandard.decompress(body) if kind == 1 else body)
    assert {len(plane) for plane in planes} == {(raw_size - phase) // width}
    elements = [int.from_bytes(bytes(element), "little") for element in zip(*planes, strict=True)]
    if turned:
        elements = [element >> 1 | (element & 1) << 8 * width - 1 for element in elements]
    around = payload[at:]
    tail, front = around[: len(around) - phase], around[len(around) - phase :]
    return front + b"".join(element.to_bytes(width, "little") for element in elements) + tail


def varint(coded: bytes) -> tuple[int, bytes]:
    """Return a varint and what follows it."""
    size = next(at for at, byte in enumerate(coded) if byte < 128) + 1
    return sum((byte & 127) << 7 * at for at, byte in enumerate(coded[:size])), coded[size:]


def take_coded(coded: bytes, keys: bytes) -> tuple[bytes, bytes]:
    """Return coded bytes, as many as there are keys, and what follows them."""
    kind, coded = coded[0], coded[1:]
    if kind == 0:
        return coded[: len(keys)], coded[len(keys) :]
    if kind == 1:
        return coded[:1] * len(keys), coded[1:]
    return take_few(coded, len(keys)) if kind == 2 else take_rans(coded, keys)


def take_table(coded: bytes) -> tuple[list[tuple[int, int, int]], bytes]:
    """Return value, frequency and distance from the first slot, for each slot of a table; and what follows it."""
    value, last, coded = coded[0], coded[1], coded[2:]
    slots: list[tuple[int, int, int]] = []
    while value < last:
        frequency, coded = varint(coded)
        slots += [(value, frequency, at) for at in range(frequency)]
        if frequency == 0:
            value, coded = value + coded[0], coded[1:]
        value += 1
    assert value == last
    left = 4096 - len(slots)
    assert left > 0
    return slots + [(last, left, at) for at in range(left)], coded


def take_rans(coded: bytes, keys: bytes) -> tuple[bytes, bytes]:
    lanes, coded = coded[0], coded[1:]
    assert lanes in (1, 8, 32)
    tables: list[tuple[int, list[tuple[int, int, int]]]] = []
    while not tables or tables[-1][0] < 255:
        last_key = coded[0]
        slots, coded = take_table(coded[1:])
        tables.append((last_key, slots))
    slots_of = [next(slots for last_key, slots in tables if key <= last_key) for key in range(256)]
    states = list(struct.unpack_from(f"<{lanes}I", coded))
    at = 4 * lanes
    out = bytearray()
    for index, key in enumerate(keys):
        state = states[index % lanes]
        value, frequency, offset = slots_of[key][state % 4096]
        state = frequency * (state // 4096) + offset
        if state < 1 << 15:
            state = state << 16 | int.from_bytes(coded[at : at + 2], "little")
            at += 2
        states[index % lanes] = state
        out.append(value)
    assert set(states) == {1 << 15}
    return bytes(out), coded[at:]


def take_few(coded: bytes, size: int) -> tuple[bytes, bytes]:
    count, coded = varint(coded)
    rice, coded = coded[0], coded[1:]
    bits = "".join(f"{byte:08b}"[::-1] for byte in coded)
    at = 0

    def number(low_bits: int) -> int:
        nonlocal at
        at += low_bits
        return int(bits[at - low_bits : at][::-1] or "0", 2)

    def zeros() -> int:
        nonlocal at
        start, at = at, bits.index("1", at) + 1
        return at - 1 - start

    out = b""
    for _ in range(count):
        out += bytes((zeros() << rice) + number(rice))
        length = zeros()
        out += bytes([1 << length | number(length)])
    used = (at + 7) // 8
    assert "1" not in bits[at : 8 * used]
    return out.ljust(size, b"\0"), coded[used:]


def apply_delta(payload: bytes, raw_size: int, base: bytes) -> bytes:
    """Return a chunk from a delta payload and all bytes of its bases."""
    width, phase, skip = struct.unpack_from("<BBI", payload)
    assert phase < width
    assert len(base) >= skip + raw_size
    base, coded = base[skip : skip + raw_size], payload[6:]
    count = max(raw_size - phase, 0) // width
    begin = min(phase, raw_size)
    end = begin + count * width
    top = 1 << 8 * width - 1
    elements = [int.from_bytes(base[at : at + width], "little") for at in range(begin, end, width)]
    keys = bytes(element if width == 1 else element % top >> 8 * width - 9 for element in elements)
    planes = []
    for _ in range(width if count else 0):
        plane, coded = take_coded(coded, keys)
        planes.append(plane)
    middle = b""
    for index, element in enumerate(elements):
        folded = int.from_bytes(bytes(plane[index] for plane in planes), "little")
        step = -(folded + 1) // 2 if folded % 2 else folded // 2
        moved = ((2 * top - 1 - element if element >= top else element + top) + step) % (2 * top)
        middle += (moved - top if moved >= top else 2 * top - 1 - moved).to_bytes(width, "little")
    around = bytes((byte + step) % 256 for byte, step in zip(base[:begin] + base[end:], coded, strict=True))
    return around[:begin] + middle + around[begin:]
