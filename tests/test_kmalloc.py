"""kmalloc() and its kin from Python."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import GFP, GFP_ATOMIC, GFP_KERNEL, AllocatorError
from realmem.slabcalc import KMALLOC_SIZES, kmalloc_name, kmalloc_size_roundup

ZERO_SIZE_PTR = 16


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M") as made:
        yield made
        made.check()


def cache_of(machine, addr):
    """Name the cache that an object is of, by whose counts say so."""
    return next(cache for cache in machine.kmem_caches.values()
                if cache.num_slabs and owns(machine, cache, addr))


def owns(machine, cache, addr):
    try:
        cache.free(addr)
    except AllocatorError:
        return False
    assert cache.alloc() == addr
    return True


@pytest.mark.conformance("KM-02", "KM-07")
def test_sizes(machine):
    for size in [*range(1, 300), 511, 512, 513, 4096, 4097, 8191, 8192]:
        addr = machine.kmalloc(size)
        usable = machine.ksize(addr)
        assert usable == kmalloc_size_roundup(size)
        assert addr % (usable & -usable) == 0
        machine.kfree(addr)
    assert machine.ksize(machine.kmalloc(20)) == 32


@pytest.mark.conformance("KM-10")
@pytest.mark.parametrize(
    ("gfp", "kind"),
    [(GFP_KERNEL, ""), (GFP_KERNEL | GFP.DMA, "dma-"), (GFP_KERNEL | GFP.RECLAIMABLE, "rcl-"),
     (GFP_KERNEL | GFP.ACCOUNT, "cg-"), (GFP_KERNEL | GFP.RECLAIMABLE | GFP.ACCOUNT, "rcl-"),
     (GFP_KERNEL | GFP.DMA | GFP.ACCOUNT, "dma-"), (GFP_ATOMIC, "")],
)
def test_families(machine, gfp, kind):
    for size in KMALLOC_SIZES[1:]:
        addr = machine.kmalloc(size, gfp)
        assert cache_of(machine, addr).name == kmalloc_name(kind, size)
        if kind == "dma-":
            assert machine.virt_to_page(addr).zone.name == "DMA"
        machine.kfree(addr)


@pytest.mark.conformance("KM-03", "KM-04")
def test_beyond_the_caches(machine):
    addr = machine.kmalloc(8193)
    assert machine.ksize(addr) == 16384
    assert machine.virt_to_page(addr).order == 2
    with pytest.raises(AllocatorError):
        machine.kfree(addr + 4096)
    machine.kfree(addr)
    with pytest.raises(AllocatorError):
        machine.kfree(addr)
    most = machine.kmalloc(4 << 20)
    assert machine.virt_to_page(most).order == 10
    machine.check()
    machine.kfree(most)
    with pytest.raises(ValueError):
        machine.kmalloc((4 << 20) + 1)


@pytest.mark.conformance("KM-05")
def test_nothing(machine):
    assert machine.kmalloc(0) == machine.kzalloc(0) == machine.kcalloc(0, 8) == ZERO_SIZE_PTR
    assert machine.ksize(ZERO_SIZE_PTR) == machine.ksize(0) == 0
    machine.kfree(ZERO_SIZE_PTR)
    machine.kfree(0)


def test_zeroed(machine):
    for size in (8, 100, 8192, 20000):
        addrs = [machine.kmalloc(size) for _ in range(4)]
        for addr in addrs:
            machine.view(addr, size)[:] = b"\xff" * size
            machine.kfree(addr)
        for make in (machine.kzalloc, lambda size: machine.kcalloc(size // 4, 4),
                     lambda size: machine.kmalloc(size, GFP_KERNEL | GFP.ZERO)):
            addr = make(size)
            assert not any(machine.view(addr, size))
            machine.view(addr, size)[:] = b"\xff" * size
            machine.kfree(addr)


def test_bad_requests(machine):
    for call in (
        lambda: machine.kmalloc(-1), lambda: machine.kmalloc(1 << 62),
        lambda: machine.kmalloc(1 << 70), lambda: machine.kcalloc(1 << 40, 1 << 40),
        lambda: machine.kcalloc(-1, 8), lambda: machine.kcalloc(1 << 20, 8),
        lambda: machine.kmalloc(8, GFP_KERNEL | GFP.HIGHMEM),
        lambda: machine.kmalloc(8, GFP_KERNEL | GFP.DMA32),
        lambda: machine.kmalloc_node(8, node=7), lambda: machine.kmalloc(8, 1 << 50),
    ):
        with pytest.raises(ValueError):
            call()
    for call in (lambda: machine.kmalloc(b"8"), lambda: machine.kmalloc(8.0),
                 lambda: machine.kfree(None), lambda: machine.kmalloc()):
        with pytest.raises(TypeError):
            call()
    with machine.atomic_context():
        with pytest.raises(rm.AtomicContextError):
            machine.kmalloc(8)
        machine.kfree(machine.kmalloc(8, GFP_ATOMIC))


def test_bad_frees(machine):
    addr = machine.kmalloc(64)
    page = machine.get_free_pages(GFP_KERNEL, 2)
    for wrong in (addr + 8, addr + 1, page, page + 4096, 8, 24, -16, machine.va(0) - 64):
        with pytest.raises(AllocatorError):
            machine.kfree(wrong)
        if wrong not in (8,):
            with pytest.raises(AllocatorError):
                machine.ksize(wrong)
            with pytest.raises(AllocatorError):
                machine.krealloc(wrong, 100)
    machine.kfree(addr)
    with pytest.raises(AllocatorError, match="double free"):
        machine.kfree(addr)
    machine.free_pages(page, 2)
    machine.check()


def test_kfree_takes_objects_of_any_cache(machine):
    cache = machine.kmem_cache_create("any", 72)
    machine.kfree(cache.alloc())
    cache.destroy()


@pytest.mark.conformance("KM-08")
def test_krealloc(machine):
    addr = machine.krealloc(0, 100)
    machine.view(addr, 100)[:] = bytes(range(100))
    assert machine.krealloc(addr, 50) == machine.krealloc(addr, 128) == addr
    grown = machine.krealloc(addr, 5000)
    assert grown != addr
    assert bytes(machine.view(grown, 100)) == bytes(range(100))
    with pytest.raises(AllocatorError):
        machine.kfree(addr)
    large = machine.krealloc(grown, 100000)
    assert bytes(machine.view(large, 100)) == bytes(range(100))
    assert machine.krealloc(large, 0) == ZERO_SIZE_PTR
    with pytest.raises(AllocatorError):
        machine.kfree(large)
    addr = machine.krealloc(ZERO_SIZE_PTR, 8)
    for wrong in (-1, 1 << 40):
        with pytest.raises(ValueError):
            machine.krealloc(addr, wrong)
    machine.kfree(addr)


def test_krealloc_without_memory_keeps_the_object():
    with rm.Machine(nodes=1, memory="16M") as machine:
        addr = machine.kmalloc(100)
        machine.view(addr, 100)[:] = b"x" * 100
        blocks = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                blocks.append(machine.get_free_pages(GFP_ATOMIC, 0))
        with pytest.raises(rm.OutOfMemory):
            machine.krealloc(addr, 1 << 20)
        assert bytes(machine.view(addr, 100)) == b"x" * 100
        machine.kfree(addr)
        for block in blocks:
            machine.free_page(block)
        machine.check()


@pytest.mark.conformance("GF-10")
def test_nodes():
    with rm.Machine(nodes=2, memory="32M") as machine:
        for size in (64, 8192, 100000):
            for node in (0, 1):
                addr = machine.kmalloc_node(size, GFP_KERNEL, node)
                assert machine.virt_to_page(addr).node == node
                machine.kfree(addr)
        # DMA memory is on the first node only.
        addrs = [machine.kmalloc_node(64, GFP_KERNEL | GFP.DMA, 1) for _ in range(200)]
        assert {machine.virt_to_page(addr).node for addr in addrs} == {0}
        assert machine.kmem_caches["dma-kmalloc-64"].num_slabs <= 4
        machine.check()
        with pytest.raises(rm.OutOfMemory):
            machine.kmalloc_node(64, GFP_KERNEL | GFP.DMA | GFP.THISNODE, 1)
        for addr in addrs:
            machine.kfree(addr)
        machine.check()


@given(st.lists(st.tuples(st.integers(0, 20000), st.integers(0, 20000)), max_size=30))
def test_random_sizes_do_not_overlap(machine, requests):
    live = {}
    for number, (size, change) in enumerate(requests):
        addr = machine.kmalloc(size)
        if size:
            machine.view(addr, size)[:] = bytes([number & 255]) * size
        addr = machine.krealloc(addr, change)
        kept = min(size, change)
        if change:
            assert bytes(machine.view(addr, change))[:kept] == bytes([number & 255]) * kept
            live[addr] = (number, kept)
    for addr, (number, kept) in live.items():
        if kept:
            assert set(machine.view(addr, kept)) == {number & 255}
        machine.kfree(addr)
