"""A save whose process was killed is no version: snapshots go on showing what was there before.

The process under test writes in steps that this test commands through a pipe, so that it is killed in the middle.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.running import RunningMount

PIECE = 200_000

WRITER = f"""
import os, sys, threading
path, how = sys.argv[1:]
def write():
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for line in sys.stdin:
        os.write(file, line.strip().encode() * {PIECE})
        print("written", flush=True)
if how == "thread":
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
else:
    write()
"""

TORCH_WRITER = """
import sys, torch
class Slow:
    def __init__(self, path):
        self.file, self.size = open(path, "wb", buffering=0), 0
    def write(self, data):
        self.size += memoryview(data).nbytes
        if self.size > 500_000:
            print("written", flush=True)
            sys.stdin.readline()
        return self.file.write(data)
    def flush(self):
        self.file.flush()
torch.save({str(n): torch.full((100, 500), float(n)) for n in range(10)}, Slow(sys.argv[1]))
"""


def start(code: str, path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a writing process that waits for its orders."""
    command = [sys.executable, "-c", code, str(path), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_piece(writer: subprocess.Popen[str], letter: str) -> None:
    """Let the process write one piece, and return when it has."""
    print(letter, file=writer.stdin, flush=True)
    assert writer.stdout.readline() == "written\n"


def end(writer: subprocess.Popen[str], signum: int) -> None:
    writer.send_signal(signum)
    assert writer.wait(timeout=20) == -signum
    writer.stdin.close()
    writer.stdout.close()


def interrupted(mount: RunningMount) -> list[str]:
    return mount.json("stats")["interrupted"]


def tear(mount: RunningMount, name: str, signum: int = signal.SIGKILL) -> None:
    """Kill a process that has written one piece of a save, and return when ckptfs knows."""
    writer = start(WRITER, mount.path / name, "plain")
    write_piece(writer, "a")
    end(writer, signum)
    mount.wait_for(lambda: interrupted(mount) == [name])


pytestmark = pytest.mark.expects_log("interrupted")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["plain", "thread"])
def test_snapshots_keep_the_previous_version_and_the_live_file_the_torn_one(
    mount: RunningMount, signum: int, how: str
) -> None:
    (mount.path / "last.pt").write_bytes(b"previous")
    mount.snapshot("before")
    writer = start(WRITER, mount.path / "last.pt", how)
    write_piece(writer, "a")
    write_piece(writer, "b")
    end(writer, signum)
    mount.wait_for(lambda: interrupted(mount) == ["last.pt"])
    mount.snapshot("after")
    assert mount.at("after", "last.pt").read_bytes() == b"previous"
    assert (mount.path / "last.pt").read_bytes() == b"a" * PIECE + b"b" * PIECE
    assert "last.pt" in mount.log()


def test_a_killed_torch_save_leaves_the_version_before_it(mount: RunningMount) -> None:
    (mount.path / "last.pt").write_bytes(b"previous")
    writer = start(TORCH_WRITER, mount.path / "last.pt")
    assert writer.stdout.readline() == "written\n"
    end(writer, signal.SIGKILL)
    mount.wait_for(lambda: interrupted(mount) == ["last.pt"])
    mount.snapshot("after")
    assert mount.at("after", "last.pt").read_bytes() == b"previous"
    assert (mount.path / "last.pt").stat().st_size > 0


def test_a_killed_first_save_is_in_no_snapshot(mount: RunningMount) -> None:
    tear(mount, "step-1.pt")
    mount.snapshot("after")
    assert os.listdir(mount.at("after")) == []
    assert (mount.path / "step-1.pt").stat().st_size == PIECE


def test_a_later_complete_save_clears_it(mount: RunningMount) -> None:
    tear(mount, "last.pt")
    before = mount.versions()
    (mount.path / "last.pt").write_bytes(b"complete")
    name = mount.wait_for_version(before)
    assert mount.at(name, "last.pt").read_bytes() == b"complete"
    assert interrupted(mount) == []


def test_a_killed_save_under_a_temporary_name_leaves_the_target_alone(mount: RunningMount) -> None:
    (mount.path / "model.safetensors").write_bytes(b"previous")
    mount.snapshot("before")
    tear(mount, ".tmpAbC123", signal.SIGTERM)
    mount.snapshot("after")
    assert os.listdir(mount.at("after")) == ["model.safetensors"]
    assert (mount.path / "model.safetensors").read_bytes() == b"previous"


def test_a_process_that_ends_by_itself_has_completed_its_save(mount: RunningMount) -> None:
    before = mount.versions()
    writer = start(WRITER, mount.path / "last.pt", "plain")
    write_piece(writer, "a")
    writer.communicate()
    assert writer.returncode == 0
    name = mount.wait_for_version(before)
    assert mount.at(name, "last.pt").read_bytes() == b"a" * PIECE
    assert interrupted(mount) == []


def test_a_torn_file_survives_a_remount_as_such(mount: RunningMount) -> None:
    (mount.path / "last.pt").write_bytes(b"previous")
    mount.snapshot("before")
    tear(mount, "last.pt")
    mount.remount()
    assert interrupted(mount) == ["last.pt"]
    assert (mount.path / "last.pt").read_bytes() == b"a" * PIECE
    assert mount.at("before", "last.pt").read_bytes() == b"previous"


def test_a_rollback_puts_the_previous_version_in_place_of_the_torn_file(mount: RunningMount) -> None:
    (mount.path / "last.pt").write_bytes(b"previous")
    mount.snapshot("before")
    tear(mount, "last.pt")
    assert mount.json("snapshot", "rollback", "before")["removed_partial"] == ["last.pt"]
    assert (mount.path / "last.pt").read_bytes() == b"previous"
    assert interrupted(mount) == []


def test_a_child_that_closes_what_it_inherited_completes_no_save(mount: RunningMount) -> None:
    path = mount.path / "last.pt"
    path.write_bytes(b"complete")
    with open(path, "wb", buffering=0) as writer:
        writer.write(b"half")
        subprocess.run([sys.executable, "-c", "pass"], pass_fds=[writer.fileno()], check=True)
        mount.snapshot("between")
        assert mount.at("between", "last.pt").read_bytes() == b"complete"
        writer.write(b" and half")
    mount.snapshot("after")
    assert mount.at("after", "last.pt").read_bytes() == b"half and half"
