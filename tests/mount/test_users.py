"""Who may do what: other users are kept out, or let in as far as the modes of files allow, as on the disk below.

Children of the test become other users, which takes root. Each test runs on a mount with --allow-other and on a plain
directory.
"""

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ckptfs.errors import UsageError
from ckptfs.mount import protocol
from ckptfs.mount.client import Client
from tests.mount.calls import in_child
from tests.mount.running import RunningMount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

OWNER, GROUP = 4001, 4100
MEMBER, STRANGER = 4002, 4003


def as_user(uid: int, act: Callable[[], object], *, gid: int = 4999, groups: Sequence[int] = ()) -> int:
    """Do something as another user, as `in_child` does."""

    def become_and_act() -> None:
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        act()

    return in_child(become_and_act)


@pytest.fixture(scope="module")
def open_mount(fuse: None) -> Iterator[RunningMount]:
    """Give a mount that other users may enter, at a place that they can reach."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    (base / "ckpt").mkdir()
    mount = RunningMount(base / "ckpt", base / "ckpt.store")
    try:
        mount.mount("--allow-other")
        mount.path.chmod(0o755)
        yield mount
        mount.umount()
        assert not mount.unexpected_in_log()
    finally:
        mount.clean_up()
        shutil.rmtree(base)


@pytest.fixture(params=["mount", "plain"])
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give a directory that everybody can enter and change: on ckptfs, and on the disk below."""
    if request.param == "mount":
        directory = request.getfixturevalue("open_mount").new_directory(request.node.name)
    else:
        directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def make(path: Path, mode: int, data: bytes = b"data") -> Path:
    """Make a file of OWNER and GROUP."""
    path.write_bytes(data)
    os.chown(path, OWNER, GROUP)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "reads", "writes"),
    [
        (0o600, OWNER, [], 0, 0),
        (0o600, STRANGER, [], errno.EACCES, errno.EACCES),
        (0o640, MEMBER, [GROUP], 0, errno.EACCES),
        (0o660, MEMBER, [GROUP], 0, 0),
        (0o640, MEMBER, [], errno.EACCES, errno.EACCES),
        (0o604, STRANGER, [], 0, errno.EACCES),
        (0o604, MEMBER, [GROUP], errno.EACCES, errno.EACCES),
        (0o066, OWNER, [], errno.EACCES, errno.EACCES),
    ],
)
def test_modes_decide_who_reads_and_writes(
    shared: Path, mode: int, uid: int, groups: list[int], reads: int, writes: int
) -> None:
    file = make(shared / "file", mode)
    assert as_user(uid, file.read_bytes, groups=groups) == reads
    assert as_user(uid, lambda: file.write_bytes(b"new"), groups=groups) == writes


def test_a_supplementary_group_opens_a_directory(shared: Path) -> None:
    (shared / "group").mkdir()
    os.chown(shared / "group", OWNER, GROUP)
    (shared / "group").chmod(0o770)
    make(shared / "group" / "file", 0o644)
    assert as_user(MEMBER, (shared / "group" / "file").read_bytes, groups=[7, GROUP]) == 0
    assert as_user(MEMBER, (shared / "group" / "new").touch, groups=[7, GROUP]) == 0
    assert as_user(STRANGER, (shared / "group" / "file").read_bytes) == errno.EACCES
    assert as_user(STRANGER, lambda: os.listdir(shared / "group")) == errno.EACCES


def test_in_a_sticky_directory_only_the_owner_removes(shared: Path) -> None:
    shared.chmod(0o1777)
    file = make(shared / "file", 0o666)
    assert as_user(STRANGER, file.unlink) == errno.EPERM
    assert as_user(STRANGER, lambda: file.rename(shared / "mine")) == errno.EPERM
    assert as_user(STRANGER, (shared / "own").touch) == 0
    assert as_user(STRANGER, lambda: (shared / "own").rename(file)) == errno.EPERM
    assert as_user(OWNER, file.unlink) == 0


def test_only_the_owner_changes_modes_and_nobody_gives_files_away(shared: Path) -> None:
    file = make(shared / "file", 0o666)
    assert as_user(STRANGER, lambda: file.chmod(0o600)) == errno.EPERM
    assert as_user(OWNER, lambda: file.chmod(0o600), gid=GROUP) == 0
    assert as_user(OWNER, lambda: os.chown(file, STRANGER, -1)) == errno.EPERM
    assert as_user(OWNER, lambda: os.chown(file, -1, 7), groups=[7]) == 0
    assert as_user(OWNER, lambda: os.chown(file, -1, 8), groups=[7]) == errno.EPERM
    assert as_user(STRANGER, lambda: os.utime(file, (1, 1))) == errno.EPERM


