"""The words between the command line and a mount process: one JSON line of request, one JSON line of reply.

Owns the shape of both lines, the shapes of what the commands return, and the address of the control socket; knows
nothing of what a command does. Errors cross as the name of their class in `ckptfs.errors` and their message, and
come out as that class again. Both sides bound the length of a line. Paths and names travel as Python's file name
strings: bytes that are not UTF-8 are lone surrogates, which JSON carries as escapes.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn, NotRequired, Protocol, TypedDict

from ckptfs.config import MIB
from ckptfs.errors import CkptfsError, DaemonError, UsageError, error_classes

LINE_SIZE_MAX = 64 * MIB
SOCKET_NAME = "control.sock"
SOCKET_MODE = 0o600
LOG_NAME = "ckptfs.log"
ENDED = f"the mount process ended during the command, which may be done or not; its log is {LOG_NAME} in the store"

_CLASSES = {cls.__name__: cls for cls in error_classes()}
_BACKLOG = 16
_TOO_LONG = f"an answer of more than {LINE_SIZE_MAX // MIB} MiB; ask for a smaller part"


class SnapshotRow(TypedDict):
    """One snapshot as `list` shows it; sizes in bytes, `created` in RFC 3339 UTC, `trigger` auto|manual|rollback.

    `exclusive_bytes` is what deleting it would free, in `list` and `show`; None where it takes too long to find out.
    """

    id: int
    name: str
    created: str
    trigger: str
    label: str
    changed_files: int
    written_bytes: int
    stored_bytes: int
    paths: list[str]
    exclusive_bytes: NotRequired[int | None]


class Change(TypedDict):
    """One path that a snapshot changed; `change` is added|modified|removed."""

    path: str
    change: str
    size: int


class SnapshotDetails(SnapshotRow):
    """One snapshot with everything that it changed."""

    changes: list[Change]


class Rollback(TypedDict):
    """What a rollback did: where it went, the snapshot of the state it left, and the interrupted files that went."""

    target: SnapshotRow
    saved: SnapshotRow
    changed_files: int
    removed_partial: list[str]


class Collected(TypedDict):
    """What a garbage collection, or a part of it, freed, or would: chunks, their size decoded, and bytes of the packs.

    `left_bytes` of the packs are freed by further parts; `finished`: there are none.
    """

    chunks: int
    raw_bytes: int
    freed_bytes: int
    left_bytes: int
    finished: bool


class Progress(TypedDict):
    """What a part of the work of idle time came to, in bytes; `finished`: there is no more of it."""

    done_bytes: int
    left_bytes: int
    finished: bool


class StoreStats(TypedDict):
    """What is known of a store, mounted or not; sizes in bytes."""

    store: str
    live_bytes: int
    version_bytes: int
    chunk_bytes: int
    delta_bytes: int
    stored_bytes: int
    waiting_bytes: int
    uncompared_bytes: int
    chunks: int
    snapshots: int
    kernel: str
    interrupted: list[str]


class Stats(StoreStats, total=False):
    """The same, with what only a mount process can say."""

    mountpoint: str
    pid: int
    uptime_seconds: float
    buffered_bytes: int


class Share(TypedDict):
    """Some of the chunks: how many, their bytes when decoded, and those that their records take."""

    chunks: int
    chunk_bytes: int
    stored_bytes: int


class Composition(TypedDict):
    """All chunks by the name of their encoding, and by how many deltas each is read through."""

    encodings: dict[str, Share]
    depths: list[Share]


class Structure(TypedDict):
    """What a check of the structure found, and how much there is to verify: chunks with numbers below `numbers_end`.

    `damaged` pairs the number of each chunk that was found damaged before with what is known of it.
    """

    problems: list[str]
    damaged: list[tuple[int, str]]
    chunks: int
    raw_bytes: int
    numbers_end: int


class Verified(TypedDict):
    """A slice of the verification: go on at `next_number`; `damaged` pairs a chunk's number with what is wrong."""

    next_number: int
    raw_bytes: int
    damaged: list[tuple[int, str]]


class JournalPart(TypedDict):
    """A part of a check of the journal: a sentence for each place found; `done_bytes` of `total_bytes` are behind it.

    Less is read than that, `read_bytes` for this part.
    """

    check: int
    finished: bool
    problems: list[str]
    read_bytes: int
    done_bytes: int
    total_bytes: int


class FileDamage(TypedDict):
    """A range of a file that cannot be read, in which versions, and why; in bytes."""

    path: str
    versions: list[str]
    offset: int
    size: int
    reason: str


class BackupCut(TypedDict):
    """Up to where a backup goes, and how often the store had been punched by then."""

    pack: int
    offset: int
    punch_count: int


