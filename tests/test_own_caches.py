"""The slab caches that realmem's own kernel-side objects live in."""

from __future__ import annotations

import ctypes
import errno

import pytest

import realmem as rm
from realmem import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE, SLAB
from realmem._core import own_caches

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
FLAGS = {
    "task_struct": SLAB.PANIC | SLAB.ACCOUNT,
    "mm_struct": SLAB.HWCACHE_ALIGN | SLAB.PANIC | SLAB.ACCOUNT,
    "vm_area_struct": SLAB.HWCACHE_ALIGN | SLAB.PANIC | SLAB.ACCOUNT | SLAB.TYPESAFE_BY_RCU,
    "vmap_area": SLAB.PANIC,
    "anon_vma": SLAB.PANIC | SLAB.ACCOUNT | SLAB.TYPESAFE_BY_RCU,
    "anon_vma_chain": SLAB.PANIC | SLAB.ACCOUNT,
}


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


def held(machine, name):
    """Objects that somebody has: what a shrink leaves in use."""
    cache = machine.kmem_caches[name]
    cache.shrink()
    return cache.active_objs


def all_held(machine):
    return {name: held(machine, name) for name in FLAGS}


def test_they_are_there_from_the_start_with_linux_s_flags(machine):
    for name, flags in FLAGS.items():
        cache = machine.kmem_caches[name]
        assert (cache.name, cache.flags, cache.num_objs) == (name, flags, 0)
    assert machine.kmem_caches["task_struct"].align == 64
    assert machine.kmem_caches["anon_vma"].constructor is not None
    lines = machine.procfs["/proc/slabinfo"].splitlines()
    assert set(FLAGS) <= {line.split()[0] for line in lines[2:]}


def test_a_process_has_one_of_each_and_a_vma_each(machine):
    before = all_held(machine)
    parent = machine.spawn()
    assert held(machine, "task_struct") == held(machine, "mm_struct") == 1
    for i in range(10):                     # apart, so that they do not merge
        parent.mmap(None, PAGE_SIZE, RW if i % 2 else PROT_READ, ANON)
    assert held(machine, "vm_area_struct") == len(parent.vmas) == 10
    child = parent.fork()
    assert (held(machine, "task_struct"), held(machine, "vm_area_struct")) == (2, 20)
    vma = child.vmas[3]
    child.munmap(vma.start, vma.end - vma.start)
    assert held(machine, "vm_area_struct") == len(parent.vmas) + len(child.vmas) == 19
    machine.check()
    parent.exit()
    assert (held(machine, "mm_struct"), held(machine, "vm_area_struct")) == (1, 9)
    child.exit()
    assert all_held(machine) == before
    assert machine.kmem_caches["vm_area_struct"].num_slabs == 0     # the last one tidies up