def test_what_a_user_makes_is_theirs(shared: Path) -> None:
    assert as_user(OWNER, (shared / "file").touch, gid=GROUP) == 0
    assert as_user(OWNER, (shared / "directory").mkdir, gid=GROUP) == 0
    for name in ("file", "directory"):
        status = (shared / name).stat()
        assert (status.st_uid, status.st_gid) == (OWNER, GROUP)
    os.chown(shared, 0, 7)
    shared.chmod(0o2777)
    assert as_user(OWNER, (shared / "inherits").mkdir, gid=GROUP) == 0
    status = (shared / "inherits").stat()
    assert (status.st_gid, status.st_mode & stat.S_ISGID) == (7, stat.S_ISGID)


def test_trusted_attributes_are_not_for_users(shared: Path) -> None:
    file = make(shared / "file", 0o666)
    os.setxattr(file, "trusted.x", b"1")
    os.setxattr(file, "user.x", b"1")

    def look() -> None:
        assert os.listxattr(file) == ["user.x"]

    assert as_user(OWNER, look) == 0
    assert sorted(os.listxattr(file)) == ["trusted.x", "user.x"]
    assert as_user(OWNER, lambda: os.getxattr(file, "trusted.x")) == errno.ENODATA
    assert as_user(OWNER, lambda: os.setxattr(file, "trusted.x", b"2")) == errno.EPERM


def test_what_a_directory_allows_decides_about_its_names(shared: Path) -> None:
    (shared / "full" / "below").mkdir(parents=True)
    (shared / "open").mkdir()
    make(shared / "full" / "file", 0o666)
    os.chown(shared / "full", OWNER, GROUP)
    (shared / "open").chmod(0o777)
    (shared / "full").chmod(0o755)
    file, new = shared / "full" / "file", shared / "full" / "new"
    refused: dict[str, Callable[[], object]] = {
        "create": new.touch,
        "mkdir": new.mkdir,
        "unlink": file.unlink,
        "rmdir": (shared / "full" / "below").rmdir,
        "rename from": lambda: file.rename(shared / "open" / "file"),
        "rename a directory, whose `..` would change": lambda: (shared / "full").rename(shared / "open" / "full"),
        "link into": lambda: new.hardlink_to(file),
    }
    found = {name: as_user(STRANGER, act) for name, act in refused.items()}
    assert found == dict.fromkeys(refused, errno.EACCES)
    (shared / "full").chmod(0o711)
    assert as_user(STRANGER, lambda: os.listdir(shared / "full")) == errno.EACCES
    assert as_user(STRANGER, file.read_bytes) == 0
    (shared / "full").chmod(0o744)
    assert as_user(STRANGER, lambda: os.listdir(shared / "full")) == 0
    assert as_user(STRANGER, file.stat) == errno.EACCES


def test_access_answers_for_who_asks(shared: Path) -> None:
    file = make(shared / "file", 0o640)

    def asked(uid: int, groups: Sequence[int]) -> int:
        """Return which of R_OK, W_OK and X_OK are granted, as a mask."""
        answers = (mode for mode in (os.R_OK, os.W_OK, os.X_OK) if os.access(file, mode))
        return as_user(uid, lambda: os._exit(sum(answers)), groups=groups)

    assert asked(OWNER, []) == os.R_OK | os.W_OK
    assert asked(MEMBER, [GROUP]) == os.R_OK
    assert asked(STRANGER, []) == 0


def test_times_are_set_by_the_owner_and_to_now_by_who_may_write(shared: Path) -> None:
    file = make(shared / "file", 0o666)
    assert as_user(STRANGER, lambda: os.utime(file)) == 0
    assert as_user(STRANGER, lambda: os.utime(file, (5, 5))) == errno.EPERM
    assert as_user(OWNER, lambda: os.utime(file, (5, 5))) == 0
    file.chmod(0o644)
    assert as_user(STRANGER, lambda: os.utime(file)) == errno.EACCES
    assert as_user(STRANGER, lambda: os.close(os.open(file, os.O_RDONLY | os.O_NOATIME))) == errno.EPERM
    assert as_user(OWNER, lambda: os.close(os.open(file, os.O_RDONLY | os.O_NOATIME))) == 0


def test_the_sgid_bit_is_for_members_of_the_group(shared: Path) -> None:
    file = make(shared / "file", 0o644)
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2777)
    new = shared / "new"

    def create() -> None:
        os.umask(0)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT, 0o2775))

    for groups, kept in (([], 0), ([GROUP], stat.S_ISGID)):
        assert as_user(OWNER, lambda: file.chmod(0o2755), groups=groups) == 0
        assert file.stat().st_mode & stat.S_ISGID == kept
        assert as_user(STRANGER, create, groups=groups) == 0
        assert (new.stat().st_gid, new.stat().st_mode & stat.S_ISGID) == (GROUP, kept)
        new.unlink()


