"""Extended attributes: what names and values may be, versions of them, and what is no change."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptfs.tree import Tree
from ckptfs.tree.namespace import NAME_MAX
from ckptfs.tree.xattrs import XATTR_CREATE, XATTR_REPLACE, XATTR_SIZE_MAX
from tests.unit.tree_support import check_tree, new_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = new_tree(tmp_path / "store")
    yield tree
    check_tree(tree)
    tree.close()


def fails(number: int, act: Callable[[], object]) -> None:
    """Expect an OSError with exactly this errno."""
    with pytest.raises(OSError, check=lambda error: error.errno == number):
        act()


def test_an_attribute_is_created_replaced_and_removed_in_one_version_and_kept_in_another(tree: Tree) -> None:
    ino, xattrs = save(tree, "f", b"data").ino, tree.xattrs
    fails(errno.ENODATA, lambda: xattrs.get(ino, b"user.x"))
    fails(errno.ENODATA, lambda: xattrs.set(ino, b"user.x", b"1", XATTR_REPLACE))
    xattrs.set(ino, b"user.x", b"", XATTR_CREATE)
    assert xattrs.get(ino, b"user.x") == b""
    fails(errno.EEXIST, lambda: xattrs.set(ino, b"user.x", b"1", XATTR_CREATE))
    xattrs.set(ino, b"user.y", b"2")
    snapshot = tree.take_snapshot()
    xattrs.remove(ino, b"user.x")
    fails(errno.ENODATA, lambda: xattrs.remove(ino, b"user.x"))
    assert xattrs.all(ino) == {b"user.y": b"2"}
    assert xattrs.names(ino, snapshot.id) == [b"user.x", b"user.y"]


def test_names_and_values_have_the_limits_of_linux(tree: Tree) -> None:
    ino, xattrs = save(tree, "f", b"data").ino, tree.xattrs
    xattrs.set(ino, b"user." + b"x" * (NAME_MAX - 5), bytes(XATTR_SIZE_MAX))
    fails(errno.E2BIG, lambda: xattrs.set(ino, b"user.x", bytes(XATTR_SIZE_MAX + 1)))
    fails(errno.ERANGE, lambda: xattrs.set(ino, b"user." + b"x" * (NAME_MAX - 4), b""))
    for name in (b"x", b"system.posix_acl_access", b"other.x"):
        fails(errno.EOPNOTSUPP, lambda name=name: xattrs.set(ino, name, b""))
        fails(errno.EOPNOTSUPP, lambda name=name: xattrs.get(ino, name))
    fails(errno.EINVAL, lambda: xattrs.set(ino, b"user.", b""))


def test_setting_what_is_set_already_is_no_change(tree: Tree) -> None:
    ino = save(tree, "f", b"data").ino
    tree.xattrs.set(ino, b"user.x", b"1")
    before = tree.names.inode(ino)
    tree.xattrs.set(ino, b"user.x", b"1")
    assert tree.names.inode(ino) == before


def test_a_file_without_a_name_gets_none(tree: Tree) -> None:
    ino = save(tree, "f", b"data").ino
    file = tree.files.open(tree.names.inode(ino), writing=False)
    tree.names.unlink(1, b"f")
    fails(errno.ENOENT, lambda: tree.xattrs.set(ino, b"user.x", b"1"))
    assert tree.xattrs.all(ino) == {}
    tree.files.release(file, writing=False)
