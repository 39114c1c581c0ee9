"""The README's example for compiled users, built as they would build it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compiled import build

import realmem as rm

# What the README has no need of.
MORE = '''

def give_back(MachineCore core, addr):
    return vfree(core.m, <void*><size_t>addr)


def take(KmemCache cache):
    return <size_t>kmem_cache_alloc(cache.s, GFP_KERNEL)


def give(KmemCache cache, addr):
    kmem_cache_free(cache.s, <void*><size_t>addr)


def keep(MachineCore core, size):
    return <size_t>vmalloc(core.m, size, GFP_KERNEL)
'''
README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    text = re.search(r"<!-- example\.pyx -->\n```cython\n(.*?)```\n", README.read_text(), re.S)[1]
    return build(tmp_path_factory.mktemp("example"), "example", text + MORE)


def test_it_runs(example):
    with rm.Machine(memory="16M") as machine:
        cache = machine.kmem_cache_create("mine", 96, flags=rm.SLAB.NO_MERGE)
        assert example.churn(cache, 100000) == 100000
        assert cache.num_slabs == 1
        cache.shrink()
        assert cache.num_objs == 0
        for size in (1, 100, 8192, 100000):
            assert example.copy(machine.core, b"x" * size) == b"x" * size
        machine.check()


def test_what_compiled_code_allocated_python_may_free(example):
    with rm.Machine(memory="16M") as machine:
        cache = machine.kmem_cache_create("mine", 96)
        with machine.inject("page_alloc", probability=1):
            assert example.churn(cache, 5) == 0
        assert example.churn(cache, 5) == 5
        machine.check()
        for free in (cache.free, machine.kfree, lambda addr: cache.free_bulk([addr])):
            addr = example.take(cache)
            for wrong in (addr + 8, addr - 1):
                with pytest.raises(rm.AllocatorError):
                    free(wrong)
            with pytest.raises(rm.AllocatorError, match="wrong slab cache"):
                machine.kmem_caches["kmalloc-64"].free(addr)
            free(addr)
            with pytest.raises(rm.AllocatorError, match="double free"):
                free(addr)
            machine.check()
        # Whoever had it last: what compiled code freed after Python is caught as well.
        addr = cache.alloc()
        cache.free(addr)
        again = example.take(cache)
        assert again == addr
        example.give(cache, again)
        with pytest.raises(rm.AllocatorError, match="double free"):
            cache.free(addr)
        machine.check()


def test_vmalloc_and_kvmalloc(example):
    with rm.Machine(memory="16M", window="1G") as machine:
        with pytest.raises(MemoryError):
            example.frames(machine.core, 3)         # no area yet
        assert example.fill(machine.core, 5000)     # kmalloc() has it
        assert machine.vmalloc_area.base == machine.vmalloc_base != 0
        frames = example.frames(machine.core, 700)
        assert len(set(frames)) == 700
        assert all(not machine.pfn_to_page(pfn).refcount for pfn in frames)
        assert machine.procfs["/proc/vmallocinfo"].count("vmalloc") == 0
        for size in (1, 5000, 3 << 20, 6 << 20):
            assert example.fill(machine.core, size)
        assert not example.fill(machine.core, 17 << 20)
        for size in (0, -rm.PAGE_SIZE, 1 << 25):
            with pytest.raises(MemoryError):
                example.frames(machine.core, size // rm.PAGE_SIZE)
        for point in ("page_alloc", "slab"):
            nth, failed = 0, True
            while failed:
                nth += 1
                with machine.inject(point, nth=nth, times=1 << 40) as injection:
                    try:
                        example.frames(machine.core, 600)
                    except MemoryError:
                        assert injection.failures
                failed = injection.failures != 0
                machine.check()
            assert nth > 1
        machine.check()


def test_whose_area_it_is(example):
    """vmallocinfo names no caller that was not it."""
    with rm.Machine(memory="16M", window="1G") as machine:
        addr = machine.vmalloc(rm.PAGE_SIZE)
        assert "test_whose_area_it_is" in machine.procfs["/proc/vmallocinfo"]
        assert example.give_back(machine.core, addr) == 0
        assert example.give_back(machine.core, addr) != 0           # twice: it says so
        machine.vm_unmap_aliases()
        assert example.keep(machine.core, rm.PAGE_SIZE) == addr     # at the same place
        text = machine.procfs["/proc/vmallocinfo"]
        assert "pages=1" in text
        assert "test_whose_area_it_is" not in text
        machine.check()


def test_a_closed_machine_has_no_core():
    machine = rm.Machine(memory="16M")
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.core
