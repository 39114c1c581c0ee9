"""Two nodes with memory and one without, which every test leaves as it found them."""

from __future__ import annotations

import pytest
from misuse import free_everywhere

import realmem as rm
from realmem import GFP


@pytest.fixture(scope="module")
def shared():
    specs = [rm.NodeSpec("8M"), rm.NodeSpec("8M"), rm.NodeSpec(0)]
    with rm.Machine(specs, zones={"DMA": "4M", "DMA32": "4M"}) as machine:
        yield machine


@pytest.fixture
def machine(shared):
    before = free_everywhere(shared)
    yield shared
    shared.check()
    page = shared.alloc_pages(GFP.KERNEL, 0)        # it still works
    shared.free_page(page)
    assert free_everywhere(shared) == before
