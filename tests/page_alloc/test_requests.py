"""Requests that fail: the error that API.md names, nothing leaked, the machine usable."""

from __future__ import annotations

import threading

import pytest
from misuse import free_everywhere

import realmem as rm
from realmem import GFP


@pytest.mark.conformance("BD-07")
def test_order_11_can_never_succeed(machine):
    block = machine.alloc_pages(GFP.KERNEL, 10)
    assert block.pfn % 1024 == 0
    machine.free_pages(block, 10)
    for order in (11, -1, 64, 2**31, 2**63, -2**70):
        for call in (machine.alloc_pages, machine.get_free_pages):
            with pytest.raises(ValueError, match=r"order|out of range"):
                call(GFP.KERNEL, order)
        with pytest.raises(ValueError, match=r"order|out of range"):
            machine.alloc_pages_node(0, GFP.KERNEL, order)
        with pytest.raises(ValueError, match=r"order|out of range"):
            machine.free_pages(0, order)


@pytest.mark.parametrize("nid", [3, 64, -2, 10**9, 2**31, 2**40])
def test_unknown_nodes(machine, nid):
    with pytest.raises(ValueError, match="node"):
        machine.alloc_pages_node(nid, GFP.KERNEL, 0)
    with pytest.raises(ValueError, match="node"):
        machine.alloc_pages(GFP.KERNEL, 0, node=nid)
    with pytest.raises(ValueError, match="node"):
        machine.alloc_pages_bulk(GFP.KERNEL, 3, node=nid)


def test_a_node_without_memory(machine):
    """Its requests go elsewhere, unless it is told to stay."""
    page = machine.alloc_pages_node(2, GFP.KERNEL, 0)
    assert page.node in (0, 1)
    machine.free_page(page)
    with pytest.raises(rm.OutOfMemory) as caught:
        machine.alloc_pages_node(2, GFP.KERNEL | GFP.THISNODE, 0)
    assert caught.value.node == 2
    assert len(machine.alloc_pages_bulk(GFP.KERNEL | GFP.THISNODE, 5, node=2)) == 0


@pytest.mark.parametrize("wrong", [True, False, 0.0, "0", b"0", None, [0], print], ids=repr)
def test_arguments_of_other_types(machine, wrong):
    """A bool is no int here either; a node may be None."""
    before = free_everywhere(machine)
    calls = {
        "gfp": (lambda: machine.alloc_pages(wrong, 0), lambda: machine.get_zeroed_page(wrong),
                lambda: machine.alloc_pages_bulk(wrong, 1)),
        "order": (lambda: machine.alloc_pages(GFP.KERNEL, wrong),
                  lambda: machine.get_free_pages(GFP.KERNEL, wrong),
                  lambda: machine.free_pages(0, wrong)),
        "n": (lambda: machine.alloc_pages_bulk(GFP.KERNEL, wrong),),
        "page_or_addr": (lambda: machine.free_page(wrong),
                         lambda: machine.free_pages_bulk([wrong])),
        "pfn": (lambda: machine.pfn_to_page(wrong),), "phys": (lambda: machine.va(wrong),),
        "addr": (lambda: machine.pa(wrong), lambda: machine.view(wrong, 1)),
        "size": (lambda: machine.view(machine.va(0), wrong),),
    }
    if wrong is not None:
        calls["node"] = (lambda: machine.alloc_pages(GFP.KERNEL, 0, wrong),)
    for name, ways in calls.items():
        for call in ways:
            with pytest.raises(TypeError, match=f"^{name} must be an int, not "):
                call()
    assert free_everywhere(machine) == before


@pytest.mark.conformance("GF-11")
@pytest.mark.parametrize("bits", [
    GFP.DMA | GFP.HIGHMEM,
    GFP.DMA | GFP.DMA32,
    GFP.DMA32 | GFP.HIGHMEM,
    GFP.DMA | GFP.DMA32 | GFP.HIGHMEM,
    GFP.DMA | GFP.HIGHMEM | GFP.MOVABLE,
    GFP.DMA32 | GFP.HIGHMEM | GFP.MOVABLE,
    GFP.DMA | GFP.DMA32 | GFP.MOVABLE,
    GFP.MOVABLE | GFP.RECLAIMABLE,
], ids=str)
def test_impossible_combinations(machine, bits):
    for call in (lambda gfp: machine.alloc_pages(gfp, 0),
                 lambda gfp: machine.alloc_pages_node(1, gfp, 3),
                 lambda gfp: machine.get_free_pages(gfp, 0),
                 lambda gfp: machine.alloc_pages_bulk(gfp, 2),
                 lambda gfp: machine.alloc_pages_exact(5000, gfp),
                 machine.get_zeroed_page):
        with pytest.raises(ValueError, match="impossible"):
            call(GFP.KERNEL | bits)


@pytest.mark.parametrize("gfp", [1 << 9, 1 << 23, 1 << 40, -1, 2**80])
def test_unknown_flags(machine, gfp):
    with pytest.raises(ValueError, match="gfp"):
        machine.alloc_pages(gfp, 0)


