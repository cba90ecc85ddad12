"""What `ckptfs check --read-data` says of the journal in the packs: all that a lost index would need, and no more."""

import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckptfs.cli.main import main
from ckptfs.errors import DamagedError, UsageError
from ckptfs.store import Table, records
from ckptfs.store.condensed import NAME as CONDENSED_NAME
from ckptfs.store.journal_check import JournalCheck
from ckptfs.store.packfile import Found, Gap
from ckptfs.store.packs import FIRST_PACK
from ckptfs.store.records import HEADER_SIZE, Position, RecordType, build, parse_header
from ckptfs.tree import Commands, Tree
from ckptfs.tree.gc import collect
from tests.faults.workload import state_of
from tests.unit.test_check import damaged
from tests.unit.test_flips import make
from tests.unit.tree_support import append_delta, new_tree, open_tree, save, unlink

STEP = 97
SAMPLE = 8
SEED = 5


@pytest.fixture
def path(tmp_path: Path, mounts: object) -> Path:
    """Give a store of two versions in several packs, closed, with records that nothing needs any more."""
    make(tmp_path / "store")
    return tmp_path / "store"


def flip(path: Path, position: Position) -> None:
    """Change a byte of a pack."""
    file = path / "packs" / f"{position.pack:08d}.pack"
    data = bytearray(file.read_bytes())
    data[position.offset] ^= 0x10
    file.write_bytes(data)


def metadata_of(tree: Tree) -> list[Position]:
    """Return where the metadata lies."""
    scan = tree.store._packs.scan(Position(FIRST_PACK, 0))
    return [
        each.position for each in scan if isinstance(each, Found) and each.record.header.type == RecordType.METADATA
    ]


def journal_problems(tree: Tree) -> list[str]:
    """Return what a check of the journal finds."""
    return [problem for part in tree.store.check_journal() for problem in part.problems]


def comes_back(path: Path) -> object:
    """Lose the index; return what the store shows then, None when it is refused."""
    (path / "index.lmdb").unlink()
    try:
        tree = open_tree(path)
    except DamagedError:
        return None
    shown = state_of(tree)
    tree.store.close(commit=False)
    return shown


