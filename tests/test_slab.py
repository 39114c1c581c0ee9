"""Slab caches from Python: where objects lie, how they are counted, what is refused."""

from __future__ import annotations

import ctypes
import gc
import os
import threading

import numpy as np
import pytest

import realmem as rm
from realmem import GFP, GFP_ATOMIC, GFP_KERNEL, SLAB, AllocatorError
from realmem.slabcalc import geometry


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M") as made:
        yield made


@pytest.fixture
def cache(machine, request):
    made = machine.kmem_cache_create(f"test-{request.node.name[:40]}", 64, flags=SLAB.NO_MERGE)
    yield made
    machine.check()
    made.shrink()
    made.destroy()


# ---- geometry and places ----


@pytest.mark.parametrize("cpus", [1, 4, 64])
def test_geometry_is_linuxes(cpus):
    with rm.Machine(nodes=1, memory="16M", cpus=cpus) as machine:
        for size in (1, 8, 24, 100, 700, 4096, 5000, 33000):
            cache = machine.kmem_cache_create(f"c{size}", size, flags=SLAB.NO_MERGE)
            wanted = geometry(size, flags=SLAB.NO_MERGE, nr_cpus=cpus)
            assert (cache.object_size, cache.size, cache.align, cache.order,
                    cache.objs_per_slab) == (size, wanted.size, wanted.align, wanted.order,
                                             wanted.objs_per_slab)


@pytest.mark.conformance("SL-04")
@pytest.mark.parametrize(("size", "align"), [(20, 0), (20, 64), (200, 0), (4096, 4096), (9, 16)])
def test_objects_lie_at_multiples_of_the_stride(machine, size, align):
    cache = machine.kmem_cache_create("placed", size, align, flags=SLAB.NO_MERGE)
    addrs = [cache.alloc() for _ in range(3 * cache.objs_per_slab)]
    assert len(set(addrs)) == len(addrs)
    assert all(addr % cache.align == 0 for addr in addrs)
    slab_bytes = 4096 << cache.order
    for addr in addrs:
        assert (addr - machine.va(0)) % slab_bytes % cache.size == 0 or cache.order == 0
        machine.view(addr, size)[:] = bytes([addr >> 3 & 255]) * size
    for addr in addrs:
        assert set(machine.view(addr, size)) == {addr >> 3 & 255}
    cache.free_bulk(addrs)
    cache.shrink()
    assert cache.num_slabs == 0
    cache.destroy()


@pytest.mark.conformance("SL-33")
def test_one_object_takes_one_slab_and_its_others_count_as_active(cache):
    addr = cache.alloc()
    assert cache.num_objs == cache.active_objs == cache.objs_per_slab
    assert cache.num_slabs == cache.active_slabs == 1
    cache.free(addr)
    assert cache.num_objs == cache.objs_per_slab


