"""The pages of an LMDB file: a whole one has no damage, whatever was written, and what is changed is named."""

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptfs.store import Disk, Table
from ckptfs.store.environment import Environment
from ckptfs.store.lmdb_pages import damage_of
from ckptfs.store.schema import CHECK_SIZE, row_check

SEED = 11
PAGE = 4096
ROWS = 3000


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Path]:
    """Give an index in which LMDB has used every kind of page."""
    path = tmp_path / "index.lmdb"
    environment = Environment(path, Disk(), read_only=False)
    source = random.Random(SEED)
    for number in range(5):
        ids = sorted((source.randbytes(16), source.randbytes(8)) for _ in range(ROWS))
        values = [source.randbytes(source.choice((0, 10, 300, 6000))) for _ in range(ROWS // 10)]
        rows = [((number * ROWS + at).to_bytes(16, "big"), value) for at, value in enumerate(values)]
        environment.write([(Table.CHUNK_IDS, ids), (Table.MANIFESTS, rows)])
        environment.write([(Table.MANIFESTS, [(key, None) for key, _ in rows[::3]]), (Table.META, [(b"one", b"row")])])
        assert damage_of(path, Disk()) is None
    environment.close()
    return path


def test_an_empty_index_has_no_damage(tmp_path: Path) -> None:
    Environment(tmp_path / "index.lmdb", Disk(), read_only=False).close()
    assert damage_of(tmp_path / "index.lmdb", Disk()) is None


def test_a_whole_index_has_no_damage(index: Path) -> None:
    assert damage_of(index, Disk()) is None


def test_an_index_that_is_cut_short_is_damaged(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[: len(data) // 2])
    assert damage_of(index, Disk()) is not None
    index.write_bytes(b"")
    assert damage_of(index, Disk()) is not None


@pytest.mark.parametrize("at", [0, 10, 12])
def test_a_page_whose_header_is_changed_is_named(index: Path, at: int) -> None:
    data = bytearray(index.read_bytes())
    leaves = [start for start in range(2 * PAGE, len(data), PAGE) if struct.unpack_from("<H", data, start + 10)[0] == 2]
    found = []
    for start in leaves:
        data[start + at] ^= 2
        index.write_bytes(data)
        found.append(damage_of(index, Disk()))
        data[start + at] ^= 2
    assert any(found)
    assert all(said is None or "page" in said for said in found)


def test_pages_of_noise_end_in_damage_and_nothing_else(index: Path) -> None:
    whole = index.read_bytes()
    source = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(200):
        data = bytearray(whole)
        start = source.randrange(len(data) // PAGE) * PAGE
        for _ in range(source.choice((1, 8, 400))):
            data[start + source.randrange(64 if source.random() < 0.5 else PAGE)] = source.randrange(256)
        index.write_bytes(data)
        damage_of(index, Disk())


@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_a_branch_that_leads_away_from_rows_is_named(index: Path, byte: bytes) -> None:
    whole = index.read_bytes()
    found = []
    for start in range(2 * PAGE, len(whole), PAGE):
        flags, lower = struct.unpack_from("<HH", whole, start + 10)
        if flags == 1 and lower > 20:
            at = start + struct.unpack_from("<H", whole, start + 18)[0]  # the second node: its key says something
            size = struct.unpack_from("<H", whole, at + 6)[0]
            index.write_bytes(whole[: at + 8] + byte * size + whole[at + 8 + size :])
            found.append(damage_of(index, Disk()))
    assert any(found)
    assert all(said is None or "belong" in said or "in order" in said for said in found)


def pages_like(whole: bytes, flags: int) -> Iterator[int]:
    """Yield where the pages with just these flags begin; some are free by now."""
    yield from (at for at in range(0, len(whole), PAGE) if struct.unpack_from("<H", whole, at + 10)[0] == flags)


def newest_meta(whole: bytes) -> int:
    """Return where the page begins that says what counts."""
    return max((0, PAGE), key=lambda at: int(struct.unpack_from("<Q", whole, at + 144)[0]))


FREE, MAIN = 40, 88
"""Where in a meta page the two trees are described."""


@pytest.mark.parametrize(
    ("at", "kind", "value", "said"),
    [
        (16, "I", 1, "meta page"),
        (20, "I", 2, "meta page"),
        (10, "H", 0, "meta page"),
        (136, "Q", 1 << 40, "shorter than it says"),
        (136, "Q", 5, "met where it cannot be"),
        *((tree + 4, "H", 0x10, "of another kind") for tree in (FREE, MAIN)),
        *((tree + 6, "H", 0, "too deep") for tree in (FREE, MAIN)),
        *((tree + 6, "H", 33, "too deep") for tree in (FREE, MAIN)),
        *((tree + at, "Q", 77, "other pages or rows") for tree in (FREE, MAIN) for at in (8, 16, 24, 32)),
        *((tree + 40, "Q", at, "met where it cannot be") for tree in (FREE, MAIN) for at in (0, 1, 1 << 40)),
        *((tree + 40, "Q", (1 << 64) - 1, "an empty tree has rows") for tree in (FREE, MAIN)),
    ],
)
def test_a_meta_page_that_says_something_else_is_named(index: Path, at: int, kind: str, value: int, said: str) -> None:
    data = bytearray(index.read_bytes())
    struct.pack_into(f"<{kind}", data, newest_meta(data) + at, value)
    index.write_bytes(data)
    assert said in (damage_of(index, Disk()) or "")


def test_pages_of_a_size_that_lmdb_does_not_have_are_named(index: Path) -> None:
    data = bytearray(index.read_bytes())
    struct.pack_into("<I", data, FREE, 1 << 31)
    index.write_bytes(data)
    assert "meta page" in (damage_of(index, Disk()) or "")


BRANCH, LEAF, OVERFLOW, PACKED_LEAF = 1, 2, 4, 0x22


def set_in_page(at: int, kind: str, value: int) -> Callable[[bytearray, int], None]:
    """Return what sets a number of a page."""
    return lambda data, page: struct.pack_into(f"<{kind}", data, page + at, value)


def set_in_row(at: int, kind: str, value: int) -> Callable[[bytearray, int], None]:
    """Return what sets a number of the first row of a page."""

    def change(data: bytearray, page: int) -> None:
        struct.pack_into(f"<{kind}", data, page + struct.unpack_from("<H", data, page + 16)[0] + at, value)

    return change


def swap(at: int, size: int) -> Callable[[bytearray, int], None]:
    """Return what swaps two neighbours of a size."""

    def change(data: bytearray, page: int) -> None:
        first, second = page + at, page + at + size
        data[first : second + size] = data[second : second + size] + data[first:second]

    return change


@pytest.mark.parametrize(
    ("flags", "change", "said"),
    [
        (LEAF, set_in_page(0, "Q", 3), "is not there"),
        (BRANCH, set_in_page(10, "H", LEAF), "of another kind"),
        (BRANCH, set_in_page(10, "H", 0), "of another kind"),
        (LEAF, set_in_page(10, "H", BRANCH), "of another kind"),
        (LEAF, set_in_page(10, "H", 0), "of another kind"),
        (LEAF, set_in_page(12, "H", 16), "of another kind"),
        (LEAF, set_in_page(12, "H", 0xFFF0), "too many rows"),
        (LEAF, set_in_page(16, "H", 4), "does not lie in it"),
        (LEAF, set_in_row(0, "H", 0xFFF), "does not lie in it"),
        (LEAF, set_in_row(6, "H", 0xFFF), "does not lie in it"),
        (LEAF, set_in_row(4, "H", 4), "packed rows"),
        (LEAF, swap(16, 2), "not in order"),
        (BRANCH, set_in_row(0, "H", 0), "met where it cannot be"),
        (OVERFLOW, set_in_page(10, "H", 0), "the value that it should be"),
        (OVERFLOW, set_in_page(12, "I", 1), "the value that it should be"),
        (OVERFLOW, set_in_page(12, "I", 3), "the value that it should be"),
        (PACKED_LEAF, set_in_page(8, "H", 0), "too many rows"),
        (PACKED_LEAF, set_in_page(8, "H", 0xFFF), "too many rows"),
        (PACKED_LEAF, set_in_page(16, "Q", 0), "not in order"),
        (PACKED_LEAF, swap(16, 32), "not in order"),
        (LEAF, set_in_row(4, "H", 0), "a table is no table"),
    ],
)
def test_a_page_that_does_not_hold_is_named(
    index: Path, flags: int, change: Callable[[bytearray, int], None], said: str
) -> None:
    whole = index.read_bytes()
    found = set()
    for page in pages_like(whole, flags):
        data = bytearray(whole)
        change(data, page)
        index.write_bytes(data)
        found.add(damage_of(index, Disk()) or "")
        if any(said in each for each in found):
            return
    pytest.fail(f"said was {found}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[int]]:
    """Give an index of rows that are all small, its bytes, and where leaves of them begin that count."""
    path = tmp_path_factory.mktemp("plain") / "index.lmdb"
    environment = Environment(path, Disk(), read_only=False)
    environment.write([(Table.CHUNKS, [(number.to_bytes(8, "big"), bytes(24)) for number in range(500, 1500, 2)])])
    environment.close()
    whole = path.read_bytes()
    leaves = [page for page in pages_like(whole, LEAF) if struct.unpack_from("<H", whole, page + 12)[0] > 80]
    assert len(leaves) > 5
    return path, whole, leaves


def set_key(at: int, key: int) -> Callable[[bytearray, int], None]:
    """Return what sets the key of a row of a page, which has 8 bytes, and its check."""

    def change(data: bytearray, page: int) -> None:
        row = page + struct.unpack_from("<H", data, page + 16 + 2 * at)[0]
        (size,) = struct.unpack_from("<H", data, row)
        value, new = bytes(data[row + 16 : row + 16 + size - CHECK_SIZE]), key.to_bytes(8, "big")
        data[row + 8 : row + 16 + size] = new + value + row_check(Table.CHUNKS, new, value)

    return change


def lower_key(data: bytearray, page: int) -> None:
    """Make the first key of a page less than its branch says, and greater than the one before."""
    row = page + struct.unpack_from("<H", data, page + 16)[0]
    set_key(0, struct.unpack_from(">Q", data, row + 8)[0] - 1)(data, page)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_in_page(12, "H", 0xFFF0), "too many rows"),
        (set_in_page(16, "H", 4), "does not lie in it"),
        (set_in_row(0, "H", 0xFFF), "does not lie in it"),
        (set_in_row(6, "H", 0xFFF), "does not lie in it"),
        (swap(16, 2), "not in order"),
        (set_key(0, 0), "not in order"),
        (lower_key, "not in order"),
        (set_key(7, 0), "not in order"),
        (set_key(7, 1 << 40), "not in order"),
    ],
)
def test_a_page_of_small_rows_that_does_not_hold_is_named(
    plain: tuple[Path, bytes, list[int]], change: Callable[[bytearray, int], None], said: str
) -> None:
    path, whole, leaves = plain
    found = []
    for page in leaves[1:]:
        data = bytearray(whole)
        change(data, page)
        path.write_bytes(data)
        found.append(damage_of(path, Disk()) or "")
    assert all(said in each for each in found), found


@pytest.mark.parametrize("of_key", [True, False])
def test_a_row_of_another_key_or_value_is_named_where_the_order_stays(
    index: Path, plain: tuple[Path, bytes, list[int]], of_key: bool
) -> None:
    """Nobody finds it where it belongs, so nobody compares it, and an older version of a file is read."""

    def said_of_last_row(path: Path, whole: bytes, page: int) -> str:
        (lower,) = struct.unpack_from("<H", whole, page + 12)
        row = page + struct.unpack_from("<H", whole, page + lower - 2)[0]
        data = bytearray(whole)
        data[row + 7 + struct.unpack_from("<H", whole, row + 6)[0] + (not of_key)] ^= 1
        path.write_bytes(data)
        return damage_of(path, Disk()) or ""

    for path, whole, pages in (plain, (index, index.read_bytes(), [*pages_like(index.read_bytes(), LEAF)])):
        said = [said_of_last_row(path, whole, page) for page in pages]
        assert sum("is not what was written" in each for each in said) > 5
        assert path != plain[0] or all(said)


def test_a_page_of_small_rows_begins_behind_the_one_before(plain: tuple[Path, bytes, list[int]]) -> None:
    """What its branch says of the first key is less than the last key of the page before."""
    path, whole, leaves = plain
    data = bytearray(whole)
    for page in leaves[:-1]:
        (lower,) = struct.unpack_from("<H", data, page + 12)
        set_key((lower - 16) // 2 - 1, 1 << 40)(data, page)
    path.write_bytes(data)
    assert "do not belong there" in (damage_of(path, Disk()) or "") or "not in order" in (damage_of(path, Disk()) or "")


def test_a_page_that_is_there_in_part_is_named(index: Path) -> None:
    whole = index.read_bytes()
    for page in range(len(whole) // PAGE - 1, 1, -1):
        index.write_bytes(whole[: (page + 1) * PAGE - 1])
        if said := damage_of(index, Disk()):  # the last one that counts
            assert said == f"page {page} is not there"
            return
    pytest.fail("no page counts")


def test_a_large_value_whose_end_is_missing_is_named(index: Path) -> None:
    whole = index.read_bytes()
    count = len(whole) // PAGE
    for page in pages_like(whole, LEAF):
        (lower,) = struct.unpack_from("<H", whole, page + 12)
        for (pointer,) in struct.iter_unpack("<H", whole[page + 16 : page + lower]):
            size, flags, key_size = struct.unpack_from("<IHH", whole, page + pointer)
            if flags & 1 and size > PAGE:
                at = page + pointer + 8 + key_size
                (first,) = struct.unpack_from("<Q", whole, at)
                data = bytearray(whole) + whole[first * PAGE : (first + 2) * PAGE]
                struct.pack_into("<Q", data, at, count)  # it lies behind all else now
                struct.pack_into("<Q", data, count * PAGE, count)
                struct.pack_into("<Q", data, newest_meta(whole) + 136, count + 1)
                index.write_bytes(data)
                assert damage_of(index, Disk()) is None
                index.write_bytes(data[:-PAGE])
                if damage_of(index, Disk()) == f"page {count} is not there":
                    return
    pytest.fail("no leaf that counts has a large value")


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(16, 1000, "a list of free pages"), (24, 2, "page 2 is met"), (0, 0, "a list of free pages")],
)
def test_a_list_of_free_pages_that_is_not_one_is_named(index: Path, at: int, value: int, said: str) -> None:
    data = bytearray(index.read_bytes())
    root = PAGE * struct.unpack_from("<Q", data, newest_meta(data) + FREE + 40)[0]
    row = root + struct.unpack_from("<H", data, root + 16)[0]
    assert struct.unpack_from("<HH", data, row + 4) == (0, 8), "a row of a leaf, with the list in it"
    struct.pack_into("<I" if at == 0 else "<Q", data, row + at, value)
    index.write_bytes(data)
    assert (damage_of(index, Disk()) or "").startswith(said)
