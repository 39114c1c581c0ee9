"""What vmalloc and its kin refuse, and that nothing changes or leaks then."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from soak import examples

import realmem as rm
from realmem.layout import PAGE_SIZE
from realmem.machine import Machine


@pytest.fixture
def machine():
    with Machine(nodes=1, memory="16M", window="1G") as machine:
        machine.vfree(machine.vmalloc(1))
        yield machine
        machine.check()


def state(machine):
    machine.drain_all_pages()
    return (machine.nodes[0].free_pages, machine.procfs["/proc/vmallocinfo"],
            machine.vmstat["nr_page_table_pages"])


@pytest.mark.conformance("VL-01")
@pytest.mark.parametrize("size", [0, -1, -PAGE_SIZE, 1 << 62, 1 << 100, "0", "17M", 17 << 20])
def test_sizes_that_could_never_be_had(machine, size):
    before = state(machine)
    for give in (machine.vmalloc, machine.vzalloc,
                 lambda size: machine.vmalloc_node(size, 0)):
        with pytest.raises(ValueError):
            give(size)
    assert state(machine) == before


@pytest.mark.parametrize("size", [None, 1.5, b"1", [4096]])
def test_sizes_of_wrong_types(machine, size):
    with pytest.raises(TypeError):
        machine.vmalloc(size)


@pytest.mark.parametrize("node", [-2, 1, 64, 1 << 40])
def test_no_such_node(machine, node):
    with pytest.raises(ValueError):
        machine.vmalloc_node(1, node)


def test_bad_flags(machine):
    with pytest.raises(ValueError):
        machine.vmalloc(1, gfp=1 << 30)
    with pytest.raises(ValueError):
        machine.vmalloc(1, gfp=rm.GFP.DMA | rm.GFP.DMA32)


@pytest.mark.conformance("VL-08")
def test_bad_frees(machine):
    area = machine.vmalloc(3 * PAGE_SIZE)
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    mapped = machine.vmap([page])
    ram = machine.vm_map_ram([page])
    freed = machine.vmalloc(1)
    machine.vfree(freed)
    before = state(machine)
    for addr, words in {
        area + 1: "bad address", area + PAGE_SIZE - 1: "bad address", 12345: "bad address",
        area + PAGE_SIZE: "begins elsewhere", area + 3 * PAGE_SIZE: "begins elsewhere",
        PAGE_SIZE: "nonexistent", 1 << 46: "nonexistent", page.address: "nonexistent",
        -PAGE_SIZE: "nonexistent", ram + (64 << 20): "nonexistent", freed: "double free",
        mapped: "did not give", ram: "did not give",
    }.items():
        with pytest.raises(rm.AllocatorError, match=words):
            machine.vfree(addr)
    for addr in (area, ram, freed, mapped + 1):
        with pytest.raises(rm.AllocatorError):
            machine.vunmap(addr)
    for addr, count in ((area, 3), (mapped, 1), (ram, 2), (ram + PAGE_SIZE, 1)):
        with pytest.raises(rm.AllocatorError):
            machine.vm_unmap_ram(addr, count)
    for count in (0, -1):
        with pytest.raises(ValueError):
            machine.vm_unmap_ram(ram, count)
    for nothing in (0, None):
        assert machine.vfree(nothing) is None
        assert machine.vunmap(nothing) is None
        assert machine.kvfree(nothing) is None
    assert state(machine) == before
    machine.vm_unmap_aliases()
    with pytest.raises(rm.AllocatorError, match="nonexistent"):
        machine.vfree(freed)
    machine.vfree(area)
    machine.vunmap(mapped)
    machine.vm_unmap_ram(ram, 1)
    machine.free_pages(page, 0)


def test_before_the_first_use():
    with Machine(nodes=1, memory="16M", window="1G") as machine:
        assert machine.is_vmalloc_addr(1 << 40) is False
        for call in (machine.vfree, machine.vunmap):
            with pytest.raises(rm.AllocatorError):
                call(PAGE_SIZE)
        with pytest.raises(ValueError):
            machine.vmalloc_to_page(1 << 40)
        assert machine.procfs["/proc/vmallocinfo"] == ""
        machine.vm_unmap_aliases()


def test_pages_of_an_area_are_its_own(machine):
    area = machine.vmalloc(PAGE_SIZE)
    page = machine.vmalloc_to_page(area)
    for free in (lambda: machine.free_page(page), lambda: machine.free_page(page.address),
                 page.put, lambda: machine.free_pages_bulk([page])):
        with pytest.raises(rm.AllocatorError):
            free()
    machine.check()
    page.get()
    machine.vfree(area)
    assert page.refcount == 1 and not page.flags        # whoever holds it
    page.put()


def test_vmap_refuses(machine):
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    before = state(machine)
    free = machine.pfn_to_page(page.pfn ^ 2048)
    for pages in ([], [free], [page, free], [page] * 5000):
        with pytest.raises(ValueError):
            machine.vmap(pages)
    for pages in ([None], [1.5], 5, ["x"]):
        with pytest.raises(TypeError):
            machine.vmap(pages)
    with Machine(nodes=1, memory="16M") as other, pytest.raises(rm.AllocatorError):
        other.vmap([page])
    for prot in (0, 2, 4, 7, "rw"):
        with pytest.raises(ValueError):
            machine.vmap([page], prot=prot)
    assert state(machine) == before and page.refcount == 1
    machine.free_page(page)


def test_vmalloc_to_page_of_what_is_not_mapped(machine):
    area = machine.vmalloc(PAGE_SIZE)
    for addr in (area + PAGE_SIZE, area - PAGE_SIZE, 0, 1 << 46, machine.va(0x100000)):
        with pytest.raises(ValueError):
            machine.vmalloc_to_page(addr)
    assert machine.vmalloc_to_page(area + 4095) == machine.vmalloc_to_page(area)
    assert machine.is_vmalloc_addr(area) and machine.is_vmalloc_addr(area + PAGE_SIZE)
    assert not machine.is_vmalloc_addr(machine.va(0x100000))
    machine.vfree(area)


@pytest.mark.conformance("VL-10")
def test_no_memory_midway(machine):
    held = []
    try:
        while True:
            held.append(machine.alloc_pages(rm.GFP_KERNEL, 3))
    except rm.OutOfMemory:
        pass
    for page in held[:8]:
        machine.free_pages(page, 3)
    machine.vm_unmap_aliases()
    before = state(machine)
    with pytest.raises(rm.OutOfMemory, match=r"vmalloc error: size 4194304") as caught:
        machine.vmalloc("4M")
    assert caught.value.gfp == rm.GFP_KERNEL and "Mem-Info" in str(caught.value)
    machine.vm_unmap_aliases()
    assert state(machine) == before
    machine.vfree(machine.vmalloc("128K"))
    for page in held[8:]:
        machine.free_pages(page, 3)


@pytest.mark.conformance("VL-10")
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nth=st.integers(1, 40), pages=st.integers(1, 1200), zero=st.booleans())
def test_every_failure_gives_everything_back(machine, nth, pages, zero):
    """Whichever call of the page allocator fails: an area of its own frames, or a mapping."""
    machine.vm_unmap_aliases()
    before = state(machine)
    give = machine.vzalloc if zero else machine.vmalloc
    with machine.inject("page_alloc", nth=nth, times=1 << 40) as failing:
        try:
            machine.vfree(give(pages * PAGE_SIZE))
            assert failing.failures == 0 or pages > 1
        except rm.OutOfMemory:
            assert failing.failures > 0
    machine.vm_unmap_aliases()
    machine.check()
    assert state(machine) == before
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    machine.quicklists.trim()
    with machine.inject("page_alloc", nth=nth):
        try:
            machine.vunmap(machine.vmap([page] * pages))
        except rm.OutOfMemory:
            assert nth <= 5                 # tables
    assert page.refcount == 1
    machine.free_page(page)
    machine.vm_unmap_aliases()
    machine.check()
    assert state(machine) == before


def test_atomic_context(machine):
    area = machine.vmalloc(PAGE_SIZE)
    page = machine.alloc_pages(rm.GFP_KERNEL, 0)
    mapped = machine.vmap([page])
    before = state(machine)
    with machine.atomic_context():
        for call in (lambda: machine.vmalloc(1), lambda: machine.vmalloc(1, gfp=rm.GFP_ATOMIC),
                     lambda: machine.vzalloc(1), lambda: machine.vmalloc_node(1, 0),
                     lambda: machine.vmap([page]), lambda: machine.vunmap(mapped),
                     lambda: machine.vm_map_ram([page]), lambda: machine.kvmalloc(1),
                     machine.vm_unmap_aliases):
            with pytest.raises(rm.AtomicContextError):
                call()
    assert state(machine) == before
    machine.vfree(area)
    machine.vunmap(mapped)
    machine.free_page(page)


def test_vfree_in_atomic_context_is_put_off(machine):
    machine.vm_unmap_aliases()
    empty = state(machine)
    areas = [machine.vmalloc(PAGE_SIZE) for _ in range(3)]
    held = machine._vmalloc.nr_pages
    with machine.atomic_context():
        with machine.atomic_context():
            machine.vfree(areas[0])
        machine.vfree(areas[1])
        assert machine._vmalloc.nr_pages == held == 3
        with pytest.raises(rm.AllocatorError, match="double free"):
            machine.vfree(areas[0])
        with pytest.raises(rm.AllocatorError, match="bad address"):
            machine.vfree(areas[2] + 1)
        with pytest.raises(ValueError):
            machine.view(areas[0], 1)
        machine.check()
    assert machine._vmalloc.nr_pages == 1
    with pytest.raises(rm.AllocatorError, match="double free"):
        machine.vfree(areas[1])
    machine.vfree(areas[2])
    machine.vm_unmap_aliases()
    assert state(machine) == empty


@pytest.mark.conformance("KM-11")
def test_kvmalloc(machine):
    small = machine.kvmalloc(100)
    big = machine.kvmalloc("64K")
    assert not machine.is_vmalloc_addr(small) and not machine.is_vmalloc_addr(big)
    machine.view(big, 65536)[65535] = 1
    # No block of 64 KiB is left: every second frame is taken.
    held, every_other = [], []
    try:
        while True:
            held.append(machine.alloc_pages(rm.GFP_KERNEL | rm.GFP.MEMALLOC, 0))
    except rm.OutOfMemory:
        pass
    held.sort(key=lambda page: page.pfn)
    every_other = held[::2]
    machine.free_pages_bulk(every_other[:600])
    scattered = machine.kvmalloc("64K")
    assert machine.is_vmalloc_addr(scattered)
    machine.view(scattered, 65536)[65535] = 1
    with pytest.raises(rm.OutOfMemory):
        machine.kvmalloc("64K", gfp=rm.GFP_NOWAIT)      # contiguous frames or nothing
    for size in (1 << 31, -1, 1 << 70):
        with pytest.raises(ValueError):
            machine.kvmalloc(size)
    with pytest.raises(ValueError, match="exceeds"):
        machine.kvmalloc("64M")                         # more than there is
    assert machine.kvmalloc(0) == machine.kvzalloc(0) == 16
    machine.kvfree(16)
    machine.kvfree(scattered)
    areas = machine._vmalloc.nr_pages
    with machine.inject("page_alloc", nth=1, times=1 << 30), pytest.raises(rm.OutOfMemory):
        machine.kvmalloc(PAGE_SIZE)                     # no second way for a page
    assert machine._vmalloc.nr_pages == areas == 0
    for page in [*every_other[600:], *held[1::2]]:
        machine.free_page(page)
    machine.kvfree(small)
    machine.kvfree(big)
    with pytest.raises(rm.AllocatorError):
        machine.kvfree(big)
    with pytest.raises(rm.AllocatorError):
        machine.kvfree(scattered)


def test_closed_machine():
    machine = Machine(nodes=1, memory="16M", window="1G")
    area = machine.vmalloc(PAGE_SIZE)
    view = machine.view(area, PAGE_SIZE)
    with pytest.raises(BufferError):
        machine.close()
    view[0] = 1
    machine.vfree(machine.vmalloc(5))
    view.release()
    machine.close()
    for call in (lambda: machine.vmalloc(1), lambda: machine.vfree(area),
                 lambda: machine.is_vmalloc_addr(area), lambda: machine.vmalloc_to_page(area),
                 lambda: machine.vfree(0), lambda: machine.kvfree(None), machine.guard):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.crash
def test_a_view_outlives_its_machine(python):
    done = python("""
