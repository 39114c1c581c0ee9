"""What callers do wrong is refused, and says who allocated and freed the object."""

from __future__ import annotations

import numpy as np
import pytest
from slab_bytes import (
    ALL,
    CHECKS,
    POISON,
    USER,
    ZONE,
    put,
)

from realmem import GFP, SLAB, AllocatorError


def test_overruns_are_found_when_the_object_is_freed(make):
    for flags in (ZONE, ALL):
        cache = make(40, flags)
        for at, region in ((-1, "Left Redzone"), (40, "Right Redzone")):
            addr = cache.alloc()
            put(addr + at, 1)
            with pytest.raises(AllocatorError, match=rf"not freed\n(.|\n)*{region} overwr") as e:
                cache.free(addr)
            assert f"FIX {cache.name}: Object at {addr:#x} not freed" in str(e.value)
            assert ("Allocated in test_overruns_are" in str(e.value)) == (flags == ALL)
            assert cache.validate() == 0
            cache.free(addr)            # it was restored, and stayed Python's


def test_a_double_free_says_who_freed_it_first(make):
    cache = make(40, ALL)
    addr = cache.alloc()
    cache.free(addr)
    before = cache.errors
    with pytest.raises(AllocatorError, match=r"^double free: object") as error:
        cache.free(addr)
    assert "Object already free" in str(error.value)
    assert "Allocated in test_a_double_free" in str(error.value)
    assert "Freed in test_a_double_free" in str(error.value)
    assert cache.errors == before + 2
    assert cache.validate() == 0


def test_interior_and_foreign_addresses(make, machine):
    cache, other = make(64, ALL), make(64, SLAB.NO_MERGE)
    addr, stranger = cache.alloc(), other.alloc()
    with pytest.raises(AllocatorError, match=r"inside object(.|\n)*Invalid object pointer"):
        cache.free(addr + 8)
    with pytest.raises(AllocatorError, match=r"Wrong slab cache. .* but object is from"):
        cache.free(stranger)
    with pytest.raises(AllocatorError, match="wrong slab cache"):
        other.free(addr)
    for nowhere in (8, 1 << 46, machine.get_free_pages(GFP.KERNEL, 0)):
        with pytest.raises(AllocatorError, match=r"bad pointer(.|\n)*Object is not a Slab page"):
            cache.free(nowhere)
    with pytest.raises(AllocatorError, match=r"inside object(.|\n)*Invalid object pointer"):
        machine.kfree(addr + 16)
    machine.kfree(addr)
    with pytest.raises(AllocatorError, match=r"double free(.|\n)*Object already free"):
        machine.kfree(addr)
    other.free(stranger)
    machine.free_page(nowhere)


@pytest.mark.parametrize("flags", [POISON, POISON | CHECKS, ALL])
def test_use_after_free_is_found_when_memory_is_given_out(make, machine, flags):
    cache = make(64, flags)
    held = [cache.alloc() for _ in range(cache.objs_per_slab)]
    victim = held.pop()
    cache.free(victim)
    put(victim + 7, 1, 2, 3)
    with pytest.raises(AllocatorError, match=r"was written to\n(.|\n)*Poison overwritten") as e:
        cache.alloc()
    assert "Marking all objects used" in str(e.value)
    assert f"{victim + 7:#x}-{victim + 9:#x}" in str(e.value)
    machine.check()
    # Its slab is given up: neither it nor its neighbours come again.
    more = [cache.alloc() for _ in range(2 * cache.objs_per_slab)]
    assert victim not in more and not set(more) & set(held)
    cache.free_bulk(more)
    if flags & CHECKS:
        with pytest.raises(AllocatorError, match="Slab disabled"):
            cache.free(held[0])
    assert cache.validate() == 0


def test_bulk(make):
    cache = make(100, ALL)
    addrs = cache.alloc_bulk(3 * cache.objs_per_slab)
    assert np.unique(addrs).size == addrs.size
    put(int(addrs[4]) + 100, 0)
    with pytest.raises(AllocatorError, match="Right Redzone overwritten"):
        cache.free_bulk(addrs)
    cache.free(int(addrs[4]))           # all others were freed
    cache.shrink()
    assert cache.num_objs == 0
    assert cache.alloc_bulk(0).size == 0


def test_what_remains_when_a_cache_is_destroyed(make):
    cache = make(64, USER)
    addr = cache.alloc()
    with pytest.raises(AllocatorError, match=r"still has 1 objects(.|\n)*Objects remaining") as e:
        cache.destroy()
    assert f"Object {addr:#x} @offset=" in str(e.value)
    assert "Allocated in test_what_remains" in str(e.value)
    cache.free(addr)


def test_an_empty_slab_is_looked_at_before_it_goes(make, machine):
    cache = make(64, POISON | CHECKS)
    addr = cache.alloc()
    cache.free(addr)
    put(addr, 1)
    cache.shrink()
    assert cache.num_objs == 0 and cache.errors == 2
    assert machine.slab_reports[-1].object == addr


def test_a_cache_without_flags_cannot_be_validated(make):
    cache = make(64, SLAB.NO_MERGE)
    with pytest.raises(ValueError, match="no debugging flags"):
        cache.validate()
    assert cache.errors == 0
