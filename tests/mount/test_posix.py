"""Names and attributes behave as on any directory: each test runs on ckptfs and on the disk below."""

import ctypes
import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Rename with flags, which `os` does not offer."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    """Expect an OSError with exactly this errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_exclusive_creation_refuses_an_existing_name(place: Path) -> None:
    os.close(os.open(place / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with fails_with(errno.EEXIST):
        os.open(place / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def test_creation_honours_mode_and_umask(place: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(place / "file", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(place / "directory", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((place / "directory").stat().st_mode) == 0o750


def test_opening_the_wrong_kind_fails(place: Path) -> None:
    (place / "file").touch()
    with fails_with(errno.ENOENT):
        os.open(place / "missing", os.O_RDONLY)
    with fails_with(errno.EISDIR):
        os.open(place, os.O_WRONLY)
    with fails_with(errno.ENOTDIR):
        os.open(place / "file" / "below", os.O_RDONLY)
    with fails_with(errno.ENOTDIR):
        os.open(place / "file", os.O_RDONLY | os.O_DIRECTORY)


def test_a_file_renamed_over_another_replaces_it(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    inode = (place / "new").stat().st_ino
    (place / "new").rename(place / "old")
    assert os.listdir(place) == ["old"]
    assert (place / "old").read_bytes() == b"new"
    assert (place / "old").stat().st_ino == inode


def test_a_replaced_file_stays_readable_for_who_has_it_open(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    with open(place / "old", "rb") as held:
        (place / "new").rename(place / "old")
        assert held.read() == b"old"
        assert os.fstat(held.fileno()).st_nlink == 0


def test_a_directory_moves_with_all_below_it(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "file").write_bytes(b"deep")
    (place / "other").mkdir()
    (place / "a").rename(place / "other" / "moved")
    assert (place / "other" / "moved" / "b" / "file").read_bytes() == b"deep"
    assert os.listdir(place) == ["other"]


def test_a_directory_replaces_only_an_empty_one(place: Path) -> None:
    for name in ("source", "empty", "full"):
        (place / name).mkdir()
    (place / "full" / "file").touch()
    with fails_with(errno.ENOTEMPTY):
        (place / "source").rename(place / "full")
    (place / "source").rename(place / "empty")
    assert sorted(os.listdir(place)) == ["empty", "full"]


def test_a_rename_between_kinds_or_into_itself_fails(place: Path) -> None:
    (place / "directory").mkdir()
    (place / "file").touch()
    with fails_with(errno.EISDIR):
        (place / "file").rename(place / "directory")
    with fails_with(errno.ENOTDIR):
        (place / "directory").rename(place / "file")
    with fails_with(errno.EINVAL):
        (place / "directory").rename(place / "directory" / "below")


def test_rename_noreplace_keeps_the_target(place: Path) -> None:
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    with fails_with(errno.EEXIST):
        renameat2(place / "a", place / "b", RENAME_NOREPLACE)
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert {name: (place / name).read_bytes() for name in os.listdir(place)} == {"b": b"b", "c": b"a"}


def test_rename_exchange_swaps_a_file_and_a_directory(place: Path) -> None:
    (place / "one").write_bytes(b"file")
    (place / "deep" / "two").mkdir(parents=True)
    (place / "deep" / "two" / "inside").touch()
    renameat2(place / "one", place / "deep" / "two", RENAME_EXCHANGE)
    assert (place / "deep" / "two").read_bytes() == b"file"
    assert os.listdir(place / "one") == ["inside"]
    with fails_with(errno.ENOENT):
        renameat2(place / "one", place / "missing", RENAME_EXCHANGE)


def test_hard_links_share_content_and_count(place: Path) -> None:
    (place / "a").write_bytes(b"shared")
    os.link(place / "a", place / "b")
    assert (place / "a").stat().st_nlink == 2
    assert os.path.samefile(place / "a", place / "b")
    (place / "b").write_bytes(b"changed through b")
    assert (place / "a").read_bytes() == b"changed through b"
    (place / "a").unlink()
    assert (place / "b").stat().st_nlink == 1
    with fails_with(errno.EEXIST):
        os.link(place / "b", place / "b")


def test_symlinks_keep_their_target_as_written(place: Path) -> None:
    (place / "target").write_bytes(b"found")
    for target in ("target", "missing/ünïcode", "x" * 4000):
        os.symlink(target, place / "link")
        assert os.readlink(place / "link") == target
        assert (place / "link").lstat().st_size == len(os.fsencode(target))
        (place / "link").unlink()
    os.symlink("target", place / "link")
    assert (place / "link").read_bytes() == b"found"


def test_directories_are_made_and_removed_with_the_usual_errors(place: Path) -> None:
    (place / "directory").mkdir()
    with fails_with(errno.EEXIST):
        (place / "directory").mkdir()
    with fails_with(errno.ENOENT):
        (place / "missing" / "directory").mkdir()
    (place / "directory" / "file").touch()
    with fails_with(errno.ENOTEMPTY):
        (place / "directory").rmdir()
    with fails_with(errno.ENOTDIR):
        (place / "directory" / "file").rmdir()
    with fails_with(errno.EISDIR):
        (place / "directory").unlink()
    (place / "directory" / "file").unlink()
    (place / "directory").rmdir()
    with fails_with(errno.ENOENT):
        (place / "directory").rmdir()


def test_a_directory_can_be_emptied_while_it_is_listed(place: Path) -> None:
    names = {f"file-{index:04}" for index in range(1500)}
    for name in names:
        (place / name).touch()
    seen = []
    with os.scandir(place) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == sorted(names)
    assert os.listdir(place) == []


def test_a_listing_under_changes_shows_every_name_that_stays_exactly_once(place: Path) -> None:
    stays = {f"stays-{index:04}" for index in range(800)}
    for name in stays:
        (place / name).touch()
    seen = []
    with os.scandir(place) as entries:
        for index, entry in enumerate(entries):
            seen.append(entry.name)
            if index % 7 == 0 and index < 1400:
                (place / f"added-{index:04}").touch()
    assert sorted(name for name in seen if name in stays) == sorted(stays)


class Entry(ctypes.Structure):
    """The `struct dirent` of Linux."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


def test_a_position_in_a_listing_stays_good_while_names_come_and_go(place: Path) -> None:
    for name, result, *arguments in (
        ("opendir", ctypes.c_void_p, ctypes.c_char_p),
        ("readdir", ctypes.POINTER(Entry), ctypes.c_void_p),
        ("telldir", ctypes.c_long, ctypes.c_void_p),
        ("seekdir", None, ctypes.c_void_p, ctypes.c_long),
        ("rewinddir", None, ctypes.c_void_p),
        ("closedir", ctypes.c_int, ctypes.c_void_p),
    ):
        function = getattr(_libc, name)
        function.restype, function.argtypes = result, arguments
    for index in range(600):
        (place / f"name-{index:03}").touch()
    directory = _libc.opendir(os.fsencode(place))

    def read_on() -> list[bytes]:
        names = []
        while entry := _libc.readdir(directory):
            names.append(entry.contents.name)
        return names

    positions = {}
    while entry := _libc.readdir(directory):
        positions[entry.contents.name] = _libc.telldir(directory)
    order = list(positions)
    behind = order[300:]
    for name in order[:250]:
        if name.startswith(b"name"):
            os.unlink(os.fsencode(place) + b"/" + name)
    (place / "another").touch()
    _libc.seekdir(directory, positions[order[299]])
    assert [name for name in read_on() if name != b"another"] == behind
    _libc.rewinddir(directory)
    assert sorted(read_on()) == sorted([b".", b"..", b"another", *(name for name in order[250:] if name[:1] != b".")])
    assert _libc.closedir(directory) == 0


def test_a_listing_names_the_kinds(place: Path) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    (place / "link").symlink_to("file")
    with os.scandir(place) as entries:
        kinds = {entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries}
    assert kinds == {"file": (False, False), "directory": (True, False), "link": (False, True)}


def test_a_fifo_and_a_socket_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # a socket's path has at most 107 bytes
    os.mkfifo("fifo", 0o600)
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)
    os.close(writer)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        assert stat.S_ISSOCK(os.stat("socket").st_mode)


def test_modes_change_and_stay(place: Path) -> None:
    (place / "file").touch()
    for mode in (0o400, 0o751, 0o4755, 0o2755, 0o1644):
        (place / "file").chmod(mode)
        assert stat.S_IMODE((place / "file").stat().st_mode) == mode


def test_owners_change_where_the_caller_may(place: Path) -> None:
    (place / "file").touch()
    os.chown(place / "file", os.getuid(), os.getgid())
    if os.geteuid() == 0:
        os.chown(place / "file", 1234, 5678)
        assert ((place / "file").stat().st_uid, (place / "file").stat().st_gid) == (1234, 5678)
    else:
        with fails_with(errno.EPERM):
            os.chown(place / "file", 0, 0)


def test_times_are_kept_to_the_nanosecond(place: Path) -> None:
    (place / "file").touch()
    (place / "link").symlink_to("file")
    for path in (place / "file", place, place / "link"):
        os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678), follow_symlinks=False)
        info = path.lstat()
        assert (info.st_atime_ns, info.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_012_345_678)


def test_a_new_name_and_a_write_move_the_times_on(place: Path) -> None:
    (place / "file").touch()
    os.utime(place / "file", ns=(1, 1))
    os.utime(place, ns=(1, 1))
    with open(place / "file", "ab") as file:
        file.write(b"more")
    (place / "another").touch()
    assert (place / "file").stat().st_mtime_ns > 1
    assert place.stat().st_mtime_ns > 1


def test_extended_attributes_are_kept(place: Path) -> None:
    (place / "file").touch()
    os.setxattr(place / "file", "user.run", b"\x00binary\xff")
    os.setxattr(place / "file", "user.empty", b"")
    assert sorted(os.listxattr(place / "file")) == ["user.empty", "user.run"]
    assert os.getxattr(place / "file", "user.run") == b"\x00binary\xff"
    assert os.getxattr(place / "file", "user.empty") == b""
    with fails_with(errno.EEXIST):
        os.setxattr(place / "file", "user.run", b"", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(place / "file", "user.none", b"", os.XATTR_REPLACE)
    os.removexattr(place / "file", "user.run")
    with fails_with(errno.ENODATA):
        os.getxattr(place / "file", "user.run")
    with fails_with(errno.ENODATA):
        os.removexattr(place / "file", "user.run")


def test_statvfs_tells_of_the_disk(place: Path) -> None:
    info = os.statvfs(place)
    assert info.f_namemax == 255
    assert 0 < info.f_bavail <= info.f_blocks


def test_statvfs_promises_no_more_than_the_disk_below_has(mounted: Path, tmp_path: Path) -> None:
    ours, below = os.statvfs(mounted), os.statvfs(tmp_path)
    assert ours.f_bavail * ours.f_frsize <= below.f_bavail * below.f_frsize * 1.01


@pytest.mark.parametrize(
    "name", [b"n" * 255, b"\xff\xfe\x80", b" ", b"-", b"new\nline\ttab", b"\x01\x7f", b"...", b"'\"*?\\"]
)
def test_any_name_works(place: Path, name: bytes) -> None:
    path = os.fsencode(place) + b"/" + name
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(place)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.rename(path, path[:-1] + b"z")
    os.unlink(path[:-1] + b"z")


def test_a_name_of_256_bytes_is_too_long(place: Path) -> None:
    with fails_with(errno.ENAMETOOLONG):
        (place / ("n" * 256)).touch()


def test_a_program_runs_from_where_it_was_saved(place: Path) -> None:
    (place / "program").write_text("#!/bin/sh\necho it runs\n")
    (place / "program").chmod(0o755)
    assert subprocess.run([place / "program"], capture_output=True, check=True).stdout == b"it runs\n"


def test_directories_can_be_synced(place: Path) -> None:
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    (place / "file").touch()
    os.fsync(directory)
    os.close(directory)


def test_a_path_longer_than_the_kernel_takes_is_walked_step_by_step(place: Path) -> None:
    """Eighty directories of 100 bytes are twice PATH_MAX: nobody names the lowest one by its path."""
    name = "d" * 100
    before = os.getcwd()
    try:
        os.chdir(place)
        for _ in range(80):
            os.mkdir(name)
            os.chdir(name)
        Path("file").write_bytes(b"deep")
        with fails_with(errno.ENAMETOOLONG):
            os.stat(f"{name}/" * 41 + "file")
        os.rename("file", "renamed")
        assert Path("renamed").read_bytes() == b"deep"
        os.unlink("renamed")
        for _ in range(80):
            os.chdir("..")
            os.rmdir(name)
    finally:
        os.chdir(before)
    assert os.listdir(place) == []