import realmem as rm
with rm.Machine(nodes=1, memory="16M", window="1G") as machine:
    view = machine.view(machine.vmalloc(4096), 4096)
    view[0] = 1
other = rm.Machine(nodes=1, memory="16M", window="1G")
area = other.vmalloc(4096)
try:
    with other.guard():
        pass
    view[0]
    other.check()
except rm.SegmentationFault as error:
    print("fault", error.code)
del view
""")
    assert (done.returncode, done.stdout) == (0, "fault 1\n"), done.stderr


@pytest.mark.crash
def test_a_forked_child_has_none_of_it(python):
    done = python("""
import os, realmem as rm
machine = rm.Machine(nodes=1, memory="16M", window="1G")
area = machine.vmalloc(4096)
view = machine.view(area, 4096)
view[0] = 77
pid = os.fork()
if pid == 0:
    try:
        machine.vfree(area)
    except ValueError as error:
        assert "inherited" in str(error)
        try:
            machine.is_vmalloc_addr(area)
        except ValueError:
            view[0]                     # dies here
    os._exit(0)
assert os.waitpid(pid, 0)[1] & 0x7F == 11
assert view[0] == 77
del view
machine.vfree(area)
machine.check()
machine.close()
""")
    assert done.returncode == 0, done.stderr


def test_no_address_space(python):
    done = python("""
