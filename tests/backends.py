"""Tests that run by both fault backends, where the host has both."""

from __future__ import annotations

import pytest

from realmem.backends import choose

BACKENDS = ["sigsegv", "userfaultfd"]


def needs_backend(faults: str) -> None:
    """Skip the test where this host refuses a backend."""
    if faults == "userfaultfd" and choose("auto") != faults:
        pytest.skip("this host refuses userfaultfd")
