"""Objects of debugged caches: contents, constructors, failures."""

from __future__ import annotations

import pytest
from slab_bytes import (
    ALL,
    CHECKS,
    POISON,
    USER,
    ZONE,
    bytes_at,
    put,
)

import realmem as rm
from realmem import GFP, SLAB


@pytest.mark.parametrize("flags", [CHECKS, ZONE, POISON, USER, ALL])
def test_a_cache_works_as_any_other(make, machine, flags):
    cache = make(72, flags)
    held = {}
    for step in range(400):
        if step % 3 and held:
            addr = next(iter(held))
            assert bytes_at(addr, 72) == held.pop(addr)
            cache.free(addr)
        else:
            addr = cache.alloc(GFP.KERNEL | GFP.ZERO if step % 2 else GFP.KERNEL)
            if step % 2:
                assert bytes_at(addr, 72) == bytes(72)
            assert addr not in held
            held[addr] = bytes([step % 256]) * 72
            machine.view(addr, 72)[:] = held[addr]
    assert cache.active_objs == len(held)
    assert cache.validate() == 0
    cache.free_bulk(list(held))
    cache.shrink()
    assert cache.num_objs == 0


@pytest.mark.parametrize("flags", [CHECKS, ZONE, POISON, USER, ALL])
def test_constructed_objects_keep_their_state(make, flags):
    made = []

    def ctor(view):
        view[:] = b"new!" * 8
        made.append(1)
    cache = make(32, flags, ctor=ctor)
    addr = cache.alloc()
    assert len(made) == cache.objs_per_slab
    assert bytes_at(addr, 32) == b"new!" * 8
    put(addr, 1, 2)
    cache.free(addr)
    again = cache.alloc()
    assert bytes_at(again, 32) == b"\1\2w!" + b"new!" * 7 if again == addr else b"new!" * 8
    assert cache.validate() == 0
    cache.free(again)
    with pytest.raises(ValueError, match="constructor"):
        cache.alloc(GFP.KERNEL | GFP.ZERO)


def test_typesafe_objects_keep_their_state(make):
    cache = make(32, ALL | SLAB.TYPESAFE_BY_RCU)
    addr = cache.alloc()
    put(addr, *b"state")
    cache.free(addr)
    assert bytes_at(addr, 5) == b"state"
    assert cache.validate() == 0


def test_failing_on_request(make, machine):
    cache = make(64, ALL)
    with machine.inject("slab", nth=1), pytest.raises(rm.OutOfMemory):
        cache.alloc()
    with machine.inject("slab", nth=1) as injection:
        with pytest.raises(rm.OutOfMemory):
            machine.kmalloc(20)
        machine.kfree(machine.kmalloc(20))
        assert injection.attempts == 2
    cache.shrink()
    with machine.inject("page_alloc", probability=1), pytest.raises(rm.OutOfMemory):
        cache.alloc()
    cache.free(cache.alloc())
