"""vmalloc: addresses, contents, guard pages, frames, laziness; against a model."""

from __future__ import annotations

import ctypes
import itertools

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from soak import examples
from threads import storm

import realmem as rm
from realmem.layout import PAGE_SIZE, PROT_READ
from realmem.machine import Machine

SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture
def machine():
    with Machine(nodes=2, memory="24M", window="1G") as machine:
        machine.vfree(machine.vmalloc(1))           # the kernel's own tables
        machine.vm_unmap_aliases()
        machine.drain_all_pages()
        free = sum(node.free_pages for node in machine.nodes)
        yield machine
        machine.check()
        machine.vm_unmap_aliases()
        machine.drain_all_pages()
        assert sum(node.free_pages for node in machine.nodes) == free
        assert machine._vmalloc.nr_pages == 0
        assert machine.procfs["/proc/vmallocinfo"] == ""


def fill(machine, addr: int, size: int, seed: int = 0) -> bytes:
    data = bytes((seed + i * 7 + (i >> 12)) & 0xFF for i in range(size))
    machine.view(addr, size)[:] = data
    return data


@pytest.mark.conformance("VL-02")
def test_one_byte_is_a_page_and_a_guard(machine):
    a = machine.vmalloc(1)
    assert a % PAGE_SIZE == 0
    fill(machine, a, PAGE_SIZE)
    (line,) = machine.procfs["/proc/vmallocinfo"].splitlines()
    assert line.startswith(f"0x{a:016x}-0x{a + 8192:016x}    8192 ")
    assert " pages=1 vmalloc N" in line
    b = machine.vmalloc(1)
    assert b == a + 2 * PAGE_SIZE
    machine.vfree(a)
    machine.vfree(b)


@pytest.mark.crash
@pytest.mark.conformance("VL-03")
def test_the_guard_page_faults(machine):
    a = machine.vmalloc(3 * PAGE_SIZE)
    b = machine.vmalloc(PAGE_SIZE)
    end = a + 3 * PAGE_SIZE
    machine.view(b, 1)[0] = 5
    for access in (lambda: ctypes.string_at(end, 1), lambda: ctypes.memset(end + 4095, 1, 1)):
        with pytest.raises(rm.SegmentationFault, match="not mapped") as caught, machine.guard():
            access()
        assert end <= caught.value.address < end + PAGE_SIZE
        assert caught.value.pid == 0
    assert machine.view(b, 1)[0] == 5
    with pytest.raises(ValueError, match="not allocated"):
        machine.view(a, 3 * PAGE_SIZE + 1)
    machine.vfree(a)
    machine.vfree(b)


def test_an_access_after_vfree_is_a_fault(machine):
    a = machine.vmalloc(2 * PAGE_SIZE)
    view = machine.view(a, 2 * PAGE_SIZE)
    view[:] = b"\x11" * len(view)
    machine.vfree(a)
    for index in (0, PAGE_SIZE):
        with pytest.raises(rm.SegmentationFault) as caught, machine.guard():
            view[index] = 1
        assert (caught.value.address, caught.value.access) == (a + index, "write")
    with pytest.raises(rm.SegmentationFault) as caught:     # outside a guard: the next call
        view[1]
        machine.check()
    assert caught.value.access == "read"


@pytest.mark.conformance("VL-05")
@pytest.mark.parametrize("shift", range(12, 30))
def test_alignment(machine, shift):
    a = machine.vmalloc(1)
    b = machine.vmalloc(5000, align=1 << shift)
    assert b % (1 << shift) == 0 and b >= a + 8192
    c = machine.vmalloc(1)              # the gap is still free
    assert c == a + 8192 if shift > 13 else c > a
    for addr in (c, b, a):
        machine.vfree(addr)


@pytest.mark.conformance("VL-05")
def test_absurd_alignments_fail(machine):
    for align in (0, -1, 3, PAGE_SIZE + 1, 1 << 62, 1 << 100):
        with pytest.raises(ValueError):
            machine.vmalloc(1, align=align)
    a = machine.vmalloc(1)              # at the only address of 1 GiB that there is
    with pytest.raises(rm.OutOfMemory, match="addresses"):
        machine.vmalloc(1, align=1 << 30)
    machine.vfree(a)


