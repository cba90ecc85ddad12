"""A failure that goes on is said once."""

import errno
import logging

import pytest

from ckptfs.errors import NoSpaceError
from ckptfs.mount.trouble import Trouble


def test_a_failure_is_said_when_it_begins_when_it_changes_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble("tidying up")
    trouble.over()
    for error in (
        NoSpaceError("the disk below the store is full: pack 1"),
        NoSpaceError("the disk below the store is full: pack 2"),
        OSError(errno.EIO, "bad sector"),
        OSError(errno.EIO, "bad sector"),
        OSError(errno.ENODEV, "gone"),
    ):
        trouble.met(error)
    trouble.over()
    trouble.over()
    trouble.met(OSError(errno.ENODEV, "gone"))
    assert [record.getMessage() for record in caplog.records] == [
        "tidying up cannot be done now and is tried again: the disk below the store is full: pack 1",
        "tidying up cannot be done now and is tried again: [Errno 5] bad sector",
        "tidying up cannot be done now and is tried again: [Errno 19] gone",
        "tidying up goes on",
        "tidying up cannot be done now and is tried again: [Errno 19] gone",
    ]
