"""
Each operation with its first, second, third ... attempt to get memory made to fail.

Until it succeeds untouched.  After each failure: the error is the contract's, the books are right,
and nothing is held that was not held before.
"""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

import realmem as rm
from realmem import (
    GFP,
    GFP_ATOMIC,
    GFP_KERNEL,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
    SLAB,
)
from realmem._bench.churn import CONSTRUCTED_SIZE, CONSTRUCTOR

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
FAR = 0x7FFF_9000_0000          # in a window of 1 GiB
EVER = 1 << 40
MIB = 1 << 20


class Bench:
    """A machine with something of everything in it, that operations use."""

    def __init__(self, machine):
        self.machine = machine
        make = machine.kmem_cache_create
        self.plain = make("failing-700", 700, flags=SLAB.NO_MERGE)
        self.large = make("failing-20000", 20000, flags=SLAB.NO_MERGE)
        self.lines = make("failing-40", 40, flags=SLAB.NO_MERGE | SLAB.HWCACHE_ALIGN)
        self.python = make("failing-python", 300, ctor=lambda view: view.__setitem__(0, 1))
        self.c = make("failing-c", CONSTRUCTED_SIZE, ctor=CONSTRUCTOR)
        self.small = machine.kmalloc(100)
        self.pages = [machine.alloc_pages(GFP_KERNEL, 0) for _ in range(600)]
        self.area = machine.vmalloc(5 * PAGE_SIZE)
        self.process = machine.spawn()
        self.at = self.process.mmap(None, 20 * PAGE_SIZE, RW, ANON)
        self.process.mmap(FAR, PAGE_SIZE, RW, ANON | MAP_FIXED)
        self.process.write(self.at, b"x" * (4 * PAGE_SIZE))

    def settle(self):
        """Give back all that is kept at hand."""
        machine = self.machine
        machine.vm_unmap_aliases()
        for cache in machine.kmem_caches.values():
            cache.shrink()
        machine.quicklists.trim()
        machine.drain_all_pages()

    def books(self):
        """What must be the same again."""
        machine = self.machine
        return {
            "free": sum(node.free_pages for node in machine.nodes),
            "counters": {name: machine.vmstat[name] for name in (
                "nr_slab_unreclaimable", "nr_slab_reclaimable", "nr_page_table_pages",
                "nr_anon_pages")},
            "caches": {name: (cache.active_objs, cache.num_slabs)
                       for name, cache in machine.kmem_caches.items()},
            "areas": machine.procfs["/proc/vmallocinfo"],
            "processes": {pid: ([(vma.start, vma.end) for vma in process.vmas], process.rss)
                          for pid, process in machine.processes.items()},
            "small": machine.ksize(self.small),
        }




def kfree(b, addr):
    b.machine.kfree(addr)


def vfree(b, addr):
    b.machine.vfree(addr)


def back_to_100(b, addr):
    b.machine.kfree(addr)
    b.small = b.machine.kmalloc(100)


def grow(b):
    b.small = b.machine.krealloc(b.small, 6000)
    return b.small


def unmap_far(b, _):
    b.process.munmap(FAR, PAGE_SIZE)
    b.process.mmap(FAR, PAGE_SIZE, RW, ANON | MAP_FIXED)


def fill_again(b, _):
    b.process.mmap(b.at, 20 * PAGE_SIZE, RW, ANON | MAP_FIXED)
    b.process.write(b.at, b"x" * (4 * PAGE_SIZE))


def break_copies(b):
    child = b.process.fork()
    try:
        child.write(b.at, b"y" * (4 * PAGE_SIZE))
    finally:
        child.exit()


def store(b):
    """By the hardware's way in."""
    with b.process.guard():
        ctypes.memset(b.process.host_address(FAR), 1, 1)