def test_what_is_not_found_is_not_needed(path: Path, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    start = random.Random(SEED).randrange(STEP)
    found: dict[tuple[bool, bool], list[Position]] = defaultdict(list)
    with closing(open_tree(path)) as tree:
        written = state_of(tree)
        assert journal_problems(tree) == []
        for pack in sorted((path / "packs").iterdir()):
            for offset in range(start, pack.stat().st_size, STEP):
                place = Position(int(pack.stem), offset)
                flip(path, place)
                found[bool(damaged(tree)), bool(journal_problems(tree))].append(place)
                flip(path, place)
        for place in metadata_of(tree):
            flip(path, place)
            assert journal_problems(tree), place
            flip(path, place)
    assert found[True, False] and found[False, True]
    for place in random.Random(SEED).sample(found[False, False], SAMPLE):
        copy = shutil.copytree(path, tmp_path / "copy")
        flip(copy, place)
        assert comes_back(copy) == written, place
        shutil.rmtree(copy)


def test_damage_of_the_journal_is_named_and_mended_by_a_repair(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_tree(path, read_only=True)) as tree:
        place = metadata_of(tree)[0]
    flip(path, place._replace(offset=place.offset + HEADER_SIZE))
    assert main(["check", str(path)]) == 0
    assert main(["check", str(path), "--read-data"]) == DamagedError.exit_code
    where = f"{place.pack:08d}.pack at offset {place.offset}"
    assert f"{where}: the journal is damaged, the payload is not what was written" in capsys.readouterr().out
    assert main(["repair", str(path)]) == 0
    assert capsys.readouterr().out == (
        "The journal had 1 damaged place and was written anew from the index.\nNothing is lost.\n"
    )
    assert main(["check", str(path), "--read-data"]) == 0
    with closing(open_tree(path, read_only=True)) as tree:
        written = state_of(tree)
    assert comes_back(path) == written


def test_the_journal_is_not_written_anew_from_an_index_that_is_damaged_itself(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(open_tree(path)) as tree:
        flip(path, metadata_of(tree)[0])
        tree.rows.tables.delete(Table.NAMES, b"one")
    assert main(["repair", str(path)]) == DamagedError.exit_code
    assert "the journal is damaged" in capsys.readouterr().out
    assert not (path / CONDENSED_NAME).exists()


def padding(data: bytes) -> set[int]:
    """Return where the bytes between records are, which say nothing."""
    found: set[int] = set()
    offset = 0
    while offset < len(data):
        header = records.parse_header(data[offset : offset + records.HEADER_SIZE])
        assert header is not None
        end = offset + header.size
        found.update(range(offset + records.HEADER_SIZE + 8 * header.base_count + header.stored_size, end))
        offset = end
    return found


def test_damage_of_the_condensed_journal_is_named_and_mended_by_a_repair(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(open_tree(path)) as tree:
        written = state_of(tree)
        tree.store.mend_journal()
    condensed = path / CONDENSED_NAME
    whole = condensed.read_bytes()
    with closing(open_tree(path)) as tree:
        for offset in sorted({*range(0, len(whole), STEP)} - padding(whole)):
            condensed.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
            assert journal_problems(tree), offset
        condensed.write_bytes(whole)
        assert journal_problems(tree) == []
    for offset in (20, records.PACK_HEADER_SIZE + records.HEADER_SIZE):
        condensed.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        assert main(["check", str(path), "--read-data"]) == DamagedError.exit_code
        assert f"{CONDENSED_NAME}: the payload is not" in capsys.readouterr().out or offset == 20
        assert main(["repair", str(path)]) == 0
        assert "written anew" in capsys.readouterr().out
        assert main(["check", str(path), "--read-data"]) == 0
    assert comes_back(path) == written


def test_a_pack_header_a_pack_that_is_cut_short_and_one_that_is_missing_are_named(path: Path) -> None:
    packs = sorted((path / "packs").iterdir())
    with closing(open_tree(path)) as tree:
        flip(path, Position(1, 1))
        os.truncate(packs[1], packs[1].stat().st_size - 8)
        packs[2].rename(packs[2].with_suffix(".gone"))
        first, second, third = journal_problems(tree)
        assert "00000001.pack at offset 0: the journal is damaged, no record begins here" in first
        assert "00000002.pack" in second and "the record ends behind its pack" in second
        assert "00000003.pack at offset 0: the journal is damaged, the pack ends too early" in third
        packs[2].with_suffix(".gone").rename(packs[2])
        tree.store.close(commit=False)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a tree with punched places behind which the journal goes on; the journal is not condensed."""
    tree = new_tree(tmp_path / "store")
    for number in range(3):
        save(tree, f"kept-{number}", b"%d" % number * 100)
        save(tree, "gone", random.Random(number).randbytes(20_000))
        unlink(tree, "gone")
        collect(tree)
    assert tree.store._condensed.mark is None and tree.store.punch_count
    yield tree
    tree.store.close(commit=False)


def test_freed_places_are_no_damage_and_what_lies_behind_them_is(tree: Tree) -> None:
    assert journal_problems(tree) == []
    metadata = metadata_of(tree)
    for place in metadata[-4:]:
        flip(tree.store.path, place)
        where = f"at offset {place.offset}: the journal is damaged"
        assert any(where in problem for problem in journal_problems(tree)), place
        flip(tree.store.path, place)


def test_a_pack_in_the_midst_that_is_missing_is_named(path: Path) -> None:
    with closing(open_tree(path)) as tree:
        pack = path / "packs" / "00000002.pack"
        pack.rename(path / "elsewhere")
        where = "00000002.pack at offset 0: the journal is damaged, the pack is missing"
        assert any(where in problem for problem in journal_problems(tree))
        (path / "elsewhere").rename(pack)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda record, before: b"", "step 4 is missing"),
        (lambda record, before: before + record, "an older record"),
        (lambda record, before: bytes(forged(record)), "the metadata is not what was written"),
    ],
)
def test_metadata_that_is_intact_and_not_what_comes_next_is_named(
    tree: Tree, change: Callable[[bytes, bytes], bytes], named: str
) -> None:
    *_, before, place, after = metadata_of(tree)[:5]
    (pack,) = (tree.store.path / "packs").iterdir()
    data = pack.read_bytes()
    record, older = data[place.offset : after.offset], data[before.offset : place.offset]
    pack.write_bytes(data[: place.offset] + change(record, older) + data[after.offset :])
    where = f"at offset {place.offset}: the journal is damaged, {named}"
    assert any(where in problem for problem in journal_problems(tree))


def forged(record: bytes) -> bytes:
    """Return a metadata record with another id, sealed as it should be."""
    header = parse_header(memoryview(record))
    assert header is not None
    payload = record[HEADER_SIZE : HEADER_SIZE + header.stored_size]
    built = build(RecordType.METADATA, header.number, bytes(16), header.raw_size, header.encoding, payload)
    return b"".join(built.buffers)


@pytest.mark.parametrize("condensed", [False, True])
def test_what_is_freed_or_condensed_while_the_check_is_under_way_is_no_damage(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, condensed: bool
) -> None:
    save(tree, "gone", random.Random(9).randbytes(20_000))
    tree.store.commit(checkpoint=True)
    unlink(tree, "gone")
    look_at, punch_count = JournalCheck._look_at, tree.store.punch_count

    def working(check: JournalCheck, found: Found) -> Gap | None:
        if tree.store.punch_count == punch_count:
            if condensed:
                tree.store.mend_journal()
                flip(tree.store.path, metadata[-1])
            else:
                collect(tree)
        return look_at(check, found)

    metadata = metadata_of(tree)
    monkeypatch.setattr(JournalCheck, "_look_at", working)
    assert journal_problems(tree) == []
    assert tree.store.punch_count > punch_count


def test_a_record_that_was_replaced_is_not_needed_though_nothing_calls_it_free_yet(tmp_path: Path) -> None:
    with closing(new_tree(tmp_path / "store")) as tree:
        save(tree, "file", bytes(500))
        save(tree, "other", b"other" * 100)
        tree.store.commit(checkpoint=True)
        before = tree.store._index.locate(1)
        assert before is not None
        append_delta(tree.store, 1, 2)
        flip(tree.store.path, before.position._replace(offset=before.offset + HEADER_SIZE))
        assert journal_problems(tree) == []
        tree.store.commit(checkpoint=True)
        assert journal_problems(tree) == []


@pytest.mark.parametrize("condensed", [False, True])
def test_the_journal_is_looked_through_in_parts_of_about_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condensed: bool
) -> None:
    """However small they are, together they read what has to be read, find the same, and get to the end."""
    monkeypatch.setattr("ckptfs.store.packfile._SCAN_WINDOW", 4096)
    with closing(new_tree(tmp_path / "store")) as tree:
        for number in range(200):
            save(tree, f"file {number} of a name that is long enough", b"%d" % number * 200)
            tree.store.commit()
        if condensed:
            tree.store.mend_journal()
            save(tree, "last", b"last" * 3000)
            tree.store.commit()
        first, last = metadata_of(tree)[0], metadata_of(tree)[-1]
        flip(tree.store.path, last._replace(offset=last.offset + HEADER_SIZE))
        (whole,) = tree.store.check_journal(1 << 30)
        assert len(whole.problems) == 1 and whole.done_bytes == whole.total_bytes
        parts = list(tree.store.check_journal(4000))
        assert [problem for part in parts for problem in part.problems] == whole.problems
        assert all(4000 <= part.read_bytes <= 4000 + 16 * 1024 for part in parts[:-1])
        assert sum(part.read_bytes for part in parts) == whole.read_bytes
        assert len(parts) > (2 if condensed else 4)
        places = [part.done_bytes for part in parts]
        assert places == sorted(places) and len({*places}) > (1 if condensed else 4)
        assert {part.total_bytes for part in parts} == {whole.total_bytes}
        packs_size = tree.store.position.offset
        if condensed:
            mark = tree.store._condensed.mark
            assert mark is not None
            packs_size += tree.store._condensed.path.stat().st_size - mark.position.offset
        assert whole.total_bytes == packs_size and first.pack == last.pack


def test_of_the_checks_of_the_journal_that_are_under_way_only_the_latest_go_on(tmp_path: Path) -> None:
    with closing(new_tree(tmp_path / "store")) as tree:
        for number in range(9):
            save(tree, f"file {number}", b"%d" % number)
            tree.store.commit()
        commands = Commands(tree)
        first, second, third = (commands.check_journal(0, 1) for _ in range(3))
        assert not any(part["finished"] for part in (first, second, third))
        with pytest.raises(UsageError, match="was given up; try again"):
            commands.check_journal(first["check"], 1)
        for begun in (second, third):
            while not commands.check_journal(begun["check"], 1)["finished"]:
                pass
            with pytest.raises(UsageError, match="was given up"):
                commands.check_journal(begun["check"], 1)
