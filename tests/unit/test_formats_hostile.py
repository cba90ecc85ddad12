"""Files that were damaged or made to do harm: nothing but a layout inside the file, or none, and at a bounded cost."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.config import MIB
from ckptfs.formats import TensorCuts, parse
from ckptfs.formats.hdf5_heap import heap_links
from ckptfs.formats.layout import HEADER_SIZE_MAX, MalformedError, Request, add_fingerprint
from ckptfs.formats.pickled import read_pickle
from ckptfs.formats.recognise import READ_BYTES_MAX
from ckptfs.formats.safetensors import walk_safetensors
from ckptfs.formats.torch_state import read_storages
from tests.unit.checkpoint_files import MAKERS, checkpoint_file, layout_of
from tests.unit.harmful_files import HARMFUL, hdf5_chain, hdf5_dataset, reference, requests, symbols, torch_legacy

MUTATIONS = 300
SECONDS_MAX = 10.0
MEBIBYTES_MAX = 256.0
WALK_REQUESTS_MAX = 1 << 20
"""Of a walk that follows a file being written, which nobody else bounds."""
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1]


def check(data: bytes, file_size: int | None = None) -> None:
    """Hold that only a layout inside the file comes out, and that no more is read than may be."""
    size = len(data) if file_size is None else file_size
    read_bytes = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        assert 0 <= offset <= offset + length <= size
        read_bytes += length
        return data[offset : offset + length]

    end = 0
    for tensor in parse(read, size) or ():
        assert end <= tensor.offset
        end = tensor.offset + tensor.size
        assert end <= size
        assert tensor.element_width in (0, 1, 2, 4, 8)
    assert read_bytes <= READ_BYTES_MAX
    cuts = TensorCuts()
    cuts.feed(0, data)
    offsets = cuts.between(0, 1 << 80)
    assert offsets == sorted(set(offsets))


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return a file with a few places changed, cut out or put in."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        position = dice.randrange(len(changed))
        match dice.randrange(6):
            case 0:
                changed[position] = dice.randrange(256)
            case 1:
                changed[position] ^= 1 << dice.randrange(8)
            case 2:
                width = dice.choice([1, 2, 4, 8])
                edge = dice.choice(EDGES) & ((1 << 8 * width) - 1)
                changed[position : position + width] = edge.to_bytes(width, "little")
            case 3:
                del changed[position : position + dice.randint(1, 64)]
            case 4:
                source = dice.randrange(len(changed))
                changed[position:position] = changed[source : source + dice.randint(1, 64)]
            case 5:
                del changed[max(position, 1) :]
    return bytes(changed)


def headers_only(data: bytes) -> bytes:
    """Return the file with most of its tensors' bytes left out, so that a mutation meets a header."""
    return data[:6000] + data[-6000:]


@pytest.mark.parametrize("kind", MAKERS)
def test_mutated_files_give_a_layout_inside_the_file_or_none(kind: str) -> None:
    data = checkpoint_file(kind).data
    dice = random.Random(kind)
    for _ in range(MUTATIONS):
        check(mutated(data, dice))
        check(mutated(headers_only(data), dice))


@given(kind=st.sampled_from(list(MAKERS)), patches=st.lists(st.tuples(st.integers(0, 8000), st.binary(max_size=16))))
def test_patched_files_give_a_layout_inside_the_file_or_none(kind: str, patches: list[tuple[int, bytes]]) -> None:
    changed = bytearray(headers_only(checkpoint_file(kind).data))
    for position, patch in patches:
        changed[position : position + len(patch)] = patch
    check(bytes(changed))


@given(kind=st.sampled_from([b"PK\3\4", b"GGUF\3\0\0\0", b"\x93NUMPY\1\0", b"\x89HDF\r\n\x1a\n"]), rest=st.binary())
def test_anything_may_follow_a_magic(kind: bytes, rest: bytes) -> None:
    check(kind + rest)


