"""Every failure that a person may meet, as one exception tree.

Each class carries the exit code of the command line; its docstring says the cause and the next step.
The table in docs/cli.md and in `ckptfs --help` is made from this module, and a test holds them together.
Filesystem calls fail with plain `OSError`s instead: their errno is their meaning.
"""


class CkptfsError(Exception):
    """Something failed for a reason that is not listed; the message says which."""

    exit_code = 1


class UsageError(CkptfsError):
    """The command line or its arguments are wrong; see `ckptfs COMMAND --help`."""

    exit_code = 2


class NoMountError(CkptfsError):
    """No ckptfs mount or store was found where the command looked; name a mountpoint or a store."""

    exit_code = 3


class MountpointError(CkptfsError):
    """The mountpoint cannot be used: missing, not an empty directory, taken, or around its own store."""

    exit_code = 4


class FuseError(CkptfsError):
    """FUSE is not usable: no /dev/fuse or no fusermount3; install fuse3 or load the kernel module."""

    exit_code = 5


class StoreInUseError(CkptfsError):
    """Another process has the store open; use its mount or stop it."""

    exit_code = 6


class NotAStoreError(CkptfsError):
    """The directory is not a ckptfs store, or its description is unreadable; check the path."""

    exit_code = 7


class StoreVersionError(CkptfsError):
    """The store is of another version: of a newer ckptfs (upgrade), or to be written once before it is read only."""

    exit_code = 8


class StoreReadOnlyError(CkptfsError):
    """The store cannot be written: a read-only disk, missing permissions, or `--read-only`."""

    exit_code = 9


class UnknownSnapshotError(CkptfsError):
    """No snapshot is meant by this reference; `ckptfs snapshot list` shows them."""

    exit_code = 10


class AmbiguousSnapshotError(CkptfsError):
    """Several snapshots begin with this prefix; give more of the name, or the number."""

    exit_code = 11


class SnapshotNameError(CkptfsError):
    """The name of a new snapshot is taken or not allowed; choose another one."""

    exit_code = 12


class OpenFilesError(CkptfsError):
    """Files that a rollback would change are open for writing; close them or stop the job first."""

    exit_code = 13


class NoSpaceError(CkptfsError):
    """The disk below the store is full; free some space on it."""

    exit_code = 14


class DamagedError(CkptfsError):
    """Stored bytes are not what was written; the message names the place. Other files stay readable."""

    exit_code = 15


class DaemonError(CkptfsError):
    """The mount process did not answer, or it ended during the command; see its log in the store."""

    exit_code = 16


class BusyError(CkptfsError):
    """The mount is in use and cannot be taken down; the message names the processes."""

    exit_code = 17


def error_classes() -> list[type[CkptfsError]]:
    """Return every error class, in the order of their exit codes."""
    return sorted([CkptfsError, *CkptfsError.__subclasses__()], key=lambda cls: cls.exit_code)
