"""Series of saves to measure with: made once by training, kept outside git in bench/series.

A series is a directory with one numbered directory per save, which holds the files that this save wrote, under their
own names: a file that comes again was overwritten in place. The name of a series carries a digest of the programs that
made it, so a changed program makes a new one.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

SERIES = Path(__file__).with_name("series")

NewSave = Callable[[], Path]
"""Makes the directory of the next save and returns it."""
Recipe = Callable[[int, NewSave], None]
"""Makes a series from a seed: the same files whenever it runs on the same machine."""


def name_of(recipe: Recipe) -> str:
    """Return what a recipe is called on the command line."""
    return recipe.__name__.replace("_", "-")


def made(recipe: Recipe, seed: int, programs: Sequence[Path]) -> Path:
    """Return the series of a recipe that is in the given programs, making it now if it is not there yet.

    The recipe has one thread and random numbers of its own, so that another recipe that it asks for changes nothing.
    """
    digest = hashlib.sha256(b"".join(program.read_bytes() for program in programs)).hexdigest()[:12]
    target = SERIES / f"{name_of(recipe)}-seed{seed}-{digest}"
    if target.exists():
        return target
    print(f"training {name_of(recipe)}", file=sys.stderr, flush=True)
    SERIES.mkdir(exist_ok=True)
    # It appears under its name only when it is complete.
    with tempfile.TemporaryDirectory(dir=SERIES, prefix="unfinished-") as unfinished, torch.random.fork_rng():
        saves = Path(unfinished) / "saves"
        saves.mkdir()

        def new_save() -> Path:
            save = saves / f"{sum(1 for _ in saves.iterdir()):03}"
            save.mkdir()
            return save

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        with redirect_stdout(sys.stderr):
            recipe(seed, new_save)
        saves.rename(target)
    return target


def saves_of(series: Path) -> Iterator[list[Path]]:
    """Yield the files of each save, oldest first."""
    for save in sorted(series.iterdir()):
        yield sorted(file for file in save.rglob("*") if file.is_file())


def name_in_save(series: Path, file: Path) -> Path:
    """Return under which relative path a save wrote a file."""
    return Path(*file.relative_to(series).parts[1:])


def raw_size(series: Path) -> int:
    """Return what all saves wrote, in bytes."""
    return sum(file.stat().st_size for save in saves_of(series) for file in save)
