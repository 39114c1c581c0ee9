"""Free areas: which block is taken, how blocks split and merge, who may use whose."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem.layout import GFP

RESERVES = GFP.MEMALLOC | GFP.NOWARN
UNMOVABLE = GFP.KERNEL | RESERVES
RECLAIMABLE = UNMOVABLE | GFP.RECLAIMABLE
MOVABLE = UNMOVABLE | GFP.HIGHMEM | GFP.MOVABLE


def small_machine():
    """Make a DMA zone of a single free block of order 10 at pfn 0, and some more beside it."""
    return rm.Machine(nodes=1, memory="8M", zones={"DMA": "4M", "DMA32": "4G"})


@pytest.fixture
def machine():
    with small_machine() as machine:
        yield machine


@pytest.fixture
def large():
    """One zone of six blocks of order 10 and what the struct pages leave of a seventh."""
    with rm.Machine(nodes=1, memory="28M", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        yield machine
        machine.drain_all_pages()
        machine.check()


def free_area(machine, zone="DMA"):
    return machine.nodes[0].zone(zone).free_area


def in_a_new_thread(call):
    """Run where no list has grown yet: the first refill of a small zone is one page."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


def merged(pfns, top=10):
    """Free blocks by order that these free pages make: the rule of the buddies, in words."""
    blocks = [set(pfns)] + [set() for _ in range(top)]
    for order in range(top):
        for start in sorted(blocks[order]):
            if start & (1 << order) == 0 and start ^ (1 << order) in blocks[order]:
                blocks[order] -= {start, start ^ (1 << order)}
                blocks[order + 1].add(start & ~(1 << order))
    return [len(starts) for starts in blocks]


@pytest.mark.conformance("BD-02", "BD-03")
def test_one_block_is_split_from_the_low_end(machine):
    assert free_area(machine) == [0] * 10 + [1]

    def take():
        first = machine.alloc_pages(GFP.KERNEL | GFP.DMA, 0)
        after_one = free_area(machine)
        others = [machine.alloc_pages(GFP.KERNEL | GFP.DMA, 0) for _ in range(2)]
        return [page.pfn for page in (first, *others)], after_one, free_area(machine)

    pfns, after_one, after_three = in_a_new_thread(take)
    assert pfns == [0, 1, 2]
    assert after_one == [1] * 10 + [0], "blocks at 1, 2, 4, ... 512"
    assert after_three == [1, 0] + [1] * 8 + [0], "2-3 is split, 3 is left"


@pytest.fixture(scope="module")
def pages_of_dma():
    """All 1024 pages of a zone, each allocated on its own."""
    with small_machine() as machine:
        pages = {}
        while machine.nodes[0].zone("DMA").free_pages or len(pages) < 1024:
            page = machine.alloc_pages(UNMOVABLE | GFP.DMA, 0)
            pages[page.pfn] = page
        assert sorted(pages) == list(range(1024))
        yield machine, pages


def free_only(machine, pages, pfns):
    """Free some pages, look at the free areas, and take the same pages back."""
    for pfn in pfns:
        machine.free_page(pages.pop(pfn))
    machine.drain_all_pages()
    area = free_area(machine)
    while len(pages) < 1024:
        page = machine.alloc_pages(UNMOVABLE | GFP.DMA, 0)
        pages[page.pfn] = page
    return area


@pytest.mark.conformance("BD-01", "BD-05")
@pytest.mark.parametrize(
    ("pfns", "blocks"),
    [
        ([4, 5], {1: 1}),  # the buddy of 5 is 4
        ([5, 6], {0: 2}),  # neighbours, and no buddies
        ([1, 2], {0: 2}),
        (range(12, 16), {2: 1}),
        (range(8, 16), {3: 1}),  # 12 of order 2 has 8 for a buddy; they are 8 of order 3
        (range(4, 12), {2: 2}),
        (range(16), {4: 1}),  # 8 of order 3 has 0
        (range(1, 16), {0: 1, 1: 1, 2: 1, 3: 1}),
        (range(1024), {10: 1}),
    ],
)
def test_buddies_merge_and_neighbours_do_not(pages_of_dma, pfns, blocks):
    area = free_only(*pages_of_dma, pfns)
    assert {order: count for order, count in enumerate(area) if count} == blocks
    assert area == merged(pfns)