OUT = (rm.OutOfMemory,)
CALL = (OSError,)
OPERATIONS = {
    "cache.alloc": (OUT, lambda b: b.plain.alloc(), lambda b, a: b.plain.free(a)),
    "cache.alloc atomic": (
        OUT, lambda b: b.plain.alloc(GFP_ATOMIC), lambda b, a: b.plain.free(a)),
    "cache.alloc on a node": (
        OUT, lambda b: b.plain.alloc(node=1), lambda b, a: b.plain.free(a)),
    "cache.alloc on a node only": (
        OUT, lambda b: b.plain.alloc(GFP_KERNEL | GFP.THISNODE, node=1),
        lambda b, a: b.plain.free(a)),
    "cache.alloc cleared": (
        OUT, lambda b: b.lines.alloc(GFP_KERNEL | GFP.ZERO), lambda b, a: b.lines.free(a)),
    "cache.alloc of large objects": (OUT, lambda b: b.large.alloc(), lambda b, a: b.large.free(a)),
    "cache.alloc_bulk": (
        OUT, lambda b: b.plain.alloc_bulk(200), lambda b, a: b.plain.free_bulk(a)),
    "cache.alloc_bulk of large objects": (
        OUT, lambda b: b.large.alloc_bulk(7), lambda b, a: b.large.free_bulk(a)),
    "cache.alloc, constructed in Python": (
        OUT, lambda b: b.python.alloc(), lambda b, a: b.python.free(a)),
    "cache.alloc_bulk, constructed in Python": (
        OUT, lambda b: b.python.alloc_bulk(60), lambda b, a: b.python.free_bulk(a)),
    "cache.alloc, constructed in C": (OUT, lambda b: b.c.alloc(), lambda b, a: b.c.free(a)),
    "kmalloc(8)": (OUT, lambda b: b.machine.kmalloc(8), kfree),
    "kmalloc(8192)": (OUT, lambda b: b.machine.kmalloc(8192), kfree),
    "kmalloc(100000)": (OUT, lambda b: b.machine.kmalloc(100_000), kfree),
    "kmalloc, DMA": (OUT, lambda b: b.machine.kmalloc(50, GFP_KERNEL | GFP.DMA), kfree),
    "kmalloc, reclaimable": (
        OUT, lambda b: b.machine.kmalloc(50, GFP_KERNEL | GFP.RECLAIMABLE), kfree),
    "kmalloc, accounted": (
        OUT, lambda b: b.machine.kmalloc(50, GFP_KERNEL | GFP.ACCOUNT), kfree),
    "kzalloc": (OUT, lambda b: b.machine.kzalloc(1000), kfree),
    "kcalloc": (OUT, lambda b: b.machine.kcalloc(30, 1000), kfree),
    "kmalloc_node": (OUT, lambda b: b.machine.kmalloc_node(3000, GFP_KERNEL, 1), kfree),
    "krealloc": (OUT, grow, back_to_100),
    "krealloc of nothing": (OUT, lambda b: b.machine.krealloc(0, 300), kfree),
    "kvmalloc(100)": (OUT, lambda b: b.machine.kvmalloc(100), lambda b, a: b.machine.kvfree(a)),
    "kvmalloc(5 pages)": (
        OUT, lambda b: b.machine.kvmalloc(5 * PAGE_SIZE), lambda b, a: b.machine.kvfree(a)),
    "kvmalloc(6 MiB)": (
        OUT, lambda b: b.machine.kvmalloc(6 * MIB), lambda b, a: b.machine.kvfree(a)),
    "kvzalloc": (OUT, lambda b: b.machine.kvzalloc(9000), lambda b, a: b.machine.kvfree(a)),
    "vmalloc(1)": (OUT, lambda b: b.machine.vmalloc(1), vfree),
    "vmalloc(5 MiB)": (OUT, lambda b: b.machine.vmalloc(5 * MIB), vfree),
    "vmalloc, aligned": (OUT, lambda b: b.machine.vmalloc(3 * PAGE_SIZE, align=4 * MIB), vfree),
    "vzalloc": (OUT, lambda b: b.machine.vzalloc(7 * PAGE_SIZE), vfree),
    "vmalloc_node": (OUT, lambda b: b.machine.vmalloc_node(7 * PAGE_SIZE, 1), vfree),
    "vmap": (OUT, lambda b: b.machine.vmap(b.pages), lambda b, a: b.machine.vunmap(a)),
    "vm_map_ram": (
        OUT, lambda b: b.machine.vm_map_ram(b.pages),
        lambda b, a: b.machine.vm_unmap_ram(a, len(b.pages))),
    "spawn": (OUT, lambda b: b.machine.spawn(), lambda b, p: p.exit()),
    "fork": (CALL, lambda b: b.process.fork(), lambda b, p: p.exit()),
    "mmap": (
        CALL, lambda b: b.process.mmap(FAR + 2 * MIB, PAGE_SIZE, PROT_READ, ANON | MAP_FIXED),
        lambda b, a: b.process.munmap(a, PAGE_SIZE)),
    "munmap of a middle": (
        CALL, lambda b: b.process.munmap(b.at + 10 * PAGE_SIZE, PAGE_SIZE), fill_again),
    "mmap over a middle": (
        CALL, lambda b: b.process.mmap(b.at + 10 * PAGE_SIZE, PAGE_SIZE, PROT_READ,
                                       ANON | MAP_FIXED), fill_again),
    "a write": (OUT, lambda b: b.process.write(FAR, b"x"), unmap_far),
    "a read": (OUT, lambda b: b.process.read(FAR, 1), unmap_far),
    "a touch": (OUT, lambda b: b.process.touch(FAR, 1, write=True), unmap_far),
    "a store": (OUT, store, unmap_far),
    "breaking copies": ((*OUT, *CALL), break_copies, lambda b, _: None),
    "alloc_pages": (
        OUT, lambda b: b.machine.alloc_pages(GFP_KERNEL, 3),
        lambda b, p: b.machine.free_pages(p, 3)),
    "get_zeroed_page": (
        OUT, lambda b: b.machine.get_zeroed_page(GFP_KERNEL), lambda b, a: b.machine.free_page(a)),
    "alloc_pages_exact": (
        OUT, lambda b: b.machine.alloc_pages_exact(5 * PAGE_SIZE, GFP_KERNEL),
        lambda b, a: [b.machine.free_page(a + i * PAGE_SIZE) for i in range(5)]),
}


