"""The description of a store, `store.json`: written once, when the store is made.

This module turns a StoreConfig into the file and back, and refuses what it does not understand. The file is
published whole, so it is there with all its content or not at all.
"""

import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import Any

from ckptfs.config import CHUNK_SIZE_MAX, FORMAT_VERSION, ChunkSizes, StoreConfig
from ckptfs.disk import Disk
from ckptfs.errors import NotAStoreError, StoreVersionError
from ckptfs.store import kernels

NAME = "store.json"
_KIND = "ckptfs store"
_NEVER_RELEASED = (3, 4)
_SIZE_MAX = 65536
_SEED_BITS = 64
_SEED = re.compile("[0-9a-f]{16}", re.ASCII)


def new_config(created_ns: int) -> StoreConfig:
    """Return the description of a new store, with a seed that nobody can guess."""
    return StoreConfig(FORMAT_VERSION, secrets.randbits(_SEED_BITS), created_ns, ChunkSizes())


def fingerprint(config: StoreConfig) -> int:
    """Return the number that packs of this store carry; it does not give the seed away, hence BLAKE2."""
    seed = config.seed.to_bytes(_SEED_BITS // 8, "little")
    return int.from_bytes(hashlib.blake2b(seed, digest_size=8, person=b"ckptfs pack").digest(), "little")


def write(directory: Path, config: StoreConfig, disk: Disk) -> None:
    """Publish the description of a store."""
    sizes = config.chunk_sizes
    content = {
        "kind": _KIND,
        "version": config.version,
        "seed": f"{config.seed:016x}",
        "created_ns": config.created_ns,
        "chunk_sizes": {"size_min": sizes.size_min, "mean_bits": sizes.mean_bits, "size_max": sizes.size_max},
    }
    disk.publish(directory / NAME, (json.dumps(content, indent=2) + "\n").encode())


def raise_version(directory: Path, config: StoreConfig, disk: Disk) -> StoreConfig:
    """Publish that what is written from here on needs the version of this ckptfs, where the store is older."""
    if config.version < FORMAT_VERSION:
        config = config._replace(version=FORMAT_VERSION)
        write(directory, config, disk)
    return config


def read(directory: Path, disk: Disk) -> StoreConfig:
    """Read the description of a store; NotAStoreError or StoreVersionError when it cannot be used."""
    path = directory / NAME
    try:
        fd = disk.open_read(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStoreError(f"{directory} is not a ckptfs store: it has no {NAME}") from error
    try:
        data = disk.pread(fd, _SIZE_MAX, 0)
    finally:
        disk.close(fd)
    try:
        content = json.loads(data)
        if content["kind"] != _KIND:
            raise NotAStoreError(f"{path} describes something else than a ckptfs store")
        version = _integer(content, "version")
        if version > FORMAT_VERSION:
            raise StoreVersionError(
                f"{directory} has the format {version}, this ckptfs knows up to {FORMAT_VERSION}; upgrade ckptfs"
            )
        if version in _NEVER_RELEASED:
            raise StoreVersionError(
                f"{directory} has the format {version}, which was never released and has other deltas; "
                "only the ckptfs that made it reads it"
            )
        if not _SEED.fullmatch(content["seed"]):
            raise ValueError(f"seed is {content['seed']!r}")
        seed = int(content["seed"], 16)
        return StoreConfig(version, seed, _integer(content, "created_ns"), _chunk_sizes(content["chunk_sizes"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise NotAStoreError(f"{path} cannot be read: {error!r}") from error


def _chunk_sizes(content: dict[str, Any]) -> ChunkSizes:
    """Return the limits of chunks; ValueError or OverflowError where nothing could be cut by them."""
    sizes = ChunkSizes(*(_integer(content, name) for name in ("size_min", "mean_bits", "size_max")))
    if sizes.size_max > CHUNK_SIZE_MAX:
        raise ValueError(f"chunks of more than {CHUNK_SIZE_MAX} bytes")
    kernels.cut(b"", sizes.size_min, sizes.mean_bits, sizes.size_max, True)
    return sizes


def _integer(content: dict[str, Any], name: str) -> int:
    """Return an integer of the description; a bool or a string is none."""
    value = content[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}")
    return value