@pytest.mark.parametrize("kind", HARMFUL)
def test_files_made_to_do_harm_are_parsed_at_a_bounded_cost(kind: str) -> None:
    command = [sys.executable, "-m", "tests.unit.harmful_files", kind]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, result.stdout.split())
    assert seconds < SECONDS_MAX
    assert mebibytes < MEBIBYTES_MAX


def followed(data: bytes) -> list[Request]:
    """Return what a walk asks for of a file that is being written, in which it cannot go back."""
    found: list[Request] = []
    for request in requests(data):
        if found and request.offset < found[-1].offset:
            break
        found.append(request)
    return found


def count_requests(data: bytes, limit: int) -> int:
    """Return how many requests a walk makes, as far as that is no more than one above a limit."""
    return sum(1 for _ in islice(requests(data), limit + 1))


@pytest.mark.parametrize(
    "kind",
    [
        "an old pickle longer than any header",
        "more lists in JSON than a header has",
        "members without a size",
        "many members",
        "a long name in GGUF",
    ],
)
def test_a_walk_of_a_file_that_is_being_written_bounds_itself(kind: str) -> None:
    found = followed(HARMFUL[kind]())
    assert len(found) <= WALK_REQUESTS_MAX
    assert max(request.size for request in found) <= HEADER_SIZE_MAX


@pytest.mark.parametrize("kind", ["a list in itself", "many members", "long keys", "tensors in GGUF"])
def test_files_made_to_do_harm_give_a_layout_inside_the_file_or_none(kind: str) -> None:
    check(HARMFUL[kind]())


def test_a_file_said_to_be_huge_is_not_read() -> None:
    for kind in MAKERS:
        check(checkpoint_file(kind).data, 1 << 62)


@pytest.mark.parametrize("pickle", [b".", b"h\5.", b"NN\x93.", b"NK\1a.", b"(e.", b"cmodule\n", b"cmodule\nname"])
def test_a_pickle_that_does_not_hold_is_malformed(pickle: bytes) -> None:
    with pytest.raises(MalformedError):
        read_pickle(b"\x80\2" + pickle)


@pytest.mark.parametrize("count", [-1, 1 << 62])
def test_a_storage_of_an_impossible_size_is_malformed(count: int) -> None:
    packed = b"\x8a\x08" + struct.pack("<q", count)
    with pytest.raises(MalformedError):
        read_storages(read_pickle(b"\x80\2" + reference(b"0").replace(b"K\x10", packed) + b".")[0])


@pytest.mark.parametrize(
    ("keys", "count", "found"), [(b"](X\1\0\0\x000e.", 16, 1), (b"](X\1\0\0\x000e.", 7, 0), (b"N.", 16, 0)]
)
def test_an_old_file_whose_keys_or_counts_are_others_is_not_believed(keys: bytes, count: int, found: int) -> None:
    data = torch_legacy(b"\x80\2" + reference(b"0") + b".", b"\x80\2" + keys)
    data = data[:-64] + struct.pack("<Q", count) + data[-64:]
    assert len(layout_of(data) or ()) == found


def gguf(values: bytes = b"", value_count: int = 0, tensors: int = 1, lengths: tuple[int, ...] = (0,)) -> bytes:
    """Return a file with some values, and tensors without items."""
    entry = struct.pack(f"<QI{len(lengths)}QIQ", 0, len(lengths), *lengths, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, value_count) + values + entry * tensors + bytes(64)


