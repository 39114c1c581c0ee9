"""The pages that slabs are made of: what order they are of, and who counts them."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem import GFP_KERNEL, SLAB
from realmem.procfs.meminfo import parse_meminfo


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="16M") as machine:
        yield machine
        machine.check()


def fragment(machine, order):
    """Take every block, and give back half of them, none beside another: list those kept."""
    kept, freed = [], []
    try:
        while True:
            kept.append(machine.alloc_pages(GFP_KERNEL | rm.GFP.MEMALLOC, order))
    except rm.OutOfMemory:
        pass
    for page in list(kept):
        if page.pfn >> order & 1:
            kept.remove(page)
            freed.append(page)
    for page in freed:
        machine.free_pages(page, order)
    machine.drain_all_pages()
    (zone,) = machine.nodes[0].zones
    assert zone.free_area[order] > 50
    assert not any(zone.free_area[order + 1:])
    return kept


@pytest.mark.conformance("SL-13")
def test_fragmented_memory_serves_smaller_slabs(machine):
    cache = machine.kmem_cache_create("fragile", 700, flags=SLAB.NO_MERGE)
    large = machine.kmem_cache_create("large", 9000, flags=SLAB.NO_MERGE)
    assert cache.order > 0
    kept = fragment(machine, 0)
    addrs = [cache.alloc() for _ in range(12)]
    assert (cache.num_objs, cache.num_slabs) == (15, 3)         # 5 a page, not 23 of 4
    assert {machine.virt_to_page(addr).order for addr in addrs} == {0}
    with pytest.raises(rm.OutOfMemory):
        large.alloc()                       # one object does not fit a page
    machine.check()
    line = next(line for line in machine.procfs["/proc/slabinfo"].splitlines()
                if line.startswith("fragile "))
    assert line.split()[2:6] == ["15", str(cache.size), str(cache.objs_per_slab),
                                 str(1 << cache.order)]        # what it would rather have
    for page in kept:
        machine.free_page(page)
    machine.drain_all_pages()
    more = cache.alloc_bulk(cache.objs_per_slab)
    assert cache.num_objs == 15 + cache.objs_per_slab           # both kinds side by side
    assert large.num_objs == 0
    large.free(large.alloc())
    cache.free_bulk([*addrs, *more.tolist()])
    cache.shrink()
    assert cache.num_slabs == 0


@pytest.mark.conformance("SL-13")
def test_the_least_order_is_that_of_one_object(machine):
    cache = machine.kmem_cache_create("large", 9000, flags=SLAB.NO_MERGE)
    kept = fragment(machine, 2)
    addr = cache.alloc()
    assert cache.order == 3
    assert cache.num_objs == 1
    assert machine.virt_to_page(addr).order == 2
    cache.free(addr)
    for page in kept:
        machine.free_pages(page, 2)


@pytest.mark.conformance("SL-35")
def test_slab_pages_are_reclaimable_or_not(machine):
    def counted():
        info = parse_meminfo(machine.procfs["/proc/meminfo"])
        assert info["Slab"] == info["SReclaimable"] + info["SUnreclaim"]
        assert info["SReclaimable"] == machine.vmstat["nr_slab_reclaimable"] * 4
        assert info["SUnreclaim"] == machine.vmstat["nr_slab_unreclaimable"] * 4
        return info["SReclaimable"] // 4, info["SUnreclaim"] // 4

    assert counted() == (0, 0)
    kept = machine.kmem_cache_create("kept", 512, flags=SLAB.RECLAIM_ACCOUNT | SLAB.NO_MERGE)
    plain = machine.kmem_cache_create("plain", 512, flags=SLAB.NO_MERGE)
    ours, reclaimable = 0, 0
    frees = []
    for take, give, pages, is_kept in (
        (kept.alloc, kept.free, 1 << kept.order, True),
        (plain.alloc, plain.free, 1 << plain.order, False),
        (lambda: machine.kmalloc(1024, GFP_KERNEL | rm.GFP.RECLAIMABLE), machine.kfree,
         1 << machine.kmem_caches["kmalloc-rcl-1k"].order, True),
        (lambda: machine.kmalloc(1024), machine.kfree,
         1 << machine.kmem_caches["kmalloc-1k"].order, False),
        (lambda: machine.kmalloc(100_000), machine.kfree, 32, False),
    ):
        frees.append((give, take()))
        reclaimable += pages * is_kept
        ours += pages * (not is_kept)
        assert counted() == (reclaimable, ours)
    for give, addr in frees:
        give(addr)
    for cache in machine.kmem_caches.values():
        cache.shrink()
    assert counted() == (0, 0)
