"""The high-atomic reserve: who gets its pages, and how many are counted against the others."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem import GFP

LAST = GFP.KERNEL | GFP.MEMALLOC | GFP.NOWARN | GFP.NORETRY


@pytest.fixture(scope="module")
def machine():
    """Only zones from 200 MiB have a reserve."""
    with rm.Machine(nodes=1, memory="216M", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        yield machine


def take_all(machine, gfp, order):
    kept = []
    try:
        while True:
            kept.append(machine.alloc_pages(gfp | GFP.NOWARN, order))
    except rm.OutOfMemory:
        return kept


@pytest.fixture
def only_reserve(machine):
    """Nothing is free but what the reserve holds."""
    zone = machine.nodes[0].zones[0]
    kept = [page for order in (10, 8, 5) for page in take_all(machine, GFP.KERNEL, order)]
    atomic = take_all(machine, GFP.ATOMIC, 2)
    assert reserved(machine) > 0, "pressure makes a reserve"
    for page in atomic:
        machine.free_pages(page, 2)
    machine.drain_all_pages()
    for _ in range(3):          # a request that fails gives all but one pageblock back
        kept += machine.alloc_pages_bulk(LAST, 10**6)
    machine.drain_all_pages()
    assert sum(zone.free_area) == sum(zone.free_area_by_type["HighAtomic"]) > 0
    yield zone
    for page in kept:
        machine.free_pages(page, page.order)
    machine.drain_all_pages()
    machine.check()


def reserved(machine):
    return machine._allocator.zone_stat(machine.nodes[0].zones[0].index)["nr_reserved_highatomic"]


@pytest.mark.conformance("BD-31")
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_request_takes_one_block_of_it_and_no_batch(machine, only_reserve, order):
    """What a refill took would lie in a list that ordinary requests share."""
    zone = only_reserve
    before = zone.free_pages
    page = machine.alloc_pages(GFP.ATOMIC, order)
    assert page.migratetype == "HighAtomic"
    assert before - zone.free_pages == 1 << order
    machine.free_pages(page, order)


@pytest.mark.conformance("BD-31")
@pytest.mark.parametrize("gfp", [GFP.KERNEL | GFP.NORETRY, GFP.HIGHUSER_MOVABLE | GFP.NORETRY,
                                 GFP.KERNEL | GFP.HIGH | GFP.NORETRY, LAST], ids=str)
def test_requests_that_may_wait_get_none_of_it(machine, only_reserve, gfp):
    for order in (0, 1, 3, 5):
        with pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(gfp | GFP.NOWARN, order)


def test_the_reserve_comes_back_before_a_request_fails(machine, only_reserve):
    """A request that may wait breaks the reserve up rather than fail."""
    before = reserved(machine)
    page = None
    try:
        page = machine.alloc_pages(GFP.KERNEL | GFP.NOFAIL, 0)
    except rm.OutOfMemory:
        pass
    if page is not None:
        machine.free_page(page)
    assert reserved(machine) < before


@pytest.mark.conformance("BD-31")
@pytest.mark.parametrize("order", [9, 10])
def test_a_request_of_whole_pageblocks_reserves_them(order):
    """Each of the pageblocks that it lies in, whatever their number."""
    with rm.Machine(nodes=1, memory="1G", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        machine.sysctl["vm.min_free_kbytes"] = 32 << 10     # some blocks between low and min
        zone = machine.nodes[0].zones[0]
        kept = take_all(machine, GFP.KERNEL | GFP.NORETRY, 10)
        block = None
        while block is None or block.migratetype != "HighAtomic":
            block = machine.alloc_pages(GFP.ATOMIC, order)
            kept.append(block)
        before = reserved(machine)
        assert before == 1 << order
        assert [machine.pfn_to_page(block.pfn + i).migratetype
                for i in range(0, 1 << order, 512)] == ["HighAtomic"] * (1 << order - 9)
        machine.check()
        kept.remove(block)
        machine.free_pages(block, order)
        machine.drain_all_pages()
        assert zone.free_area_by_type["HighAtomic"][order] == 1
        machine.check()
        # A request that may wait gets it back rather than fail.
        kept += take_all(machine, GFP.KERNEL | GFP.NORETRY, order)
        again = take_all(machine, GFP.KERNEL | GFP.MEMALLOC | GFP.RETRY_MAYFAIL, order)
        assert reserved(machine) == 0
        for page in kept + again:
            machine.free_pages(page, page.order)
        machine.drain_all_pages()
        machine.check()