@pytest.fixture(scope="module", autouse=True)
def one_cpu():
    """A thread that changed nodes would leave objects in slabs of both."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def bench(one_cpu):
    with rm.Machine(nodes=2, memory="24M", window="1G") as machine:
        yield Bench(machine)


@pytest.mark.parametrize("point", ["page_alloc", "slab"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_failure(bench, name, point):
    errors, use, undo = OPERATIONS[name]
    machine = bench.machine
    for times in (1, EVER):
        nth = 0
        untouched = False
        while not untouched:
            nth += 1
            bench.settle()
            before = bench.books()
            with machine.inject(point, nth=nth, times=times) as injection:
                try:
                    result = use(bench)
                    failed = None
                except errors as why:
                    failed = why
            machine.check()
            where = f"{name}, attempt {nth}, {injection.failures} failed"
            untouched = injection.failures == 0
            if failed is None:
                undo(bench, result)
            else:
                assert not untouched, where
                assert not isinstance(failed, OSError) or failed.errno == errno.ENOMEM, where
                if name in ("a write", "a read", "a touch", "a store"):
                    undo(bench, None)           # page tables for it may stay
            bench.settle()
            assert bench.books() == before, where
        machine.check()


def test_each_is_tried_at_each_point(bench):
    """An operation that asks for nothing would pass for nothing."""
    attempts = {}
    for name, (_errors, use, undo) in OPERATIONS.items():
        for point in ("page_alloc", "slab"):
            bench.settle()
            with machine_counts(bench.machine, point) as injection:
                result = use(bench)
            undo(bench, result)
            attempts[name, point] = injection.attempts
    without = [name for name in OPERATIONS
               if not attempts[name, "page_alloc"] and not attempts[name, "slab"]]
    assert without == []
    assert attempts["cache.alloc", "slab"] == attempts["cache.alloc_bulk", "slab"] == 1
    assert attempts["spawn", "slab"] == 2
    assert attempts["vmalloc(1)", "slab"] == 2


def machine_counts(machine, point):
    """Count attempts: the one to fail never comes."""
    return machine.inject(point, nth=EVER)


# ---- the first of its kind, which makes what all share ----


FIRST = {
    "spawn": (lambda m: m.spawn(), lambda m, p: p.exit()),
    "vmalloc": (lambda m: m.vmalloc(3 * PAGE_SIZE), lambda m, a: m.vfree(a)),
    "kvmalloc": (lambda m: m.kvmalloc(5 * MIB), lambda m, a: m.kvfree(a)),
}


def settled(machine):
    machine.vm_unmap_aliases()
    for cache in machine.kmem_caches.values():
        cache.shrink()
    machine.quicklists.trim()
    machine.drain_all_pages()
    return ([node.free_pages for node in machine.nodes],
            {name: cache.num_slabs for name, cache in machine.kmem_caches.items()},
            machine.procfs["/proc/vmallocinfo"])


@pytest.mark.parametrize("point", ["page_alloc", "slab"])
@pytest.mark.parametrize("name", FIRST)
def test_the_first_of_a_machine(name, point):
    use, undo = FIRST[name]
    with rm.Machine(nodes=1, memory="24M", window="1G") as machine:
        undo(machine, use(machine))
        usual = settled(machine)
    nth = 0
    untouched = False
    while not untouched:
        nth += 1
        with rm.Machine(nodes=1, memory="24M", window="1G") as machine:
            fresh = settled(machine)
            with machine.inject(point, nth=nth, times=EVER) as injection:
                try:
                    undo(machine, use(machine))
                except rm.OutOfMemory:
                    pass
            machine.check()
            untouched = injection.failures == 0
            assert settled(machine) in (fresh, usual) or not untouched
            undo(machine, use(machine))
            machine.check()
            assert settled(machine) == usual, nth
    assert nth > 1
