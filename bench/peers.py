"""The tools that the storage benchmark compares ckptfs with, each with a directory of its own.

A peer keeps a version of what lies in its `live` directory and gives every version back. Everything that it stores lies
in `kept`. The commands are remembered, to be printed below its row; a tool that is not installed is left out.
"""

import importlib.util
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import zstandard

ZSTD_LEVEL = 3
BORG_COMPRESSION = "zstd,3"
BTRFS_COMPRESSION = "zstd:3"
BTRFS_SIZE = "16G"


class PeerError(Exception):
    """A peer failed, and its row is left out; the message says how."""


class Peer(ABC):
    """What all peers share: the directories, and running commands in the scratch directory."""

    name: str
    needs: str
    """The command or the package that has to be there."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.live = scratch / "live"
        self.kept = scratch / "kept"
        self.restored = scratch / "restored"
        self.commands: list[str] = []
        for directory in (self.live, self.kept, self.restored):
            directory.mkdir()

    @classmethod
    def installed(cls) -> bool:
        """Say whether the tool is there."""
        return bool(shutil.which(cls.needs) or importlib.util.find_spec(cls.needs))

    @abstractmethod
    def keep(self, number: int, names: Sequence[Path]) -> None:
        """Keep a version of the live directory, in which the save of this number has just written these files."""

    def version(self, number: int) -> Path:
        """Return a directory that shows a version as it was kept, valid until the next call."""
        shutil.rmtree(self.restored)
        self.restored.mkdir()
        return self._restore(number)

    @abstractmethod
    def _restore(self, number: int) -> Path:
        """Bring a version back, into `restored` or where it is shown, and return the directory."""

    def reserve(self) -> int:
        """Return the disk blocks, in bytes, that the tool keeps back and that hold nothing: none."""
        return 0

    def close(self) -> None:  # noqa: B027, most peers have nothing running
        """End what the peer has running; the scratch directory goes with its owner."""

    def _run(self, *command: object, **environment: object) -> None:
        """Run a command in the scratch directory; PeerError, with what it printed, when it fails."""
        words = [str(word) for word in command]
        line = " ".join(words).replace(f"{self.scratch}/", "")
        self.commands.append(line)
        variables = os.environ | {name: str(value) for name, value in environment.items()}
        done = subprocess.run(words, cwd=self.scratch, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(f"{line}: exit {done.returncode}: {done.stdout}{done.stderr}")


class _PerFile(Peer):
    """Keeps a compressed copy of every file that a save writes."""

    def keep(self, number: int, names: Sequence[Path]) -> None:
        for name in names:
            target = self.kept / str(number) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._compress((self.live / name).read_bytes()))

    def _restore(self, number: int) -> Path:
        kept = self.kept / str(number)
        for file in kept.rglob("*"):
            if file.is_file():
                target = self.restored / file.relative_to(kept)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._decompress(file.read_bytes()))
        return self.restored

    @abstractmethod
    def _compress(self, data: bytes) -> bytes:
        """Return the compressed bytes of a file."""

    @abstractmethod
    def _decompress(self, data: bytes) -> bytes:
        """Undo `_compress`."""


class Zstd(_PerFile):
    """zstd, each file for itself."""

    name = "zstd"
    needs = "zstandard"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.commands = [f"zstd -{ZSTD_LEVEL} FILE  # the zstandard package"]

    def _compress(self, data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)

    def _decompress(self, data: bytes) -> bytes:
        return zstandard.ZstdDecompressor().decompress(data)


class ZipNN(_PerFile):
    """ZipNN, each file for itself, as fp32 and as bf16; the smaller one counts.

    It corrupts its memory where a file is not of whole elements (0.5.4), so files are filled up to such a size.
    """

    name = "zipnn"
    needs = "zipnn"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        from zipnn import ZipNN as Compressor

        self._compressors = [Compressor(input_format="byte", bytearray_dtype=name) for name in ("float32", "bfloat16")]
        self.commands = ['ZipNN(input_format="byte", bytearray_dtype="float32" or "bfloat16").compress(data)']

    def _compress(self, data: bytes) -> bytes:
        filling = -len(data) % 4
        whole = data + bytes(filling)
        results = [bytes(compressor.compress(bytearray(whole))) for compressor in self._compressors]
        return bytes([filling]) + min(results, key=len)

    def _decompress(self, data: bytes) -> bytes:
        whole = bytes(self._compressors[0].decompress(data[1:]))
        return whole[: len(whole) - data[0]]


class Borg(Peer):
    """An archive per save in a borg repository without encryption."""

    name = "borg"
    needs = "borg"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._borg("init", "--encryption=none", self.kept)

    def keep(self, number: int, names: Sequence[Path]) -> None:
        self._borg("create", f"--compression={BORG_COMPRESSION}", f"{self.kept}::save-{number}", self.live.name)

    def _restore(self, number: int) -> Path:
        self._borg("extract", f"{self.kept}::save-{number}")  # over the live directory, which is read no more
        return self.live

    def _borg(self, *words: object) -> None:
        self._run("borg", *words, BORG_BASE_DIR=self.scratch / "home", BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")


class Restic(Peer):
    """A snapshot per save in a restic repository."""

    name = "restic"
    needs = "restic"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._restic("init")

    def keep(self, number: int, names: Sequence[Path]) -> None:
        self._restic("backup", "--tag", f"save-{number}", self.live.name)

    def _restore(self, number: int) -> Path:
        self._restic("restore", "latest", "--tag", f"save-{number}", "--target", self.restored)
        return self.restored / self.live.name

    def _restic(self, command: str, *words: object) -> None:
        cache = self.scratch / "cache"
        self._run("restic", command, "--repo", self.kept, *words, RESTIC_PASSWORD="none", RESTIC_CACHE_DIR=cache)


class Bup(Peer):
    """A branch per save in a bup repository."""

    name = "bup"
    needs = "bup"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._bup("init")

    def keep(self, number: int, names: Sequence[Path]) -> None:
        self._bup("index", self.live)
        self._bup("save", "--strip", "-n", f"save-{number}", self.live)

    def _restore(self, number: int) -> Path:
        self._bup("restore", "-C", self.restored, f"save-{number}/latest/.")
        return self.restored

    def _bup(self, *words: object) -> None:
        self._run("bup", *words, BUP_DIR=self.kept)


class Casync(Peer):
    """An index per save over one casync chunk store."""

    name = "casync"
    needs = "casync"

    def keep(self, number: int, names: Sequence[Path]) -> None:
        self._casync("make", self.kept / f"save-{number}.caidx", self.live)

    def _restore(self, number: int) -> Path:
        self._casync("extract", self.kept / f"save-{number}.caidx", self.restored)
        return self.restored

    def _casync(self, command: str, *words: object) -> None:
        self._run("casync", command, f"--store={self.kept / 'chunks.castr'}", *words)


class Btrfs(Peer):
    """A directory per save in a btrfs that compresses, in a file on a loop mount; duperemove then looks for duplicates.

    The file has the disk blocks of what btrfs uses: what it frees it punches out.
    """

    name = "btrfs"
    needs = "duperemove"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        image, self._mountpoint = self.kept / "btrfs.img", scratch / "btrfs"
        self._mountpoint.mkdir()
        self._run("truncate", f"--size={BTRFS_SIZE}", image)
        self._run("mkfs.btrfs", "--quiet", "--metadata=single", image)
        self._run("mount", "-o", f"loop,discard=sync,compress-force={BTRFS_COMPRESSION}", image, self._mountpoint)
        self.live = self._mountpoint / "live"
        self.live.mkdir()

    @classmethod
    def installed(cls) -> bool:
        """Say whether the tools are there and a loop mount is permitted."""
        return super().installed() and bool(shutil.which("mkfs.btrfs")) and os.access("/dev/loop-control", os.W_OK)

    def keep(self, number: int, names: Sequence[Path]) -> None:
        self._run("cp", "-r", "--reflink=always", self.live, self._mountpoint / f"save-{number}")
        self._run("sync", "--file-system", self._mountpoint)
        self._run("duperemove", "-rdq", self._mountpoint)
        self._run("sync", "--file-system", self._mountpoint)

    def _restore(self, number: int) -> Path:
        return self._mountpoint / f"save-{number}"

    def close(self) -> None:
        """Unmount."""
        self._run("umount", self._mountpoint)


PEERS: tuple[type[Peer], ...] = (Zstd, ZipNN, Borg, Restic, Bup, Casync, Btrfs)
