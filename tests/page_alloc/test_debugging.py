"""Poison and owners: what they find, and what they leave alone."""

from __future__ import annotations

import ctypes
import threading

import pytest
from misuse import free_everywhere

import realmem as rm
from realmem import GFP


@pytest.fixture
def poisoned():
    with rm.Machine([rm.NodeSpec("8M")], zones={"DMA": "0", "DMA32": "0"}, poison=True) as machine:
        yield machine


# ---- poison ----

def write_after_free(machine, page, offset=100):
    address = page.address
    machine.free_pages(page, page.order)
    ctypes.c_char.from_address(address + offset).value = b"!"


def allocate_until_it_complains(machine, gfp=GFP.KERNEL, order=0):
    kept = []
    with pytest.raises(rm.AllocatorError, match="corruption") as caught:
        for _ in range(5000):
            kept.append(machine.alloc_pages(gfp, order))
    for page in kept:
        machine.free_pages(page, order)
    return str(caught.value)


@pytest.mark.parametrize("order", [0, 3, 4, 9, 10])
def test_a_write_after_free_is_found(poisoned, order):
    page = poisoned.alloc_pages(GFP.KERNEL, order)
    pfn = page.pfn + (1 << order) - 1
    write_after_free(poisoned, page, (4096 << order) - 1)
    assert f"pfn {pfn} " in allocate_until_it_complains(poisoned, order=order)
    poisoned.check()
    # The frame is out of use: everything else can be had, and had again.
    for _ in range(2):
        pages = poisoned.alloc_pages_bulk(GFP.KERNEL | GFP.MEMALLOC, 10**6)
        assert pfn not in pages.pfns.tolist()
        poisoned.check()
        poisoned.free_pages_bulk(pages)
        poisoned.drain_all_pages()


def test_a_bulk_allocation_that_finds_corruption_keeps_nothing(poisoned):
    page = poisoned.alloc_pages(GFP.KERNEL, 0)
    write_after_free(poisoned, page)
    with pytest.raises(rm.AllocatorError, match="corruption"):
        poisoned.alloc_pages_bulk(GFP.KERNEL, 50)
    poisoned.check()
    poisoned.drain_all_pages()
    zone = poisoned.nodes[0].zones[0]
    assert zone.free_pages == zone.managed_pages - 1


def test_a_write_into_the_middle_of_a_larger_block_is_found():
    """The first frame of the block was never given out; a later one was, and was written."""
    with rm.Machine(1, "132M", zones={"DMA": "0", "DMA32": "0"}, poison=True) as machine:
        first = machine.alloc_pages(GFP.KERNEL, 0)      # its list now holds the next ones
        seen = []

        def elsewhere():
            seen.append(machine.alloc_pages(GFP.KERNEL, 0))
            write_after_free(machine, seen[0])

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        pfn = seen[0].pfn
        assert pfn == first.pfn + 7, "the frame must not head a larger block"
        machine.free_page(first)
        machine.drain_all_pages()
        assert f"pfn {pfn} " in allocate_until_it_complains(machine, order=1)
        machine.check()


def test_freed_memory_is_filled_and_fresh_memory_is_not_flagged(poisoned):
    page = poisoned.alloc_pages(GFP.KERNEL, 2)
    view = poisoned.view(page.address, 4 * 4096)
    view[:] = b"x" * len(view)
    assert page.flags == frozenset()
    address = page.address
    poisoned.free_pages(page, 2)
    assert bytes(view) == b"\xaa" * len(view)
    view.release()
    again = poisoned.alloc_pages(GFP.KERNEL, 2)
    assert again.address == address
    for i in range(4):
        assert poisoned.pfn_to_page(again.pfn + i).flags == frozenset()
    poisoned.free_pages(again, 2)
    poisoned.check()


# ---- owners ----

def test_errors_name_the_owner():
    with rm.Machine(1, "8M", page_owner=True) as machine:
        page = machine.alloc_pages(GFP.KERNEL, 1)
        assert "test_errors_name_the_owner" in page.owner
        with pytest.raises(rm.AllocatorError, match="test_errors_name_the_owner"):
            machine.free_pages(page, 0)
        machine.free_pages(page, 1)
        assert page.owner is None
        pages = machine.alloc_pages_bulk(GFP.KERNEL, 3)
        assert all("test_errors_name_the_owner" in one.owner for one in pages)
        machine.free_pages_bulk(pages)
        machine.check()


def test_the_owner_stays_as_long_as_the_page():
    with rm.Machine(1, "8M", page_owner=True) as machine:
        page = machine.alloc_pages(GFP.KERNEL, 0)
        frees = (lambda: machine.free_page(page), lambda: machine.free_pages_bulk([page]),
                 page.put)
        for free in frees:
            page.get()
            free()
            assert "test_the_owner_stays" in page.owner
        machine.free_page(page)
        assert page.owner is None


def test_each_page_of_an_exact_allocation_has_its_owner():
    with rm.Machine(memory="16M", page_owner=True) as machine:
        addr = machine.alloc_pages_exact(3 * 4096, GFP.KERNEL)
        owners = [machine.virt_to_page(addr + i * 4096).owner for i in range(4)]
        assert "test_each_page_of_an_exact" in owners[0]
        assert owners[1:] == [owners[0], owners[0], None]
        for i in range(3):
            machine.free_page(addr + i * 4096)
        assert machine.virt_to_page(addr).owner is None


def test_tracking_that_fails_leaks_nothing(monkeypatch):
    """Who allocates is found by Python code, which a signal may end."""
    import traceback

    def interrupted():
        raise KeyboardInterrupt

    with rm.Machine(1, "8M", page_owner=True) as machine:
        before = free_everywhere(machine)
        monkeypatch.setattr(traceback, "format_stack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            machine.alloc_pages(GFP.KERNEL, 0)
        with pytest.raises(KeyboardInterrupt):
            machine.alloc_pages_bulk(GFP.KERNEL, 3)
        assert free_everywhere(machine) == before
        machine.check()
