"""Folios of several pages: sysfs's switches, what faults bring, huge entries and their splits."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from soak import examples

import realmem as rm
from realmem import (
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.thp import ORDERS, size_name

THP = "/sys/kernel/mm/transparent_hugepage"
RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
HUGE = 2 << 20


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        yield machine
        machine.check()


def switch(machine, order, word):
    machine.sysfs[f"{THP}/{size_name(order)}/enabled"] = word


def aligned(process, length, align=HUGE):
    at = process.mmap(None, length + align, RW, ANON)
    return (at + align - 1) & -align


def present(process, start, pages):
    return [word >> 63 for word in process.mm.core.pagemap(start, pages)]


def test_switches_read_and_write_as_linux_s(machine):
    assert machine.sysfs[f"{THP}/enabled"] == "always madvise [never]\n"
    assert machine.sysfs[f"{THP}/hugepages-64kB/enabled"] == "always inherit madvise [never]\n"
    assert machine.sysfs[f"{THP}/hugepages-2048kB/enabled"] == "always [inherit] madvise never\n"
    assert machine.sysfs[f"{THP}/hpage_pmd_size"] == "2097152\n"
    machine.sysfs[f"{THP}/hugepages-64kB/enabled"] = "always\n"
    assert machine.sysfs[f"{THP}/hugepages-64kB/enabled"].startswith("[always]")
    for path, text in (("enabled", "inherit"), ("enabled", ""), ("hugepages-64kB/enabled", "on")):
        with pytest.raises(OSError) as caught:
            machine.sysfs[f"{THP}/{path}"] = text
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(PermissionError):
        machine.sysfs[f"{THP}/hpage_pmd_size"] = "4096"


def test_enabling_keeps_more_memory_free():
    with rm.Machine(nodes=1, memory="512M") as machine:
        before = machine.sysctl["vm.min_free_kbytes"]
        machine.sysfs[f"{THP}/enabled"] = "always"
        # Two zones, 11 pageblocks of 2 MiB each, would be 44 MiB: never more than a twentieth.
        assert 5 * before < machine.sysctl["vm.min_free_kbytes"] < (512 << 10) // 20


@pytest.mark.parametrize("order", [2, 4, 8])
def test_a_fault_brings_a_folio(machine, order):
    switch(machine, order, "always")
    process = machine.spawn()
    at, pages = aligned(process, 4 * HUGE), 1 << order
    process.write(at + 5 * pages * PAGE_SIZE, b"1")
    assert process.rss == pages
    assert present(process, at + 4 * pages * PAGE_SIZE, 3 * pages) == (
        [0] * pages + [1] * pages + [0] * pages)
    assert process.min_flt == 1
    first = process.walk(at + 5 * pages * PAGE_SIZE)[-1].decoded["pfn"]
    assert first % pages == 0
    last = process.walk(at + (6 * pages - 1) * PAGE_SIZE)[-1].decoded["pfn"]
    assert last == first + pages - 1
    stats = f"{THP}/{size_name(order)}/stats/anon_fault_alloc"
    assert machine.sysfs[stats] == "1\n"


def test_a_folio_keeps_to_its_vma_and_to_empty_entries(machine):
    switch(machine, 4, "always")
    process = machine.spawn()
    at = aligned(process, HUGE)
    process.munmap(at + 10 * PAGE_SIZE, PAGE_SIZE)
    process.write(at + PAGE_SIZE, b"1")             # 16 pages would pass the hole
    assert process.rss == 1
    process.read(at + 20 * PAGE_SIZE, 1)            # the zero page stands in the way
    process.write(at + 21 * PAGE_SIZE, b"1")
    assert process.rss == 2
    process.write(at + 40 * PAGE_SIZE, b"1")
    assert process.rss == 2 + 16


def test_only_where_it_was_asked_for(machine):
    switch(machine, 4, "madvise")
    process = machine.spawn()
    at = aligned(process, HUGE)
    process.write(at, b"1")
    assert process.rss == 1
    process.madvise(at, HUGE, MADV_HUGEPAGE)
    process.write(at + (16 << 12), b"1")
    assert process.rss == 17
    process.madvise(at, HUGE, rm.MADV_NOHUGEPAGE)
    process.write(at + (32 << 12), b"1")
    assert process.rss == 18


@pytest.mark.conformance("CT-13")
def test_a_huge_page_is_one_entry(machine):
    machine.sysfs[f"{THP}/enabled"] = "always"
    process = machine.spawn()
    at = aligned(process, 2 * HUGE)
    before = machine.vmstat.snapshot()
    process.write(at + 12345, b"x")
    after = machine.vmstat.snapshot()
    assert after["thp_fault_alloc"] - before["thp_fault_alloc"] == 1
    assert after["pgfault"] - before["pgfault"] == 1
    assert after["pgalloc_dma32"] + after["pgalloc_dma"] - (
        before["pgalloc_dma32"] + before["pgalloc_dma"]) >= 512
    assert (process.rss, process.min_flt) == (512, 1)
    step = process.walk(at + 12345)[-1]
    assert step.level == "pmd" and "huge" in step.decoded["flags"]
    assert process.mm.core.smaps(at, at + HUGE).anon_huge == 512
    machine.check()
    # What differs from its neighbours ends it, and loses nothing.
    process.mprotect(at + PAGE_SIZE, PAGE_SIZE, PROT_READ)
    assert process.walk(at)[-1].level == "pte"
    assert process.mm.core.smaps(at, at + HUGE).anon_huge == 0
    assert process.read(at + 12345, 1) == b"x" and process.rss == 512
    process.munmap(at + HUGE // 2, HUGE // 2)
    assert process.rss == 256


def test_falls_back_to_single_pages():
    with rm.Machine(nodes=1, memory="16M", window="1G") as machine:
        machine.sysfs[f"{THP}/enabled"] = "always"
        machine.sysctl["vm.overcommit_memory"] = 1
        process = machine.spawn()
        at = aligned(process, 16 * HUGE)
        with pytest.raises(rm.OutOfMemory):
            process.touch(at, 16 * HUGE, write=True)
        assert machine.vmstat["thp_fault_fallback"] > 0
        assert process.rss > machine.vmstat["thp_fault_alloc"] * 512
        machine.check()


def test_raw_stores_and_forks(machine):
    machine.sysfs[f"{THP}/enabled"] = "always"
    switch(machine, 4, "always")
    process = machine.spawn()
    at = aligned(process, 2 * HUGE)
    view = np.frombuffer(process.view(at, 2 * HUGE), dtype=np.uint64)
    faults = machine.hoststat["sigsegv"]
    view[:] = np.arange(view.size)
    assert machine.hoststat["sigsegv"] - faults <= 4        # two pages of 2 MiB
    child = process.fork()
    theirs = np.frombuffer(child.view(at, 2 * HUGE), dtype=np.uint64)
    view[::512] = 7
    theirs[1::512] = 9
    expected = np.arange(view.size)
    expected[::512] = 7
    assert (view == expected).all()
    expected = np.arange(view.size)
    expected[1::512] = 9
    assert (theirs == expected).all()
    machine.check()
    del view, theirs


steps = st.lists(
    st.tuples(st.sampled_from(["write", "read", "unmap", "map", "protect", "fork", "exit"]),
              st.integers(0, 1535), st.integers(1, 700), st.integers(1, 255)), max_size=25)


@examples(40)
@given(steps)
def test_contents_against_plain_dicts(steps):
    """With all orders on, nothing reads other than without."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        machine.sysfs[f"{THP}/enabled"] = "always"
        for order in ORDERS:
            switch(machine, order, "inherit")
        root = machine.spawn()
        at = aligned(root, 3 * HUGE)
        live = [(root, {page: 0 for page in range(1536)}, {})]
        for what, page, n, value in steps:
            process, pages, readonly = live[value % len(live)]
            span = range(page, min(page + n, 1536))
            where, length = at + page * PAGE_SIZE, len(span) * PAGE_SIZE
            if what == "write" and page in pages and page not in readonly:
                process.write(where, bytes([value]))
                pages[page] = value
            elif what == "read" and page in pages:
                assert process.read(where, 1)[0] == pages[page]
            elif what == "unmap":
                process.munmap(where, length)
                for i in span:
                    pages.pop(i, None)
                    readonly.pop(i, None)
            elif what == "map":
                process.mmap(where, length, RW, ANON | MAP_FIXED)
                for i in span:
                    pages[i] = 0
                    readonly.pop(i, None)
            elif what == "protect" and all(i in pages for i in span):
                process.mprotect(where, length, PROT_READ)
                readonly.update(dict.fromkeys(span))
            elif what == "fork" and len(live) < 4:
                live.append((process.fork(), dict(pages), dict(readonly)))
            elif what == "exit" and len(live) > 1:
                process.exit()
                live.remove((process, pages, readonly))
        machine.check()
        for process, pages, _ in live:
            for page in list(pages)[::37]:
                assert process.read(at + page * PAGE_SIZE, 1)[0] == pages[page]