@given(st.sets(st.integers(0, 1023), min_size=1, max_size=300))
def test_any_set_of_pages_merges_as_the_rule_says(pages_of_dma, pfns):
    assert free_only(*pages_of_dma, sorted(pfns)) == merged(pfns)


@pytest.mark.conformance("BD-08")
def test_no_block_reaches_past_its_zone():
    with rm.Machine(nodes=1, memory="9M", zones={"DMA": "4M", "DMA32": "4G"}) as machine:
        machine.drain_all_pages()
        before = [zone.free_area for zone in machine.nodes[0].zones]
        pages = []
        for order in range(10, -1, -1):
            try:
                while True:
                    pages.append(machine.alloc_pages(UNMOVABLE | GFP.NORETRY, order))
                    zone = pages[-1].zone
                    end = pages[-1].pfn + (1 << order)
                    assert zone.start_pfn <= pages[-1].pfn
                    assert end <= zone.start_pfn + zone.spanned_pages
                    assert pages[-1].pfn % (1 << order) == 0
            except rm.OutOfMemory:
                continue
        assert machine.nodes[0].free_pages == 0
        for page in pages:
            machine.free_pages(page, page.order)
        machine.drain_all_pages()
        assert [zone.free_area for zone in machine.nodes[0].zones] == before


@pytest.mark.conformance("BD-07")
def test_the_largest_order(large):
    page = large.alloc_pages(GFP.KERNEL, 10)
    with large.view(page.address, 4 << 20) as view:
        view[0] = view[-1] = 1
    assert large.alloc_pages(GFP.KERNEL, 10).pfn - page.pfn in (1024, -1024)
    with pytest.raises(ValueError):
        large.alloc_pages(GFP.KERNEL, 11)


@pytest.mark.conformance("BD-12")
def test_freeing_address_zero_does_nothing(machine):
    before = machine.vmstat.snapshot()
    for order in (0, 3, 10):
        assert machine.free_pages(0, order) is None
    assert machine.vmstat.snapshot() == before


@pytest.mark.conformance("BD-13")
@pytest.mark.parametrize("order", [0, 3, 5, 9])
def test_a_double_free_is_reported_and_changes_nothing(machine, order):
    page = machine.alloc_pages(GFP.KERNEL, order)
    machine.free_pages(page, order)
    before = machine.vmstat.snapshot(), machine.procfs["/proc/pagetypeinfo"]
    with pytest.raises(rm.AllocatorError, match=f"{page.pfn}"):
        machine.free_pages(page, order)
    assert (machine.vmstat.snapshot(), machine.procfs["/proc/pagetypeinfo"]) == before
    machine.check()


@pytest.mark.conformance("BD-11")
def test_addresses_and_zeroed_pages(machine):
    address = machine.get_free_pages(GFP.KERNEL, 2)
    assert isinstance(address, int) and address % 4096 == 0
    assert machine.virt_to_page(address).order == 2
    with machine.view(address, 4 * 4096) as view:
        view[:] = b"\xa5" * len(view)
    machine.free_pages(address, 2)
    for _ in range(8):
        address = machine.get_zeroed_page(GFP.KERNEL)
        with machine.view(address, 4096) as view:
            assert bytes(view) == bytes(4096)
            view[:] = b"\xa5" * 4096
        machine.free_page(address)


@pytest.mark.conformance("BD-14")
def test_a_referenced_page_stays_until_the_last_put(machine):
    page = machine.alloc_pages(GFP.KERNEL, 0)
    page.get()
    assert page.refcount == 2
    freed = machine.vmstat["pgfree"]
    machine.free_page(page)
    assert page.refcount == 1 and machine.vmstat["pgfree"] == freed
    page.put()
    assert machine.vmstat["pgfree"] == freed + 1
    with pytest.raises(rm.AllocatorError):
        page.put()


@pytest.mark.conformance("BD-15")
def test_compound_pages(machine):
    head = machine.alloc_pages(GFP.KERNEL | GFP.COMP, 3)
    assert head.order == 3 and "head" in head.flags
    tails = [machine.pfn_to_page(head.pfn + i) for i in range(1, 8)]
    assert all("tail" in tail.flags and "head" not in tail.flags for tail in tails)
    machine.free_pages(head, 3)
    plain = machine.alloc_pages(GFP.KERNEL | GFP.COMP, 0)
    assert plain.order == 0 and not plain.flags & {"head", "tail"}
    machine.free_page(plain)


