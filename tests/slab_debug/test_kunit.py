"""What Linux's own tests of SLUB do (lib/tests/slub_kunit.c), and the bytes of an object."""

from __future__ import annotations

import ctypes

import pytest
from slab_bytes import (
    POISON,
    WORD,
    ZONE,
    bytes_at,
    layout,
    put,
)


@pytest.mark.conformance("SL-26")
def test_a_byte_behind_the_object_is_two_errors(make):
    cache = make(64, ZONE)
    addr = cache.alloc()
    put(addr + 64, 0x12)
    assert cache.validate() == 2
    assert cache.validate() == 0
    cache.free(addr)
    assert cache.errors == 2


@pytest.mark.conformance("SL-27")
@pytest.mark.parametrize("at", [0, 50])
def test_a_write_to_a_freed_object_is_two_errors(make, at):
    cache = make(64, POISON)
    addr = cache.alloc()
    cache.free(addr)
    put(addr + at, 0x78)
    assert cache.validate() == 2
    assert cache.validate() == 0


@pytest.mark.conformance("SL-28")
def test_a_corrupted_free_pointer_is_three_errors_then_two_then_none(make, machine):
    cache = make(64, POISON)
    addr = cache.alloc()
    cache.free(addr)
    pointer = ctypes.c_uint64.from_address(addr + layout(cache, machine).offset)
    before = pointer.value
    pointer.value ^= 0xFF
    assert cache.validate() == 3
    machine.check()
    pointer.value = before
    assert cache.validate() == 2
    assert cache.validate() == 0


@pytest.mark.conformance("SL-29")
@pytest.mark.parametrize("size", [1, 8, 20, 64, 100])
def test_the_bytes_of_an_object(make, machine, size):
    cache = make(size, ZONE | POISON)
    where = layout(cache, machine)
    held = cache.alloc()
    free = cache.alloc()
    cache.free(free)

    def parts(addr):
        return (bytes_at(addr - where.red_left_pad, where.red_left_pad), bytes_at(addr, size),
                bytes_at(addr + size, where.inuse - size),
                bytes_at(addr + where.offset + WORD,
                         where.size - where.red_left_pad - where.offset - WORD))

    poison = b"\x6b" * (size - 1) + b"\xa5"
    for addr, zone in ((free, b"\xbb"), (held, b"\xcc")):
        left, inside, right, padding = parts(addr)
        assert left == zone * where.red_left_pad and left
        assert inside == poison
        assert right == zone * (where.inuse - size) and right
        assert padding == b"\x5a" * len(padding) and padding
    cache.free(held)


@pytest.mark.conformance("SL-30")
def test_the_zone_of_kmalloc_begins_at_what_was_asked_for(machine):
    cache = machine.kmem_caches["kmalloc-32"]
    addr = machine.kmalloc(18)
    put(addr + 18, 0xAB)
    assert cache.validate() == 2
    assert machine.slab_reports[-1].what == "kmalloc Redzone overwritten"
    assert cache.validate() == 0
    machine.kfree(addr)