def test_slabs_are_as_few_as_objects_need(cache):
    addrs = []
    for n in range(1, 5 * cache.objs_per_slab):
        addrs.append(cache.alloc())
        assert cache.num_slabs == -(-n // cache.objs_per_slab)
    cache.free_bulk(addrs)


def test_the_last_freed_comes_first(cache):
    addrs = [cache.alloc() for _ in range(10)]
    for addr in addrs:
        cache.free(addr)
    assert [cache.alloc() for _ in range(10)] == addrs[::-1]
    cache.free_bulk(addrs)


@pytest.mark.conformance("SL-15")
def test_empty_slabs_beyond_min_partial_go_back(machine):
    # Of this size threads and depots keep the least, so that frees come through to slabs.
    cache = machine.kmem_cache_create("large", 32768, flags=SLAB.NO_MERGE)
    free = sum(zone.free_pages for zone in machine.nodes[0].zones)
    addrs = cache.alloc_bulk(400)
    cache.free_bulk(addrs)
    kept = cache.num_slabs
    at_hand = cache.active_objs
    assert kept <= at_hand + geometry(32768, nr_cpus=2).min_partial
    cache.shrink()
    assert cache.num_slabs == 0
    machine.drain_all_pages()
    assert sum(zone.free_pages for zone in machine.nodes[0].zones) >= free
    cache.destroy()


def test_pages_of_slabs_say_so(machine, cache):
    addr = cache.alloc()
    page = machine.virt_to_page(addr)
    assert "slab" in page.flags
    with pytest.raises(AllocatorError):
        machine.free_pages(page, 0)
    cache.free(addr)


@pytest.mark.conformance("GF-08")
def test_zero(machine, cache):
    addrs = cache.alloc_bulk(200)
    for addr in addrs:
        machine.view(int(addr), 64)[:] = b"\xff" * 64
    cache.free_bulk(addrs)
    for addr in cache.alloc_bulk(100, GFP_KERNEL | GFP.ZERO):
        assert bytes(machine.view(int(addr), 64)) == bytes(64)
        cache.free(int(addr))
    addr = cache.alloc(GFP_KERNEL | GFP.ZERO)
    assert bytes(machine.view(addr, 64)) == bytes(64)
    cache.free(addr)


# ---- many at once ----


def test_bulk_is_an_array(cache):
    addrs = cache.alloc_bulk(1000)
    assert isinstance(addrs, np.ndarray) and addrs.dtype == np.uint64
    assert np.unique(addrs).size == 1000
    cache.free_bulk(addrs[:500])
    cache.free_bulk(addrs[500:].tolist())
    assert cache.alloc_bulk(0).size == 0
    cache.free_bulk([])
    for wrong, why in ((-1, ValueError), (1.5, TypeError), (1 << 70, ValueError)):
        with pytest.raises(why):
            cache.alloc_bulk(wrong)


def test_a_bulk_that_cannot_be_met_takes_nothing(machine, cache):
    cache.shrink()
    before = cache.active_objs
    with pytest.raises(rm.OutOfMemory) as caught:
        cache.alloc_bulk(1 << 20)
    assert cache.name in str(caught.value)
    with pytest.raises(rm.OutOfMemory):
        cache.alloc_bulk(1 << 60)
    machine.check()
    cache.shrink()
    assert cache.active_objs == before == 0


def test_a_bulk_free_that_is_wrong_frees_nothing(cache):
    addrs = cache.alloc_bulk(10)
    for bad in ([*addrs[:5], addrs[0]], [*addrs, 12345], [*addrs[:2], addrs[3] + 8]):
        with pytest.raises(AllocatorError):
            cache.free_bulk([int(addr) for addr in bad])
    cache.free_bulk(addrs)
    with pytest.raises(AllocatorError):
        cache.free_bulk(addrs)


# ---- bad frees ----


def test_wrong_frees_are_refused(machine, cache):
    other = machine.kmem_cache_create("other", 64, flags=SLAB.NO_MERGE)
    foreign = other.alloc()
    addr = cache.alloc()
    page = machine.get_free_pages(GFP_KERNEL, 0)
    stack = ctypes.create_string_buffer(64)
    cases = [
        (foreign, "other"), (addr + 8, "inside"), (addr + 1, "inside"), (addr + 64, "free"),
        (page, "no slab object"), (0, "bad pointer"), (16, "bad pointer"),
        (ctypes.addressof(stack), "bad pointer"), (-1, "bad pointer"),
        (machine.va(0) + (64 << 20), "bad pointer"), (machine.va(0) - 8, "bad pointer"),
    ]
    for wrong, why in cases:
        with pytest.raises(AllocatorError, match=why):
            cache.free(wrong)
    cache.free(addr)
    with pytest.raises(AllocatorError, match="double free"):
        cache.free(addr)
    with pytest.raises(TypeError):
        cache.free("x")
    with pytest.raises(ValueError):
        cache.free(1 << 80)
    other.free(foreign)
    machine.free_page(page)
    machine.check()
    other.destroy()


@pytest.mark.conformance("SL-31")
def test_double_frees_wherever_the_object_is(machine, cache):
    """At hand, in the depot, on its slab's list: the free list is not corrupted."""
    addrs = [int(addr) for addr in cache.alloc_bulk(5000)]
    kept = addrs[::7]
    freed = sorted(set(addrs) - set(kept))
    cache.free_bulk(freed)
    for addr in freed[::97]:
        with pytest.raises(AllocatorError, match="double free"):
            cache.free(addr)
    machine.check()
    again = cache.alloc_bulk(5000)
    assert not set(again.tolist()) & set(kept)
    cache.free_bulk(again)
    cache.free_bulk(kept)


# ---- creation and destruction ----


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((0,), ValueError), ((-8,), ValueError), ((1 << 40,), ValueError),
        (((1 << 22) + 1,), ValueError), ((b"64",), TypeError), ((True,), TypeError),
        ((64, 3), ValueError), ((64, -8), ValueError), ((64, 48), ValueError),
        ((64, 0, 1 << 30), ValueError), ((64, 0, -1), ValueError),
        ((64, 0, SLAB.KMALLOC), ValueError), ((64, 0, SLAB(0), "f"), TypeError),
        ((64, 0, SLAB(0), 0), ValueError), ((64, 0, SLAB(0), None, 8), ValueError),
        ((64, 0, SLAB.TYPESAFE_BY_RCU, None, 64), ValueError),
        ((64, 0, SLAB.TYPESAFE_BY_RCU, None, 4), ValueError),
    ],
)
def test_bad_caches_are_refused(machine, arguments, why):
    before = list(machine.kmem_caches)
    with pytest.raises(why):
        machine.kmem_cache_create("bad", *arguments)
    assert list(machine.kmem_caches) == before


