"""Processes to call: on a model of the kernel side, and on real memory."""

from __future__ import annotations

import pytest
from fake_pages import as_advised


@pytest.fixture(params=["model", "real"])
def kind(request):
    """Give the kind of process that a test is about."""
    return request.param


@pytest.fixture
def p(kind):
    """Give a process of either kind."""
    with as_advised(kind) as process:
        yield process


@pytest.fixture
def q(p):
    """Give a process without capabilities."""
    p.capabilities.clear()
    return p


@pytest.fixture
def real():
    """Give a process on real memory."""
    with as_advised("real") as process:
        yield process


@pytest.fixture
def base(p):
    """Give an address with nothing near it."""
    return p.mm.low + (1 << 28)