@pytest.mark.conformance("VL-06")
def test_frames_are_scattered_addresses_are_not():
    with Machine(nodes=1, memory="24M", window="1G") as machine:
        machine.vfree(machine.vmalloc(1))
        held = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                held.append(machine.alloc_pages(rm.GFP_KERNEL | rm.GFP.MEMALLOC, 0))
        held.sort(key=lambda page: page.pfn)
        machine.free_pages_bulk(held[::2])          # no two free frames side by side
        a = machine.vmalloc("4M")
        data = fill(machine, a, 4 << 20)
        assert bytes(machine.view(a, 4 << 20)) == data
        pfns = [machine.vmalloc_to_pfn(a + i * PAGE_SIZE) for i in range(1024)]
        assert len(set(pfns)) == 1024
        for i, pfn in enumerate(pfns):
            frame = machine.view(machine.pfn_to_page(pfn).address, PAGE_SIZE)
            assert frame == data[i * PAGE_SIZE:(i + 1) * PAGE_SIZE]
        assert all(two != one + 1 for one, two in itertools.pairwise(pfns))
        machine.check()
        machine.vfree(a)
        machine.free_pages_bulk(held[1::2])
        machine.check()


def test_frames_come_in_runs_where_memory_has_them(machine):
    """A host mapping holds a run: 2 MiB out of whole blocks take few."""
    before = machine.hoststat["map_fill"]
    a = machine.vmalloc("2M")
    assert machine.hoststat["map_fill"] - before <= 8
    page = machine.vmalloc_to_page(a)
    assert page.order == 0 and page.refcount == 1 and page.flags == {"vmalloc"}
    machine.vfree(a)


@pytest.mark.conformance("VL-07")
def test_vmalloc_node(machine):
    for node in (0, 1):
        for give in (machine.vmalloc_node, machine.vzalloc_node):
            a = give("1M", node)
            assert {machine.vmalloc_to_page(a + i).node
                    for i in range(0, 1 << 20, PAGE_SIZE)} == {node}
            assert f" pages=256 vmalloc N{node}=256\n" in machine.procfs["/proc/vmallocinfo"]
            machine.vfree(a)
    a = machine.vmalloc_node("30M", 0)          # more than a node has
    words = machine.procfs["/proc/vmallocinfo"].split()
    counts = {word[:2]: int(word[3:]) for word in words if word[0] == "N"}
    assert counts["N0"] + counts["N1"] == 30 * 256 and counts["N0"] > counts["N1"] > 0
    machine.vfree(a)
    with pytest.raises(rm.OutOfMemory) as caught:
        machine.vmalloc_node("30M", 0, gfp=rm.GFP_KERNEL | rm.GFP.THISNODE)
    assert caught.value.node == 0


def test_vzalloc_is_zero(machine):
    pages = machine.alloc_pages_bulk(rm.GFP_KERNEL, 3000)
    for page in pages:
        machine.view(page.address, PAGE_SIZE)[:] = b"\xff" * PAGE_SIZE
    machine.free_pages_bulk(pages)
    a = machine.vzalloc("8M")
    assert not any(machine.view(a, 8 << 20))
    machine.vfree(a)


@pytest.mark.conformance("VL-09")
def test_vmap(machine):
    pages = list(machine.alloc_pages_bulk(rm.GFP_KERNEL, 7))
    order = [3, 0, 6, 1, 5, 2, 4]
    a = machine.vmap([pages[i] for i in order])
    for at, i in enumerate(order):
        machine.view(a + at * PAGE_SIZE, 1)[0] = i + 1
        assert machine.vmalloc_to_page(a + at * PAGE_SIZE) == pages[i]
    assert [machine.view(page.address, 1)[0] for page in pages] == [1, 2, 3, 4, 5, 6, 7]
    line = machine.procfs["/proc/vmallocinfo"].splitlines()[0]
    assert line.endswith(" vmap") and " 32768 " in line
    machine.check()
    machine.vunmap(a)
    with pytest.raises(rm.SegmentationFault), machine.guard():
        ctypes.string_at(a, 1)
    assert [page.refcount for page in pages] == [1] * 7     # not freed
    machine.free_pages_bulk(pages)


