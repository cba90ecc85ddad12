"""Series of saves to measure with: made once by training, kept outside git in bench/series.

A series is a directory with one numbered directory per save, which holds the files that this save wrote, under their
own names: a file that comes again was overwritten in place. The name of a series carries a digest of the program that
made it, so a changed program makes a new one.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import train

SERIES = Path(__file__).with_name("series")


def demo_series(seed: int) -> Path:
    """Return the series of the demo's training run, training now if it is not there yet."""
    program = hashlib.sha256(Path(train.__file__).read_bytes()).hexdigest()[:12]
    target = SERIES / f"demo-seed{seed}-{program}"
    if target.exists():
        return target
    SERIES.mkdir(exist_ok=True)
    # It appears under its name only when it is complete.
    unfinished = Path(tempfile.mkdtemp(dir=SERIES, prefix="unfinished-"))

    def keep(step: int, files: list[Path]) -> None:
        save = unfinished / "saves" / f"{step:06}"
        save.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, save / file.name)

    try:
        train.train(train.Run(unfinished / "out", seed=seed), keep)
        (unfinished / "saves").rename(target)
    finally:
        shutil.rmtree(unfinished)
    return target


def saves_of(series: Path) -> Iterator[list[Path]]:
    """Yield the files of each save, oldest first."""
    for save in sorted(series.iterdir()):
        yield sorted(save.iterdir())


def raw_size(series: Path) -> int:
    """Return what all saves wrote, in bytes."""
    return sum(file.stat().st_size for save in saves_of(series) for file in save)
