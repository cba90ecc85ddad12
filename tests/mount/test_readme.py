"""The session at the top of the README is what a person sees who types it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.running import COMMAND_SECONDS, ROOT, RunningMount

HOME = "/home/ada"
VERSIONS = 3
MASKS = (
    (r"\b\d{8}-\d{6}(-\d+)?\b", "NAME"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(\d+ (s|min) ago\)", "WHEN"),
    (r"\b[\d.,]+ ([KMG]i)?B\b", "SIZE"),
    (r"\b\d+\.\d+\b", "N"),
)


def session() -> list[tuple[str, str]]:
    """Return each command of the README's first session, and what it prints."""
    text = (ROOT / "README.md").read_text().split("```\n")[1]
    steps = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert steps[0] == ""
    return [(step.split("\n", 1)[0], step.split("\n", 1)[1]) for step in steps[1:]]


def shape(output: str) -> list[str]:
    """Return the words of an output without what differs from run to run."""
    for pattern, word in MASKS:
        output = re.sub(pattern, word, output)
    return output.split()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Give an environment in which `ckptfs` and `python` are those under test, and no clone is in sight."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, options in (("ckptfs", "-P -m ckptfs "), ("python", "")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options}"$@"\n')
        script.chmod(0o755)
    return os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_the_session_in_the_readme_is_real(unmounted: RunningMount, environment: dict[str, str]) -> None:
    pytest.importorskip("torch")
    here = unmounted.path.parent
    unmounted.path.rmdir()  # the session begins with making it
    shutil.copy(ROOT / "bench" / "train.py", here)
    for command, expected in session():
        if command.startswith("ckptfs snapshot list"):
            unmounted.wait_for(lambda: len(unmounted.versions()) == VERSIONS)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert shape(done.stdout.replace(str(here), HOME)) == shape(expected), command
    assert not unmounted.is_mounted()


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"^(script/\w+)", text, re.MULTILINE)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