def test_vmap_of_blocks_and_of_one_page_twice(machine):
    plain = machine.alloc_pages(rm.GFP_KERNEL, 2)
    compound = machine.alloc_pages(rm.GFP_KERNEL | rm.GFP.COMP, 2)
    frames = [machine.pfn_to_page(page.pfn + i) for page in (plain, compound) for i in range(4)]
    a = machine.vmap([*frames, frames[0], frames[5]])
    machine.view(a + 8 * PAGE_SIZE, 1)[0] = 42
    assert machine.view(a, 1)[0] == 42
    machine.check()
    assert compound.refcount == 6 and plain.refcount == 3
    machine.free_pages(compound, 2)                 # the mapping keeps it
    machine.view(a + 5 * PAGE_SIZE, 1)[0] = 43
    machine.check()
    machine.vunmap(a)
    machine.free_pages(plain, 2)


def test_frames_freed_under_a_mapping_are_found():
    """Frames behind the first of a block have no reference of their own: the owner's fault."""
    with Machine(nodes=1, memory="16M", window="1G") as machine:
        page = machine.alloc_pages(rm.GFP_KERNEL, 2)
        a = machine.vmap([machine.pfn_to_page(page.pfn + i) for i in range(4)])
        machine.free_pages(page, 2)                 # BD-16: the others go at once
        with pytest.raises(rm.InvariantError, match="vmalloc: entry"):
            machine.check()
        machine.vunmap(a)
        machine.check()


def test_read_only_vmap(machine):
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    machine.view(page.address, 1)[0] = 9
    a = machine.vmap([page], prot=PROT_READ)
    assert machine.view(a, 1)[0] == 9
    with pytest.raises(rm.SegmentationFault) as caught, machine.guard():
        ctypes.memset(a, 1, 1)
    assert caught.value.code == 2 and caught.value.address == a
    assert machine.view(page.address, 1)[0] == 9 and machine.view(a, 1)[0] == 9
    machine.vunmap(a)
    machine.free_pages(page, 0)


@pytest.mark.conformance("VL-15")
@pytest.mark.parametrize("n", [1, 63, 64, 65, 600])
def test_vm_map_ram(machine, n):
    pages = list(machine.alloc_pages_bulk(rm.GFP_KERNEL, n))
    a = machine.vm_map_ram(pages)
    data = fill(machine, a, n * PAGE_SIZE)
    assert machine.view(pages[-1].address, PAGE_SIZE) == data[-PAGE_SIZE:]
    assert machine.procfs["/proc/vmallocinfo"].endswith(" vm_map_ram\n")
    for bad in (n - 1, n + 1):
        with pytest.raises((rm.AllocatorError, ValueError)):
            machine.vm_unmap_ram(a, bad)
    machine.vm_unmap_ram(a, n)
    machine.vm_unmap_aliases()
    assert machine.vmalloc(1) == a                  # the range is free again
    machine.vfree(a)
    machine.free_pages_bulk(pages)


