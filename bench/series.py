"""Series of saves to measure with: made once by training, kept outside git in bench/series.

A series is a directory with one numbered directory per save, which holds the files that this save wrote, under their
own names: a file that comes again was overwritten in place. The name of a series carries a digest of the program that
made it, so a changed program makes a new one.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import train

SERIES = Path(__file__).with_name("series")


def demo_series(seed: int) -> Path:
    """Return the series of the demo's training run, training now if it is not there yet."""
    return _series("demo", seed, train.SAVES, lambda step, file: True)


def frozen_series(seed: int) -> Path:
    """Return the saves over `last.pt` of a run in which only the last layer and the head learn."""
    half = train.SAVES // 2
    is_frozen = half * train.STEPS_PER_SAVE
    return _series("frozen", seed, half + train.SAVES, lambda step, file: step > is_frozen and file.name == "last.pt")


def _series(kind: str, seed: int, saves: int, wanted: Callable[[int, Path], bool]) -> Path:
    """Return a series of the wanted files of a training run of so many saves."""
    program = hashlib.sha256(Path(train.__file__).read_bytes()).hexdigest()[:12]
    target = SERIES / f"{kind}-seed{seed}-{program}"
    if target.exists():
        return target
    SERIES.mkdir(exist_ok=True)
    # It appears under its name only when it is complete.
    unfinished = Path(tempfile.mkdtemp(dir=SERIES, prefix="unfinished-"))

    def keep(step: int, files: list[Path]) -> None:
        save = unfinished / "saves" / f"{step:06}"
        for file in files:
            if wanted(step, file):
                save.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, save / file.name)

    try:
        train.train(train.Run(unfinished / "out", saves=saves, seed=seed), keep)
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
