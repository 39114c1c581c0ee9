"""Quicklists: what comes back, in which order, zeroed, and when it is given up."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from soak import examples
from threads import storm

from realmem.errors import AllocatorError, InvariantError, OutOfMemory
from realmem.layout import (
    GFP,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.machine import Machine
from realmem.procfs.meminfo import parse_meminfo

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
PMD = 2 << 20
BASE = 0x7FFF_8000_0000      # where a window of 1 GiB begins
PRESENT = 1


@pytest.fixture
def machine():
    with Machine(nodes=1, memory="32M", window="1G") as machine:
        machine.spawn().exit()          # the kernel's own tables
        machine.drain_all_pages()
        yield machine
        for process in list(machine.processes.values()):
            process.exit()
        machine.drain_all_pages()
        assert machine.quicklists.pages == 0
        machine.check()


@pytest.fixture(autouse=True)
def one_cpu():
    """A list belongs to the node of the CPU that the thread runs on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def with_tables(machine, n: int):
    """Make a process with n page tables of the lowest level: n + 3 table frames."""
    process = machine.spawn()
    for i in range(n):
        addr = process.mmap(BASE + i * PMD, PAGE_SIZE, RW, ANON | MAP_FIXED)
        process.touch(addr, 1)          # the zero page: no other frame
    return process


def frames(process, addr: int = BASE) -> list[int]:
    """The table frames of a walk, from the PGD down."""
    return [step.address >> 12 for step in process.walk(addr)]


def free_pages(machine) -> int:
    """Count what is free, or in slabs: processes' own structures are not this file's matter."""
    return machine.vmstat["nr_slab_unreclaimable"] + sum(
        zone.free_pages + sum(entry["count"] for entry in machine._allocator.pcp_stat(zone.index))
        for node in machine.nodes for zone in node.zones)


