"""protocol and client: what crosses the control socket, and what happens when the other end dies."""

import os
import socket
import stat
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import CkptfsError, DaemonError, UnknownSnapshotError, UsageError, error_classes
from ckptfs.mount import protocol
from ckptfs.mount.client import Client
from ckptfs.mount.protocol import Request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@contextmanager
def answering(store, answer):
    """Serve one connection on a control socket: `answer` gets the line of the request and gives the reply."""
    heard = []
    with protocol.listen(str(store)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                heard.append(stream.readline())
                connection.sendall(answer(heard[0]))

        thread = threading.Thread(target=serve)
        thread.start()
        yield heard
        thread.join(timeout=10)


@given(st.text(), st.dictionaries(st.text(), JSON))
def test_a_request_comes_out_as_it_went_in(command, arguments):
    line = protocol.encode_request(Request(command, arguments))
    assert line.count(b"\n") == 1
    assert protocol.decode_request(line) == (command, arguments)


@given(JSON)
def test_a_result_comes_out_as_it_went_in(result):
    assert protocol.decode_reply(protocol.encode_result(result)) == result


@pytest.mark.parametrize("cls", error_classes())
def test_an_error_comes_out_as_its_class(cls):
    with pytest.raises(cls, match=r"^what happened$") as caught:
        protocol.decode_reply(protocol.encode_error(cls("what happened")))
    assert type(caught.value) is cls


def test_an_error_of_an_unknown_kind_is_a_plain_one():
    with pytest.raises(CkptfsError, match="from the future") as caught:
        protocol.decode_reply(b'{"error": {"kind": "NewerError", "message": "from the future"}}\n')
    assert type(caught.value) is CkptfsError
    with pytest.raises(CkptfsError, match="KeyError: 'a bug'"):
        protocol.decode_reply(protocol.encode_error(KeyError("a bug")))


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[]\n", b"{}\n", b'{"command": 1, "arguments": {}}\n', b"\xff\n", b"[" * 99999]
)
def test_what_is_no_request_is_refused(line):
    with pytest.raises(UsageError):
        protocol.decode_request(line)


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b'{"error": 3}\n', b"\xff\n"])
def test_what_is_no_reply_is_a_daemon_error(line):
    with pytest.raises(DaemonError, match="not one of the ckptfs control protocol"):
        protocol.decode_reply(line)


def test_lines_are_bounded(monkeypatch):
    monkeypatch.setattr(protocol, "LINE_SIZE_MAX", 100)
    with pytest.raises(DaemonError, match="MiB"):
        protocol.encode_result("x" * 100)
    with pytest.raises(DaemonError, match="MiB"):
        protocol.decode_reply(b"x" * 100)


def test_a_command_and_its_result_cross_a_real_socket(tmp_path):
    with answering(tmp_path, lambda line: protocol.encode_result([{"id": 1}])) as heard:
        assert Client(str(tmp_path)).snapshot_list("run\udcff") == [{"id": 1}]
    assert protocol.decode_request(heard[0]) == ("snapshot_list", {"path": "run\udcff"})


@pytest.mark.parametrize(
    ("call", "request_made"),
    [
        (lambda client: client.snapshot_create(None, "a note"), ("snapshot_create", {"name": None, "label": "a note"})),
        (lambda client: client.snapshot_show("latest"), ("snapshot_show", {"ref": "latest"})),
        (lambda client: client.snapshot_rollback("3", "a/b"), ("snapshot_rollback", {"ref": "3", "path": "a/b"})),
        (lambda client: client.snapshot_delete(["1", "2"]), ("snapshot_delete", {"refs": ["1", "2"]})),
        (lambda client: client.stats(), ("stats", {})),
        (lambda client: client.optimize(), ("optimize", {})),
    ],
)
def test_every_command_travels_with_its_arguments(tmp_path, call, request_made):
    with answering(tmp_path, lambda line: protocol.encode_result("done")) as heard:
        assert call(Client(str(tmp_path))) == "done"
    assert protocol.decode_request(heard[0]) == request_made


def test_an_error_crosses_a_real_socket(tmp_path):
    error = UnknownSnapshotError("no snapshot is meant by 'lates'; did you mean latest")
    with (
        answering(tmp_path, lambda line: protocol.encode_error(error)),
        pytest.raises(UnknownSnapshotError, match="did you mean latest"),
    ):
        Client(str(tmp_path)).snapshot_show("lates")


@pytest.mark.parametrize("partial", [b"", b'{"result": [1, 2'])
def test_a_mount_process_that_dies_during_the_command_is_a_daemon_error(tmp_path, partial):
    with answering(tmp_path, lambda line: partial), pytest.raises(DaemonError, match="ended during the command"):
        Client(str(tmp_path)).stats()


def test_a_mount_process_that_is_not_there_is_a_daemon_error(tmp_path):
    with pytest.raises(DaemonError, match="no mount process answers"):
        Client(str(tmp_path)).stats()
    protocol.listen(str(tmp_path)).close()
    with pytest.raises(DaemonError, match="no mount process answers"):
        Client(str(tmp_path)).stats()
    with pytest.raises(DaemonError, match="no mount process answers"):
        Client(str(tmp_path / "gone")).stats()


def test_a_store_may_lie_deeper_than_a_socket_address_is_long(tmp_path):
    store = tmp_path / ("d" * 200) / ("e" * 200)
    store.mkdir(parents=True)
    with answering(store, lambda line: protocol.encode_result("deep")):
        assert Client(str(store)).stats() == "deep"


def test_the_socket_is_for_its_user_only_and_replaces_a_dead_one(tmp_path):
    old_mask = os.umask(0)
    try:
        protocol.listen(str(tmp_path)).close()
        with protocol.listen(str(tmp_path)):
            mode = (tmp_path / protocol.SOCKET_NAME).stat().st_mode
    finally:
        os.umask(old_mask)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_peer_is_known_by_its_user_id(tmp_path):
    one, other = socket.socketpair()
    with one, other:
        assert protocol.peer_uid(one) == os.geteuid()
