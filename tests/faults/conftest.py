"""The two processes that share the work of these tests."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

PROCESSES = 2


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Give the processes."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as executor:
        yield executor
