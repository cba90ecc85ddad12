"""NAMES: inodes, directory entries, file versions, snapshots, rollback. `Tree` and `Commands` are the doors."""

from ckptfs.tree.commands import Commands
from ckptfs.tree.tree import Tree

__all__ = ["Commands", "Tree"]
