"""Whole-process tests of the fault path: each runs in a child, which may die."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from backends import BACKENDS, needs_backend
from compiled import build_library
from whole_process import Run, run_child

# These run by userfaultfd as well, where the host has it.
BOTH = {"test_raw_access", "test_cow", "test_guard", "test_storm", "test_big_storm",
        "test_signals", "test_thread_ends", "test_donation_storm", "test_file_storm"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is in BOTH by each backend."""
    if "child" in metafunc.fixturenames and metafunc.module.__name__.split(".")[-1] in BOTH:
        metafunc.parametrize("child", BACKENDS, indirect=True)


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Run:
    """Give a function that runs code in a fresh interpreter and checks how it ends."""
    faults = getattr(request, "param", "sigsegv")
    needs_backend(faults)
    return partial(run_child, faults=faults)


@pytest.fixture(scope="session")
def threads_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of threads.c, built."""
    source = Path(__file__).with_name("threads.c")
    return str(build_library(tmp_path_factory.mktemp("threads"), source))
