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
INODES, DIRENTS, XATTRS, MANIFESTS, CHANGES, SNAPSHOTS, NAMES, META = range(1, 9)
FREED = 12


class Record(NamedTuple):
    """A record and what it was decoded to."""

    type: int
    number: int
    encoding: int
    raw: bytes


class SecondReader:
    """A store in memory: `tables` by number, `chunks` by number."""

    def __init__(self, path: Path) -> None:
        description = json.loads((path / "store.json").read_text())
        assert description["kind"] == "ckptfs store"
        assert description["version"] in (1, 2, 3)
        self.seed = int(description["seed"], 16)
        self.tables: dict[int, dict[bytes, bytes]] = {table: {} for table in (*range(1, 9), FREED)}
        self.chunks: dict[int, bytes] = {}
        self.encodings: set[int] = set()
        files = sorted((path / "packs").iterdir())
        self.freed = self._freed_places([file.read_bytes() for file in files])
        sequence = next_number = 1
        for pack, file in enumerate(files, 1):
            assert file.name == f"{pack:08d}.pack"
            header, *others = self._records(file.read_bytes(), pack)
            assert (header.type, header.number) == (1, pack)
            for record in others:
                if record.type == 0:
                    next_number = max(next_number, record.number + 1)
                elif record.type == 2:
                    assert 1 <= record.number <= next_number
                    next_number = max(next_number, record.number + 1)
                    self.chunks[record.number] = record.raw
                    self.encodings.add(record.encoding)
                else:
                    assert (record.type, record.number) == (3, sequence)
                    sequence += 1
                    self._apply(record.raw)
        assert set(self.chunks) == set(range(1, next_number))

    def _freed_places(self, packs: list[bytes]) -> dict[tuple[int, int], tuple[int, int]]:
        """Return (pack, offset) -> (end, highest chunk number), from the metadata at whatever place it is found."""
        places = {}
        sequence = 1
        for pack in packs:
            for at in range(0, len(pack) - 47, 8):
                head = pack[at : at + 48]
                if head[:5] != b"ckR1\x03" or int.from_bytes(head[16:24], "little") != sequence:
                    continue
                if int.from_bytes(head[44:], "little") == xxhash.xxh3_64_intdigest(head[:44]) & 0xFFFFFFFF:
                    (record,) = self._records(pack[at : at + 48 + int.from_bytes(head[12:16], "little")], 0)
                    sequence += 1
                    for table, key, value in rows(record.raw):
                        if table == FREED:
                            number, offset = struct.unpack(">IQ", key)
                            size, last = struct.unpack("<QQ", value)
                            places[number, offset] = offset + size, last
        return places

    def _records(self, pack: bytes, number_of_pack: int) -> Iterator[Record]:
        at = 0
        while at < len(pack):
            if freed := number_of_pack and self.freed.get((number_of_pack, at)):
                at, number = freed
                yield Record(0, number, 0, b"")
                continue
            head = pack[at : at + 48]
            magic, kind, encoding, bases, raw_size, stored_size, number, raw_id, payload_check, header_check = (
                struct.unpack("<4sBBHIIQ16sII", head)
            )
            assert magic == b"ckR1"
            assert header_check == xxhash.xxh3_64_intdigest(head[:44]) & 0xFFFFFFFF
            end = at + 48 + 8 * bases + stored_size
            assert payload_check == xxhash.xxh3_64_intdigest(pack[at + 48 : end]) & 0xFFFFFFFF
            raw = decode(encoding, pack[at + 48 + 8 * bases : end], raw_size)
            assert len(raw) == raw_size
            assert xxhash.xxh3_128_digest(raw, self.seed) == raw_id
            yield Record(kind, number, encoding, raw)
            at = end + -end % 8
            assert not any(pack[end:at])

    def _apply(self, raw: bytes) -> None:
        for table, key, value in rows(raw):
            if value is None:
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


def decode(encoding: int, payload: bytes, raw_size: int) -> bytes:
    """Return the bytes of a payload."""
    if encoding in (0, 4):
        return payload
    if encoding == 1:
        return zstandard.decompress(payload)
    assert encoding == 2
    width = payload[0]
    table = [struct.unpack_from("<BI", payload, 1 + 5 * plane) for plane in range(width)]
    at = 1 + 5 * width
    planes = []
    for kind, size in table:
        body = payload[at : at + size]
        planes.append(zstandard.decompress(body) if kind == 1 else body)
        at += size
    assert {len(plane) for plane in planes} == {raw_size // width}
    return bytes(byte for element in zip(*planes, strict=True) for byte in element) + payload[at:]