class Model:
    """Ranges of pages by first fit; those given up wait for a purge."""

    def __init__(self, base: int, pages: int) -> None:
        self.base, self.pages = base, pages
        self.busy: dict[int, int] = {}
        self.lazy: dict[int, int] = {}

    def alloc(self, n: int, align: int) -> int:
        at = 0
        for start, size in sorted([*self.busy.items(), *self.lazy.items()]):
            if self.aligned(at, align) + n <= start:
                break
            at = start + size
        at = self.aligned(at, align)
        self.busy[at] = n
        return self.base + at * PAGE_SIZE

    def aligned(self, at: int, align: int) -> int:
        addr = -(-(self.base + at * PAGE_SIZE) // align) * align
        return (addr - self.base) // PAGE_SIZE

    def free(self, addr: int) -> None:
        at = (addr - self.base) // PAGE_SIZE
        self.lazy[at] = self.busy.pop(at)


@pytest.mark.conformance("VL-12", "VL-13")
@examples(60, suppress_health_check=SHARED)
@given(ops=st.lists(st.one_of(
    st.tuples(st.just("alloc"), st.integers(1, 60), st.sampled_from([0, 0, 0, 13, 16, 20])),
    st.tuples(st.just("free"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("purge"), st.just(0), st.just(0))), max_size=50))
def test_areas_against_a_model(machine, ops):
    machine.vm_unmap_aliases()
    first = machine.vmalloc(1)
    machine.vfree(first)
    machine.vm_unmap_aliases()
    model = Model(first, (1 << 30) // PAGE_SIZE)
    live: list[tuple[int, int, int]] = []
    for number, (what, n, shift) in enumerate(ops):
        if what == "alloc":
            addr = machine.vmalloc(n * PAGE_SIZE - 5, align=1 << shift)
            assert addr == model.alloc(n + 1, max(1 << shift, PAGE_SIZE))
            machine.view(addr, n * PAGE_SIZE)[:] = bytes([number]) * (n * PAGE_SIZE)
            live.append((addr, n, number))
        elif what == "free" and live:
            addr, n, mark = live.pop(n % len(live))
            assert bytes(machine.view(addr, n * PAGE_SIZE)) == bytes([mark]) * (n * PAGE_SIZE)
            machine.vfree(addr)
            model.free(addr)
        elif what == "purge":
            machine.vm_unmap_aliases()
            model.lazy.clear()
        assert machine._vmalloc.lazy_pages == sum(model.lazy.values())
        assert machine._vmalloc.nr_pages == sum(n for _, n, _ in live)
    for addr, n, mark in live:                      # nothing overlapped
        assert bytes(machine.view(addr, n * PAGE_SIZE)) == bytes([mark]) * (n * PAGE_SIZE)
    machine.check()
    for addr, _, _ in live:
        machine.vfree(addr)
    machine.vm_unmap_aliases()
    machine.check()
    whole = machine.vmalloc(1, align=1 << 30)       # one hole again
    assert whole == first
    machine.vfree(whole)


@pytest.mark.conformance("VL-13")
def test_a_purge_comes_by_itself(machine):
    purges = machine._vmalloc.nr_purges
    a = machine.vmalloc("4M")
    machine.vfree(a)
    b = machine.vmalloc("4M")
    assert b != a                                   # a's addresses wait
    machine.vfree(b)
    starts = []
    while machine._vmalloc.nr_purges == purges:
        starts.append(machine.vmalloc("4M"))
        machine.vfree(starts[-1])
    assert len(set(starts)) == len(starts) >= 32 // 4 - 3
    again = machine.vmalloc("4M")
    assert again in (a, *starts)
    machine.vfree(again)


def test_two_threads(machine):
    def work(seed: int) -> None:
        live: list[tuple[int, int, int]] = []
        try:
            for i in range(150):
                n = (seed * 31 + i * 17) % 40 + 1
                addr = machine.vmalloc(n * PAGE_SIZE)
                machine.view(addr, n * PAGE_SIZE)[:] = bytes([i % 251]) * (n * PAGE_SIZE)
                live.append((addr, n, i % 251))
                if len(live) > 8 or i % 3 == 0:
                    addr, n, mark = live.pop(i % len(live))
                    assert bytes(machine.view(addr, n * PAGE_SIZE)) == bytes([mark]) * (
                        n * PAGE_SIZE)
                    machine.vfree(addr)
                if i % 50 == 0:
                    machine.vm_unmap_aliases()
                    machine.check()
        finally:
            for addr, _, _ in live:
                machine.vfree(addr)

    storm(work)


def test_tables_of_the_kernel_half(machine):
    """The page tables are the truth: what p.walk() shows, every process's PGD shares."""
    process = machine.spawn()
    a = machine.vmalloc(2 * PAGE_SIZE)
    base = machine.vmalloc_base
    kernel = 0xFFFF_C900_0000_0000 + (a - base)
    steps = process.walk(kernel)
    assert [step.level for step in steps] == ["pgd", "pud", "pmd", "pte"]
    entry = steps[-1].raw & ~(3 << 52)
    assert entry >> 12 & (1 << 40) - 1 == machine.vmalloc_to_pfn(a)
    assert entry & 0xFFF | entry & 1 << 63 == 0x8000_0000_0000_0163     # PAGE_KERNEL
    for step in steps[:-1]:
        assert step.raw & 0xFFF == 0x063                                # no user access
    with pytest.raises(rm.SegmentationFault):
        process.read(kernel, 1)
    other = machine.spawn()
    assert other.walk(kernel)[1:] == steps[1:]
    machine.vfree(a)
    assert process.walk(kernel)[-1].raw == 0
    process.exit()
    other.exit()
    machine.drain_all_pages()
