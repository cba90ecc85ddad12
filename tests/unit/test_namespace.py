"""Names: what POSIX says of them, and what a file that is still being created hides."""

import errno
import stat
from collections.abc import Callable

import pytest

from ckptfs.tree import Tree, renaming
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.namespace import NAME_MAX, Namespace, Owner
from ckptfs.tree.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit import tree_support as support
from tests.unit.tree_support import OWNER, check_tree, close_file, create, link, make_directory, read, rename, save

EXCLUSIVE = RENAME_NOREPLACE | RENAME_EXCHANGE


@pytest.fixture
def populated(tree: Tree) -> Tree:
    """Give a tree with d/inner, e, f, g."""
    make_directory(tree, "d")
    make_directory(tree, "d/inner")
    make_directory(tree, "e")
    save(tree, "f", b"f")
    save(tree, "g", b"g")
    return tree


def start_save_over(tree: Tree, path: str, data: bytes) -> "support.OpenFile":
    """Write a temporary file and rename it over `path` before it is closed."""
    file = create(tree, path + ".tmp")
    tree.files.write(file, 0, data)
    rename(tree, path + ".tmp", path)
    return file


def fails(code: int, action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


@pytest.mark.parametrize(
    ("old", "new", "flags", "code"),
    [
        ("nothing", "x", 0, errno.ENOENT),
        ("f", "g", RENAME_NOREPLACE, errno.EEXIST),
        ("f", "f", RENAME_NOREPLACE, errno.EEXIST),
        ("f", "nothing", RENAME_EXCHANGE, errno.ENOENT),
        ("f", "x", EXCLUSIVE, errno.EINVAL),
        ("f", "x", 4, errno.EINVAL),
        ("f", "e", 0, errno.EISDIR),
        ("e", "f", 0, errno.ENOTDIR),
        ("e", "d", 0, errno.ENOTEMPTY),
        ("d", "d/x", 0, errno.EINVAL),
        ("d", "d/inner/x", 0, errno.EINVAL),
        ("d", "d/inner", 0, errno.EINVAL),
        ("d", "d/inner", RENAME_EXCHANGE, errno.EINVAL),
        ("d/inner", "d", RENAME_EXCHANGE, errno.EINVAL),
        ("f", "x" * (NAME_MAX + 1), 0, errno.ENAMETOOLONG),
    ],
)
def test_a_rename_that_must_fail_changes_nothing(populated: Tree, old: str, new: str, flags: int, code: int) -> None:
    before = support.dump(populated)
    fails(code, lambda: rename(populated, old, new, flags))
    assert support.dump(populated) == before


def test_a_directory_moves_with_all_below_and_is_counted_there(populated: Tree) -> None:
    save(populated, "d/inner/x", b"x")
    rename(populated, "d/inner", "e/inner")
    assert read(populated, "e/inner/x") == b"x"
    assert [populated.names.resolve(path).nlink for path in ("", "d", "e")] == [4, 2, 3]
    rename(populated, "e/inner", "d")  # over an empty directory
    assert read(populated, "d/x") == b"x"
    assert [populated.names.resolve(path).nlink for path in ("", "d", "e")] == [4, 2, 2]


def test_a_rename_between_hard_links_does_nothing(populated: Tree) -> None:
    link(populated, "f", "other")
    before = support.dump(populated)
    rename(populated, "f", "other")
    assert support.dump(populated) == before


def test_an_exchange_of_a_file_and_a_directory_counts_links(populated: Tree) -> None:
    rename(populated, "d/inner", "f", RENAME_EXCHANGE)
    assert read(populated, "d/inner") == b"f"
    assert populated.names.resolve("f").is_dir
    assert [populated.names.resolve(path).nlink for path in ("", "d")] == [5, 2]


@pytest.mark.parametrize(
    ("call", "path", "code"),
    [
        ("unlink", "d", errno.EISDIR),
        ("unlink", "nothing", errno.ENOENT),
        ("rmdir", "d", errno.ENOTEMPTY),
        ("rmdir", "f", errno.ENOTDIR),
        ("rmdir", "nothing", errno.ENOENT),
    ],
)
def test_removals_that_must_fail(populated: Tree, call: str, path: str, code: int) -> None:
    fails(code, lambda: getattr(populated.names, call)(*support.split(populated, path)))


def test_links_that_must_fail(populated: Tree) -> None:
    fails(errno.EPERM, lambda: link(populated, "d", "other"))
    fails(errno.EEXIST, lambda: link(populated, "f", "g"))
    fails(errno.ENAMETOOLONG, lambda: link(populated, "f", "x" * (NAME_MAX + 1)))


def test_names_are_bytes_up_to_their_limit(tree: Tree) -> None:
    names = [b"x" * NAME_MAX, b"\xff\xfe", b"a\nb", b" ", b"a", b"ab", b"a\x01"]
    for name in names:
        tree.names.create(ROOT_INO, name, stat.S_IFREG | 0o644, OWNER)
    assert sorted(name for name, _ in tree.names.entries(ROOT_INO)) == sorted(names)
    fails(errno.EEXIST, lambda: tree.names.create(ROOT_INO, b"\xff\xfe", stat.S_IFREG, OWNER))
    fails(errno.ENAMETOOLONG, lambda: tree.names.create(ROOT_INO, b"x" * (NAME_MAX + 1), stat.S_IFREG, OWNER))
    fails(errno.ENAMETOOLONG, lambda: tree.names.lookup(ROOT_INO, b"x" * (NAME_MAX + 1)))


def test_nothing_is_made_in_a_removed_directory(populated: Tree) -> None:
    ino = populated.names.resolve("e").ino
    populated.names.rmdir(ROOT_INO, b"e")
    fails(errno.ENOENT, lambda: populated.names.create(ino, b"x", stat.S_IFREG, OWNER))
    fails(errno.ENOENT, lambda: populated.names.link(populated.names.resolve("f").ino, ino, b"x"))
    fails(errno.ENOENT, lambda: renaming.rename(populated.names, ROOT_INO, b"f", ino, b"x"))


def test_a_set_group_id_directory_hands_its_group_down(tree: Tree) -> None:
    make_directory(tree, "shared", 0o2775)
    shared = tree.names.resolve("shared")
    tree.names.change_attributes(shared._replace(gid=55))
    file = tree.names.create(shared.ino, b"f", stat.S_IFREG | 0o644, Owner(1, 2))
    directory = tree.names.create(shared.ino, b"d", stat.S_IFDIR | 0o755, Owner(1, 2))
    assert (file.gid, file.mode & stat.S_ISGID) == (55, 0)
    assert (directory.gid, directory.mode & stat.S_ISGID) == (55, stat.S_ISGID)


def test_special_files_keep_what_they_are(tree: Tree) -> None:
    tree.names.create(ROOT_INO, b"pipe", stat.S_IFIFO | 0o600, OWNER)
    tree.names.create(ROOT_INO, b"null", stat.S_IFCHR | 0o600, OWNER, rdev=0x103)
    points = tree.names.create(ROOT_INO, b"points", stat.S_IFLNK | 0o777, OWNER, target=b"pi\xffpe")
    assert stat.S_ISFIFO(tree.names.resolve("pipe").mode)
    assert tree.names.resolve("null").rdev == 0x103
    assert tree.names.inode(points.ino).target == b"pi\xffpe"
    assert points.size == 5


def test_resolve_needs_directories(populated: Tree) -> None:
    assert populated.names.resolve("/d/./inner/").is_dir
    fails(errno.ENOTDIR, lambda: populated.names.resolve("f/x"))
    fails(errno.ENOENT, lambda: populated.names.resolve("d/x"))


def test_a_path_is_found_again_when_it_was_forgotten(populated: Tree) -> None:
    ino = populated.names.resolve("d/inner").ino
    populated.names.forget(ino)
    assert populated.names.path(ino) == "d/inner"
    rename(populated, "d", "moved")
    assert populated.names.path(ino) == "moved/inner"
    populated.names.rmdir(*support.split(populated, "moved/inner"))
    assert populated.names.path(ino) == f"#{ino}"


# A file that is still being created


def test_a_save_by_rename_shows_in_snapshots_when_it_is_closed(tree: Tree) -> None:
    save(tree, "model", b"old")
    file = start_save_over(tree, "model", b"new")
    before = tree.take_snapshot()
    assert read(tree, "model") == b"new"
    assert read(tree, "model", before) == b"old"
    close_file(tree, file)
    after = tree.take_snapshot()
    assert read(tree, "model", after) == b"new"
    assert read(tree, "model", before) == b"old"
    assert tree.names.resolve("model").nlink == 1


def test_a_second_save_by_rename_hides_the_same_version(tree: Tree) -> None:
    save(tree, "model", b"old")
    killed = start_save_over(tree, "model", b"ha")
    close_file(tree, killed, killed=True)
    file = start_save_over(tree, "model", b"new")
    check_tree(tree)
    between = tree.take_snapshot()
    assert read(tree, "model", between) == b"old"
    close_file(tree, file)
    assert read(tree, "model", tree.take_snapshot()) == b"new"
    assert read(tree, "model", between) == b"old"
    assert tree.names.resolve("model").predecessor


def test_removing_a_name_removes_what_it_hides(tree: Tree) -> None:
    save(tree, "model", b"old")
    file = start_save_over(tree, "model", b"new")
    support.unlink(tree, "model")
    close_file(tree, file)
    assert support.paths(tree) == []
    assert support.paths(tree, tree.take_snapshot()) == []


def test_moving_a_name_away_removes_what_it_hides(tree: Tree) -> None:
    save(tree, "model", b"old")
    file = start_save_over(tree, "model", b"new")
    rename(tree, "model", "elsewhere")
    assert support.paths(tree, tree.take_snapshot()) == []
    close_file(tree, file)
    assert support.paths(tree, tree.take_snapshot()) == ["elsewhere"]


def test_a_hidden_file_comes_back_over_what_hides_it(tree: Tree) -> None:
    save(tree, "model", b"old")
    link(tree, "model", "backup")
    file = start_save_over(tree, "model", b"new")
    rename(tree, "backup", "model")
    close_file(tree, file)
    assert support.paths(tree) == ["model"]
    assert read(tree, "model") == b"old"
    assert tree.names.resolve("model").nlink == 1
    support.unlink(tree, "model")


def shown(tree: Tree) -> dict[str, bytes]:
    """Return the files that a snapshot taken now has."""
    snapshot = tree.take_snapshot()
    check_tree(tree)
    return {path: read(tree, path, snapshot) for path in support.paths(tree, snapshot) if path[-1] != "/"}


def live(tree: Tree) -> dict[str, tuple[bytes, int]]:
    """Return the files of the live tree, and how many links each shows."""
    return {path: (read(tree, path), tree.names.seen(tree.names.resolve(path)).nlink) for path in support.paths(tree)}


@pytest.mark.parametrize("new_first", [True, False])
def test_a_file_that_a_new_one_is_exchanged_with_keeps_its_name_in_snapshots_until_that_is_closed(
    tree: Tree, new_first: bool
) -> None:
    save(tree, "model", b"old")
    file = create(tree, "new")
    tree.files.write(file, 0, b"new")
    rename(tree, *(("new", "model") if new_first else ("model", "new")), RENAME_EXCHANGE)
    assert live(tree) == {"model": (b"new", 1), "new": (b"old", 1)}
    assert shown(tree) == {"model": b"old", "new": b"old"}
    close_file(tree, file)
    assert live(tree) == {"model": (b"new", 1), "new": (b"old", 1)}
    assert shown(tree) == {"model": b"new", "new": b"old"}


def test_a_directory_that_a_new_file_is_exchanged_with_moves(tree: Tree) -> None:
    make_directory(tree, "d")
    save(tree, "d/inside", b"inside")
    file = create(tree, "new")
    rename(tree, "d", "new", RENAME_EXCHANGE)
    assert support.paths(tree) == ["d", "new/", "new/inside"]
    assert shown(tree) == {"new/inside": b"inside"}
    close_file(tree, file)
    assert shown(tree) == {"d": b"", "new/inside": b"inside"}


def test_two_new_files_are_exchanged_over_what_each_name_hides(tree: Tree) -> None:
    files = []
    for name in ("a", "b"):
        save(tree, name, name.encode())
        files.append(start_save_over(tree, name, b"new " + name.encode()))
    rename(tree, "a", "b", RENAME_EXCHANGE)
    assert live(tree) == {"a": (b"new b", 1), "b": (b"new a", 1)}
    assert shown(tree) == {"a": b"a", "b": b"b"}
    for file in files:
        close_file(tree, file)
    assert shown(tree) == {"a": b"new b", "b": b"new a"}


@pytest.mark.parametrize("other", ["model", "alias"])
def test_a_new_file_exchanged_with_itself_stays_where_it_is(tree: Tree, other: str) -> None:
    """Whatever its names hide, and those of the file below count as they did."""
    save(tree, "model", b"old")
    tree.names.link(tree.names.resolve("model").ino, ROOT_INO, b"link")
    file = start_save_over(tree, "model", b"new")
    if other == "alias":
        tree.names.link(file.ino, ROOT_INO, b"alias")
    before = support.dump(tree)
    rename(tree, "model", other, RENAME_EXCHANGE)
    assert support.dump(tree) == before
    close_file(tree, file)
    check_tree(tree)
    assert read(tree, "link") == b"old"
    assert read(tree, "model") == read(tree, other) == b"new"


def test_a_hidden_name_is_no_link_that_is_seen(tree: Tree) -> None:
    save(tree, "model", b"old")
    link(tree, "model", "backup")
    file = start_save_over(tree, "model", b"new")
    assert live(tree) == {"backup": (b"old", 1), "model": (b"new", 1)}
    reopened = Namespace(tree.rows, tree.epoch, tree.wall_ns)  # as after a kill
    assert reopened.seen(reopened.resolve("backup")).nlink == 1
    close_file(tree, file)
    assert live(tree) == {"backup": (b"old", 1), "model": (b"new", 1)}


def test_all_names_of_a_new_file_appear_together(tree: Tree) -> None:
    save(tree, "two", b"old")
    file = create(tree, "one")
    tree.files.write(file, 0, b"new")
    link(tree, "one", "three")
    rename(tree, "three", "two")
    assert support.paths(tree, tree.take_snapshot()) == ["two"]
    close_file(tree, file)
    snapshot = tree.take_snapshot()
    assert support.paths(tree, snapshot) == ["one", "two"]
    assert read(tree, "two", snapshot) == b"new"
