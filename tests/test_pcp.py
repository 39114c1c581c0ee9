"""Per-CPU page lists: last in first out, which orders, how many at a time, given back."""

from __future__ import annotations

import threading

import pytest

import realmem as rm
from realmem.layout import GFP

QUIET = GFP.KERNEL | GFP.NOWARN
LISTED = (0, 1, 2, 3, 9)


def one_zone(memory):
    return rm.Machine(nodes=1, memory=memory, zones={"DMA": 0, "DMA32": "4G"})


@pytest.fixture(scope="module")
def machine():
    """Large enough for a batch of 7."""
    with one_zone("128M") as machine:
        assert info(machine)["batch"] == 7
        yield machine
        machine.drain_all_pages()
        machine.check()


def zone_of(machine):
    return machine.nodes[0].zones[0]


def info(machine):
    return machine._allocator.zone_info(zone_of(machine).index)


def listed(machine):
    return sum(cpu["count"] for cpu in machine._allocator.zone_stat(zone_of(machine).index)["pcp"])


def in_a_new_thread(call):
    """Run where no list has grown yet."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


@pytest.mark.conformance("PC-03")
@pytest.mark.parametrize("order", LISTED[:-1])  # two huge pages are more than a list may hold here
def test_the_page_freed_last_comes_back_first(machine, order):
    first, second = (machine.alloc_pages(GFP.KERNEL, order) for _ in range(2))
    for page in (first, second):
        machine.free_pages(page, order)
    assert machine.alloc_pages(GFP.KERNEL, order) == second
    assert machine.alloc_pages(GFP.KERNEL, order) == first
    machine.free_pages(first, order)
    machine.free_pages(second, order)


def test_each_migratetype_has_its_own_list(machine):
    page = machine.alloc_pages(GFP.KERNEL, 0)
    machine.free_page(page)
    movable = machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 0)
    again = machine.alloc_pages(GFP.KERNEL, 0)
    assert again == page != movable
    machine.free_page(again)
    machine.free_page(movable)


@pytest.mark.conformance("PC-04")
@pytest.mark.parametrize("order", range(11))
def test_orders_that_use_the_lists(machine, order):
    machine.drain_all_pages()
    free = zone_of(machine).free_pages
    page = machine.alloc_pages(GFP.KERNEL, order)
    fetched = listed(machine)
    assert zone_of(machine).free_pages == free - fetched - (1 << order)
    assert fetched >= 1 << order if order in LISTED else fetched == 0
    machine.free_pages(page, order)
    kept = listed(machine)
    assert zone_of(machine).free_pages == free - kept
    assert kept > 0 if order <= 3 else kept == 0 or order == 9


@pytest.mark.conformance("PC-06")
@pytest.mark.parametrize("order", LISTED)
def test_a_refill_takes_the_batch_scaled_by_order(machine, order):
    def refill():
        machine.drain_all_pages()
        page = machine.alloc_pages(GFP.KERNEL, order)
        fetched = (listed(machine) >> order) + 1
        machine.free_pages(page, order)
        return fetched

    assert in_a_new_thread(refill) == max(7 >> order, 2)


def test_refills_double_while_a_thread_only_allocates(machine):
    """Linux 6.7 and newer: from the batch up to 32 times as much, within the list's bound."""

    def refills():
        machine.drain_all_pages()
        sizes, pages = [], []
        while len(sizes) < 4:
            before = listed(machine)
            pages.append(machine.alloc_pages(GFP.KERNEL, 0))
            if before == 0:
                sizes.append(listed(machine) + 1)
        for page in pages:
            machine.free_page(page)
        return sizes

    assert in_a_new_thread(refills) == [7, 14, 28, 56]


def test_a_list_gives_back_what_it_may_not_hold(machine):
    machine.drain_all_pages()  # what a thread that has just ended still holds, too
    machine.sysctl["vm.percpu_pagelist_high_fraction"] = 10**6
    try:
        high = info(machine)["high_min"]
        assert high == info(machine)["high_max"] == 4 * 7
        pages = [machine.alloc_pages(GFP.KERNEL, 0) for _ in range(500)]
        for page in pages:
            machine.free_page(page)
            assert listed(machine) <= high
    finally:
        machine.sysctl["vm.percpu_pagelist_high_fraction"] = 0


@pytest.mark.conformance("PC-08")
def test_draining_gives_everything_back(machine):
    machine.drain_all_pages()
    before = machine.procfs["/proc/buddyinfo"], machine.procfs["/proc/pagetypeinfo"]
    pages = [machine.alloc_pages(GFP.KERNEL, order) for order in LISTED * 5]
    # Single pages last: a run of larger ones makes the lists give back what they hold.
    for page in sorted(pages, key=lambda page: -page.order):
        machine.free_pages(page, page.order)
    assert listed(machine) > 0
    assert machine.procfs["/proc/buddyinfo"] != before[0]
    machine.drain_all_pages()
    assert listed(machine) == 0
    assert machine.procfs["/proc/buddyinfo"] == before[0]


@pytest.mark.conformance("PC-08")
def test_a_request_that_would_fail_drains_first():
    """All that is free lies in lists, of another thread even: it is found before giving up."""
    with one_zone("8M") as machine:
        machine.sysctl["vm.min_free_kbytes"] = 0
        machine.sysctl["vm.watermark_scale_factor"] = 1
        machine.sysctl["vm.percpu_pagelist_high_fraction"] = 8  # lists that hold all of it
        everything = list(machine.alloc_pages_bulk(QUIET | GFP.MEMALLOC, 4096))
        assert zone_of(machine).free_pages == 0 and len(everything) > 1000
        by_pfn = {page.pfn: page for page in everything}
        start = next(pfn for pfn in by_pfn if pfn % 32 == 0 and pfn + 31 in by_pfn)
        freed, done = threading.Event(), threading.Event()

        def hold():
            for pfn in range(start, start + 32):
                machine.free_page(by_pfn.pop(pfn))
            freed.set()
            done.wait()  # a thread that ends gives its lists back

        thread = threading.Thread(target=hold)
        thread.start()
        freed.wait()
        # A few may have gone back, too few and too scattered for a block of 16.
        assert zone_of(machine).free_pages + listed(machine) == 32
        assert not any(zone_of(machine).free_area[4:]) and listed(machine) > 16
        with pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(GFP.NOWAIT, 4)  # may not wait for others
        page = machine.alloc_pages(QUIET, 4)
        assert start <= page.pfn < start + 32
        done.set()
        thread.join()
        machine.free_pages(page, 4)
        machine.free_pages_bulk(list(by_pfn.values()))
        machine.drain_all_pages()
        machine.check()