def test_names(machine, cache):
    with pytest.raises(ValueError, match="already"):
        machine.kmem_cache_create(cache.name, 32)
    for name in ("", "a b", "a/b"):
        with pytest.raises(ValueError):
            machine.kmem_cache_create(name, 32)
    with pytest.raises(TypeError):
        machine.kmem_cache_create(7, 32)
    assert machine.kmem_caches[cache.name] is cache
    assert "kmalloc-64" in machine.kmem_caches and "dma-kmalloc-8k" in machine.kmem_caches
    with pytest.raises(TypeError):
        machine.kmem_caches["x"] = cache


@pytest.mark.conformance("SL-23")
def test_a_cache_in_use_is_not_destroyed(machine):
    cache = machine.kmem_cache_create("busy", 128, flags=SLAB.NO_MERGE)
    addrs = cache.alloc_bulk(3)
    with pytest.raises(AllocatorError, match="3 objects"):
        cache.destroy()
    assert machine.kmem_caches["busy"] is cache
    cache.free_bulk(addrs)
    cache.destroy()
    assert "busy" not in machine.kmem_caches
    for use in (cache.alloc, cache.shrink, cache.destroy, lambda: cache.size,
                lambda: cache.free(1)):
        with pytest.raises(ValueError, match="destroyed"):
            use()
    again = machine.kmem_cache_create("busy", 256)
    assert again.size == 256
    again.destroy()
    with pytest.raises(AllocatorError):
        machine.kmem_caches["kmalloc-64"].destroy()


def test_merged_caches_share_slabs(machine):
    first = machine.kmem_cache_create("first-120", 120, flags=SLAB.ACCOUNT)
    second = machine.kmem_cache_create("second-116", 116, flags=SLAB.ACCOUNT)
    apart = machine.kmem_cache_create("apart-120", 120)
    assert first.root == second.root != apart.root
    assert (first.object_size, second.object_size) == (120, 116)
    addr = first.alloc()
    second.free(addr)               # Linux can't tell either
    first.destroy()
    addr = second.alloc(GFP_KERNEL | GFP.ZERO)
    assert second.num_slabs == 1
    second.free(addr)
    second.destroy()
    apart.destroy()


def test_more_caches_than_magazines(machine):
    """Those without a magazine work too."""
    caches = [machine.kmem_cache_create(f"many-{i}", 64, flags=SLAB.NO_MERGE) for i in range(520)]
    addrs = [(cache, cache.alloc()) for cache in caches for _ in range(2)]
    assert len({addr for _, addr in addrs}) == len(addrs)
    machine.check()
    for cache, addr in addrs:
        cache.free(addr)
        with pytest.raises(AllocatorError, match="double free"):
            cache.free(addr)
    machine.check()
    for cache in caches:
        cache.destroy()


# ---- contexts, flags ----


def test_atomic_context(machine, cache):
    with machine.atomic_context():
        with pytest.raises(rm.AtomicContextError):
            cache.alloc()
        with pytest.raises(rm.AtomicContextError):
            cache.alloc_bulk(3)
        cache.free(cache.alloc(GFP_ATOMIC))


@pytest.mark.parametrize("gfp", [GFP_KERNEL | GFP.HIGHMEM, GFP_KERNEL | GFP.DMA32, 1 << 40,
                                 GFP.DMA | GFP.HIGHMEM])
def test_flags_that_slabs_refuse(cache, gfp):
    with pytest.raises(ValueError):
        cache.alloc(gfp)
    with pytest.raises(ValueError):
        cache.alloc_bulk(2, gfp)


def test_unknown_nodes(cache):
    for node in (-2, 1, 99):
        with pytest.raises(ValueError):
            cache.alloc(node=node)
    cache.free(cache.alloc(node=0))


# ---- constructors ----


def test_python_constructor_runs_once_an_object(machine):
    seen = []

    def construct(view):
        seen.append(len(view))
        view[:4] = b"ctor"

    cache = machine.kmem_cache_create("constructed", 60, ctor=construct)
    assert cache.size == 72 and cache.mergeable is False
    addr = cache.alloc()
    assert seen == [60] * cache.objs_per_slab
    assert bytes(machine.view(addr, 4)) == b"ctor"
    machine.view(addr, 60)[4:8] = b"keep"
    cache.free(addr)
    assert cache.alloc() == addr
    assert bytes(machine.view(addr, 8)) == b"ctorkeep"
    cache.free(addr)
    addrs = cache.alloc_bulk(3 * cache.objs_per_slab)
    assert len(seen) == cache.num_objs == 3 * cache.objs_per_slab
    assert all(bytes(machine.view(int(addr), 4)) == b"ctor" for addr in addrs)
    cache.free_bulk(addrs)
    # Through slabs' own free lists as well.
    one = cache.alloc()
    cache.shrink()
    addrs = cache.alloc_bulk(cache.objs_per_slab - 1)
    assert all(bytes(machine.view(int(addr), 4)) == b"ctor" for addr in addrs)
    assert len(seen) == 3 * cache.objs_per_slab
    cache.free_bulk(addrs)
    cache.free(one)
    with pytest.raises(ValueError, match="cleared"):
        cache.alloc(GFP_KERNEL | GFP.ZERO)
    machine.check()
    cache.destroy()


