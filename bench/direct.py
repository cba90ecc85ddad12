"""Saves into a tree without a mount: what the benchmarks use that measure the store and not the kernel."""

import os
import stat

from ckptfs.tree import Tree
from ckptfs.tree.inode import ROOT_INO
from ckptfs.tree.namespace import Owner

OWNER = Owner(os.getuid(), os.getgid())


def directory(tree: Tree, name: bytes) -> int:
    """Return the inode number of a directory of the root, made where it is not there; of the root for no name."""
    if not name:
        return ROOT_INO
    entry = tree.names.entry(ROOT_INO, name)
    return entry.ino if entry else tree.names.create(ROOT_INO, name, stat.S_IFDIR | 0o755, OWNER).ino


def save(tree: Tree, name: bytes, data: bytes, parent: int = ROOT_INO) -> None:
    """Write a file of a directory, over what is there, and commit it."""
    entry = tree.names.entry(parent, name)
    if entry is None:
        inode = tree.names.create(parent, name, stat.S_IFREG | 0o644, OWNER, committed=False)
    else:
        inode = tree.names.inode(entry.ino)
    file = tree.files.open(inode, writing=True)
    if entry is not None:
        tree.files.truncate(file, 0)
    tree.files.write(file, 0, data)
    while (job := file.content.take_job(final=True)) is not None:
        job.run()
        file.content.finish_job()
    tree.files.commit(file)
    tree.files.release(file, writing=True)