def overwrite(file: Path) -> None:
    """Write into a file without truncating it."""
    with file.open("r+b") as stream:
        stream.write(b"x")


def overwrite_blindly(file: Path) -> None:
    """Write into a file that is open for writing only."""
    fd = os.open(file, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)


@pytest.mark.parametrize(
    "change",
    [overwrite, overwrite_blindly, lambda file: os.truncate(file, 1), lambda file: file.write_bytes(b"")],
    ids=["write", "write-only", "truncate", "open-truncating"],
)
def test_a_write_takes_the_suid_and_sgid_bits(shared: Path, change: Callable[[Path], object]) -> None:
    file = make(shared / "file", 0o6775)
    assert as_user(OWNER, lambda: change(file), gid=GROUP, groups=[GROUP]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o775


@pytest.mark.parametrize(
    "change",
    [overwrite, lambda file: os.truncate(file, 1), lambda file: os.chown(file, OWNER, -1)],
    ids=["write", "truncate", "chown"],
)
def test_a_change_takes_the_sgid_bit_of_what_its_group_may_not_run_on_the_disk_below_only(
    shared: Path, change: Callable[[Path], object]
) -> None:
    """A difference that `docs/design.md` lists: the kernel takes it from no file of a FUSE filesystem."""
    file = make(shared / "file", 0o2664)
    assert as_user(OWNER, lambda: change(file)) == 0
    kept = stat.S_ISGID if os.path.ismount(shared.parent) else 0
    assert file.stat().st_mode & stat.S_ISGID == kept


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_a_file_made_with_a_suid_bit_has_it_until_it_is_written(shared: Path, flags: int) -> None:
    def write() -> None:
        fd = os.open(shared / "file", flags | os.O_CREAT, 0o4755)
        before = stat.S_IMODE(os.fstat(fd).st_mode)
        os.write(fd, b"x")
        assert (before, stat.S_IMODE(os.fstat(fd).st_mode)) == (0o4755, 0o755)

    assert as_user(OWNER, write) == 0


def test_a_new_owner_does_not_get_the_suid_bit(shared: Path) -> None:
    file = make(shared / "file", 0o6755)
    assert as_user(OWNER, lambda: os.chown(file, -1, 7), gid=GROUP, groups=[7]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


def test_nobody_else_gets_into_a_mount_without_allow_other(mount: RunningMount) -> None:
    os.chmod(mount.path, 0o777)
    fd = os.open(mount.path.parent, os.O_PATH)
    assert as_user(STRANGER, lambda: os.listdir(f"/proc/self/fd/{fd}/{mount.path.name}")) == errno.EACCES
    os.close(fd)


def test_versions_are_the_owners_and_their_files_as_private_as_they_were(open_mount: RunningMount) -> None:
    private, public = make(open_mount.path / "private", 0o600), make(open_mount.path / "public", 0o644)
    version = open_mount.at(open_mount.snapshot("kept"))
    private.chmod(0o644)
    public.chmod(0o600)
    before = stat.S_IMODE(open_mount.path.stat().st_mode)
    open_mount.path.chmod(0o777)
    try:
        assert as_user(STRANGER, (version / "private").read_bytes) == errno.EACCES
        assert as_user(STRANGER, (version / "public").read_bytes) == 0
        assert as_user(OWNER, (version / "private").read_bytes) == 0
        assert as_user(STRANGER, open_mount.at("mine").mkdir) == errno.EACCES
        assert as_user(STRANGER, version.rmdir) == errno.EACCES
        assert as_user(OWNER, lambda: (version / "private").write_bytes(b"")) == errno.EROFS
    finally:
        open_mount.path.chmod(before)
        private.unlink()
        public.unlink()
    version.rmdir()


def test_the_store_and_its_socket_are_closed_to_others(open_mount: RunningMount) -> None:
    for path in [open_mount.store, *open_mount.store.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert as_user(STRANGER, lambda: os.listdir(open_mount.store)) == errno.EACCES


def test_the_control_socket_refuses_another_user_who_got_hold_of_it(open_mount: RunningMount) -> None:
    answers, child = socket.socketpair()

    def ask() -> None:
        try:
            Client(str(open_mount.store)).stats()
        except UsageError as error:
            child.sendall(str(error).encode())

    modes = {path: path.stat().st_mode for path in (open_mount.store, open_mount.store / protocol.SOCKET_NAME)}
    try:
        for path in modes:
            path.chmod(0o777)
        assert as_user(STRANGER, ask) == 0
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    child.close()
    assert b"another user" in answers.recv(4096)
    answers.close()