def test_rounds_leave_nothing(machine):
    first = None
    for _ in range(5):
        processes = [machine.spawn()]
        for i in range(6):
            processes.append(processes[i // 2].fork())
            processes[-1].mmap(None, 5 * PAGE_SIZE, RW, ANON)
            processes[-1].munmap(processes[-1].vmas[0].start + PAGE_SIZE, PAGE_SIZE)
        machine.check()
        for process in processes:
            process.exit()
        now = (all_held(machine), sum(zone.free_pages for zone in machine.nodes[0].zones))
        first = first or now
        machine.drain_all_pages()
    assert all_held(machine) == first[0]


def test_descriptors_of_the_vmalloc_area(machine):
    """One for each area, free range and range that waits for a purge (Linux: vmap_area)."""
    areas = [machine.vmalloc(PAGE_SIZE) for _ in range(200)]
    assert held(machine, "vmap_area") == 201
    for addr in areas[::2]:
        machine.vfree(addr)
    assert held(machine, "vmap_area") == 201        # lazily freed
    machine.vm_unmap_aliases()
    assert held(machine, "vmap_area") == 201        # 100 areas, 100 holes, the rest
    for addr in areas[1::2]:
        machine.vfree(addr)
    machine.vm_unmap_aliases()
    assert held(machine, "vmap_area") == 1
    assert machine.kmem_caches["vmap_area"].num_slabs == 1


def test_their_objects_are_what_they_should_be(machine):
    """The first words of a task_struct and of a vm_area_struct, found in their slabs."""
    process = machine.spawn()
    addr = process.mmap(None, 3 * PAGE_SIZE, RW, ANON)
    found = {}
    for zone in machine.nodes[0].zones:
        for pfn in range(zone.start_pfn, zone.start_pfn + zone.spanned_pages):
            page = machine.pfn_to_page(pfn)
            if "slab" not in page.flags:
                continue
            name = machine._slab.core.name_of(page.address)
            found.setdefault(name, []).append(page.address)
    pids = [ctypes.c_int32.from_address(at + i * 64).value
            for at in found["task_struct"] for i in range(64)]
    assert process.pid in pids
    starts = {(ctypes.c_uint64.from_address(at + i * 64).value,
               ctypes.c_uint64.from_address(at + i * 64 + 8).value)
              for at in found["vm_area_struct"] for i in range(64)}
    assert (addr, addr + 3 * PAGE_SIZE) in starts


def test_a_lost_object_is_found(machine):
    """machine.check() compares what the caches gave out with what there is use for."""
    machine.spawn()
    cache = machine.kmem_caches["mm_struct"]
    addr = cache.alloc()
    with pytest.raises(rm.InvariantError, match="mm_struct: 2 objects are in use"):
        machine.check()
    cache.free(addr)
    machine.check()


def test_nobody_else_may_end_them(machine):
    process = machine.spawn()
    cache = machine.kmem_caches["task_struct"]
    with pytest.raises(rm.AllocatorError, match="realmem's own"):
        cache.destroy()
    mine = cache.alloc()
    theirs = [mine + 64 * i for i in range(-63, 64)]
    refused = 0
    for addr in theirs:
        try:
            cache.free(addr)
        except rm.AllocatorError as error:
            refused += "realmem's own" in str(error)
    assert refused == 1
    machine.check()
    process.exit()


def test_another_name_for_one_of_them(machine):
    """Merged as Linux would merge it; it works, and goes, and machine.check() puts up with it."""
    other = machine.kmem_cache_create("other", 72)
    assert other.root == machine.kmem_caches["vmap_area"].root
    machine.vfree(machine.vmalloc(1))
    addr = other.alloc()
    refused = 0
    for theirs in range(addr - 56 * 72, addr + 56 * 72, 72):
        for free in (other.free, machine.kfree) if theirs != addr else ():
            with pytest.raises(rm.AllocatorError) as error:
                free(theirs)
            refused += "realmem's own" in str(error.value)
    assert refused > 0
    machine.check()
    other.free(addr)
    other.destroy()
    machine.check()


def test_no_memory_for_them(machine):
    """ENOMEM or OutOfMemory by the calls that need one, and nothing is lost."""
    process = machine.spawn()
    addr = process.mmap(None, 8 * PAGE_SIZE, RW, ANON)
    machine.vfree(machine.vmalloc(1))
    before = all_held(machine)
    uses = {
        "spawn": (machine.spawn, rm.OutOfMemory),
        "fork": (process.fork, OSError),
        "mmap": (lambda: process.mmap(addr - (4 << 20), PAGE_SIZE, PROT_READ, ANON), OSError),
        "munmap": (lambda: process.munmap(addr + PAGE_SIZE, PAGE_SIZE), OSError),
        "vmalloc": (lambda: machine.vmalloc(5 * PAGE_SIZE), rm.OutOfMemory),
        "vmap": (lambda: machine.vmap([page]), rm.OutOfMemory),
    }
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    for name, (use, error) in uses.items():
        maps = [(vma.start, vma.end) for vma in process.vmas]
        with machine.inject("slab", probability=1), pytest.raises(error) as caught:
            use()
        assert caught.type is rm.OutOfMemory or caught.value.errno == errno.ENOMEM, name
        assert [(vma.start, vma.end) for vma in process.vmas] == maps
        machine.check()
        assert all_held(machine) == before, name
    machine.free_page(page)


def test_sizes_are_those_of_the_structures():
    with rm.Machine(memory="16M") as machine:
        for which, name in own_caches.NAMES.items():
            assert machine.kmem_caches[name].object_size == own_caches.SIZES[which]
        with pytest.raises(ValueError, match="not for object"):
            own_caches.use(machine.kmem_caches["kmalloc-8"], 3)