import resource, realmem as rm
machine = rm.Machine(nodes=1, memory="16M", window="64G")
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (5 << 30), -1))
area = machine.vmalloc(4096)
assert machine.vmalloc_space == 2 << 30, machine.vmalloc_space
total = machine.procfs["/proc/meminfo"].split("VmallocTotal:")[1].split()[0]
assert int(total) == (2 << 20) - 1
with rm.Machine(nodes=1, memory="16M") as other:
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), -1))
    try:
        other.vmalloc(4096)
    except rm.HostError as error:
        assert "ulimit -v" in str(error)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        other.vfree(other.vmalloc(4096))        # later, it works
        print("refused")
machine.check()
""")
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_hugetlb_backing_says_why(machine):
    from realmem.mm.settings import VmSettings
    from realmem.paging import Paging

    class Pool:
        hugetlb, nodes, fds = True, (), ()

    with pytest.raises(rm.HostError) as caught:
        Paging(machine._allocator, Pool(), 1 << 30, None, VmSettings(), machine.thp).start()
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.crash
def test_a_fork_inside_an_atomic_context(python):
    done = python("""
import os, realmem as rm
machine = rm.Machine(nodes=1, memory="16M", window="1G")
areas = [machine.vmalloc(4096) for _ in range(2)]
with machine.atomic_context():
    machine.vfree(areas[0])
    pid = os.fork()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert machine._vmalloc.nr_pages == 1
with machine.atomic_context():
    machine.vfree(areas[1])
    machine.close()
print("done")
""")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
