"""Fork and copy-on-write, line by line of the catalogue; shared memory between relatives."""

from __future__ import annotations

import errno
import os

import pytest

import realmem as rm
from realmem import (
    MADV_DONTNEED_LOCKED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_MAYMOVE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)

RW = PROT_READ | PROT_WRITE
ANON, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
P = PAGE_SIZE


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def process(machine):
    return machine.spawn()


def pfn(process, addr):
    return process.walk(addr)[-1].decoded["pfn"]


def free_pages(machine):
    for cache in machine.kmem_caches.values():
        cache.shrink()
    machine.drain_all_pages()
    machine.quicklists.trim()
    return sum(node.free_pages for node in machine.nodes)


@pytest.mark.conformance("FK-01")
@pytest.mark.parametrize("raw", [False, True])
def test_private_memory_parts_at_the_first_store(process, raw):
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"\1")
    child = process.fork()
    assert pfn(child, at) == pfn(process, at)
    if raw:
        child.view(at, P)[0] = 2
    else:
        child.write(at, b"\2")
    assert (process.read(at, 1), child.read(at, 1)) == (b"\1", b"\2")
    assert pfn(child, at) != pfn(process, at)


def test_a_fork_without_memory_for_a_pinned_page_takes_nothing(machine, process):
    # Pinned pages are copied at once, so that a fork can fail in the middle of a page table.
    at = process.mmap(None, 64 * P, RW, ANON)
    process.fill(at, 64 * P, 7)
    with process.pin(at + 8 * P, 8 * P, write=True):
        machine.spawn().exit()                              # what a first process makes and keeps
        before = free_pages(machine)
        outcomes = set()
        for nth in range(1, 40):
            with machine.inject("page_alloc", nth=nth) as injection:
                try:
                    process.fork().exit()
                    outcomes.add("forked")
                except OSError as error:
                    assert error.errno == errno.ENOMEM
                    outcomes.add(injection.failures)
            machine.check()
            while process.children:
                process.wait()
            assert free_pages(machine) == before, nth
    assert outcomes == {"forked", 1}


def test_a_child_has_not_used_its_pages_yet(process):
    at = process.mmap(None, 4 * P, RW, ANON)
    process.fill(at, 3 * P, 7)
    child = process.fork()
    assert "Referenced:           12 kB" in process.smaps()
    assert "Referenced:            0 kB" in child.smaps()
    child.read(at, 1)
    assert "Referenced:            4 kB" in child.smaps()


@pytest.mark.conformance("FK-03")
def test_rights_that_went_and_came_open_nothing(process):
    at = process.mmap(None, 2 * P, RW, ANON)
    process.write(at, b"a" * 2 * P)
    child = process.fork()
    for who in (process, child):
        who.mprotect(at, 2 * P, PROT_READ)
        who.mprotect(at, 2 * P, RW)
    child.write(at, b"b")
    process.write(at + P, b"c")
    assert process.read(at, 1) + process.read(at + P, 1) == b"ac"
    assert child.read(at, 1) + child.read(at + P, 1) == b"ba"


@pytest.mark.conformance("FK-05")
def test_shared_memory_stays_shared(process):
    at = process.mmap(None, 64 * P, RW, SHARED)
    process.write(at, b"before")
    child = process.fork()
    grandchild = child.fork()
    grandchild.write(at + 5 * P, b"first touched after the fork")
    process.view(at + 6 * P, P)[:5] = b"stood"
    for who in (process, child, grandchild):
        assert who.read(at, 6) == b"before"
        assert who.read(at + 5 * P, 13) == b"first touched"
        assert bytes(who.view(at + 6 * P, 5)) == b"stood"
    assert pfn(child, at + 5 * P) == pfn(process, at + 5 * P)
    frame = process.machine.pfn_to_page(pfn(process, at))
    assert frame.mappings == [(who.pid, at) for who in (process, child, grandchild)]
    process.exit()
    assert child.read(at, 6) == b"before"


@pytest.mark.conformance("FK-06")
def test_the_last_owner_copies_nothing(machine, process):
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"1")
    process.fork().exit()
    frame, reused = pfn(process, at), machine.vmstat["pgreuse"]
    process.write(at, b"2")
    assert (pfn(process, at), machine.vmstat["pgreuse"]) == (frame, reused + 1)


@pytest.mark.conformance("FK-14")
def test_a_read_of_shared_memory_makes_its_page(machine, process):
    at = process.mmap(None, 4 * P, RW, SHARED)
    before = machine.vmstat["nr_shmem"]
    assert process.read(at, 1) == b"\0"
    assert machine.vmstat["nr_shmem"] == before + 1
    assert pfn(process, at) != process.mm.core.mmu.zero_pfn
    assert "Shmem:                 4 kB" in machine.procfs["/proc/meminfo"]
    process.munmap(at, 4 * P)
    assert machine.vmstat["nr_shmem"] == before