@pytest.mark.parametrize("wrong", [None, "1", 1.0, b"1", [1], object()],
                         ids=lambda value: type(value).__name__)
def test_wrong_types(machine, wrong):
    calls = [
        lambda: machine.alloc_pages(wrong, 0),
        lambda: machine.alloc_pages(GFP.KERNEL, wrong),
        lambda: machine.alloc_pages_node(0, GFP.KERNEL, wrong),
        lambda: machine.get_free_pages(wrong, 0),
        lambda: machine.get_zeroed_page(wrong),
        lambda: machine.free_pages(wrong, 0),
        lambda: machine.free_pages(0, wrong),
        lambda: machine.free_page(wrong),
        lambda: machine.alloc_pages_bulk(GFP.KERNEL, wrong),
        lambda: machine.alloc_pages_exact(wrong, GFP.KERNEL),
        lambda: machine.free_pages_bulk([wrong]),
        lambda: machine.view(wrong, 1),
        lambda: machine.view(machine.va(0), wrong),
        lambda: machine.va(wrong),
        lambda: machine.pa(wrong),
        lambda: machine.virt_to_page(wrong),
        lambda: machine.pfn_to_page(wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    if wrong is not None:
        with pytest.raises(TypeError):
            machine.alloc_pages(GFP.KERNEL, 0, node=wrong)


def test_arguments_that_are_missing_or_too_many(machine):
    for call in (lambda: machine.alloc_pages(GFP.KERNEL),
                 lambda: machine.alloc_pages(GFP.KERNEL, 0, 0, 0),
                 lambda: machine.alloc_pages(GFP.KERNEL, 0, colour="red"),
                 lambda: machine.free_pages(0),
                 lambda: machine.free_page()):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("size", [0, -1, (4 << 20) + 1, 2**62, -2**63, 2**64])
def test_exact_sizes_that_cannot_be(machine, size):
    with pytest.raises(ValueError, match="size"):
        machine.alloc_pages_exact(size, GFP.KERNEL)


def test_negative_bulk(machine):
    with pytest.raises(ValueError, match="negative"):
        machine.alloc_pages_bulk(GFP.KERNEL, -1)
    assert len(machine.alloc_pages_bulk(GFP.KERNEL, 0)) == 0
    machine.free_pages_bulk([])


def test_more_in_bulk_than_there_is(machine):
    pages = machine.alloc_pages_bulk(GFP.KERNEL, 2**62)
    assert 0 < len(pages) < 4096
    machine.check()
    machine.free_pages_bulk(pages)


def test_out_of_memory_says_what_was_asked(machine):
    kept = []
    with pytest.raises(rm.OutOfMemory) as caught:
        while True:
            kept.append(machine.alloc_pages_node(1, GFP.KERNEL | GFP.THISNODE, 5))
    error = caught.value
    assert isinstance(error, MemoryError)
    assert (error.order, error.gfp, error.node) == (5, GFP.KERNEL | GFP.THISNODE, 1)
    text = str(error)
    for word in ("order:5", "Node 1 Normal", "free:", "min:", "Mem-Info", "*4kB"):
        assert word in text
    machine.check()
    for page in kept:
        machine.free_pages(page, 5)


# ---- atomic context ----

def test_atomic_context(machine):
    with machine.atomic_context():
        with machine.atomic_context():
            pass
        for gfp in (GFP.KERNEL, GFP.USER, GFP.NOIO, GFP.KERNEL | GFP.NOFAIL, GFP.TRANSHUGE):
            for call in (lambda gfp=gfp: machine.alloc_pages(gfp, 0),
                         lambda gfp=gfp: machine.alloc_pages_bulk(gfp, 1),
                         lambda gfp=gfp: machine.get_zeroed_page(gfp)):
                with pytest.raises(rm.AtomicContextError):
                    call()
        for gfp in (GFP.ATOMIC, GFP.NOWAIT, GFP(0)):
            machine.free_page(machine.alloc_pages(gfp, 0))
        done = []

        def other_thread():
            page = machine.alloc_pages(GFP.KERNEL, 0)
            machine.free_page(page)
            done.append(page)

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert done, "the context leaked into another thread"
    machine.free_page(machine.alloc_pages(GFP.KERNEL, 0))
    with pytest.raises(ZeroDivisionError), machine.atomic_context():
        1 / 0
    machine.free_page(machine.alloc_pages(GFP.KERNEL, 0))


def test_an_atomic_context_ends_with_its_machine():
    first = rm.Machine(1, "4M")
    with first.atomic_context():
        first.close()
    with rm.Machine(1, "4M") as second:
        entered, leave = threading.Event(), threading.Event()

        def elsewhere():
            with second.atomic_context():
                entered.set()
                leave.wait()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        entered.wait()
        try:
            second.free_page(second.alloc_pages(GFP.KERNEL, 0))
        finally:
            leave.set()
            thread.join()
