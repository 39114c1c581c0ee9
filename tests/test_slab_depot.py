"""How many free objects threads and depots keep, and that the others' slabs go back."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem import GFP, GFP_KERNEL, SLAB

SIZE = 4096
MEMORY = 32 << 20


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory=MEMORY) as made:
        yield made
        made.check()


def most_kept(cache):
    """A thread keeps `capacity`, a node's depot a 64th of what its machine could hold."""
    return cache.capacity + MEMORY // SIZE // 64


@pytest.mark.parametrize("bulk", [False, True])
def test_what_is_kept_is_bounded(machine, bulk):
    cache = machine.kmem_cache_create("kept", SIZE, flags=SLAB.NO_MERGE)
    held = cache.alloc_bulk(1000)
    assert cache.active_objs >= 1000
    if bulk:
        cache.free_bulk(held)
    else:
        for addr in held.tolist():
            cache.free(addr)
    assert cache.active_objs <= most_kept(cache) < 500
    machine.check()
    cache.shrink()
    assert cache.num_slabs == 0


def test_slabs_emptied_by_single_frees_are_free_pages_again(machine):
    cache = machine.kmem_cache_create("single", SIZE, flags=SLAB.NO_MERGE)
    machine.drain_all_pages()
    before = sum(node.free_pages for node in machine.nodes)
    for addr in cache.alloc_bulk(2000).tolist():
        cache.free(addr)
    cache.shrink()
    machine.drain_all_pages()
    assert sum(node.free_pages for node in machine.nodes) == before
    assert machine.vmstat["nr_slab_unreclaimable"] * 4096 < MEMORY // 16


def test_what_may_not_fail_is_not_made_to_fail(machine):
    cache = machine.kmem_cache_create("never", 64, flags=SLAB.NO_MERGE)
    with machine.inject("slab", nth=1, times=1 << 40) as injection:
        addr = cache.alloc(GFP_KERNEL | GFP.NOFAIL)
        with pytest.raises(rm.OutOfMemory):
            cache.alloc(GFP_KERNEL)
    assert injection.failures == 1
    cache.free(addr)


def test_a_node_keeps_min_partial_empty_slabs(machine):
    """The count that decides is the one before the free that empties the slab."""
    cache = machine.kmem_cache_create("alone", 33000, flags=SLAB.NO_MERGE)
    assert cache.objs_per_slab == 1
    held = [cache.alloc() for _ in range(100)]
    for addr in held:
        cache.free(addr)
    assert cache.active_objs < 60
    assert cache.num_slabs - cache.active_objs == cache.min_partial
