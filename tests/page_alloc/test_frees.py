"""Frees and looks at what was not allocated; references; draining."""

from __future__ import annotations

import threading

import pytest
from misuse import addresses_that_are_not_ours

import realmem as rm
from realmem import GFP

# ---- frees of what was not allocated ----

@pytest.mark.conformance("BD-13")
@pytest.mark.parametrize("order", [0, 1, 3, 4, 9, 10])
@pytest.mark.parametrize("drained", [False, True])
def test_double_free(machine, order, drained):
    page = machine.alloc_pages(GFP.KERNEL, order)
    address = page.address
    machine.free_pages(page, order)
    if drained:
        machine.drain_all_pages()
    for _ in range(2):
        for what in (page, address):
            with pytest.raises(rm.AllocatorError, match="double free"):
                machine.free_pages(what, order)
        with pytest.raises(rm.AllocatorError, match="free"):
            page.put()
        with pytest.raises(rm.AllocatorError, match="free"):
            page.get()
        machine.check()


@pytest.mark.parametrize("order", [0, 1, 4])
def test_double_free_of_a_block_that_could_not_merge(machine, order):
    """It heads a free block of its own, and is not a piece of one."""
    pages = [machine.alloc_pages(GFP.KERNEL, order) for _ in range(16)]
    upper = next(page for page in pages if page.pfn >> order & 1
                 and any(other.pfn == page.pfn - (1 << order) for other in pages))
    pages.remove(upper)
    machine.free_pages(upper, order)
    machine.drain_all_pages()
    assert "buddy" in upper.flags and upper.order == order
    for wrong in range(11):
        with pytest.raises(rm.AllocatorError, match="double free"):
            machine.free_pages(upper, wrong)
    machine.check()
    for page in pages:
        machine.free_pages(page, order)


@pytest.mark.parametrize("order", [0, 1, 2, 5, 9, 10])
def test_wrong_order(machine, order):
    page = machine.alloc_pages(GFP.KERNEL, order)
    for wrong in set(range(11)) - {order}:
        with pytest.raises(rm.AllocatorError, match="wrong-order"):
            machine.free_pages(page, wrong)
    machine.check()
    assert (page.refcount, page.order) == (1, order)
    machine.free_pages(page, order)


def test_frames_inside_a_block(machine):
    page = machine.alloc_pages(GFP.KERNEL, 4)
    for inner in range(1, 16):
        for order in (0, 1, 4):
            with pytest.raises(rm.AllocatorError, match="inside"):
                machine.free_pages(page.address + 4096 * inner, order)
    machine.free_pages(page, 4)
    machine.drain_all_pages()
    for inner in range(1, 16):
        with pytest.raises(rm.AllocatorError, match="double free"):
            machine.free_page(page.address + 4096 * inner)


def test_boot_memory(machine):
    """The struct page array is nobody's to free."""
    last = machine.pfn_to_page(machine.nodes[0].end_pfn - 1)
    assert "reserved" in last.flags
    with pytest.raises(rm.AllocatorError, match="reserved"):
        machine.free_page(last)
    with pytest.raises(rm.AllocatorError):
        last.put()
    last.get()
    last.put()
    machine.check()


def test_foreign_addresses(machine):
    for name, address in addresses_that_are_not_ours(machine):
        with pytest.raises(rm.AllocatorError):
            machine.free_pages(address, 0)
            pytest.fail(name)
        with pytest.raises(rm.AllocatorError):
            machine.free_page(address)
        with pytest.raises(rm.AllocatorError):
            machine.free_pages_bulk([address])
        machine.check()


@pytest.mark.conformance("BD-12")
def test_freeing_address_0_does_nothing(machine):
    before = machine.vmstat["pgfree"]
    for order in range(11):
        assert machine.free_pages(0, order) is None
    machine.free_page(0)
    assert machine.vmstat["pgfree"] == before


def test_bulk_frees_all_or_nothing(machine):
    pages = list(machine.alloc_pages_bulk(GFP.KERNEL, 10))
    block = machine.alloc_pages(GFP.KERNEL, 1)
    gone = machine.alloc_pages(GFP.KERNEL, 0)
    machine.free_page(gone)
    for bad in (block, gone, pages[3], machine.va(0) + 8):
        with pytest.raises(rm.AllocatorError):
            machine.free_pages_bulk([*pages, bad])
        machine.check()
        assert all(page.refcount == 1 for page in pages)
    machine.free_pages_bulk(pages)
    with pytest.raises(rm.AllocatorError, match="double free"):
        machine.free_pages_bulk(pages)
    machine.free_pages(block, 1)


