"""`ckptfs mount`: the mount process around a fake session, and the starter that waits for it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptfs.cli import foreground
from ckptfs.cli import mount as mount_command
from ckptfs.cli.main import main
from ckptfs.errors import DaemonError, NotAStoreError, OpenFilesError, StoreInUseError
from ckptfs.mount import daemonize
from ckptfs.mount.options import MountOptions

ROOT = Path(__file__).parents[2]


class FakeSession:
    """A session that fails as often as the test says, then is usable and ends at once."""

    def __init__(self, failures):
        self.failures = failures
        self.ran = []

    def run(self, wanted, ready):
        self.ran.append(wanted)
        if self.failures:
            raise self.failures.pop(0)
        ready()


@pytest.fixture
def session(usable, monkeypatch):
    """Give a function that makes `ckptfs mount --foreground` run a FakeSession on an existing store."""
    Path(usable.store).mkdir()
    (Path(usable.store) / "store.json").touch()
    monkeypatch.setattr(foreground, "set_up_logging", lambda path, to_stderr: None)
    monkeypatch.setattr(foreground, "POLL_SECONDS", 0.0)

    def install(*failures):
        fake = FakeSession(list(failures))
        monkeypatch.setattr(foreground, "session", fake)
        return fake

    return install


def test_the_foreground_runs_the_session_with_what_was_asked(session, usable):
    fake = session()
    assert main(["mount", usable.mountpoint, "--foreground", "--settle", "0.5", "--read-only"]) == 0
    assert fake.ran == [MountOptions(usable.mountpoint, usable.store, 0.5, False, True)]


def test_the_command_line_of_the_mount_process_asks_for_the_same_mount(session, usable):
    fake = session()
    wanted = MountOptions(usable.mountpoint, usable.store, 0.25, True, True, "last=5,within=3d", prune_when_full=True)
    arguments = mount_command._foreground_command(wanted)
    assert main(arguments[arguments.index("mount") :]) == 0
    assert fake.ran == [wanted]


def test_a_store_that_is_just_being_released_is_waited_for(session, usable):
    fake = session(StoreInUseError("in use by 7"), StoreInUseError("in use by 7"))
    assert main(["mount", usable.mountpoint, "--foreground"]) == 0
    assert len(fake.ran) == 3


def test_a_store_that_stays_in_use_is_an_error(session, usable, monkeypatch, capsys):
    monkeypatch.setattr(foreground, "RELEASE_SECONDS", 0.0)
    session(StoreInUseError("in use by 7"))
    assert main(["mount", usable.mountpoint, "--foreground"]) == StoreInUseError.exit_code
    assert capsys.readouterr().err == "ckptfs: in use by 7\n"


def test_a_store_that_is_mounted_elsewhere_is_not_waited_for(session, usable, mounts, capsys):
    mounts("/elsewhere", usable.store)
    fake = session(StoreInUseError("in use by 7"))
    assert main(["mount", usable.mountpoint, "--foreground"]) == StoreInUseError.exit_code
    assert capsys.readouterr().err == "ckptfs: in use by 7; it is mounted on /elsewhere\n"
    assert len(fake.ran) == 1


def test_a_missing_store_is_made_and_what_is_no_store_is_left(session, usable, capsys):
    session()
    shutil.rmtree(usable.store)
    assert main(["mount", usable.mountpoint, "--foreground"]) == 0
    assert capsys.readouterr().out == f"made a new store at {usable.store}\n"
    assert main(["mount", usable.mountpoint, "--foreground"]) == 0
    assert capsys.readouterr().out == ""
    shutil.rmtree(usable.store)
    Path(usable.store).mkdir()
    (Path(usable.store) / "thesis.txt").write_text("precious")
    assert main(["mount", usable.mountpoint, "--foreground"]) == NotAStoreError.exit_code
    shutil.rmtree(usable.store)
    Path(usable.store).write_text("a file")
    assert main(["mount", usable.mountpoint, "--foreground"]) == NotAStoreError.exit_code


def test_a_missing_store_is_not_made_for_a_read_only_mount(usable, capsys):
    assert main(["mount", usable.mountpoint, "--read-only", "--foreground"]) == 7
    assert "--read-only makes none" in capsys.readouterr().err
    assert not Path(usable.store).exists()


CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from ckptfs.errors import *
from ckptfs.mount.daemonize import ReadyPipe
with ReadyPipe(int(sys.argv[-1].partition("=")[2])) as pipe:
    {body}
"""


def start(tmp_path, body):
    """Start a background process that does `body`; return its log."""
    command = [sys.executable, "-c", CHILD.format(root=str(ROOT), body=body)]
    daemonize.start(command, str(tmp_path / "ckptfs.log"))


def test_the_starter_returns_when_the_process_is_ready_and_leaves_it_running(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    start(tmp_path, f"pipe.ready(); open({str(gate)!r}, 'w').write(str((os.getpid(), os.getsid(0), os.getcwd())))")
    # Opening the gate meets the process, which therefore still ran after its starter had returned.
    pid, session_id, directory = eval(gate.read_text())
    assert (pid, directory) == (session_id, "/")
    assert pid != os.getpid()
    os.waitpid(pid, 0)


def test_an_error_of_the_process_is_the_starters(tmp_path):
    with pytest.raises(OpenFilesError, match="the reason"):
        start(tmp_path, "raise OpenFilesError('the reason')")


def test_a_process_that_dies_silently_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "ckptfs.log").write_text("an older line\n")
    with pytest.raises(DaemonError, match=r"exit code 1 before it was usable(.|\n)*KeyError: 'a bug'") as caught:
        start(tmp_path, "raise KeyError('a bug')")
    assert "older" not in str(caught.value)
    with pytest.raises(DaemonError, match=f"signal {int(signal.SIGKILL)} before"):
        start(tmp_path, "os.kill(os.getpid(), 9)")


def test_a_log_that_cannot_be_written_does_not_stop_a_mount(tmp_path):
    daemonize.start([sys.executable, "-c", CHILD.format(root=str(ROOT), body="pipe.ready()")], str(tmp_path / "no/log"))
    os.wait()


def test_ctrl_c_while_waiting_ends_the_process(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from ckptfs.mount import daemonize
signal.signal(signal.SIGINT, signal.default_int_handler)
body = "open({str(gate)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
try:
    daemonize.start([sys.executable, "-c", {CHILD!r}.format(root={str(ROOT)!r}, body=body)], {str(tmp_path / "log")!r})
except KeyboardInterrupt:
    sys.exit(130)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as starter:
        pid = int(gate.read_text())
        starter.send_signal(signal.SIGINT)
        assert starter.wait(timeout=30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
