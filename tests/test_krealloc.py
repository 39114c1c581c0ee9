"""krealloc(): who holds the object before and after, checked objects, sizes as strings."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem import GFP_KERNEL, AllocatorError


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="32M") as made:
        yield made
        made.check()


def test_freeing_by_it_does_not_sleep(machine):
    addr = machine.kmalloc(64)
    with machine.atomic_context():
        assert machine.krealloc(addr, 0, GFP_KERNEL) == 16
    with pytest.raises(AllocatorError, match="double free"):
        machine.kfree(addr)


def test_sizes_may_be_strings(machine):
    addr = machine.kmalloc("1K")
    assert machine.ksize(addr) == 1024
    addr = machine.krealloc(addr, "4KiB")
    assert machine.ksize(addr) == 4096
    machine.kfree(addr)
    cache = machine.kmem_cache_create("by-string", "2K", flags=rm.SLAB.NO_MERGE)
    assert cache.object_size == 2048
    machine.kfree(machine.kcalloc(2, "64"))
    for wrong in ("", "x", "1.5K"):
        with pytest.raises(ValueError):
            machine.kmalloc(wrong)
    with pytest.raises(TypeError):
        machine.kmalloc(1.5)


@pytest.mark.parametrize("wrong", [8.0, "8", True])
def test_the_free_pointer_stands_at_an_int(machine, wrong):
    with pytest.raises(TypeError, match="freeptr_offset"):
        machine.kmem_cache_create("odd", 64, ctor=lambda view: None, freeptr_offset=wrong)


@pytest.mark.parametrize("flags", ["FZ", "FZP", "FZPU"])
def test_a_corrupted_object_is_not_moved(flags):
    with rm.Machine(nodes=1, memory="32M", slab_debug=flags) as machine:
        addr = machine.kmalloc(20)
        machine.view(addr, 64)[:20] = bytes(range(20))
        moved = machine.krealloc(addr, 200)
        assert bytes(machine.view(moved, 20)) == bytes(range(20))
        before = machine.kmem_caches["kmalloc-512"].active_objs
        machine.view(moved, 260)[200 if flags == "FZPU" else 256] = 7     # past its end
        with pytest.raises(AllocatorError, match="not freed"):
            machine.krealloc(moved, 400)
        assert machine.kmem_caches["kmalloc-512"].active_objs == before
        assert bytes(machine.view(moved, 20)) == bytes(range(20))
        machine.kfree(moved)            # it was repaired
        machine.check()
