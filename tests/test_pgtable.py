"""Page tables in frames: their number, their format, the half that all processes share."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from soak import examples

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from realmem.machine import Machine

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
PAGE_OFFSET = 0xFFFF_8880_0000_0000
PRESENT, WRITE, USER, ACCESSED, DIRTY, HUGE, SPECIAL = 1, 2, 4, 0x20, 0x40, 0x80, 0x200
SOFT_DIRTY = 0x800
NX = 1 << 63
HOST = 3 << 52      # software bits
PFN = 0x000F_FFFF_FFFF_F000


@pytest.fixture(scope="module")
def machine():
    with Machine(nodes=1, memory="32M", window="16G") as machine:
        yield machine


def tables(machine) -> int:
    return int(machine.vmstat["nr_page_table_pages"])


def leaf(process, addr: int) -> int:
    step = process.walk(addr)[-1]
    assert step.level == "pte"
    return step.raw & ~HOST


@examples(40)
@given(
    st.lists(
        st.one_of(st.integers(0, 1023), st.integers(0, (14 << 30 >> 12) - 1)),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    st.randoms(use_true_random=False),
)
def test_as_many_tables_as_the_addresses_need(machine, pages, random):
    """One table for each 2 MiB, 1 GiB and 512 GiB that holds a page; none once they are gone."""
    process = machine.spawn()
    try:
        base = process.mm.low
        empty = tables(machine)
        for page in pages:
            at = base + page * PAGE_SIZE
            process.mmap(at, PAGE_SIZE, RW, ANON | MAP_FIXED)
            process.write(at, page.to_bytes(8, "little"))
        left = list(pages)
        random.shuffle(pages)
        for page in [None, *pages]:
            if page is not None:
                left.remove(page)
                process.munmap(base + page * PAGE_SIZE, PAGE_SIZE)
            need = sum(len({(base + p * PAGE_SIZE) >> s for p in left}) for s in (21, 30, 39))
            assert tables(machine) == empty + need
            for p in left:
                assert process.read(base + p * PAGE_SIZE, 8) == p.to_bytes(8, "little")
    finally:
        process.exit()


def test_entries_are_x86_64s(process):
    a = process.mmap(None, 4 * PAGE_SIZE, RW, ANON)
    process.read(a, 1)
    assert leaf(process, a) & ~PFN == PRESENT | USER | ACCESSED | SPECIAL | NX
    process.write(a, b"1")
    assert leaf(process, a) & ~PFN == PRESENT | WRITE | USER | ACCESSED | DIRTY | SOFT_DIRTY | NX
    for step in process.walk(a)[:-1]:
        assert step.raw & ~PFN == PRESENT | WRITE | USER | ACCESSED | DIRTY
    child = process.fork()
    for p, accessed in ((process, ACCESSED), (child, 0)):
        assert leaf(p, a) & ~PFN == PRESENT | USER | accessed | DIRTY | SOFT_DIRTY | NX
    child.exit()
    code = process.mmap(None, PAGE_SIZE, RW | PROT_EXEC, ANON)
    process.write(code, b"\xc3")
    assert leaf(process, code) & NX == 0
    assert [s.level for s in process.walk(process.mm.low)] == ["pgd", "pud"]
    assert process.walk(0)[-1].raw == 0


def test_the_kernel_half_is_one(machine, process):
    other = machine.spawn()
    top = machine.nodes[0].end_pfn << 12
    for phys in (16 << 20, top - 1):
        steps = process.walk(PAGE_OFFSET + phys)
        assert [s.level for s in steps] == ["pgd", "pud", "pmd"]
        last = steps[-1].raw
        assert last & HUGE and last & NX and last & WRITE and not last & USER
        assert (last & PFN) == phys & ~0x1FFFFF
        assert other.walk(PAGE_OFFSET + phys)[1:] == steps[1:]
    assert process.walk(PAGE_OFFSET + top + (2 << 20))[-1].raw == 0
    assert len(process.walk(0xFFFF_C900_0000_0000)) == 2        # the vmalloc area's table
    directory = machine.va(process.walk(0)[0].address)
    kernel = (ctypes.c_uint64 * 256).from_address(directory + 256 * 8)
    theirs = (ctypes.c_uint64 * 256).from_address(machine.va(other.walk(0)[0].address) + 256 * 8)
    assert list(kernel) == list(theirs) and any(kernel)
    other.exit()


def test_tables_are_frames_of_the_machine(machine, process):
    a = process.mmap(None, PAGE_SIZE, RW, ANON)
    process.write(a, b"1")
    for step in process.walk(a):
        page = machine.pfn_to_page(step.address >> 12)
        assert "table" in page.flags and page.refcount == 1 and page.order == 0
        with pytest.raises(Exception, match=r"pfn|page|map"):
            machine.free_page(page)
    frame = machine.pfn_to_page(process.walk(a)[-1].decoded["pfn"])
    assert "table" not in frame.flags and {"anon", "anon_exclusive"} <= frame.flags
    machine.check()
