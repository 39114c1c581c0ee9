"""Whole-process tests of the fault path: each runs in a child, which may die."""

from __future__ import annotations

import pytest
from whole_process import Run, run_child


@pytest.fixture
def child() -> Run:
    """Give a function that runs code in a fresh interpreter and checks how it ends."""
    return run_child