ALIGNMENT = struct.pack("<Q17sI", 17, b"general.alignment", 4)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (gguf, 1),
        (lambda: gguf(tensors=(1 << 17) + 1), 0),
        (lambda: gguf(struct.pack("<QIB", 0, 0, 0) * (1 << 17), 1 << 17), 1),
        (lambda: gguf(struct.pack("<QIB", 0, 0, 0) * ((1 << 17) + 1), (1 << 17) + 1), 0),
        (lambda: gguf(lengths=(0,) * 8), 1),
        (lambda: gguf(lengths=(0,) * 9), 0),
        (lambda: gguf(struct.pack("<QIIQ", 0, 9, 0, 31 * MIB) + bytes(31 * MIB), 1), 1),
        (lambda: gguf(struct.pack("<QIIQ", 0, 9, 0, 32 * MIB) + bytes(32 * MIB), 1), 0),
        (lambda: gguf(ALIGNMENT + struct.pack("<I", 64), 1), 1),
        (lambda: gguf(ALIGNMENT + struct.pack("<I", 0), 1), 0),
    ],
)
def test_the_header_of_a_gguf_file_is_bounded(data: Callable[[], bytes], found: int) -> None:
    assert len(layout_of(data()) or ()) == found


@pytest.mark.parametrize(
    "data",
    [
        lambda: torch_legacy(b"\x80\2(", b"")[:-64],
        lambda: gguf(tensors=1000)[:100],
    ],
)
def test_a_file_that_ends_in_its_header_is_asked_for_no_more(data: Callable[[], bytes]) -> None:
    assert len(followed(data())) < 10


def hdf5_object(*messages: tuple[int, bytes]) -> bytes:
    """Return the header of an object with messages of some kinds."""
    data = b"".join(struct.pack("<BHB", kind, len(message), 0) + message for kind, message in messages)
    return b"OHDR\2\2" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("kind", [0x02, 0x06, 0x10, 0x11])
def test_an_hdf5_message_that_is_cut_short_is_no_link(kind: int) -> None:
    data = hdf5_chain(0, lambda _: hdf5_object((kind, b""))) + bytes(64)
    assert layout_of(data) is None


def test_the_objects_of_an_hdf5_file_are_bounded() -> None:
    def groups(at: int) -> bytes:
        first = at + 100
        second = first + len(symbols(first, 40_000))
        links = [(6, struct.pack("<BBB", 1, 0, 1) + b"x" + struct.pack("<Q", target)) for target in (first, second)]
        return hdf5_object(*links).ljust(100, b"\0") + symbols(first, 40_000) + symbols(second, 40_000, 1 << 41)

    limit = (1 << 16) + 100
    assert 1 << 16 < count_requests(hdf5_chain(0, groups), limit) < limit


def test_a_group_in_itself_is_looked_at_once() -> None:
    itself = hdf5_chain(0, lambda at: hdf5_object((6, struct.pack("<BBBQ", 1, 0, 0, at))))
    assert count_requests(itself + bytes(64), 10) < 10


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("a header that goes on in itself", 5000),
        ("a tree of itself", 12),
        ("pieces in a tree of itself", 12),
        ("many pieces", 20),
        ("names in one leaf over and over", 150),
    ],
)
def test_a_tree_of_hdf5_is_followed_no_further_than_it_may_have(kind: str, limit: int) -> None:
    assert count_requests(HARMFUL[kind](), limit) < limit


@pytest.mark.parametrize(
    ("rows", "node_size", "depth", "is_taken"),
    [(0, 8192, 8, True), (0, 8193, 8, False), (0, 8192, 9, False), (32, 8192, 8, True), (33, 8192, 8, False)],
)
def test_a_heap_larger_than_any_group_is_malformed(rows: int, node_size: int, depth: int, is_taken: bool) -> None:
    answers = [b"FRHP" + struct.pack("<xHH101xHQQHxxQH", 7, 0, 4, 512, 1 << 16, 32, 300, rows)]
    answers += [bytes(32 * rows)] if rows else []
    answers += [b"BTHD" + struct.pack("<xBIHHxxQH", 5, node_size, 11, depth, 400, 0), b"BTIN".ljust(node_size, b"\0")]
    steps = heap_links(struct.pack("<BBQQ", 0, 0, 110, 270))
    next(steps)
    with nullcontext() if is_taken else pytest.raises(MalformedError):
        for answer in answers:
            steps.send(answer)


