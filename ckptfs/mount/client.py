"""The caller's end of the control socket: the commands of a store that a mount process has open.

Synchronous; one connection per command, so a client holds nothing between two and needs no closing. A mount process
that is not there, or dies during the command, is a DaemonError; whether a command that changes something was still
done is then unknown, and its message says so.
"""

import socket
from contextlib import suppress
from typing import Any, cast

from ckptfs.errors import DaemonError
from ckptfs.mount.protocol import (
    ENDED,
    LINE_SIZE_MAX,
    BackupCut,
    Collected,
    Composition,
    FileDamage,
    JournalPart,
    Progress,
    Request,
    Rollback,
    SnapshotDetails,
    SnapshotRow,
    Stats,
    Structure,
    Verified,
    control_address,
    decode_reply,
    encode_request,
)


class Client:
    """`Commands` of the store in a directory, asked of its mount process."""

    def __init__(self, store: str) -> None:
        """Take the absolute path of the store; nothing is opened yet."""
        self._store = store

    def snapshot_list(self, path: str = "") -> list[SnapshotRow]:
        """Return the snapshots that changed something below a path, oldest first."""
        return cast(list[SnapshotRow], self._call("snapshot_list", path=path))

    def snapshot_create(self, name: str | None, label: str) -> SnapshotRow:
        """Take a snapshot now."""
        return cast(SnapshotRow, self._call("snapshot_create", name=name, label=label))

    def snapshot_show(self, ref: str) -> SnapshotDetails:
        """Return one snapshot with its changes."""
        return cast(SnapshotDetails, self._call("snapshot_show", ref=ref))

    def sizes_are_quick(self) -> bool:
        """Tell whether `snapshot_sizes` takes no more than about half a second."""
        return cast(bool, self._call("sizes_are_quick"))

    def snapshot_sizes(self) -> list[tuple[int, int]]:
        """Return the id of each snapshot and how many bytes deleting it would free."""
        return cast(list[tuple[int, int]], self._call("snapshot_sizes"))

    def snapshot_rollback(self, ref: str, path: str = "") -> Rollback:
        """Make the live tree below a path what it was in a snapshot."""
        return cast(Rollback, self._call("snapshot_rollback", ref=ref, path=path))

    def snapshot_delete(self, refs: list[str]) -> list[SnapshotRow]:
        """Delete snapshots, all or none; return what they were."""
        return cast(list[SnapshotRow], self._call("snapshot_delete", refs=refs))

    def prune(self, policy: str, *, dry_run: bool) -> list[SnapshotRow]:
        """Delete the snapshots that a policy (`retention.parse_policy`) does not keep; return what they were."""
        return cast(list[SnapshotRow], self._call("prune", policy=policy, dry_run=dry_run))

    def gc(self, *, dry_run: bool) -> Collected:
        """Free a part of what nothing needs any more, about a second's, or say what all would free."""
        return cast(Collected, self._call("gc", dry_run=dry_run))

    def optimize(self) -> Progress:
        """Do a part of the work of idle time, about a second's."""
        return cast(Progress, self._call("optimize"))

    def check_structure(self) -> Structure:
        """Check whether the rows of the store agree with each other."""
        return cast(Structure, self._call("check_structure"))

    def check_data(self, start: int, stop: int, size: int) -> Verified:
        """Verify about `size` bytes of the chunks numbered from `start` to before `stop`."""
        return cast(Verified, self._call("check_data", start=start, stop=stop, size=size))

    def check_journal(self, check: int, size: int) -> JournalPart:
        """Read about `size` bytes to see whether the journal in the packs is what was written."""
        return cast(JournalPart, self._call("check_journal", check=check, size=size))

    def check_files(self, damaged: list[tuple[int, str]]) -> list[FileDamage]:
        """Return the ranges of files that lie in chunks which `check_data` found damaged."""
        return cast(list[FileDamage], self._call("check_files", damaged=damaged))

    def backup_cut(self) -> BackupCut:
        """Commit what can be, and return up to where a backup that is made now goes."""
        return cast(BackupCut, self._call("backup_cut"))

    def stats(self) -> Stats:
        """Return the figures of the store."""
        return cast(Stats, self._call("stats"))

    def composition(self) -> Composition:
        """Return what the chunks of the store consist of."""
        return cast(Composition, self._call("composition"))

    def _call(self, command: str, **arguments: Any) -> Any:
        """Send one request and return the result of its reply; the errors are those of `ckptfs.errors`."""
        line = encode_request(Request(command, arguments))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                with control_address(self._store) as address:
                    connection.connect(address)
            except OSError as error:
                raise DaemonError(f"no mount process answers for the store {self._store} ({error.strerror})") from error
            try:
                with suppress(BrokenPipeError):  # it has answered already, and refuses
                    connection.sendall(line)
                with connection.makefile("rb") as stream:
                    reply = stream.readline(LINE_SIZE_MAX)
            except OSError as error:
                raise DaemonError(ENDED) from error
        return decode_reply(reply)
