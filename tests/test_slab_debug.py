"""Debugged slab caches: what is corrupted is found, named, repaired, and the cache goes on."""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading

import numpy as np
import pytest
from compiled import build
from hypothesis import given, settings
from hypothesis import strategies as st

import realmem as rm
from realmem import GFP, SLAB, AllocatorError
from realmem.slabcalc import geometry

CHECKS, ZONE, POISON, USER = (SLAB.CONSISTENCY_CHECKS, SLAB.RED_ZONE, SLAB.POISON,
                              SLAB.STORE_USER)
ALL = CHECKS | ZONE | POISON | USER
WORD = 8
TRACKS = 2 * 32
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M", slab_debug="ZU,kmalloc-32;FZPU,kmalloc-1*") as made:
        yield made


@pytest.fixture
def make(machine, request):
    """Make caches named for the test; all of them go afterwards."""
    made = []

    def make(size, flags, **options):
        cache = machine.kmem_cache_create(f"{request.node.name[:30]}-{next(NUMBERS)}", size,
                                          flags=flags, **options)
        made.append(cache)
        return cache
    yield make
    machine.check()
    for cache in made:
        cache.shrink()
        if cache.num_objs == 0:
            cache.destroy()


def put(addr, *values):
    for at, value in enumerate(values):
        ctypes.c_ubyte.from_address(addr + at).value = value


def bytes_at(addr, size):
    return ctypes.string_at(addr, size)


def layout(cache, machine):
    return geometry(cache.object_size, cache.align, cache.flags, nr_cpus=machine.cpus,
                    ctor=cache.constructor is not None)


# ---- what Linux's own tests of SLUB do (lib/tests/slub_kunit.c) ----


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


# ---- any byte ----


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


@settings(max_examples=50)
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


# ---- what callers do wrong ----


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


# ---- objects themselves ----


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


def test_krealloc_and_ksize(machine):
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
    machine.check()


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


# ---- compiled callers ----