@pytest.mark.conformance("QL-01")
def test_the_table_freed_last_is_the_next_one(machine):
    process = with_tables(machine, 1)
    before = frames(process)
    assert machine.quicklists.pages == 0
    process.exit()
    assert machine.quicklists.pages == len(before) == 4
    again = machine.spawn()             # its PGD is the one that went last
    assert frames(again)[0] == before[0]
    assert machine.quicklists.pages == 3
    again.mmap(BASE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    again.touch(BASE, 1)
    assert sorted(frames(again)) == sorted(before)
    assert machine.quicklists.pages == 0
    machine.check()


@pytest.mark.conformance("QL-02")
def test_a_fresh_table_is_zeroed(machine):
    """Frames full of ones come to be tables with one entry each."""
    pages = machine.alloc_pages_bulk(GFP.KERNEL, 2000)
    for page in pages:
        machine.view(page.address, PAGE_SIZE)[:] = b"\xff" * PAGE_SIZE
    dirty = {page.pfn for page in pages}
    machine.free_pages_bulk(pages)
    process = with_tables(machine, 1)
    used = frames(process)
    assert dirty.intersection(used)
    for pfn in used[1:]:
        words = machine.view(machine.pfn_to_page(pfn).address, PAGE_SIZE).cast("Q")
        assert [bool(word & PRESENT) for word in words].count(True) == 1
        assert [bool(word) for word in words].count(True) == 1


@pytest.mark.conformance("QL-03")
def test_kept_pages_are_zero_and_checked(machine):
    with_tables(machine, 3).exit()
    assert machine.quicklists.pages == 6
    machine.check()
    page = machine.spawn()              # the first of the list comes off it ...
    pfn = frames(page)[0]
    page.exit()                         # ... and back on it
    view = machine.view(machine.pfn_to_page(pfn).address, PAGE_SIZE).cast("Q")
    assert machine.pfn_to_page(pfn).flags == {"quicklist"}
    assert not any(view[1:])            # the first word links it
    view[100] = 1
    with pytest.raises(InvariantError, match=f"pfn {pfn}: a page table .* not zero"):
        machine.check()
    view[100] = 0
    machine.check()
    link, view[0] = view[0], 0
    with pytest.raises(InvariantError, match="quicklist's count"):
        machine.check()
    view[0] = link


@pytest.mark.conformance("QL-04")
def test_pages_of_another_node_go_back_at_once():
    cpus = sorted(os.sched_getaffinity(0) | set(range(os.cpu_count() or 1)))
    allowed = set()
    with Machine(nodes=2, memory="32M", window="1G") as machine:
        for cpu in cpus:
            try:
                os.sched_setaffinity(0, {cpu})
                allowed.add(cpu)
            except OSError:
                continue
        places = [sorted(allowed.intersection(node.cpus)) for node in machine.nodes]
        if not all(places):
            pytest.skip("needs a CPU on each of two nodes")
        os.sched_setaffinity(0, {places[0][0]})
        with_tables(machine, 1).exit()
        assert machine.quicklists.pages == 4
        process = with_tables(machine, 5)
        assert machine.quicklists.pages == 0
        assert {machine.pfn_to_page(pfn).node for pfn in frames(process)} == {0}
        os.sched_setaffinity(0, {places[1][0]})
        before = free_pages(machine)
        process.exit()
        assert machine.quicklists.pages == 0
        assert free_pages(machine) == before + 8
        # Home-node pages are kept, and the list of the node that was left goes.
        other = with_tables(machine, 1)
        assert {machine.pfn_to_page(pfn).node for pfn in frames(other)} == {1}
        other.exit()
        assert machine.quicklists.pages == 4
        os.sched_setaffinity(0, {places[0][0]})
        third = with_tables(machine, 1)
        assert {machine.pfn_to_page(pfn).node for pfn in frames(third)} == {0}
        assert machine.quicklists.pages == 4
        third.exit()
        assert machine.quicklists.pages == 4        # node 0's in place of node 1's
        machine.check()


def most_kept(machine, min_pages: int) -> int:
    """mm/quicklist.c: a CPU's share of a sixteenth of its node's free pages."""
    node = machine.nodes[0]
    return max(node.free_pages // 16 // max(len(node.cpus), 1), min_pages)


@pytest.mark.conformance("QL-05")
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 300), min_pages=st.integers(0, 320), max_free=st.integers(0, 320))
def test_trim(machine, n, min_pages, max_free):
    process = with_tables(machine, n)
    lists = machine.quicklists
    process.exit()                      # which trims, too: 25 are kept, 16 given back at most
    pages = lists.pages
    wanted = 0
    if pages > min_pages:
        wanted = max(min(pages - most_kept(machine, min_pages), max_free), 0)
    assert lists.trim(min_pages, max_free) == wanted
    assert lists.pages == pages - wanted
    machine.check()
    assert lists.trim() == pages - wanted
    assert lists.pages == 0


def test_a_teardown_trims(machine):
    """Compare check_pgt_cache(): what is over the node's share goes, sixteen a time."""
    taken = []
    while machine.nodes[0].free_pages > 2000:
        taken.append(machine.alloc_pages(GFP.KERNEL, 5))
    process = with_tables(machine, 200)
    bound = most_kept(machine, 25)
    assert bound < 100
    before = machine.nodes[0].free_pages
    process.munmap(BASE, 200 * PMD)
    assert machine.quicklists.pages == 202 - 16         # its PGD stays
    assert machine.nodes[0].free_pages == before + 16
    process.exit()
    assert machine.quicklists.pages == 203 - 32
    for page in taken:
        machine.free_pages(page, 5)


def test_pressure_empties_them(machine):
    with_tables(machine, 60).exit()
    kept = machine.quicklists.pages
    assert kept == 63
    taken = []
    with pytest.raises(OutOfMemory):
        while True:
            taken.append(machine.alloc_pages(GFP.KERNEL, 0))
    assert machine.quicklists.pages == 0
    for page in taken:
        machine.free_pages(page, 0)


def test_a_thread_that_ends_leaves_none(machine):
    process = with_tables(machine, 5)
    seen = []

    def end():
        process.exit()
        seen.append(machine.quicklists.pages)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert seen == [8]
    for _ in range(1000):               # join() returns before the host's thread is gone
        if machine.quicklists.pages == 0:
            break
        time.sleep(0.01)
    assert machine.quicklists.pages == 0
    machine.check()


