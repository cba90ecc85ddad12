"""Files made to cost a parser dearly; as a script with the name of one, tells what it cost: seconds and MiB."""

import io
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress

from ckptfs.config import MIB
from ckptfs.formats import parse
from ckptfs.formats.layout import MalformedError, Request, Tensor
from ckptfs.formats.recognise import walk


def torch_zip(pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/data/0", bytes(64))
    return buffer.getvalue()


def torch_legacy(state: bytes, keys: bytes = b"\x80\x02].") -> bytes:
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    return magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + state + keys + bytes(64)


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(64)


def reference(key: bytes) -> bytes:
    """Return the opcodes of a storage of 16 numbers."""
    return b"(X\x07\0\0\0storagectorch\nFloatStorage\nX" + struct.pack("<I", len(key)) + key + b"NK\x10tQ"


def hdf5(kind: int, first: int, second: int, rest: bytes) -> bytes:
    """Return a file whose root group has one message, of two numbers; `rest` lies at 100."""
    superblock = b"\x89HDF\r\n\x1a\n\2\x08\x08\0" + struct.pack("<QQQQ", 0, 0, 0, 70) + bytes(26)
    return superblock + b"OHDR\2\2" + struct.pack("<IBHBQQ", 20, kind, 16, 0, first, second) + rest


def hdf5_dataset(rest: bytes, rank: int = 1) -> bytes:
    """Return a file whose root is a dataset of some dimensions in pieces, with the tree of these, `rest`, at 300."""
    space = struct.pack(f"<BBBxxxxx{rank}Q", 1, rank, 0, *[1 << 20] * rank)
    kind = struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 0x1F, 0, 4, 0, 32, 23, 8, 0, 23, 127)
    layout = struct.pack(f"<BBBQ{rank}II", 3, 2, rank + 1, 300, *[1] * rank, 4)
    messages = b"".join(
        struct.pack("<BHB", number, len(data), 0) + data for number, data in ((1, space), (3, kind), (8, layout))
    )
    superblock = b"\x89HDF\r\n\x1a\n\2\x08\x08\0" + struct.pack("<QQQQ", 0, 0, 0, 70) + bytes(26)
    header = b"OHDR\2\2" + struct.pack("<I", len(messages)) + messages
    return (superblock + header).ljust(300, b"\0") + rest


def hdf5_group(rest: bytes, node_size: int, depth: int, count: int) -> bytes:
    """Return a file whose root is a group with a heap of links; `rest` (at 400) is the tree of their names.

    Its root has the count of names.
    """
    info = struct.pack("<BBQQ", 0, 0, 110, 270)
    superblock = b"\x89HDF\r\n\x1a\n\2\x08\x08\0" + struct.pack("<QQQQ", 0, 0, 0, 70) + bytes(26)
    header = b"OHDR\2\2" + struct.pack("<IBHB", 4 + len(info), 2, len(info), 0) + info
    heap = b"FRHP" + struct.pack("<xHH101xHQQHxxQH", 7, 0, 4, 512, 1 << 16, 32, 300, 0)
    tree = b"BTHD" + struct.pack("<xBIHHxxQH", 5, node_size, 11, depth, 400, count)
    return (((superblock + header).ljust(110, b"\0") + heap).ljust(270, b"\0") + tree).ljust(400, b"\0") + rest


def nested(keys: bytes, depth: int, inside: bytes) -> bytes:
    """Return the opcodes of a dict in a dict and so on, each under the key that some opcodes push."""
    return (b"}" + keys) * depth + inside + b"s" * depth


def references(count: int) -> bytes:
    """Return the opcodes of a dict of storages."""
    return b"}" + b"".join(b"K\1" + reference(b"%d" % number) + b"s" for number in range(count))


def hdf5_chain(depth: int, rest: Callable[[int], bytes]) -> bytes:
    """Return a file of groups in groups with long names; the last one is the rest, which is told where it lies."""
    data = b"\x89HDF\r\n\x1a\n\2\x08\x08\0" + struct.pack("<QQQQ", 0, 0, 0, 44)
    for _ in range(depth):
        link = struct.pack("<BBH", 1, 1, 1000) + b"n" * 1000 + struct.pack("<Q", len(data) + 1026)
        data += b"OHDR\2\2" + struct.pack("<IBHB", 4 + len(link), 6, len(link), 0) + link
    return data + rest(len(data))


def symbols(at: int, targets: int, first: int = 1 << 40) -> bytes:
    """Return a group at `at` of that many objects, one behind the other, whose names have no character."""
    heap, node = at + 40, at + 100
    header = b"OHDR\2\2" + struct.pack("<IBHBQQ", 20, 0x11, 16, 0, node, heap)
    entries = b"".join(struct.pack("<QQ24x", 0, first + number) for number in range(targets))
    names = (header.ljust(40, b"\0") + b"HEAP" + struct.pack("<IQQQ", 0, 1, 0, at + 90)).ljust(100, b"\0")
    return names + b"SNOD" + struct.pack("<HH", 1, targets) + entries


