"""`ckptfs check` and `ckptfs repair` on a store that is not mounted."""

import json
from pathlib import Path

import pytest

from ckptfs.cli import check, progress
from ckptfs.cli.main import main
from ckptfs.cli.progress import Progress
from ckptfs.errors import DamagedError, StoreInUseError, UsageError
from ckptfs.store import ChunkStore
from ckptfs.tree import renaming
from ckptfs.tree.inode import ROOT_INO
from tests.unit.test_check import flip
from tests.unit.test_salvage import DATA, make_store
from tests.unit.tree_support import open_tree, save


class Screen:
    """A stream that remembers, terminal or not."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal
        self.text = ""

    def isatty(self) -> bool:
        """Say what the test wants."""
        return self.terminal

    def write(self, text: str) -> int:
        """Remember."""
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


@pytest.fixture
def store(tmp_path: Path, mounts: object) -> str:
    """Give the store of three files, not mounted."""
    return str(make_store(tmp_path / "store"))


@pytest.fixture
def damaged_store(store: str) -> str:
    """Give the store with a flipped byte in the second chunk."""
    tree = open_tree(Path(store))
    flip(tree, 2)
    tree.store.close()
    return store


@pytest.mark.parametrize("arguments", [[], ["--read-data"], ["--read-data", "--limit", "1G"]])
def test_a_whole_store_is_called_so(store: str, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["check", store, *arguments]) == 0
    assert capsys.readouterr().out.startswith("No damage: ")
    assert main(["check", "--store", store, *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["problems"], report["damaged_chunks"], report["files"]) == ([], [], [])


def test_damage_is_found_by_reading_and_named(damaged_store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", damaged_store]) == 0
    capsys.readouterr()
    assert main(["check", damaged_store, "--read-data"]) == DamagedError.exit_code
    said = capsys.readouterr()
    assert "run/a" in said.out and "run-a, run-b, run-c, the live tree" in said.out and "00000001.pack" in said.out
    assert said.err == f"ckptfs: {damaged_store}: 1 damaged chunk\n"


def test_a_repair_remembers_what_is_lost(damaged_store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", damaged_store]) == DamagedError.exit_code
    assert "Saving the same bytes again heals every version." in capsys.readouterr().out
    assert main(["check", damaged_store]) == DamagedError.exit_code
    assert "run/a" in capsys.readouterr().out
    assert main(["check", damaged_store, "--json"]) == DamagedError.exit_code
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["path"], file["reason"]) == ("run/a", "chunk 2 was found damaged before")


def test_a_repair_of_a_whole_store_says_so(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "--store", store]) == 0
    assert capsys.readouterr().out == "Nothing is lost.\n"


def test_the_index_is_made_anew_and_compared(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", store, "--rebuild-index"]) == 0
    assert "is the same as before" in capsys.readouterr().out
    (Path(store) / "index.lmdb").unlink()
    assert main(["repair", store, "--rebuild-index", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["index_differences"] is None


def test_an_index_that_is_not_what_was_written_is_refused_until_it_is_made_anew(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Path(store) / "index.lmdb"
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    for command in ("check", "repair"):
        assert main([command, store]) == DamagedError.exit_code
        assert "`ckptfs repair --rebuild-index`" in capsys.readouterr().err
    assert main(["repair", store, "--rebuild-index"]) == 0
    assert main(["check", store, "--read-data"]) == 0


def test_a_store_in_use_is_not_repaired(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ChunkStore.open(Path(store)):
        assert main(["repair", store]) == StoreInUseError.exit_code


@pytest.mark.parametrize(
    "arguments", [["--limit", "0"], ["--limit", "fast"], ["--limit", "-1M"], ["--limit", "infG"], ["--store", "/x"]]
)
def test_a_wrong_command_line_is_refused(store: str, arguments: list[str]) -> None:
    assert main(["check", store, *arguments]) == UsageError.exit_code


def test_reading_keeps_to_its_limit(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(check.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert main(["check", store, "--read-data", "--limit", "1000"]) == 0
    size = sum(map(len, DATA.values()))
    assert now[0] - 100 >= size / 1000


def test_looking_through_the_journal_keeps_to_the_limit_and_shows_how_far_it_is(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store whose chunks are few and whose journal is long."""
    tree = open_tree(Path(store))
    for number in range(300):
        save(tree, "again", b"again")
        renaming.rename(tree.names, ROOT_INO, b"again", ROOT_INO, b"%d" % number * 50)
        tree.store.commit()
    read: list[int] = []
    for part in tree.store.check_journal(100):
        read.append(part.read_bytes)
    size, chunk_bytes = sum(read), tree.store.stats().raw_bytes
    tree.store.close()
    assert size > 10 * chunk_bytes
    now = [100.0]
    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(check.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("ckptfs.store.packfile._SCAN_WINDOW", 4096)
    screen = Screen(terminal=False)
    monkeypatch.setattr(check, "Progress", lambda verb, total: Progress(verb, total, screen))  # type: ignore[arg-type]
    assert main(["check", store, "--read-data", "--limit", "1000"]) == 0
    assert now[0] - 100 >= (size + chunk_bytes) / 1000 - 20
    lines = screen.text.splitlines()
    assert len(lines) > 10 and all(line.startswith("looked through the journal in ") for line in lines)
    assert "min left" in lines[0] and not lines[-1].endswith(" left")


@pytest.mark.parametrize(("terminal", "newlines"), [(True, 0), (False, 2)])
def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, newlines: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen = Screen(terminal)
    with Progress("verified", 100 << 20, screen) as shown:  # type: ignore[arg-type]
        for _ in range(20):
            now[0] += 1
            shown.advance(5 << 20)
    assert "verified 50.0 MiB of 100 MiB, 5.00 MiB/s, 10 s left" in screen.text
    assert screen.text.count("\n") == newlines
