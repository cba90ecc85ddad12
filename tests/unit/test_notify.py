"""notify: what the service manager hears, from a real socket."""

import os
import secrets
import socket

import pytest

from ckptfs.mount import notify


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """Listen as a service manager does, at an address in the file system and at an abstract one."""
    shown = str(tmp_path / "notify") if request.param == "file" else f"@ckptfs-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + shown[1:] if shown.startswith("@") else shown)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", shown)
        yield receiver


def test_the_manager_hears_ready_status_and_stopping(manager):
    notify.status("opening the store")
    notify.ready("mounted")
    notify.stopping("ending")
    heard = [manager.recv(4096) for _ in range(3)]
    assert heard == [b"STATUS=opening the store", b"READY=1\nSTATUS=mounted", b"STOPPING=1\nSTATUS=ending"]


def test_a_status_cannot_smuggle_in_another_line_and_is_utf_8(manager):
    notify.status("a\nREADY=1 " + os.fsdecode(b"\xff"))
    assert manager.recv(4096).decode("utf-8") == "STATUS=a READY=1 ?"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all", "@ckptfs-nobody-listens"])
def test_without_a_manager_that_listens_nothing_happens(address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready("mounted")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.ready("mounted")
