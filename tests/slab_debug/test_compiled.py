"""What compiled code does wrong is logged; threads beside Python."""

from __future__ import annotations

import logging
import threading

import pytest
from compiled import build
from slab_bytes import (
    ALL,
    CHECKS,
    ZONE,
    bytes_at,
    put,
)

import realmem as rm
from realmem import SLAB, AllocatorError

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