@pytest.mark.conformance("BD-16")
def test_a_reference_on_the_first_page_keeps_only_that_page(machine):
    machine.drain_all_pages()
    head = machine.alloc_pages(GFP.KERNEL, 3)
    machine.drain_all_pages()
    free = machine.nodes[0].free_pages
    head.get()
    machine.free_pages(head, 3)
    machine.drain_all_pages()
    assert machine.nodes[0].free_pages == free + 4 + 2 + 1
    assert (head.refcount, head.order) == (1, 0)
    machine.check()
    head.put()
    machine.drain_all_pages()
    assert machine.nodes[0].free_pages == free + 8
    machine.check()


@pytest.mark.conformance("BD-18")
@pytest.mark.parametrize(
    ("gfp", "allowed"),
    [
        (GFP.HIGHUSER_MOVABLE, True),
        (GFP.KERNEL | GFP.MOVABLE, False),
        (GFP.KERNEL | GFP.HIGHMEM, False),
        (GFP.KERNEL, False),
    ],
)
def test_the_movable_zone(gfp, allowed):
    zones = {"DMA": 0, "DMA32": "4G", "Movable": "50%"}
    with rm.Machine(nodes=1, memory="16M", zones=zones) as machine:
        movable = machine.nodes[0].zone("Movable")
        pages = []
        try:
            while True:
                pages.append(machine.alloc_pages(gfp | RESERVES | GFP.NORETRY, 0))
        except rm.OutOfMemory:
            pass
        assert any(page.zone.name == "Movable" for page in pages) == allowed
        assert (movable.free_pages == 0) == allowed


@pytest.mark.conformance("BD-22")
def test_node_minus_one_is_the_calling_cpus():
    cpus = sorted(os.sched_getaffinity(0))
    specs = [rm.NodeSpec("8M", cpus=[]), rm.NodeSpec("8M", cpus=cpus)]
    with rm.Machine(nodes=specs) as machine:
        assert machine.alloc_pages_node(-1, GFP.KERNEL, 0).node == 1
        assert machine.alloc_pages(GFP.KERNEL, 0).node == 1
        assert machine.alloc_pages_node(0, GFP.KERNEL, 0).node == 0


# ---- migratetypes ----


def by_type(machine):
    return machine.nodes[0].zones[0].free_area_by_type


def give_block_to(machine, *gfps):
    """Leave a free block of order 10 to each of these kinds of caller."""
    pages = [machine.alloc_pages(gfp, 0) for gfp in gfps]
    for page in pages:
        machine.free_page(page)
    machine.drain_all_pages()


def taken_from(machine, gfp, order=10):
    """Allocate, and say whose block it was."""
    before = {
        name: sum(n << o for o, n in enumerate(area)) for name, area in by_type(machine).items()
    }
    machine.alloc_pages(gfp, order)
    after = {
        name: sum(n << o for o, n in enumerate(area)) for name, area in by_type(machine).items()
    }
    (loser,) = (name for name in before if after[name] < before[name])
    return loser


@pytest.mark.conformance("BD-23")
def test_unmovable_falls_back_to_reclaimable_then_movable(large):
    give_block_to(large, RECLAIMABLE)
    assert by_type(large)["Reclaimable"][10] == 1 and by_type(large)["Movable"][10] > 1
    assert taken_from(large, UNMOVABLE) == "Reclaimable"
    assert taken_from(large, UNMOVABLE) == "Movable"


@pytest.mark.conformance("BD-23")
def test_reclaimable_falls_back_to_unmovable_then_movable(large):
    give_block_to(large, UNMOVABLE)
    assert by_type(large)["Unmovable"][10] == 1
    assert taken_from(large, RECLAIMABLE) == "Unmovable"
    assert taken_from(large, RECLAIMABLE) == "Movable"


@pytest.mark.conformance("BD-23")
def test_movable_falls_back_to_reclaimable_then_unmovable(large):
    give_block_to(large, UNMOVABLE, RECLAIMABLE)
    while by_type(large)["Movable"][10]:
        assert taken_from(large, MOVABLE) == "Movable"
    assert taken_from(large, MOVABLE) == "Reclaimable"
    assert taken_from(large, MOVABLE) == "Unmovable"