def test_constructor_that_raises(machine):
    state = {"left": 5}

    def construct(view):
        state["left"] -= 1
        if state["left"] < 0:
            raise KeyError("no more")

    cache = machine.kmem_cache_create("raises", 64, ctor=construct)
    for use in (cache.alloc, lambda: cache.alloc_bulk(2)):
        with pytest.raises(KeyError):
            use()
    assert (cache.num_slabs, cache.active_objs) == (0, 0)
    machine.check()
    state["left"] = cache.objs_per_slab
    with pytest.raises(KeyError):
        cache.alloc_bulk(cache.objs_per_slab + 1)
    machine.check()
    addrs = cache.alloc_bulk(cache.objs_per_slab)
    cache.free_bulk(addrs)
    cache.destroy()


def test_c_constructor(machine):
    filled = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda at: ctypes.memset(at, 0x5A, 100) and None)
    cache = machine.kmem_cache_create("in-c", 100, ctor=ctypes.cast(filled, ctypes.c_void_p).value)
    addr = cache.alloc()
    assert bytes(machine.view(addr, 100)) == b"\x5a" * 100
    with pytest.raises(ValueError, match="cleared"):
        cache.alloc(GFP_KERNEL | GFP.ZERO)
    cache.free(addr)
    cache.destroy()


# ---- threads, nodes, life ----


def test_a_thread_that_ends_gives_its_objects_back(machine, cache):
    held = []
    thread = threading.Thread(target=lambda: held.append(cache.alloc()))
    thread.start()
    thread.join()
    assert cache.num_slabs == 1
    machine.check()
    cache.free(held[0])
    cache.shrink()
    assert cache.num_slabs == 0


def test_shrink_calls_in_what_other_threads_hold(cache):
    ready, go = threading.Event(), threading.Event()

    def hold():
        cache.free(cache.alloc())
        ready.set()
        go.wait()
        cache.free(cache.alloc())

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    assert cache.num_slabs == 1
    cache.shrink()
    assert cache.num_slabs == 0
    go.set()
    thread.join()


@pytest.mark.conformance("SL-34")
def test_nodes():
    with rm.Machine(nodes=3, memory="32M") as machine:
        cache = machine.kmem_cache_create("spread", 256)
        for node in (0, 1, 2, 1):
            addrs = [cache.alloc(node=node) for _ in range(100)]
            assert {machine.virt_to_page(addr).node for addr in addrs} == {node}
            machine.check()
            cache.free_bulk(addrs)
            machine.check()
        # What came from another node is not handed out here.
        here = machine.virt_to_page(cache.alloc()).node
        far = [cache.alloc(node=(here + 1) % 3) for _ in range(500)]
        cache.free_bulk(far)
        near = cache.alloc_bulk(600)
        assert {machine.virt_to_page(int(addr)).node for addr in near} == {here}
        assert not set(near.tolist()) & set(far)
        machine.check()
        cache.free_bulk(near)


def test_memory_of_another_node_when_this_has_none():
    with rm.Machine(nodes=2, memory="16M") as machine:
        cache = machine.kmem_cache_create("big", 4096)
        addrs = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                addrs.append(cache.alloc(node=0))
        assert {machine.virt_to_page(addr).node for addr in addrs} == {0, 1}
        machine.check()
        with pytest.raises(rm.OutOfMemory):
            cache.alloc(GFP_KERNEL | GFP.THISNODE, node=0)
        cache.free_bulk(addrs)
        machine.check()
        cache.shrink()
        assert cache.num_slabs == 0
        machine.check()


def test_closed_machine():
    machine = rm.Machine(nodes=1, memory="16M")
    cache = machine.kmem_cache_create("left", 64)
    addr = cache.alloc()
    machine.close()
    for use in (cache.alloc, lambda: cache.free(addr), cache.shrink, cache.destroy,
                lambda: cache.alloc_bulk(3), lambda: cache.free_bulk([addr]),
                lambda: cache.num_objs):
        with pytest.raises(ValueError, match="closed"):
            use()
    del machine
    gc.collect()
    assert cache.name == "left"


def test_forked_child_is_refused(cache):
    addr = cache.alloc()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            cache.alloc()
        except ValueError:
            try:
                cache.free(addr)
            except ValueError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    cache.free(addr)
