"""Any byte that is guarded, any free pointer: found, named, restored, or survived."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slab_bytes import (
    ALL,
    CHECKS,
    NUMBERS,
    POISON,
    TRACKS,
    USER,
    WORD,
    ZONE,
    bytes_at,
    layout,
    put,
)
from soak import examples

from realmem import SLAB

FLAGS = st.sets(st.sampled_from([ZONE, POISON, USER]), min_size=1).map(
    lambda flags: CHECKS | SLAB(sum(flags)))


def guarded_bytes(where, flags, free):
    """Which bytes are checked, by (offset from the object) ranges and what they are called."""
    end = where.inuse + (WORD if where.offset >= where.inuse else 0)
    end += TRACKS if flags & USER else 0
    if flags & ZONE:
        yield "Left Redzone", -where.red_left_pad, 0
        yield "Right Redzone", where.object_size, where.inuse
    elif flags & POISON:
        yield "Alignment padding", where.object_size, where.inuse
    if flags & POISON:
        if free:
            yield "Poison", 0, where.object_size - 1
            yield "End Poison", where.object_size - 1, where.object_size
        yield "Object padding", end, where.size - where.red_left_pad


@given(size=st.integers(1, 300), flags=FLAGS, free=st.booleans(), data=st.data())
def test_any_guarded_byte_is_found_named_and_restored(machine, size, flags, free, data):
    cache = machine.kmem_cache_create(f"any{next(NUMBERS)}", size, flags=flags)
    where = layout(cache, machine)
    held = [cache.alloc() for _ in range(data.draw(st.integers(2, 2 * cache.objs_per_slab)))]
    victim = held[data.draw(st.integers(0, len(held) - 1))]
    if free:
        held.remove(victim)
        cache.free(victim)
    regions = [one for one in guarded_bytes(where, flags, free) if one[1] < one[2]]
    if regions:
        name, start, end = data.draw(st.sampled_from(regions))
        at = victim + data.draw(st.integers(start, end - 1))
        before = bytes_at(at, 1)
        put(at, before[0] ^ data.draw(st.integers(1, 255)))
        assert cache.validate() == 2
        report = machine.slab_reports[-1]
        assert report.what == f"{name} overwritten" and report.cache == cache.name
        assert report.object == victim
        assert f"{at:#x}-{at:#x}" in report.text
        assert f"FIX {cache.name}: Restoring {name}" in report.text
        assert ("Allocated in " in report.text) == bool(flags & USER)
        assert bytes_at(at, 1) == before
    assert cache.validate() == 0
    machine.check()
    held += [cache.alloc() for _ in range(5)]
    assert len(set(held)) == len(held)
    cache.free_bulk(held)
    cache.destroy()


@examples(50)
@given(size=st.integers(100, 300), flags=FLAGS, garbage=st.integers(0, 2**64 - 1),
       data=st.data())
def test_any_free_pointer_is_survived(machine, size, flags, garbage, data):
    cache = machine.kmem_cache_create(f"any{next(NUMBERS)}", size, flags=flags)
    where = layout(cache, machine)
    held = [cache.alloc() for _ in range(data.draw(st.integers(3, cache.objs_per_slab)))]
    freed = [held.pop() for _ in range(data.draw(st.integers(1, 3)))]
    for addr in freed:
        cache.free(addr)
    at = data.draw(st.sampled_from(freed)) + where.offset
    if data.draw(st.booleans()):
        garbage = data.draw(st.sampled_from(freed))     # a ring
    ctypes.c_uint64.from_address(at).value = garbage
    # What was behind it on the free list is lost, and comes to look used, one object a time.
    for _ in range(cache.objs_per_slab + 2):
        errors = cache.validate()
        machine.check()
        if errors == 0:
            break
    assert cache.validate() == 0
    for _ in range(2 * cache.objs_per_slab):
        held.append(cache.alloc())
    assert len(set(held)) == len(held)
    machine.check()
    for addr in held:
        cache.free(addr)
    assert cache.validate() == 0
    machine.check()


@pytest.mark.parametrize("flags", [POISON, POISON | CHECKS, ALL])
def test_the_padding_behind_the_last_object(make, machine, flags):
    cache = make(700, flags)
    held = [cache.alloc() for _ in range(cache.objs_per_slab)]
    slab = (min(held) - layout(cache, machine).red_left_pad)
    end = slab + (4096 << cache.order)
    assert cache.size * cache.objs_per_slab < 4096 << cache.order
    put(end - 1, 0)
    assert cache.validate() == 2
    assert machine.slab_reports[-1].what.startswith("Padding overwritten.")
    assert cache.validate() == 0
    # It is nobody's object: nothing is refused for it.
    put(end - 3, 0)
    cache.free(held.pop())
    assert machine.slab_reports[-1].what.startswith("Padding overwritten.") == bool(flags)
    cache.free_bulk(held)
