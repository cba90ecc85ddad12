"""`ckptfs repair`: bring a damaged store back into use, and say what is lost."""

import argparse
import json
from pathlib import Path
from typing import cast

from ckptfs.cli.check import damage_text, find_store, verify, verify_journal
from ckptfs.cli.parser import Subparsers, add_command, add_json
from ckptfs.cli.tables import count_text, printable
from ckptfs.errors import (
    DamagedError,
    NoMountError,
    NoSpaceError,
    NotAStoreError,
    StoreInUseError,
    StoreReadOnlyError,
)
from ckptfs.mount.protocol import Commands


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of the command."""
    parser = add_command(
        subparsers,
        "repair",
        run,
        summary="bring a damaged store back into use",
        description="Open a store whatever is lost of it, read and verify every byte, and remember what is damaged. "
        "Files stay readable outside their damage; when the same bytes are saved again, every version is healed. "
        "The store must not be mounted.",
        examples=(
            "ckptfs repair --store /ckpt.store",
            "ckptfs repair --store /ckpt.store --rebuild-index   # from the packs alone, compared with the one before",
        ),
        errors=(NoMountError, StoreInUseError, NotAStoreError, StoreReadOnlyError, NoSpaceError, DamagedError),
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="the store")
    parser.add_argument("--store", metavar="DIR", help="the store, instead of PATH")
    parser.add_argument("--rebuild-index", action="store_true", help="make the index anew from the packs")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Carry out the command; DamagedError after the report when something is lost."""
    target = find_store(args)
    if target.mountpoint is not None:
        raise StoreInUseError(
            f"{target.store} is mounted; `ckptfs umount {target.mountpoint}` first, then repair the store"
        )
    from ckptfs.store import ChunkStore
    from ckptfs.tree import Commands as StoreCommands
    from ckptfs.tree import Tree

    path = Path(target.store)
    with ChunkStore.open(path, rebuild=args.rebuild_index, salvage=True) as store:
        commands = cast(Commands, StoreCommands(Tree(store)))
        structure = commands.check_structure()
        journal = verify_journal(commands, None)
        if journal and set(structure["problems"]) <= set(journal):
            store.mend_journal()
            structure = commands.check_structure()
        else:  # the journal may have what an index lacks whose rows do not agree
            structure["problems"] += [each for each in journal if each not in structure["problems"]]
            journal = []
        damaged = verify(commands, structure, None)
        files = commands.check_files(damaged) if damaged else []
        losses, differences = store.opening
    lost = [*losses, *structure["problems"]]
    if args.json:
        report = {
            "losses": losses,
            "index_differences": differences,
            "problems": structure["problems"],
            "mended": journal,
            "damaged_chunks": [{"number": number, "reason": reason} for number, reason in damaged],
            "files": files,
        }
        print(json.dumps(report, indent=2))
    else:
        lines = [printable(each) for each in lost]
        if journal:
            count = count_text(len(journal), "damaged place")
            lines.append(f"The journal had {count} and was written anew from the index.")
        if args.rebuild_index:
            lines.append(_index_text(differences))
        if damaged:
            lines.append(damage_text(damaged, files))
            lines.append("All else can be read. Saving the same bytes again heals every version.")
        if not (lost or damaged):
            lines.append("Nothing is lost.")
        print("\n".join(lines))
    if lost or damaged:
        raise DamagedError(
            f"{target.store}: {count_text(len(lost), 'problem')} and {count_text(len(damaged), 'damaged chunk')}"
        )


def _index_text(differences: dict[str, int] | None) -> str:
    """Return how the index that was made anew differs from the one before."""
    if differences is None:
        return "The index was made anew; there was none to compare it with."
    if not differences:
        return "The index was made anew and is the same as before."
    tables = ", ".join(f"{count:,} in {name}" for name, count in differences.items())
    return f"The index was made anew; rows that differ from the one before: {tables}."