def test_two_threads(machine):
    def work(seed):
        for i in range(60):
            process = with_tables(machine, (seed + i) % 7)
            if i % 20 == 0:
                machine.quicklists.trim()
            process.exit()

    storm(work)
    machine.check()


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ops=st.lists(st.tuples(st.sampled_from(["spawn", "exit", "unmap", "trim", "drain"]),
                              st.integers(0, 9)), max_size=30))
def test_nothing_is_lost(machine, ops):
    """Free, kept and used pages always add up."""
    machine.drain_all_pages()
    everything = free_pages(machine)
    tables = machine.vmstat["nr_page_table_pages"]
    live = []
    for what, n in ops:
        if what == "spawn":
            live.append(with_tables(machine, n))
        elif what == "exit" and live:
            live.pop(n % len(live)).exit()
        elif what == "unmap" and live:
            live[n % len(live)].munmap(BASE, n * PMD + PAGE_SIZE)
        elif what == "trim":
            machine.quicklists.trim(n, 3)
        elif what == "drain":
            machine.drain_all_pages()
            assert machine.quicklists.pages == 0
        used = machine.vmstat["nr_page_table_pages"] - tables
        assert free_pages(machine) + machine.quicklists.pages + used == everything
        machine.check()
    for process in live:
        process.exit()


def test_meminfo(machine):
    with_tables(machine, 5).exit()
    text = machine.procfs["/proc/meminfo"]
    assert parse_meminfo(text)["Quicklists"] == 8 * 4
    names = [line.partition(":")[0] for line in text.splitlines()]
    assert names[names.index("Quicklists") - 1] == "PageTables"
    assert "\nQuicklists:           32 kB\n" in text


def test_they_cannot_be_freed_by_hand(machine):
    process = machine.spawn()
    page = machine.pfn_to_page(frames(process)[0])
    with pytest.raises(AllocatorError, match="still in use"):
        machine.free_page(page)
    process.exit()
    assert page.flags == {"quicklist"}
    with pytest.raises(AllocatorError, match="still in use"):
        machine.free_page(page)
    machine.check()


def test_a_page_that_somebody_holds_is_not_kept(machine):
    process = machine.spawn()
    page = machine.pfn_to_page(frames(process)[0])
    page.get()
    process.exit()
    assert machine.quicklists.pages == 0
    page.put()
    machine.check()


def test_nobody_takes_a_reference_to_a_spare_page(machine):
    """It would be given out, or up, over the head of who holds it."""
    process = machine.spawn()
    page = machine.pfn_to_page(frames(process)[0])
    process.exit()
    with pytest.raises(AllocatorError, match="on a quicklist"):
        page.get()
    assert page.refcount == 1
    machine.check()


def test_poison():
    with Machine(nodes=1, memory="16M", window="1G", poison=True) as machine:
        process = with_tables(machine, 40)
        tables = frames(process)
        process.exit()
        machine.check()
        machine.quicklists.trim()
        assert all("poisoned" in machine.pfn_to_page(pfn).flags for pfn in tables)
        pages = machine.alloc_pages_bulk(GFP.KERNEL, 1000)      # checks the poison
        machine.free_pages_bulk(pages)
        machine.check()


@pytest.mark.parametrize("arguments", [(-1,), (0, -1), (-(1 << 70), 0)])
def test_bad_trims(machine, arguments):
    with pytest.raises(ValueError):
        machine.quicklists.trim(*arguments)
    with pytest.raises(TypeError):
        machine.quicklists.trim("1")
    assert machine.quicklists.trim(1 << 70, 1 << 70) == 0


def test_closed_and_inherited(python):
    machine = Machine(nodes=1, memory="16M", window="1G")
    lists = machine.quicklists
    with_tables(machine, 2).exit()
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        lists.trim()
    with pytest.raises(ValueError, match="closed"):
        machine.quicklists
    done = python("""
import os, realmem as rm
machine = rm.Machine(nodes=1, memory="16M", window="1G")
lists = machine.quicklists
machine.spawn().exit()
pid = os.fork()
if pid == 0:
    status = 0
    for call in (lists.trim, lambda: lists.pages, lambda: machine.quicklists):
        try:
            call()
        except ValueError as error:
            status += "inherited" in str(error)
    os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
assert lists.pages == 1 and lists.trim() == 1
machine.check()
""")
    assert done.returncode == 0, done.stderr