@pytest.mark.conformance("CT-03")
def test_past_the_end_of_an_object(machine, process):
    """MR-19's page: counted as a fault of the machine, not of the task."""
    at = process.mmap(None, P, RW, SHARED)
    at = process.mremap(at, P, 2 * P, rm.MREMAP_MAYMOVE)
    before = machine.vmstat["pgfault"], process.min_flt
    with pytest.raises(rm.BusError) as caught:
        process.write(at + P - 2, b"four")
    assert (caught.value.address, caught.value.pid, caught.value.done) == (at + P, process.pid, 2)
    assert (machine.vmstat["pgfault"], process.min_flt) == (before[0] + 2, before[1] + 1)
    with pytest.raises(rm.BusError), process.guard():
        process.view(at, 2 * P)[P] = 1


@pytest.mark.conformance("FK-19")
@pytest.mark.conformance("FK-30")
def test_forks_until_memory_ends(machine):
    root = machine.spawn()
    at = root.mmap(None, 512 * P, RW, ANON)
    root.touch(at, 512 * P, write=True)
    root.fork().exit()
    before = free_pages(machine)
    children = []
    with pytest.raises((OSError, rm.OutOfMemory)) as caught:
        while True:
            children.append(root.fork())
            children[-1].touch(at, 100 * P, write=True)
    if isinstance(caught.value, OSError):
        assert caught.value.errno in (errno.ENOMEM, errno.EAGAIN)
    assert len(children) > 10
    machine.check()
    for child in children:
        child.exit()
    assert free_pages(machine) == before
    assert root.read(at, P) == bytes(P)


@pytest.mark.conformance("FK-21")
def test_a_host_read_into_a_shared_page_parts_it(process):
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"parent")
    child = process.fork()
    source, sink = os.pipe()
    os.write(sink, b"child!")
    with child.pin(at, 6, write=True) as view:
        assert os.readv(source, [view]) == 6
    os.close(source)
    os.close(sink)
    assert (process.read(at, 6), child.read(at, 6)) == (b"parent", b"child!")


@pytest.mark.conformance("FK-28")
def test_a_vma_of_more_than_16_tib(process):
    base, size = 1 << 44, 17 << 40
    try:
        process.mmap(base, size, RW, ANON | MAP_FIXED | MAP_NORESERVE)
        child = process.fork()
    except OSError:
        pytest.skip("the host has no 34 TiB of address space for windows")
    for addr in (base, base + (16 << 40), base + size - P):
        process.write(addr, b"p")
        assert child.read(addr, 1) == b"\0"
    second = process.fork()
    assert all(second.read(a, 1) == b"p" for a in (base, base + (16 << 40), base + size - P))


@pytest.mark.parametrize("end", ["exit", "munmap"])
def test_what_only_others_still_map_is_not_locked(machine, process, end):
    # As the host counts Mlocked: a page that a locked VMA gives up is not locked for its sake.
    at = process.mmap(None, 32 * P, RW, ANON)
    process.mlock(at, 32 * P)
    assert machine.vmstat["nr_mlock"] == 32
    child = process.fork()
    process.touch(at, 8 * P, write=True)                    # the child keeps the old ones
    assert machine.vmstat["nr_mlock"] == 32
    if end == "exit":
        process.exit()
    else:
        process.munmap(at, 32 * P)
    assert machine.vmstat["nr_mlock"] == 0
    assert child.rss == 32


@pytest.mark.parametrize("end", ["exit", "munmap", "munlock", "dontneed", "remap", "fixed"])
def test_a_page_stays_locked_until_the_last_locked_vma_gives_it_up(machine, process, end):
    at = process.mmap(None, 32 * P, RW, SHARED)
    process.touch(at, 32 * P, write=True)
    child = process.fork()
    for p in (process, child):
        p.mlock(at, 32 * P)
        p.mlock2(at, 16 * P, MLOCK_ONFAULT)             # again is no second time
    if end == "exit":
        process.exit()
    elif end == "munmap":
        process.munmap(at, 32 * P)
    elif end == "munlock":
        process.munlock(at, 32 * P)
    elif end == "dontneed":
        process.madvise(at, 32 * P, MADV_DONTNEED_LOCKED)
    elif end == "remap":
        process.munmap(at + 16 * P, 16 * P)
        process.munmap(process.mremap(at, 16 * P, 64 * P, MREMAP_MAYMOVE), 64 * P)
    else:
        process.mmap(at, 32 * P, RW, ANON | MAP_FIXED)
    machine.check()
    assert machine.vmstat["nr_mlock"] == 32
    child.munlock(at + 8 * P, 8 * P)
    assert machine.vmstat["nr_mlock"] == 24
    child.exit()
    machine.check()
    assert machine.vmstat["nr_mlock"] == 0


def test_a_page_that_two_vmas_of_one_process_lock(machine, process):
    at = process.mmap(None, 8 * P, RW, SHARED)
    process.mlock(at, 8 * P)
    twin = process.mremap(at, 0, 8 * P, MREMAP_MAYMOVE)
    process.mlock(twin, 8 * P)
    process.munmap(at, 8 * P)
    assert machine.vmstat["nr_mlock"] == 8
    process.munlock(twin, 4 * P)
    assert machine.vmstat["nr_mlock"] == 4
    machine.check()