LONG = 7 * MIB
WORD = b"X" + struct.pack("<I", MIB) + b"w" * MIB

HARMFUL: dict[str, Callable[[], bytes]] = {
    "a pickle of dicts": lambda: torch_zip(b"\x80\x02" + b"}" * LONG + b"."),
    "a pickle nested deeply": lambda: torch_zip(b"\x80\x02" + b")" + b"\x85" * 2_000_000 + b"."),
    "dicts nested deeply": lambda: torch_zip(b"\x80\x02" + b"}K\x01" * 500_000 + b"N" + b"s" * 500_000 + b"."),
    "marks": lambda: torch_zip(b"\x80\x02" + b"(" * LONG + b"."),
    "a tuple of itself, doubled": lambda: torch_zip(b"\x80\x02)" + b"2\x86" * 500_000 + b"."),
    "a list in itself": lambda: torch_zip(b"\x80\x02]q\0h\0a."),
    "a memo of numbers": lambda: torch_zip(
        b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", number * 65537 & 0xFFFFFFFF) for number in range(800_000))
        + b"."
    ),
    "long names": lambda: torch_zip(b"\x80\x04" + WORD + b"q\0" + b"h\0h\0\x93" * 100_000 + b"."),
    "long keys": lambda: torch_zip(
        b"\x80\x02}" + WORD + b"q\0" + b"0"
        + b"".join(b"h\0" + reference(b"%d" % number) + b"s" for number in range(50_000)) + b"."
    ),
    "long paths": lambda: torch_zip(b"\x80\x02" + WORD + b"q\0" + nested(b"h\0", 60, references(50_000)) + b"."),
    "one long path": lambda: torch_zip(
        b"\x80\x02" + b"X" + struct.pack("<I", 5 * MIB) + b"w" * 5 * MIB + b"q\0"
        + nested(b"h\0", 60, references(1)) + b"."
    ),
    "deep paths without a name": lambda: torch_zip(
        b"\x80\x02" + nested(b"X\0\0\0\0", 150_000, references(10_000)) + b"."
    ),
    "a key of itself, doubled": lambda: torch_zip(b"\x80\x02})" + b"2\x86" * 28 + reference(b"0") + b"s."),
    "a key of a long integer": lambda: torch_zip(
        b"\x80\x02}\x8b" + struct.pack("<I", 4000) + b"\x7f" * 4000 + reference(b"0") + b"s."
    ),
    "an old pickle longer than any header": lambda: torch_legacy(
        b"\x80\x02B" + struct.pack("<I", 20 * MIB) + bytes(20 * MIB) + b"."
    ),
    "an old pickle of lists": lambda: torch_legacy(b"\x80\x02" + b"]" * LONG + b"."),
    "an old pickle without an end": lambda: torch_legacy(b"\x80\x02" + b"]0" * 500_000, b""),
    "an old key nested deeply": lambda: torch_legacy(
        b"\x80\x02" + reference(b"0") + b".", b"\x80\x02]()" + b"\x85" * 500_000 + b"e."
    ),
    "one storage over and over": lambda: torch_legacy(
        b"\x80\x02" + reference(b"0") + b".", b"\x80\x02](X\1\0\0\x000q\0" + b"h\0" * 500_000 + b"e."
    ),
    "a long integer": lambda: torch_zip(b"\x80\x02\x8b" + struct.pack("<I", LONG) + b"\xff" * LONG + b"."),
    "lists in JSON": lambda: safetensors(b'{"a":' + b"[" * LONG),
    "many lists in JSON": lambda: safetensors(b'{"a":[' + b"[]," * (LONG // 3) + b"[]]}"),
    "more lists in JSON than a header has": lambda: safetensors(b'{"a":[' + b"[]," * (12 * MIB) + b"[]]}"),
    "a long number in JSON": lambda: safetensors(b'{"a":' + b"9" * LONG + b"}"),
    "many tensors in JSON": lambda: safetensors(
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(120_000)) + b"}"
    ),
    "a rank that grows": lambda: safetensors(
        b'{"a":{"dtype":"U8","shape":[' + b"4611686018427387903," * 300_000 + b'1],"data_offsets":[0,8]}}'
    ),
    "members without a size": lambda: b"PK\3\4\0\0\x08\0" + bytes(18) + b"\1\0\0\0x" + b"PK\7\x08" * LONG,
    "many members": lambda: (b"PK\3\4" + bytes(14) + b"\1\0\0\0\1" + bytes(7) + b"x") * 600_000,
    "many archives": lambda: b"PK\3\4" + bytes(26) + (b"PK\5\6" + bytes(18)) * 600_000,
    "words in GGUF": lambda: (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<QIIQ", 0, 9, 8, 1 << 60) + bytes(40 * MIB)
    ),
    "a long name in GGUF": lambda: b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 20 * MIB) + bytes(20 * MIB),
    "values in GGUF": lambda: b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 17) + struct.pack("<QIB", 0, 0, 0) * (1 << 17),
    "tensors in GGUF": lambda: b"GGUF" + struct.pack("<IQQ", 3, 1 << 17, 0) + bytes(24) * (1 << 17),
    "a header that goes on in itself": lambda: hdf5(0x10, 80, 20, b""),
    "a tree of itself": lambda: hdf5(0x11, 132, 100, (
        b"HEAP" + struct.pack("<IQQQ", 0, 1, 0, 100)
        + b"TREE" + struct.pack("<BBHQQQ", 0, 1, 60_000, 0, 0, 0) + struct.pack("<QQ", 132, 0) * 60_000
    )),
    "pieces in a tree of itself": lambda: hdf5_dataset(
        b"TREE" + struct.pack("<BBHQQ", 1, 1, 60_000, 0, 0) + struct.pack("<8xQ8xQ", 0, 300) * 60_000
    ),
    "many pieces": lambda: hdf5_dataset(
        b"TREE" + struct.pack("<BBHQQ", 1, 1, 50, 0, 0)
        + b"".join(struct.pack("<8xQ8xQ", 0, 300 + 24 + 32 * 50) for _ in range(50))
        + b"TREE" + struct.pack("<BBHQQ", 1, 0, 60_000, 0, 0)
        + b"".join(struct.pack("<8xQ8xQ", number, 1 << 20) for number in range(60_000))
    ),
    "names in one leaf over and over": lambda: hdf5_group(
        (b"BTIN" + bytes(2) + bytes(11) * 300 + struct.pack("<QH", 400 + (1 << 13), 743) * 301).ljust(1 << 13, b"\0")
        + (b"BTLF" + bytes(2) + bytes(11) * 743).ljust(1 << 13, b"\0"), 1 << 13, 1, 300
    ),
    "a large node of names": lambda: hdf5_group(b"BTLF" + bytes(2) + bytes(LONG), LONG, 0, 65_000),
    "long paths in HDF5": lambda: hdf5_chain(20, lambda at: symbols(at, 50_000)),
    "the same names over and over": lambda: hdf5(0x11, 132, 100, (
        b"HEAP" + struct.pack("<IQQQ", 0, 2000, 0, 1000)
        + (b"TREE" + struct.pack("<BBHQQQ", 0, 1, 20, 0, 0, 0) + struct.pack("<QQ", 3000, 0) * 20).ljust(868, b"\0")
        + b"n" * 2000
        + b"SNOD" + struct.pack("<HH", 1, 65_535) + struct.pack("<QQQQQ", 0, 70, 0, 0, 0) * 65_535
    )),
    "long names without an end": lambda: hdf5(0x11, 132, 100, (
        b"HEAP" + struct.pack("<IQQQ", 0, LONG, 0, 140 + 40 * 65_535)
        + b"SNOD" + struct.pack("<HH", 1, 65_535) + struct.pack("<QQQQQ", 0, 70, 0, 0, 0) * 65_535 + b"n" * LONG
    )),
    "names without an end": lambda: hdf5(0x11, 132, 100, (
        b"HEAP" + struct.pack("<IQQQ", 0, MIB, 0, 100)
        + b"SNOD" + struct.pack("<HH", 1, 65_535) + struct.pack("<QQQQQ", 132, 70, 0, 0, 0) * 65_535
    )),
    "a number as long as a line": lambda: (
        b"\x93NUMPY\2\0" + struct.pack("<I", 16000) + b"{'descr': '<f8', 'fortran_order': False, 'shape': ("
        + b"9" * 15000 + b",), }\n"
    ),
}  # fmt: skip


def requests(data: bytes) -> Iterator[Request]:
    """Yield what a walk of a file asks for, which it gets, until it ends."""
    steps = walk()
    with suppress(StopIteration, MalformedError):
        step = next(steps)
        while True:
            if isinstance(step, Tensor):
                step = next(steps)
            else:
                yield step
                step = steps.send(data[step.offset : step.offset + step.size])


def main(kind: str) -> None:
    """Parse a file, and print the seconds of CPU and by how many MiB the process grew."""
    data = HARMFUL[kind]()
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.process_time()
    parse(lambda offset, size: data[offset : offset + size], len(data))
    seconds = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(seconds, (after.ru_maxrss - before.ru_maxrss) / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