class Commands(Protocol):
    """What a person can ask of a store; spoken to directly, or through the mount process that has it open."""

    def snapshot_list(self, path: str = "") -> list[SnapshotRow]:
        """Return the snapshots that changed something below a path, oldest first."""

    def snapshot_create(self, name: str | None, label: str) -> SnapshotRow:
        """Take a snapshot now."""

    def snapshot_show(self, ref: str) -> SnapshotDetails:
        """Return one snapshot with its changes."""

    def sizes_are_quick(self) -> bool:
        """Tell whether `snapshot_sizes` takes no more than about half a second."""

    def snapshot_sizes(self) -> list[tuple[int, int]]:
        """Return the id of each snapshot and how many bytes deleting it would free."""

    def snapshot_rollback(self, ref: str, path: str = "") -> Rollback:
        """Make the live tree below a path what it was in a snapshot."""

    def snapshot_delete(self, refs: list[str]) -> list[SnapshotRow]:
        """Delete snapshots, all or none; return what they were."""

    def prune(self, policy: str, *, dry_run: bool) -> list[SnapshotRow]:
        """Delete the snapshots that a policy (`retention.parse_policy`) does not keep; return what they were."""

    def gc(self, *, dry_run: bool) -> Collected:
        """Free a part of what nothing needs any more, about a second's, or say what all would free."""

    def optimize(self) -> Progress:
        """Do a part of the work of idle time, about a second's."""

    def check_structure(self) -> Structure:
        """Check whether the rows of the store agree with each other."""

    def check_data(self, start: int, stop: int, size: int) -> Verified:
        """Verify about `size` bytes of the chunks numbered from `start` to before `stop`."""

    def check_journal(self, check: int, size: int) -> JournalPart:
        """Read about `size` bytes to see whether the journal in the packs is what was written.

        A `check` of 0 begins a check, and that of the answer goes on with it; UsageError where others were begun since.
        """

    def check_files(self, damaged: list[tuple[int, str]]) -> list[FileDamage]:
        """Return the ranges of files that lie in chunks which `check_data` found damaged."""

    def backup_cut(self) -> BackupCut:
        """Commit what can be, and return up to where a backup that is made now goes."""

    def stats(self) -> Stats:
        """Return the figures of the store."""

    def composition(self) -> Composition:
        """Return what the chunks of the store consist of."""


class Request(NamedTuple):
    """The name of a method of `Commands` and its arguments by name."""

    command: str
    arguments: dict[str, Any]


def encode_request(request: Request) -> bytes:
    """Return the line of a request."""
    return _line({"command": request.command, "arguments": request.arguments})


def decode_request(line: bytes) -> Request:
    """Parse a request; UsageError when it is not one."""
    match _parse(line):
        case {"command": str(command), "arguments": dict(arguments)}:
            return Request(command, arguments)
    raise UsageError("not a request of the ckptfs control protocol")


def encode_result(result: Any) -> bytes:
    """Return the line of a reply that carries a result; for any thread, which others can take turns with."""
    if not isinstance(result, list):
        return _line({"result": result})
    # One by one: the encoder keeps the interpreter to itself from the beginning of a call to its end.
    return _ended('{"result":[' + ",".join(map(_text, result)) + "]}")


def encode_error(error: Exception) -> bytes:
    """Return the line of a reply that carries an error; whatever is not a CkptfsError travels as a plain one."""
    if isinstance(error, CkptfsError):
        kind, message = type(error).__name__, str(error)
    else:
        kind, message = CkptfsError.__name__, f"{type(error).__name__}: {error}"
    return _line({"error": {"kind": kind, "message": message}})


def decode_reply(line: bytes) -> Any:
    """Return the result in a reply, or raise the error in it; a kind this version does not know is a CkptfsError.

    A line without its end is what a mount process leaves that dies while it answers: DaemonError.
    """
    if not line.endswith(b"\n"):
        raise DaemonError(ENDED if len(line) < LINE_SIZE_MAX else _TOO_LONG)
    match _parse(line):
        case {"error": {"kind": str(kind), "message": str(message)}}:
            _raise_kind(kind, message)
        case {"result": result}:
            return result
    raise DaemonError("the mount process gave an answer that is not one of the ckptfs control protocol")


@contextmanager
def control_address(store: str) -> Iterator[str]:
    """Give the address of a store's control socket, valid inside the `with`.

    A socket address holds 108 bytes, and stores lie deeper than that: the way leads through an open directory.
    """
    directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


def listen(store: str) -> socket.socket:
    """Return the listening control socket of a store, mode 0600.

    The caller has the store's lock; what lies at the address is therefore left over from a dead process and goes.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with control_address(store) as address:
            with suppress(FileNotFoundError):
                os.unlink(address)
            # The mode of the unbound socket is the mode its file gets: there is no moment with another one.
            os.fchmod(listener.fileno(), SOCKET_MODE)
            listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as of its connect()."""
    credentials = struct.Struct("iII")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    _pid, uid, _gid = credentials.unpack(data)
    return int(uid)


def _line(value: object) -> bytes:
    return _ended(_text(value))


def _text(value: object) -> str:
    # ASCII escapes keep lone surrogates (file names that are not UTF-8) intact.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _ended(text: str) -> bytes:
    line = text.encode("ascii") + b"\n"
    if len(line) > LINE_SIZE_MAX:
        raise DaemonError(_TOO_LONG)
    return line


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _raise_kind(kind: str, message: str) -> NoReturn:
    raise _CLASSES.get(kind, CkptfsError)(message)
