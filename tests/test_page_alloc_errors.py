"""
Misuse of the page allocator: the error that API.md names, nothing leaked, the machine usable.

Every test ends with a recount and with the free memory it began with.
"""

from __future__ import annotations

import ctypes
import threading

import pytest

import realmem as rm
from realmem import GFP


def free_everywhere(machine):
    machine.drain_all_pages()
    return [zone.free_area for node in machine.nodes for zone in node.zones]


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


@pytest.fixture
def poisoned():
    with rm.Machine([rm.NodeSpec("8M")], zones={"DMA": "0", "DMA32": "0"}, poison=True) as machine:
        yield machine


# ---- requests that can never succeed ----

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


def addresses_that_are_not_ours(machine):
    base = machine.va(0)
    page = machine.alloc_pages(GFP.KERNEL, 0)
    machine.free_page(page)
    buffer = ctypes.create_string_buffer(8192)
    yield "unaligned", base + 1
    yield "unaligned in a page", page.address + 2048
    yield "below", base - 4096
    yield "behind", base + (machine.nodes[-1].end_pfn << 12)
    yield "far behind", base + (1 << 44)
    yield "somebody else's", (ctypes.addressof(buffer) + 4095) & ~4095
    yield "one", 1
    yield "minus a page", -4096
    yield "Linux's own direct map", 0xFFFF888000000000
    yield "the last page", 2**64 - 4096


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


# ---- other ways in ----

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


# ---- out of memory ----

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