@pytest.mark.parametrize(("others", "found"), [(4093, 1), (4094, 0)])
def test_the_messages_of_an_hdf5_object_are_bounded(others: int, found: int) -> None:
    space = (1, struct.pack("<BBBxxxxxQ", 1, 1, 0, 4))
    kind = (3, struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 0x1F, 0, 4, 0, 32, 23, 8, 0, 23, 127))
    layout = (8, struct.pack("<BBQQ", 3, 1, 20_000, 16))
    data = hdf5_chain(0, lambda _: hdf5_object(*[(0, b"")] * others, space, kind, layout)).ljust(21_000, b"\0")
    assert len(layout_of(data) or ()) == found


@pytest.mark.parametrize(("offset", "found"), [(0, 1), (511, 1), (512, 0), (1 << 31, 0)])
def test_a_link_outside_of_its_heap_is_not_read(offset: int, found: int) -> None:
    heap = b"FRHP" + struct.pack("<xHH101xHQQHxxQH", 7, 0, 4, 512, 1 << 16, 32, 300, 0)
    tree = b"BTHD" + struct.pack("<xBIHHxxQH", 5, 8192, 11, 0, 400, 1)
    steps = heap_links(struct.pack("<BBQQ", 0, 0, 110, 270))
    next(steps)
    links = []
    with suppress(StopIteration):
        steps.send(heap)
        steps.send(tree)
        links.append(steps.send((b"BTLF" + bytes(6 + 1) + struct.pack("<I", offset)).ljust(8192, b"\0")))
    assert links == [Request(300 + offset, 1100)][:found]


@pytest.mark.parametrize(("size", "found"), [(1 << 14, 1), ((1 << 14) + 1, 0)])
def test_the_header_of_an_array_is_bounded(size: int, found: int) -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"
    data = b"\x93NUMPY\2\0" + struct.pack("<I", size) + text.ljust(size - 1) + b"\n" + bytes(8)
    assert len(layout_of(data) or ()) == found


@pytest.mark.parametrize(("rank", "found"), [(0, 0), (1, 1), (2, 1)])
def test_a_dataset_in_pieces_has_a_dimension(rank: int, found: int) -> None:
    tree = b"TREE" + struct.pack("<BBHQQ", 1, 0, 1, 0, 0) + bytes(8 + 8 * rank + 8) + struct.pack("<Q", 600)
    data = hdf5_dataset(tree.ljust(400, b"\0"), rank)
    assert len(layout_of(data) or ()) == found


@pytest.mark.parametrize("header", [b"[]", b"0", b'"__metadata__"', b"null", b"{", b"[" * 60_000])
def test_a_safetensors_header_is_an_object(header: bytes) -> None:
    """The walk does not lean on whoever has seen a brace at the beginning."""
    walk = walk_safetensors()
    next(walk)
    assert walk.send(len(header).to_bytes(8, "little")) == Request(8, len(header))
    with pytest.raises(MalformedError):
        walk.send(header)


def test_names_in_a_safetensors_header_may_be_anything() -> None:
    """A surrogate without its other half, nothing, a megabyte, NULs, what a path would be: a name like others."""
    names = ["\\ud800", "", "long" * (MIB // 4), "\\u0000", "../../etc/passwd", "dtype", "\\udfff\\ud800"]
    size = 4
    entries = [
        f'"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{size * index},{size * (index + 1)}]}}'
        for index, name in enumerate(names)
    ]
    header = ("{" + ",".join(entries) + "}").encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size * len(names))
    check(data)
    tensors = parse(lambda offset, length: data[offset : offset + length], len(data))
    assert tensors is not None
    assert [tensor.name for tensor in tensors] == [json.loads(f'"{name}"') for name in names]
    fingerprints = {add_fingerprint(0, tensor) for tensor in tensors}
    assert len(fingerprints) == len(names) and all(0 <= each < 1 << 32 for each in fingerprints)
