"""The layers of docs/design.md hold: read from the source, imports for type checking included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ckptfs"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "base": {"base"},
    "store": {"base", "store"},
    "formats": {"base", "formats"},
    "tree": {"base", "store", "formats", "tree"},
    "mount": {"base", "store", "formats", "tree", "mount"},
    "cli": {"base", "store", "formats", "tree", "mount", "cli"},
}
ONLY_IN = {"lmdb": ("store/environment.py", "store/reader.py"), "pyfuse3": ("mount/",), "trio": ("mount/",)}
ONLY_THROUGH_DISK = ("base", "store")
CHANGES_THE_DISK = {
    "chmod", "copy_file_range", "fallocate", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir",
    "posix_fallocate", "pwrite", "pwritev", "remove", "rename", "renames", "replace", "rmdir", "sendfile", "symlink",
    "sync", "truncate", "unlink", "write", "writev",
}  # fmt: skip


def layer(dotted: str) -> str:
    """Return the layer of `ckptfs.x.y`; what lies beside the packages (errors, disk, ...) is the base."""
    part = [*dotted.split("."), ""][1]
    return part if part in MAY_IMPORT else "cli" if part == "__main__" else "base"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that a module imports, wherever the import stands."""
    package = ["ckptfs", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [origin, node.module or ""]))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(path: Path) -> Iterator[str]:
    """Yield a sentence for every import or call of this module that its layer does not allow."""
    name = path.relative_to(PACKAGE).as_posix()
    own = layer("ckptfs." + name.removesuffix(".py").replace("/", "."))
    for line, dotted in imports(path):
        top = dotted.split(".")[0]
        if top == "ckptfs" and layer(dotted) not in MAY_IMPORT[own]:
            yield f"{name}:{line}: {own} imports {dotted}"
        if top in ONLY_IN and not name.startswith(ONLY_IN[top]):
            yield f"{name}:{line}: only {' and '.join(ONLY_IN[top])} may import {top}"
        if own in ONLY_THROUGH_DISK and name != "disk.py" and dotted.removeprefix("os.") in CHANGES_THE_DISK:
            yield f"{name}:{line}: only disk.py calls {dotted}"
    if own not in ONLY_THROUGH_DISK or name == "disk.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attribute) if attribute in CHANGES_THE_DISK:
                yield f"{name}:{node.lineno}: only disk.py calls os.{attribute}"
            case ast.Attribute(attr="write_bytes" | "write_text" as attribute):
                yield f"{name}:{node.lineno}: only disk.py calls {attribute}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_stays_within_its_layer(path: Path) -> None:
    assert not list(violations(path))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("store/packs.py", "import os\nos.pwrite(1, b'', 0)"),
        ("store/packs.py", "from os import fsync"),
        ("store/packs.py", "path.write_bytes(b'')"),
        ("lock.py", "import os\nos.ftruncate(1, 0)"),
        ("store/packs.py", "from ..tree import Tree"),
        ("store/packs.py", "import lmdb"),
        ("tree/tree.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ckptfs.mount import session"),
        ("tree/tree.py", "import trio"),
        ("formats/zip.py", "from ckptfs.store import ChunkStore"),
        ("errors.py", "from .store import ChunkStore"),
    ],
)
def test_a_violation_is_found(name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert list(violations(path))
