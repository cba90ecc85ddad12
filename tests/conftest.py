"""What every test shares: CKPTFS_NO_SKIP, what tests have counted, and the fixtures that mount a real ckptfs.

With CKPTFS_NO_SKIP set, a skipped test or module is a failure: where FUSE must work (CI), nobody may look away.
A fixture that mounts ends by unmounting and by reading the daemon's log, which may warn of nothing unexpected.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.mount.running import RunningMount

# A change is judged by the same examples every time; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, print_blob=True, deadline=None)
hypothesis.settings.register_profile("explore", print_blob=True, deadline=None)
hypothesis.settings.load_profile("same")

NO_SKIP = bool(os.environ.get("CKPTFS_NO_SKIP"))


def _skipped_is_failed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"a skipped test is a failure here (CKPTFS_NO_SKIP): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _skipped_is_failed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _skipped_is_failed(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.line(f"{report.nodeid}: {value} {name}")


@pytest.fixture(scope="session")
def fuse() -> None:
    """Skip what needs a mount where there can be none."""
    if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
        pytest.skip("FUSE is not usable here: /dev/fuse or fusermount3 is missing")


@pytest.fixture
def unmounted(fuse: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningMount]:
    """Give a mountpoint and a store beside it that nobody has mounted yet."""
    (tmp_path / "ckpt").mkdir()
    mount = RunningMount(tmp_path / "ckpt", tmp_path / "ckpt.store")
    mount.expected_in_log += [pattern for mark in request.node.iter_markers("expects_log") for pattern in mark.args]
    try:
        yield mount
        if mount.is_mounted():
            mount.umount()
        assert not mount.unexpected_in_log()
    finally:
        mount.clean_up()


@pytest.fixture
def mount(unmounted: RunningMount) -> RunningMount:
    """Give a fresh ckptfs of this test alone."""
    unmounted.mount()
    return unmounted


@pytest.fixture(scope="session")
def shared_mount(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMount]:
    """Give one ckptfs to all tests that only need a directory in it."""
    base = tmp_path_factory.mktemp("shared")
    (base / "ckpt").mkdir()
    mount = RunningMount(base / "ckpt", base / "ckpt.store")
    mount.mount()
    try:
        yield mount
        mount.umount()
        assert not mount.unexpected_in_log()
    finally:
        mount.clean_up()


@pytest.fixture
def mounted(shared_mount: RunningMount, request: pytest.FixtureRequest) -> Path:
    """Give an empty directory on ckptfs."""
    return shared_mount.new_directory(request.node.name)


@pytest.fixture(params=["mount", "plain"])
def place(request: pytest.FixtureRequest) -> Path:
    """Give an empty directory: on ckptfs, and on the disk below, which shows that the test asks for what is usual."""
    return request.getfixturevalue("mounted" if request.param == "mount" else "tmp_path")