SOURCE = """
# cython: language_level=3
from libc.stdint cimport uint64_t

from realmem._core.kmem_cache cimport KmemCache
from realmem._core.machine cimport MachineCore
from realmem._kernel.kmalloc cimport kfree as c_kfree, kmalloc as c_kmalloc
from realmem._kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport GFP_KERNEL


def alloc(KmemCache cache):
    return <uint64_t>kmem_cache_alloc(cache.s, GFP_KERNEL)


def free(KmemCache cache, uint64_t object):
    kmem_cache_free(cache.s, <void*>object)


def kmalloc(MachineCore core, uint64_t size):
    return <uint64_t>c_kmalloc(core.m, size, GFP_KERNEL)


def kfree(MachineCore core, uint64_t object):
    c_kfree(core.m, <void*>object)


def churn(KmemCache cache, int held, int turns):
    cdef kmem_cache* s = cache.s
    cdef void* objects[256]
    cdef int i
    cdef int n
    cdef int wrong = 0
    with nogil:
        for i in range(turns):
            for n in range(held):
                objects[n] = kmem_cache_alloc(s, GFP_KERNEL)
                if objects[n] != NULL:
                    (<uint64_t*>objects[n])[0] = <uint64_t>objects[n]
            for n in range(held):
                if objects[n] != NULL:
                    wrong += (<uint64_t*>objects[n])[0] != <uint64_t>objects[n]
                    kmem_cache_free(s, objects[n])
    return wrong
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    return build(tmp_path_factory.mktemp("user"), "slab_user", SOURCE)


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "realmem.slub"]


def test_wrong_frees_of_compiled_code_are_logged(user, make, machine, caplog):
    cache, other = make(64, ALL), make(64, ALL)
    plain = make(64, SLAB.NO_MERGE)
    addr = user.alloc(cache)
    user.free(cache, addr)
    user.free(cache, addr)
    stranger = user.alloc(other)
    user.free(cache, stranger)          # freed all the same, to its own cache
    undebugged = user.alloc(plain)
    user.free(cache, undebugged)
    inside = user.alloc(cache)
    user.free(cache, inside + 8)
    user.free(cache, 4096)
    put(inside + 64, 1)
    user.free(cache, inside)            # stays in use
    with caplog.at_level(logging.ERROR, "realmem.slub"):
        whats = [report.what for report in machine.slab_reports][-6:]
    assert whats == [
        "Object already free", f"Wrong slab cache. {cache.name} but object is from {other.name}",
        f"Wrong slab cache. {cache.name} but object is from {plain.name}",
        f"Invalid object pointer {inside + 8:#x}", "Object is not a Slab page: 0x1000",
        "Right Redzone overwritten",
    ]
    texts = logged(caplog)
    assert len(texts) == 6 and "Allocated in slab_user." in texts[0]
    assert "+0x" in texts[0] and "Freed in slab_user." in texts[0]
    cache.shrink(), other.shrink(), plain.shrink()
    assert (cache.active_objs, other.num_objs, plain.num_objs) == (cache.active_objs, 0, 0)
    assert cache.validate() == 0
    cache.free(inside)


def test_what_python_finds_is_not_logged_too(make, caplog):
    cache = make(64, ALL)
    addr = cache.alloc()
    cache.free(addr)
    with pytest.raises(AllocatorError):
        cache.free(addr)
    assert logged(caplog) == []


def test_kfree_of_compiled_code(user, machine, caplog):
    cache = machine.kmem_caches["kmalloc-16"]
    before = cache.errors
    addr = user.kmalloc(machine.core, 10)
    assert bytes_at(addr + 10, 6) == b"\xcc" * 6
    put(addr + 10, 0)
    user.kfree(machine.core, addr)
    assert cache.errors == before + 3
    user.kfree(machine.core, addr)
    user.kfree(machine.core, addr)
    assert cache.errors == before + 5
    user.kfree(machine.core, addr + 4)
    machine.check()
    assert [text.splitlines()[1] for text in logged(caplog)] == [
        "BUG kmalloc-16 (Not tainted): kmalloc Redzone overwritten",
        "BUG kmalloc-16 (Not tainted): Object already free",
        f"BUG kmalloc-16 (Not tainted): Invalid object pointer {addr + 4:#x}",
    ]


def test_without_consistency_checks_compiled_code_is_not_checked(user, make):
    cache = make(64, ZONE)
    addr = user.alloc(cache)
    put(addr + 64, 1)
    user.free(cache, addr)
    assert cache.errors == 0


def test_a_storm_of_findings_is_counted(user, make, machine, caplog):
    cache = make(64, CHECKS)
    addr = user.alloc(cache)
    user.free(cache, addr)
    for _ in range(100):
        user.free(cache, addr)
    assert cache.errors == 200
    machine.check()
    assert "136 more findings" in logged(caplog)[-1]
    assert len(machine.slab_reports) <= 256


@pytest.mark.parametrize("flags", [CHECKS, ALL])
def test_two_threads_and_python(user, make, machine, flags):
    cache = make(48, flags)
    done = []
    threads = [threading.Thread(target=lambda: done.append(user.churn(cache, 200, 40)))
               for _ in range(2)]
    for thread in threads:
        thread.start()
    held = []
    while any(thread.is_alive() for thread in threads):
        held.append(cache.alloc())
        if len(held) > 50:
            cache.free_bulk(held)
            held.clear()
            assert cache.validate() == 0
    for thread in threads:
        thread.join()
    assert done == [0, 0]
    cache.free_bulk(held)
    machine.check()
    cache.shrink()
    assert cache.num_objs == 0 and cache.errors == 0


def test_what_is_found_last_is_logged_when_the_machine_closes(user, caplog):
    with rm.Machine(nodes=1, memory="16M") as machine:
        cache = machine.kmem_cache_create("last", 64, flags=CHECKS)
        addr = user.alloc(cache)
        user.free(cache, addr)
        user.free(cache, addr)
        assert logged(caplog) == []
    assert "BUG last (Not tainted): Object already free" in logged(caplog)[0]