def test_pages_of_another_machine(machine):
    with rm.Machine(1, "8M", zones={"DMA": "4M", "DMA32": "4M"}) as other:
        theirs = other.alloc_pages(GFP.KERNEL, 0)
        ours = machine.alloc_pages(GFP.KERNEL, 0)
        many = other.alloc_pages_bulk(GFP.KERNEL, 8)
        mine = machine.alloc_pages_bulk(GFP.KERNEL | GFP.MEMALLOC, 4096)
        assert set(many.pfns.tolist()) <= set(mine.pfns.tolist()), "pfns that both have"
        for what in (theirs, theirs.address):
            with pytest.raises(rm.AllocatorError):
                machine.free_page(what)
        with pytest.raises(rm.AllocatorError):
            machine.free_pages_bulk([theirs])
        with pytest.raises(rm.AllocatorError):
            machine.free_pages_bulk(many)
        with pytest.raises(ValueError):
            machine.pa(theirs.address)
        with pytest.raises(ValueError):
            machine.view(theirs.address, 8)
        machine.check()
        other.check()
        assert all(page.refcount == 1 for page in (*many, *mine))
        other.free_pages_bulk(many)
        other.free_page(theirs)
        machine.free_pages_bulk(mine)
        machine.free_page(ours)
        other.check()


# ---- views ----

def test_views_of_memory_that_is_not_allocated(machine):
    page = machine.alloc_pages(GFP.KERNEL, 1)
    view = machine.view(page.address + 4000, 4192)
    assert view.nbytes == 4192
    view.release()
    with pytest.raises(ValueError, match="not allocated"):
        machine.view(page.address + 4000, 4 << 20)
    for size in (0, -1, -2**62):
        with pytest.raises(ValueError, match="positive"):
            machine.view(page.address, size)
    for size in (2**62, 2**63 - 1):
        with pytest.raises(ValueError):
            machine.view(page.address, size)
    machine.free_pages(page, 1)
    with pytest.raises(ValueError, match="not allocated"):
        machine.view(page.address, 1)
    for name, address in addresses_that_are_not_ours(machine):
        if "unaligned" not in name:
            with pytest.raises(ValueError):
                machine.view(address, 1)


def test_addresses_and_frames_that_do_not_exist(machine):
    end = machine.nodes[-1].end_pfn
    for pfn in (end, -1, 2**52, 2**63, -2**63):
        with pytest.raises(ValueError):
            machine.pfn_to_page(pfn)
        with pytest.raises(ValueError):
            machine.va(pfn << 12)
    for name, address in addresses_that_are_not_ours(machine):
        if "unaligned" not in name:
            with pytest.raises(ValueError):
                machine.pa(address)
            with pytest.raises(ValueError):
                machine.virt_to_page(address)


# ---- draining ----

def test_draining_reaches_living_threads(machine):
    """Every thread's lists are emptied, by whomever asks."""
    def used():
        machine.free_page(machine.alloc_pages(GFP.KERNEL, 0))
        machine.free_pages(machine.alloc_pages(GFP.KERNEL, 3), 3)

    def work():
        used()
        ready.wait(60)
        leave.wait(60)

    machine.drain_all_pages()
    free = [node.free_pages for node in machine.nodes]
    ready, leave = threading.Barrier(5), threading.Event()
    used()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    try:
        assert [node.free_pages for node in machine.nodes] != free
        machine.drain_all_pages()
        assert [node.free_pages for node in machine.nodes] == free
    finally:
        leave.set()
        for thread in threads:
            thread.join()


# ---- references ----

def test_exact_ignores_compound(machine):
    """Pieces of a compound page could not be freed one by one; Linux drops the flag too."""
    addr = machine.alloc_pages_exact(5 * 4096, GFP.KERNEL | GFP.COMP)
    machine.check()
    for i in range(5):
        page = machine.virt_to_page(addr + i * 4096)
        assert (page.order, page.refcount, page.flags) == (0, 1, frozenset())
        machine.free_page(page)


def test_compound_tails_cannot_be_freed(machine):
    head = machine.alloc_pages(GFP.KERNEL | GFP.COMP, 2)
    tail = machine.pfn_to_page(head.pfn + 3)
    with pytest.raises(rm.AllocatorError):
        machine.free_page(tail)
    tail.get()                      # a tail's references are its head's
    assert head.refcount == 2
    tail.put()
    head.put()
    assert head.refcount == 0


def test_a_block_goes_with_its_last_reference(machine):
    page = machine.alloc_pages(GFP.KERNEL, 0)
    for _ in range(1000):
        page.get()
    assert page.refcount == 1001
    for _ in range(1000):
        machine.free_page(page)
    assert page.refcount == 1
    page.put()
    with pytest.raises(rm.AllocatorError):
        page.put()