@pytest.mark.conformance("BD-24")
def test_fallback_takes_the_biggest_block(large):
    large.alloc_pages(MOVABLE, 4)
    before = by_type(large)["Movable"]
    assert any(before[4:10]) and before[10], "smaller ones would do, too"
    large.alloc_pages(UNMOVABLE, 4)
    after = by_type(large)["Movable"]
    assert after[10] == before[10] - 1 and after[:10] == before[:10]


@pytest.mark.conformance("BD-26")
def test_a_small_block_is_taken_without_its_pageblock(pages_of_dma):
    machine, pages = pages_of_dma
    zone = machine.nodes[0].zone("DMA")
    index = zone.index

    def pageblocks():
        return machine._allocator.zone_stat(index)["pageblocks"]

    assert pageblocks() == [2, 0, 0, 0, 0], "all of it went to unmovable callers"
    for pfn in (100, 102):
        machine.free_page(pages.pop(pfn))
    machine.drain_all_pages()
    assert zone.free_area_by_type["Unmovable"][0] == 2
    page = machine.alloc_pages(UNMOVABLE | GFP.DMA | GFP.MOVABLE, 0)
    assert page.pfn in (100, 102)
    machine.drain_all_pages()
    assert zone.free_area_by_type["Unmovable"][0] == 1 and pageblocks() == [2, 0, 0, 0, 0]
    pages[page.pfn] = page
    last = machine.alloc_pages(UNMOVABLE | GFP.DMA, 0)
    pages[last.pfn] = last


@pytest.mark.conformance("BD-27")
def test_bulk_gives_what_there_is(machine):
    pages = machine.alloc_pages_bulk(GFP.KERNEL, 10)
    assert len(pages) == 10 and len({page.pfn for page in pages}) == 10
    rest = machine.alloc_pages_bulk(GFP.KERNEL | GFP.NOWARN, 100000)
    assert 0 < len(rest) < 2048, "what there was above the marks"
    assert not {page.pfn for page in rest} & {page.pfn for page in pages}
    assert len(machine.alloc_pages_bulk(GFP.KERNEL, 0)) == 0
    machine.free_pages_bulk(rest)
    machine.free_pages_bulk(pages)
    machine.check()


@pytest.mark.conformance("BD-30")
@pytest.mark.parametrize("order", [0, 3, 10])
def test_a_new_page(large, order):
    page = large.alloc_pages(GFP.KERNEL, order)
    assert (page.refcount, page.mapcount, page.flags, page.order) == (1, 0, frozenset(), order)
    assert page.mappings == [] and page.pfn % (1 << order) == 0
    assert (page.node, page.zone.name) == (0, "DMA32")
    pfn, zone = page.pfn, page.zone
    large.free_pages(page, order)
    assert large.pfn_to_page(pfn).zone.name == zone.name
    assert large.pfn_to_page(pfn).node == 0


@pytest.mark.conformance("BD-31")
def test_the_high_atomic_reserve():
    """Only zones from 200 MiB have one; it is of whole pageblocks, about 1 %, at most one more."""
    with rm.Machine(nodes=1, memory="216M", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        zone = machine.nodes[0].zones[0]
        quiet = GFP.KERNEL | GFP.NORETRY | GFP.NOWARN

        def reserved():
            return machine._allocator.zone_stat(zone.index)["nr_reserved_highatomic"]

        machine.free_pages(machine.alloc_pages(GFP.ATOMIC, 3), 3)
        assert reserved() == 0, "not while there is plenty"
        for order in (10, 8, 5):
            try:
                while True:
                    machine.alloc_pages(quiet, order)
            except rm.OutOfMemory:
                continue
        for _ in range(200):
            try:
                machine.alloc_pages(GFP.ATOMIC | GFP.NOWARN, 2)
            except rm.OutOfMemory:
                break
        limit = -(-(zone.managed_pages // 100) // 512) * 512
        assert 0 < reserved() <= limit and reserved() % 512 == 0
        machine.check()


@pytest.mark.conformance("BD-32")
def test_exact_allocation_gives_the_surplus_back(machine):
    machine.drain_all_pages()
    free = machine.nodes[0].free_pages
    address = machine.alloc_pages_exact(5 * 4096, GFP.KERNEL)
    machine.drain_all_pages()
    assert machine.nodes[0].free_pages == free - 5
    for i in range(5):
        machine.free_page(address + i * 4096)
    machine.drain_all_pages()
    assert machine.nodes[0].free_pages == free
    machine.check()
