"""Chains of deltas as `kernels.take_chains` gets them, at random: records, links, bases, and what has to come out."""

import random
from dataclasses import dataclass, field

import xxhash

from ckptfs.store import codec, records
from ckptfs.store.codec import Encoding
from ckptfs.store.delta import Alignment, encode_delta
from ckptfs.store.records import HEADER_SIZE, RecordType, pack_bases
from ckptfs.store.reference_records import LINK, NO_PLACE

SEED = 9


@dataclass
class Linked:
    """What the kernel takes, and the bytes of every link that has a place."""

    data: bytearray = field(default_factory=lambda: bytearray(b"before"))
    links: list[list[int]] = field(default_factory=list)
    """The fields of LINK."""
    bases: list[int] = field(default_factory=list)
    expected: dict[int, bytes] = field(default_factory=dict)
    out_size: int = 0
    raw: list[bytes] = field(default_factory=list)

    @property
    def packed(self) -> tuple[bytes, bytes, bytes]:
        """Records, links and bases."""
        return bytes(self.data), b"".join(LINK.pack(*link) for link in self.links), pack_bases(self.bases)

    @property
    def room(self) -> int:
        """Bytes in which all of every level are kept."""
        return sum(map(len, self.raw)) * (1 + max(link[5] for link in self.links))

    def add(self, raw: bytes, level: int, encoding: int, payload: bytes, bases: list[int], *, asked: bool) -> None:
        """Add a chunk; bases go before what rests on them."""
        number = 100 + len(self.links)
        chunk_id = xxhash.xxh3_128_digest(raw, SEED)
        record = records.build(RecordType.CHUNK, number, chunk_id, len(raw), encoding, payload, bases=pack_bases(bases))
        payload_start = len(self.data) + HEADER_SIZE + 8 * len(bases)
        place = self.out_size if asked else NO_PLACE
        if asked:
            self.expected[len(self.links)] = raw
            self.out_size += len(raw)
        self.links.append([payload_start, number, place, len(payload), len(raw), level, encoding, len(bases)])
        self.bases += bases
        self.raw.append(raw)
        self.data += b"".join(record.buffers)


def linked_chunks(generator: random.Random, depth: int, size_max: int = 3000) -> Linked:
    """Make a few chunks on each of some levels; those of level 0 are asked for, and now and then one below."""
    made = Linked()
    below: list[int] = []
    for level in range(depth, -1, -1):
        here = []
        for _ in range(generator.randrange(1, 4)):
            first = generator.randrange(len(below)) if below else 0
            bases = below[first : first + generator.randrange(1, 4)]
            joined = b"".join(made.raw[base] for base in bases)
            if len(joined) > 1 and generator.random() < 0.95:
                skip = generator.randrange(min(len(joined), 200))
                raw = bytearray(joined[skip : skip + generator.randrange(size_max)])
                for _ in range(len(raw) // 50):
                    raw[generator.randrange(len(raw))] ^= 1
                width = generator.choice((1, 2, 4, 8))
                alignment = Alignment(skip, width, generator.randrange(width))
                encoding, payload = Encoding.DELTA, encode_delta(bytes(raw), joined, alignment)
            else:
                bases = []
                raw = bytearray(generator.choices((0, 1, 0x3C, 0xBC, 7), k=generator.randrange(size_max)))
                encoding, payload = codec.encode(bytes(raw))
                if not codec.is_known_to_kernels(encoding, memoryview(payload)):
                    encoding, payload = Encoding.RAW, bytes(raw)
            here.append(len(made.links))
            asked = level == 0 or generator.random() < 0.1
            made.add(bytes(raw), level, encoding, bytes(payload), bases, asked=asked)
        below = here + below[: generator.randrange(2)]
    return made
