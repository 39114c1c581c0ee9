"""krealloc(): who holds the object before and after, checked objects, sizes as strings."""

from __future__ import annotations

import pytest
from slab_bytes import ALL, bytes_at, put

import realmem as rm
from realmem import GFP, GFP_KERNEL, AllocatorError


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


@pytest.fixture
def checking():
    with rm.Machine(nodes=1, memory="32M", slab_debug="FZPU,kmalloc-1*") as made:
        yield made
        made.check()


def test_the_zone_follows_the_size(checking):
    machine = checking
    cache = machine.kmem_caches["kmalloc-128"]
    before = cache.errors
    addr = machine.kmalloc(100, GFP.KERNEL | GFP.ZERO)
    assert bytes_at(addr, 100) == bytes(100) and bytes_at(addr + 100, 28) == b"\xcc" * 28
    assert machine.krealloc(addr, 120, GFP.KERNEL | GFP.ZERO) == addr
    assert bytes_at(addr, 120) == bytes(120) and bytes_at(addr + 120, 8) == b"\xcc" * 8
    assert machine.krealloc(addr, 10) == addr
    assert bytes_at(addr + 10, 118) == b"\xcc" * 118
    assert cache.validate() == 0
    put(addr + 10, 0)
    with pytest.raises(AllocatorError, match="kmalloc Redzone overwritten"):
        machine.kfree(addr)
    assert machine.ksize(addr) == 128
    put(addr + 20, 0, 0)                # all of it may be used now
    assert cache.validate() == 0
    put(addr, *range(16))
    moved = machine.krealloc(addr, 1000)
    assert moved != addr and bytes_at(moved, 16) == bytes(range(16))
    assert machine.kmem_caches["kmalloc-1k"].flags & ALL == ALL
    machine.kfree(moved)
    assert cache.errors == before + 3
