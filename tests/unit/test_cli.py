"""The command line against a fake mount process (a real control socket) and a table of mounts made for the test."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptfs.cli import optimize, stats, tables, target
from ckptfs.cli.main import main
from ckptfs.cli.tables import Column
from ckptfs.cli.target import Target
from ckptfs.errors import (
    CkptfsError,
    DaemonError,
    NoMountError,
    OpenFilesError,
    StoreInUseError,
    UnknownSnapshotError,
    UsageError,
)
from ckptfs.mount import protocol, unmount
from ckptfs.store import ChunkStore
from ckptfs.tree import Tree

ROOT = Path(__file__).parents[2]

ROW = {
    "id": 7,
    "name": "auto-7",
    "created": "2025-11-23T12:00:00Z",
    "trigger": "auto",
    "label": "",
    "changed_files": 3,
    "written_bytes": 3 * 2**20,
    "stored_bytes": 1536,
    "paths": ["run1/step-7.pt", "run1/last.pt"],
}
STATS = {
    "store": "/s",
    "live_bytes": 2**30,
    "version_bytes": 10 * 2**30,
    "chunk_bytes": 5 * 2**30,
    "delta_bytes": 4 * 2**30,
    "stored_bytes": 2**30,
    "waiting_bytes": 4096,
    "uncompared_bytes": 8192,
    "chunks": 12345,
    "snapshots": 1,
    "kernel": "avx2",
    "interrupted": ["run1/half.pt"],
    "mountpoint": "/ckpt",
    "pid": 42,
    "uptime_seconds": 7200.0,
    "buffered_bytes": 0,
}


class Daemon:
    """A mount process that answers every command with what the test says, and remembers what it was asked."""

    def __init__(self):
        self.answers = {
            "snapshot_list": [ROW],
            "sizes_are_quick": True,
            "snapshot_sizes": [[7, 3 << 20], [12, 5 << 10]],
            "stats": STATS,
        }
        self.in_turn = set()
        """Commands whose answer is a list of answers, one for each call."""
        self.asked = []

    def reply(self, line):
        request = protocol.decode_request(line)
        self.asked.append(tuple(request))
        answer = self.answers[request.command]
        if request.command in self.in_turn:
            answer = answer.pop(0)
        return protocol.encode_error(answer) if isinstance(answer, Exception) else protocol.encode_result(answer)


@pytest.fixture
def daemon(tmp_path, mounts):
    """Run a Daemon for the mount tmp_path/ckpt with the store tmp_path/ckpt.store."""
    (tmp_path / "ckpt" / "run1").mkdir(parents=True)
    store = tmp_path / "ckpt.store"
    store.mkdir()
    mounts(tmp_path / "ckpt", store)
    fake = Daemon()
    with protocol.listen(str(store)) as listener:

        def serve():
            while True:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as stream:
                    line = stream.readline()
                    if line == b"end\n":
                        return
                    connection.sendall(fake.reply(line))

        thread = threading.Thread(target=serve)
        thread.start()
        yield fake
        with (
            protocol.control_address(str(store)) as address,
            protocol.socket.socket(protocol.socket.AF_UNIX) as connection,
        ):
            connection.connect(address)
            connection.sendall(b"end\n")
        thread.join(timeout=10)


# What PATH means


def test_a_path_in_a_mount_is_its_store_and_the_path_below_its_root(daemon, tmp_path):
    mountpoint, store = str(tmp_path / "ckpt"), str(tmp_path / "ckpt.store")
    assert target.find(mountpoint) == Target(store, mountpoint, "")
    assert target.find(mountpoint + "/run1/") == Target(store, mountpoint, "run1")
    assert target.find(mountpoint + "/gone/since") == Target(store, mountpoint, "gone/since")


def test_a_store_is_spoken_to_through_its_mount_if_there_is_one(tmp_path, mounts):
    store = tmp_path / "s"
    store.mkdir()
    (store / "store.json").touch()
    assert target.find(str(store)) == Target(str(store))
    mounts("/elsewhere", store)
    assert target.find(str(store)) == Target(str(store), "/elsewhere")


def test_without_a_path_the_mount_of_the_current_directory_is_meant(daemon, tmp_path, mounts, monkeypatch):
    mounts("/other", "/other.store")
    monkeypatch.chdir(tmp_path / "ckpt" / "run1")
    assert target.find(None) == Target(str(tmp_path / "ckpt.store"), str(tmp_path / "ckpt"), "")


def test_without_a_path_the_only_mount_is_meant_and_several_are_listed(mounts):
    with pytest.raises(NoMountError, match="there is no ckptfs mount"):
        target.find(None)
    mounts("/a", "/a.store")
    mounts("/view-of-a", "/a.store")
    assert target.find(None) == Target("/a.store", "/a", "")
    mounts("/b", "/b.store")
    with pytest.raises(NoMountError, match=r"several(.|\n)*/a  \(store /a.store\)(.|\n)*/b  \(store /b.store\)"):
        target.find(None)


def test_a_path_in_a_snapshot_is_refused(daemon, tmp_path):
    for path in (".snapshots", ".snapshots/auto-7/run1"):
        with pytest.raises(UsageError, match="never changes"):
            target.find(str(tmp_path / "ckpt" / path))
    assert target.find(str(tmp_path / "ckpt" / ".snapshots-of-mine")).path == ".snapshots-of-mine"


def test_a_path_that_is_nothing_says_so_and_names_what_there_is(tmp_path, mounts):
    with pytest.raises(NoMountError, match="neither in a ckptfs mount nor a store"):
        target.find(str(tmp_path))
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt.store").mkdir()
    (tmp_path / "ckpt.store" / "store.json").touch()
    with pytest.raises(NoMountError, match=r"not mounted now; `ckptfs mount .*its store is .*/ckpt\.store"):
        target.find(str(tmp_path / "ckpt"))


def test_a_mount_process_is_asked_only_after_it_has_got_every_close(daemon, tmp_path, monkeypatch):
    events = []
    statvfs = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: (events.append((path, len(daemon.asked))), statvfs(path))[1])
    assert main(["stats", str(tmp_path / "ckpt")]) == 0
    assert events == [(str(tmp_path / "ckpt"), 0)]
    assert len(daemon.asked) == 1


def test_a_dead_mount_is_a_daemon_error_that_names_the_way_out(daemon, tmp_path, monkeypatch, capsys):
    def dead(path):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", path)

    monkeypatch.setattr(os, "statvfs", dead)
    monkeypatch.setattr(unmount, "is_dead", lambda path: True)
    assert main(["stats", str(tmp_path / "ckpt")]) == DaemonError.exit_code
    assert f"`ckptfs mount {tmp_path}/ckpt` brings it back" in capsys.readouterr().err
    assert daemon.asked == []


def test_a_store_that_is_not_mounted_is_opened_itself(tmp_path, mounts, capsys):
    path = tmp_path / "s"
    with ChunkStore.create(path) as store:
        Tree(store)
    assert main(["snapshot", "create", "first", "--label", "by hand", "--at", str(path)]) == 0
    assert main(["snapshot", "rollback", "first", str(path)]) == 0
    assert main(["snapshot", "show", "latest", "--at", str(path)]) == 0
    capsys.readouterr()
    assert main(["snapshot", "list", str(path), "--json"]) == 0
    first, saved = json.loads(capsys.readouterr().out)
    assert (first["name"], first["label"], saved["trigger"]) == ("first", "by hand", "rollback")
    assert main(["snapshot", "delete", "first", "latest", "--at", str(path)]) == 0
    assert main(["snapshot", "show", "first", "--at", str(path)]) == UnknownSnapshotError.exit_code
    capsys.readouterr()
    assert main(["stats", str(path)]) == 0
    assert re.search(r"^mount +none\n(.|\n)* in 0 snapshots$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("write", [True, False])
def test_a_store_that_is_not_mounted_is_locked_only_while_a_command_works_on_it(tmp_path, write):
    with ChunkStore.create(tmp_path / "s") as store:
        Tree(store)
    with target.commands(Target(str(tmp_path / "s")), write=write), pytest.raises(StoreInUseError):
        ChunkStore.open(tmp_path / "s")
    ChunkStore.open(tmp_path / "s").close()


# What the commands print


COLLECTED = {"chunks": 20, "raw_bytes": 2097152, "freed_bytes": 1234567}
WHOLE = {"left_bytes": 0, "finished": True}
ROLLBACK = {
    "target": ROW,
    "saved": {**ROW, "id": 9, "name": "before rollback", "trigger": "rollback"},
    "changed_files": 1,
    "removed_partial": ["run1/half\x1b.pt"],
}


def test_list_prints_one_aligned_line_per_version(daemon, tmp_path, capsys):
    daemon.answers["snapshot_list"] = [ROW, {**ROW, "id": 12, "name": "before-lr", "label": "lr 3e-4", "paths": ["x"]}]
    assert main(["snapshot", "list", str(tmp_path / "ckpt" / "run1")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert daemon.asked[0] == ("snapshot_list", {"path": "run1"})
    assert head.split() == ["ID", "NAME", "WHEN", "TRIGGER", "FILES", "SIZE", "STORED", "ALONE", "CHANGED", "LABEL"]
    assert "3.00 MiB" in first and "1.50 KiB" in first and "run1/step-7.pt, run1/last.pt +1" in first
    assert re.search(r"\(\d+ d ago\)", first)
    assert second.endswith("lr 3e-4")
    assert first.index("auto ") == second.index("auto ") == head.index("TRIGGER")
    assert "\x1b" not in head


def test_list_fits_a_terminal_and_has_a_bold_head(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    columns = (Column("ID", right=True), Column("CHANGED", flexible=True))
    head, *lines = tables.table(columns, [("1", "a" * 100), ("23", "日本語" * 20)]).splitlines()
    assert head.startswith(tables.BOLD) and head.endswith(tables.PLAIN)
    assert all(line.endswith(tables.ELLIPSIS) for line in lines)
    assert len(lines[0]) == 40
    assert lines[1].startswith("23  日本語")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in tables.table(columns, [("1", "a")])


def test_an_empty_list_is_a_sentence(daemon, tmp_path, capsys):
    daemon.answers["snapshot_list"] = []
    main(["snapshot", "list", str(tmp_path / "ckpt")])
    main(["snapshot", "list", str(tmp_path / "ckpt" / "run1")])
    main(["snapshot", "list", "--json", str(tmp_path / "ckpt")])
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "There are no versions yet; every completed save becomes one.",
        "No version has changed run1 yet.",
        "[]",
    ]


@pytest.mark.parametrize(
    ("arguments", "command", "answer", "asked"),
    [
        (["snapshot", "create", "--at", "PATH"], "snapshot_create", ROW, {"name": None, "label": ""}),
        (
            ["snapshot", "create", "n", "--label", "l", "--at", "PATH"],
            "snapshot_create",
            ROW,
            {"name": "n", "label": "l"},
        ),
        (["snapshot", "rollback", "7", "PATH"], "snapshot_rollback", ROLLBACK, {"ref": "7", "path": ""}),
        (["snapshot", "delete", "7", "8", "--at", "PATH"], "snapshot_delete", [ROW], {"refs": ["7", "8"]}),
        (["prune", "PATH", "--keep-last", "3"], "prune", [ROW], {"policy": "last=3", "dry_run": False}),
        (
            ["prune", "PATH", "--keep-daily=7", "--keep-within", "3d", "--no-keep-named", "--dry-run"],
            "prune",
            [ROW],
            {"policy": "daily=7,within=3d,named=no", "dry_run": True},
        ),
    ],
)
def test_json_is_the_answer_itself(daemon, tmp_path, capsys, arguments, command, answer, asked):
    daemon.answers[command] = answer
    path = str(tmp_path / "ckpt")
    assert main([*(path if word == "PATH" else word for word in arguments), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert daemon.asked == [(command, asked)]


def test_create_and_delete_say_what_they_did(daemon, tmp_path, capsys):
    daemon.answers |= {"snapshot_create": ROW, "snapshot_delete": [ROW, {**ROW, "id": 8, "name": "b"}]}
    main(["snapshot", "create", "--at", str(tmp_path / "ckpt")])
    main(["snapshot", "delete", "7", "b", "--at", str(tmp_path / "ckpt")])
    assert capsys.readouterr().out.splitlines() == [
        "Took snapshot 7 (auto-7) with 3 changed files.",
        "Deleted snapshot 7 (auto-7).",
        "Deleted snapshot 8 (b).",
    ]


def test_gc_says_exactly_what_it_freed(daemon, tmp_path, capsys):
    path = str(tmp_path / "ckpt")
    for answer in (COLLECTED, {"chunks": 0, "raw_bytes": 0, "freed_bytes": 0}):
        daemon.answers["gc"] = answer | WHOLE
        main(["gc", path])
        main(["gc", path, "--dry-run"])
    assert capsys.readouterr().out.splitlines() == [
        "Freed 1,234,567 bytes (1.18 MiB) of disk: 20 chunks with 2.00 MiB that nothing needs.",
        "This would free 1,234,567 bytes (1.18 MiB) of disk: 20 chunks with 2.00 MiB that nothing needs.",
        "There is nothing to free.",
        "There is nothing to free.",
    ]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_gc_prints_json(daemon, tmp_path, capsys, options):
    daemon.answers["gc"] = COLLECTED | WHOLE
    assert main(["gc", str(tmp_path / "ckpt"), "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out) == COLLECTED
    assert daemon.asked == [("gc", {"dry_run": bool(options)})]


def test_gc_asks_until_it_is_finished_and_adds_up(daemon, tmp_path, capsys):
    parts = [
        {"chunks": 5, "raw_bytes": 100, "freed_bytes": 10, "left_bytes": 50, "finished": False},
        {"chunks": 0, "raw_bytes": 0, "freed_bytes": 20, "left_bytes": 30, "finished": False},
        {"chunks": 0, "raw_bytes": 0, "freed_bytes": 30, "left_bytes": 0, "finished": True},
    ]
    daemon.answers["gc"] = parts
    daemon.in_turn.add("gc")
    assert main(["gc", str(tmp_path / "ckpt")]) == 0
    assert capsys.readouterr().out == "Freed 60 bytes (60 B) of disk: 5 chunks with 100 B that nothing needs.\n"
    assert parts == []


def test_list_and_show_say_what_deleting_a_version_would_free(daemon, tmp_path, capsys):
    path = str(tmp_path / "ckpt")
    daemon.answers["snapshot_show"] = {**ROW, "changes": []}
    for options, is_quick in (([], True), (["--sizes"], False)):
        daemon.answers["sizes_are_quick"] = is_quick
        assert main(["snapshot", "list", path, *options]) == 0
        head, row = capsys.readouterr().out.splitlines()
        assert head.index("ALONE") + len("ALONE") == row.index("3.00 MiB", head.index("STORED")) + len("3.00 MiB")
        assert main(["snapshot", "list", path, "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out) == [{**ROW, "exclusive_bytes": 3 << 20}]
    assert main(["snapshot", "show", "latest", "--at", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**ROW, "changes": [], "exclusive_bytes": 3 << 20}
    assert main(["snapshot", "show", "latest", "--at", path]) == 0
    assert "3.00 MiB that deleting it would free" in capsys.readouterr().out


def test_list_says_how_to_get_what_would_take_long(daemon, tmp_path, capsys):
    daemon.answers["sizes_are_quick"] = False
    assert main(["snapshot", "list", str(tmp_path / "ckpt")]) == 0
    printed = capsys.readouterr()
    head, _ = printed.out.splitlines()
    assert "ALONE" not in head
    assert "`ckptfs snapshot list --sizes` tells it" in printed.err
    assert main(["snapshot", "list", str(tmp_path / "ckpt"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [{**ROW, "exclusive_bytes": None}]
    assert printed.err == ""
    assert "snapshot_sizes" not in dict(daemon.asked)


def test_prune_lists_what_goes(daemon, tmp_path, capsys):
    path = str(tmp_path / "ckpt")
    for answer in ([ROW], []):
        daemon.answers["prune"] = answer
        main(["prune", path, "--keep-last", "1"])
        main(["prune", path, "--keep-last", "1", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Deleted 1 version."
    assert lines[5] == "This would delete 1 version."
    assert lines[6:] == ["The policy keeps every version."] * 2
    assert lines[1] == lines[4] and "auto-7" in lines[1]


class Parts(dict):
    """The answers of a mount process that needs three parts to optimize, and ends as the test says."""

    def __init__(self, end):
        part = {"done_bytes": 2**20, "left_bytes": 2**20, "finished": False}
        self.parts = [part, part, end]
        self.sizes = [8 * 2**20, 2 * 2**20]

    def __getitem__(self, command):
        return self.parts.pop(0) if command == "optimize" else STATS | {"stored_bytes": self.sizes.pop(0)}


LAST_PART = {"done_bytes": 2**20, "left_bytes": 0, "finished": True}


def test_optimize_asks_for_parts_until_there_is_no_more(daemon, tmp_path, capsys):
    daemon.answers = Parts(LAST_PART)
    assert main(["optimize", str(tmp_path / "ckpt")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "3.00 MiB gone through; the store had 8.00 MiB and has 2.00 MiB.\n"
    assert captured.err == ""
    assert [command for command, _ in daemon.asked] == ["stats", *["optimize"] * 3, "stats"]


def test_optimize_reports_in_json(daemon, tmp_path, capsys):
    daemon.answers = Parts(LAST_PART)
    assert main(["optimize", str(tmp_path / "ckpt"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.pop("seconds") >= 0
    assert report == {"done_bytes": 3 * 2**20, "before_bytes": 8 * 2**20, "after_bytes": 2 * 2**20}


def test_optimize_shows_how_far_it_is_on_a_terminal_and_clears_the_line(daemon, tmp_path, capsys, monkeypatch):
    daemon.answers = Parts(LAST_PART)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["optimize", str(tmp_path / "ckpt")])
    shown = capsys.readouterr().err.split(optimize.CLEAR_LINE)
    assert [line.split(",")[0] for line in shown] == [
        "",
        " 50%  1.00 MiB of 2.00 MiB",
        " 67%  2.00 MiB of 3.00 MiB",
        "100%  3.00 MiB of 3.00 MiB",
        "",
    ]


def test_optimize_prints_whole_lines_where_there_is_no_terminal(daemon, tmp_path, capsys, monkeypatch):
    daemon.answers = Parts(LAST_PART)
    monkeypatch.setattr(optimize, "LINE_SECONDS", 0.0)
    main(["optimize", str(tmp_path / "ckpt")])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(" 67%  2.00 MiB of 3.00 MiB, ") and lines[1].endswith(" left")


def test_an_error_in_the_middle_of_optimize_is_the_exit_code(daemon, tmp_path, capsys):
    daemon.answers = Parts(DaemonError("it died"))
    assert main(["optimize", str(tmp_path / "ckpt")]) == DaemonError.exit_code
    assert capsys.readouterr().err == "ckptfs: it died\n"


def test_show_prints_every_change(daemon, tmp_path, capsys):
    changes = [
        {"path": "run1/a.pt", "change": "added", "size": 2048},
        {"path": "run1/" + os.fsdecode(b"\xff\n"), "change": "removed", "size": 0},
    ]
    daemon.answers["snapshot_show"] = {**ROW, "changes": changes}
    main(["snapshot", "show", "latest", "--at", str(tmp_path / "ckpt")])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "snapshot  7 auto-7"
    assert [line.split() for line in out[-2:]] == [
        ["added", "2.00", "KiB", "run1/a.pt"],
        ["removed", "run1/\\xff\\x0a"],
    ]


def test_rollback_says_what_it_did_and_how_to_undo_it(daemon, tmp_path, capsys):
    daemon.answers["snapshot_rollback"] = ROLLBACK
    path = str(tmp_path / "ckpt" / "run1")
    main(["snapshot", "rollback", "latest~1", path])
    out = capsys.readouterr().out
    assert daemon.asked == [("snapshot_rollback", {"ref": "latest~1", "path": "run1"})]
    assert "run1 is what it was in snapshot 7 (auto-7): 1 file changed." in out
    assert f"to undo: ckptfs snapshot rollback 'before rollback' {path}\n" in out
    assert "  run1/half\\x1b.pt" in out


def test_stats_is_a_block_that_names_interrupted_files(daemon, tmp_path, capsys):
    main(["stats", str(tmp_path / "ckpt")])
    out = capsys.readouterr().out
    assert "mount        /ckpt (pid 42, up 2 h)\n" in out
    assert "versions     10.0 GiB in 1 snapshot\n" in out
    assert "distinct     5.00 GiB in 12,345 chunks, of which 4.00 GiB are kept as differences\n" in out
    assert "stored       1.00 GiB on disk, 10.0% of the versions\n" in out
    assert "interrupted  run1/half.pt (its writer was killed)\n" in out


def test_stats_show_what_the_history_consists_of_where_asked(daemon, tmp_path, capsys):
    path = str(tmp_path / "ckpt")
    none = {"chunks": 0, "chunk_bytes": 0, "stored_bytes": 0}
    plain = {"chunks": 1, "chunk_bytes": 1 << 20, "stored_bytes": 800 << 10}
    deltas = {"chunks": 1200, "chunk_bytes": 100 << 20, "stored_bytes": 5 << 20}
    consists = {"encodings": {"raw": none, "planes": plain, "delta": deltas}, "depths": [plain, deltas, none, deltas]}
    daemon.answers["composition"] = consists
    assert main(["stats", path, "--chains"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("encoding", "read"))] == [
        "encoding      planes         1.00 MiB in 1 chunk take 800 KiB",
        "encoding      delta          100 MiB in 1,200 chunks take 5.00 MiB",
        "read through  0 differences  1.00 MiB in 1 chunk take 800 KiB",
        "read through  1 difference   100 MiB in 1,200 chunks take 5.00 MiB",
        "read through  3 differences  100 MiB in 1,200 chunks take 5.00 MiB",
    ]
    main(["stats", path, "--chains", "--json"])
    assert json.loads(capsys.readouterr().out) == STATS | consists
    main(["stats", path, "--json"])
    assert json.loads(capsys.readouterr().out) == STATS | {"encodings": None, "depths": None}
    assert [command for command, _ in daemon.asked] == ["stats", "composition"] * 2 + ["stats"]


def test_stats_on_a_terminal_show_bars_of_what_the_history_weighs(daemon, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    main(["stats", str(tmp_path / "ckpt")])
    out = capsys.readouterr().out
    assert f"versions     {'█' * 24}  10.0 GiB in 1 snapshot\n" in out
    assert f"distinct     {'█' * 12}{' ' * 12}  5.00 GiB in 12,345 chunks" in out
    assert f"stored       ██▍{' ' * 21}  1.00 GiB on disk, 10.0% of the versions\n" in out


@pytest.mark.parametrize(
    ("share", "cells"), [(-1, ""), (0, ""), (0.01, "▎"), (0.5, "█" * 12), (1, "█" * 24), (7, "█" * 24)]
)
def test_a_bar_is_as_wide_whatever_it_shows(share, cells):
    assert tables.bar(share) == cells.ljust(24)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (2**63, "8.00 EiB"),
        (2**90, "134217728 EiB"),
    ],
)
def test_sizes_have_binary_units(size, text):
    assert re.sub(r"^\d{10,}", "134217728", tables.size_text(size)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (86400 * 400, "400 d")]
)
def test_durations_have_their_greatest_unit(seconds, text):
    assert tables.duration_text(seconds) == text


# How a command ends


def test_an_error_is_one_sentence_and_its_exit_code(daemon, tmp_path, capsys):
    daemon.answers["snapshot_rollback"] = OpenFilesError("open for writing: run1/\x1b[2Jlog")
    assert main(["snapshot", "rollback", "7", str(tmp_path / "ckpt")]) == OpenFilesError.exit_code
    captured = capsys.readouterr()
    assert captured.err == "ckptfs: open for writing: run1/\\x1b[2Jlog\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["mount"],
        ["mount", "/x", "--settle", "-1"],
        ["mount", "/x", "--settle", "nan"],
        ["mount", "/x", "--read"],
        ["mount", "/x", "--keep", "last"],
        ["mount", "/x", "--on-full", "prune"],
        ["mount", "/x", "--on-full", "wait"],
        ["prune"],
        ["prune", "--no-keep-named"],
        ["prune", "--keep-last", "-1"],
        ["prune", "--keep-within", "3"],
        ["snapshot"],
        ["snapshot", "delete"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys):
    assert main(arguments) == UsageError.exit_code
    err = capsys.readouterr().err
    assert err.startswith("ckptfs: ") and err.count("\n") == 1 and "--help`" in err


@pytest.mark.parametrize("command", [["gc"], ["snapshot", "rollback", "latest"], ["snapshot", "list"]])
def test_an_unknown_option_points_to_the_help_of_its_command(command, capsys):
    assert main([*command, "--nosuch"]) == UsageError.exit_code
    words = " ".join(word for word in command if word != "latest")
    assert capsys.readouterr().err == f"ckptfs: unrecognized arguments: --nosuch; see `ckptfs {words} --help`\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["mount"],
        ["umount"],
        ["stats"],
        ["gc"],
        ["prune"],
        ["check"],
        ["repair"],
        ["backup"],
        ["snapshot", "list"],
        ["snapshot", "create"],
        ["snapshot", "show"],
        ["snapshot", "rollback"],
        ["snapshot", "delete"],
    ],
)
def test_every_command_has_help_with_examples_and_exit_codes(command, capsys):
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "EXAMPLES\n  " in out and "EXIT STATUS\n    0  Done." in out
    assert "ready-fd" not in out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.EACCES, "Permission denied", "/x"), CkptfsError.exit_code, "ckptfs: /x: Permission denied\n"),
    ],
)
def test_what_is_no_error_of_ckptfs_ends_a_command_as_quietly(monkeypatch, capsys, error, code, said):
    def fail(args):
        raise error

    monkeypatch.setattr(stats, "run", fail)
    assert main(["stats"]) == code
    assert capsys.readouterr().err == said


def test_a_reader_that_goes_away_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "ckptfs", "--help"], cwd=ROOT, stdout=output, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("command", ["--help", "mount nowhere", "umount nowhere", "snapshot list nowhere"])
def test_a_command_brings_in_no_heavy_module_that_it_does_not_need(command):
    code = "import sys; from ckptfs.cli.main import main; main(sys.argv[1:]); print('modules', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=ROOT, capture_output=True, check=True, text=True
    )
    loaded = set(done.stdout.partition("modules")[2].split())
    assert "ckptfs.cli.main" in loaded
    assert not loaded & {"trio", "pyfuse3", "lmdb", "zstandard", "ckptfs.store"}
