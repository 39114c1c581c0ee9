"""MADV_COLLAPSE, and what becomes of huge entries; tests/host/test_host_thp.py asks the kernel."""

from __future__ import annotations

import errno
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import realmem as rm
from realmem import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
HUGE, PAGES = 2 << 20, 512
THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def p(machine):
    return machine.spawn()


def aligned(p, blocks=1):
    at = p.mmap(None, (blocks + 1) * HUGE, RW, ANON)
    return (at + HUGE - 1) & -HUGE


def is_huge(p, at):
    return p.walk(at)[-1].level == "pmd"


def refused(p, at, length=HUGE):
    with pytest.raises(OSError) as caught:
        p.madvise(at, length, MADV_COLLAPSE)
    return caught.value.errno


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.integers(0, PAGES - 1), st.integers(1, 255), min_size=1, max_size=40),
       st.sets(st.integers(0, PAGES - 1), max_size=10), st.booleans())
def test_contents_stay(written, looked_at, raw):
    with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
        p = machine.spawn()
        at = aligned(p)
        view = np.frombuffer(p.view(at, HUGE), dtype=np.uint8)
        for page, value in written.items():
            if raw:
                view[page * PAGE_SIZE + value] = value
            else:
                p.write(at + page * PAGE_SIZE + value, bytes([value]))
        for page in looked_at:
            assert p.read(at + page * PAGE_SIZE, 1) == b"\0"
        machine.drain_all_pages()
        free = machine.nodes[0].free_pages
        p.madvise(at, HUGE, MADV_COLLAPSE)
        machine.check()
        assert is_huge(p, at) and p.rss == PAGES
        expected = np.zeros(HUGE, dtype=np.uint8)
        for page, value in written.items():
            expected[page * PAGE_SIZE + value] = value
        assert (view == expected).all() and p.read(at, HUGE) == expected.tobytes()
        machine.drain_all_pages()
        # 512 frames for those there were, and a table that the entry's own stands in.
        assert 0 <= free - machine.nodes[0].free_pages - PAGES + len(written) <= 64
        del view


def test_the_host_maps_it_at_once(machine, p):
    at = aligned(p)
    view = np.frombuffer(p.view(at, HUGE), dtype=np.uint8)
    view[::PAGE_SIZE] = 1
    p.madvise(at, HUGE, MADV_COLLAPSE)
    faults = machine.hoststat["sigsegv"]
    view[1::PAGE_SIZE] = 2
    assert machine.hoststat["sigsegv"] == faults
    del view


def test_no_store_is_lost(machine, p):
    at = aligned(p)
    view = np.frombuffer(p.view(at, HUGE), dtype=np.uint64)
    stop = threading.Event()
    counts = [0, 0]

    def count(which, view=view):
        while not stop.is_set():
            for _ in range(200):
                view[which * 8] += 1
                counts[which] += 1

    threads = [threading.Thread(target=count, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        p.madvise(at, HUGE, MADV_COLLAPSE)
        p.mprotect(at + 5 * PAGE_SIZE, PAGE_SIZE, PROT_READ)     # splits it
        p.mprotect(at + 5 * PAGE_SIZE, PAGE_SIZE, RW)
        p.fork().exit()
    stop.set()
    for thread in threads:
        thread.join()
    assert [int(view[0]), int(view[8])] == counts
    del view


def test_counters(machine, p):
    at = aligned(p, 3)
    p.touch(at, 3 * HUGE, write=True)
    before = machine.vmstat.snapshot()
    p.madvise(at, 2 * HUGE, MADV_COLLAPSE)
    after = machine.vmstat.snapshot()
    changed = {name: after[name] - before[name] for name in after if "thp" in name
               or "transparent" in name}
    assert {k: n for k, n in changed.items() if n} == {
        "thp_collapse_alloc": 2, "nr_anon_transparent_hugepages": 2}
    assert "AnonHugePages:      4096 kB" in machine.procfs["/proc/meminfo"]
    assert "AnonHugePages:      4096 kB" in "\n".join(
        line.split(" ", 2)[2] for line in
        machine.sysfs["/sys/devices/system/node/node0/meminfo"].splitlines())
    assert "nr_anon_transparent_hugepages 2\n" in machine.sysfs[
        "/sys/devices/system/node/node0/vmstat"]
    child = p.fork()                                # the folios are counted, not who maps them
    assert machine.vmstat["nr_anon_transparent_hugepages"] == 2
    p.munmap(at + HUGE, PAGE_SIZE)
    assert machine.vmstat["nr_anon_transparent_hugepages"] == 2
    assert machine.vmstat["thp_split_pmd"] == 1
    child.exit()
    assert machine.vmstat["nr_anon_transparent_hugepages"] == 1
    p.exit()
    assert machine.vmstat["nr_anon_transparent_hugepages"] == 0


def test_without_memory_nothing_changes(machine, p):
    at = aligned(p)
    p.write(at + 5, b"x")
    with machine.inject("page_alloc", probability=1.0):
        assert refused(p, at) == errno.ENOMEM
    assert p.rss == 1 and not is_huge(p, at)
    assert machine.vmstat["thp_collapse_alloc_failed"] == 1
    machine.check()
    for nth in (1, 2):          # the 2 MiB, or the table that stands in for its entry's
        with machine.inject("page_alloc", nth=nth) as injected:
            failed = False
            try:
                p.madvise(at, HUGE, MADV_COLLAPSE)
            except OSError as why:
                failed = why.errno == errno.ENOMEM
            assert failed or not injected.failures
        machine.check()
        assert p.read(at + 5, 1) == b"x" and is_huge(p, at) != failed


@pytest.mark.parametrize("write", [False, True])
def test_what_is_pinned_stays(machine, p, write):
    at = aligned(p)
    p.write(at + PAGE_SIZE, b"x")
    with p.pin(at + PAGE_SIZE, 1, write=write):
        assert refused(p, at) == errno.EAGAIN
        assert p.rss == 1
    p.madvise(at, HUGE, MADV_COLLAPSE)
    # A child gets its own copy of a pinned page, and the parent's entry is split for that.
    with p.pin(at + PAGE_SIZE, 1, write=True) as pinned:
        child = p.fork()
        pinned[0] = 7
        assert (p.read(at + PAGE_SIZE, 1), child.read(at + PAGE_SIZE, 1)) == (b"\7", b"x")
        assert not is_huge(p, at)
        machine.check()
    other = aligned(p)
    p.write(other, b"y")
    page = machine.pfn_to_page(p.walk(other)[-1].decoded["pfn"])
    page.get()
    assert refused(p, other) == errno.EAGAIN
    page.put()
    p.madvise(other, HUGE, MADV_COLLAPSE)
    assert p.read(other, 1) == b"y"


def test_a_pinned_zero_page_stays_mapped(machine, p):
    """No reference tells of that pin: a host system call is to find the page all the same."""
    at = aligned(p)
    p.write(at, b"x")
    with p.pin(at + PAGE_SIZE, PAGE_SIZE) as view, tempfile.TemporaryFile(buffering=0) as file:
        assert refused(p, at) == errno.EAGAIN
        assert file.write(view) == PAGE_SIZE            # EFAULT, were it not mapped
    p.madvise(at, HUGE, MADV_COLLAPSE)
    assert is_huge(p, at)


def test_a_pin_of_a_shared_huge_page_splits_it(machine, p):
    at = aligned(p)
    p.write(at, b"x" * PAGE_SIZE)
    p.madvise(at, HUGE, MADV_COLLAPSE)
    child = p.fork()
    with child.pin(at, PAGE_SIZE) as view:
        p.write(at, b"z")
        assert bytes(view[:1]) == b"x"
        machine.check()
    assert not is_huge(child, at)
    child.exit()
    # Alone again, it is pinned as it is.
    other = aligned(p)
    p.write(other, b"x")
    p.madvise(other, HUGE, MADV_COLLAPSE)
    p.fork().exit()
    with p.pin(other, HUGE) as view:
        assert is_huge(p, other) and view[0] == ord("x")
        p.write(other, b"w")
        assert view[0] == ord("w")


def test_from_the_node_that_most_pages_lie_on():
    with rm.Machine(nodes=2, memory="32M", window="1G") as machine:
        p = machine.spawn(node=0)
        at = aligned(p)
        p.write(at, b"1")
        hog = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                hog.append(machine.alloc_pages_node(
                    0, rm.GFP.USER | rm.GFP.THISNODE | rm.GFP.NOWARN, 0))
        p.touch(at, 9 * PAGE_SIZE, write=True)          # what is left, then node 1
        found = [machine.pfn_to_page(p.walk(at + page * PAGE_SIZE)[-1].decoded["pfn"]).node
                 for page in range(9)]
        for page in hog:
            machine.free_pages(page, 0)
        machine.drain_all_pages()
        assert found[0] == 0 and found.count(1) > 4
        p.madvise(at, HUGE, MADV_COLLAPSE)
        assert machine.pfn_to_page(p.walk(at)[-1].decoded["pfn"]).node == 1
        machine.check()


def test_errors_end_the_call_where_the_kernel_s_does(machine, p):
    at = aligned(p, 4)
    p.write(at, b"1")
    p.write(at + 2 * HUGE, b"2")
    assert refused(p, at, 3 * HUGE) == errno.EINVAL     # nothing in the second: the third waits
    assert [is_huge(p, at + i * HUGE) for i in (0, 2)] == [True, False]
    p.write(at + HUGE, b"3")
    with p.pin(at + HUGE, 1):                           # but what is pinned is passed over
        assert refused(p, at, 3 * HUGE) == errno.EAGAIN
    assert [is_huge(p, at + i * HUGE) for i in range(3)] == [True, False, True]
    p.madvise(at + HUGE + 3 * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_INSTALL)
    allocated = machine.vmstat["thp_collapse_alloc"]
    assert refused(p, at, 3 * HUGE) == errno.EINVAL
    assert machine.vmstat["thp_collapse_alloc"] == allocated + 1
    assert p.process_madvise([(at, HUGE), (at + HUGE, HUGE)], MADV_COLLAPSE) == HUGE


def test_locked_memory_stays_locked(machine, p):
    at = aligned(p, 2)
    p.mlock(at, 2 * HUGE)
    p.madvise(at, 2 * HUGE, MADV_COLLAPSE)
    assert machine.vmstat["nr_mlock"] == 2 * PAGES
    assert p.mm.core.smaps(at, at + 2 * HUGE).locked == 2 * HUGE
    p.munlock(at, HUGE)
    assert machine.vmstat["nr_mlock"] == PAGES and is_huge(p, at)


def test_frames_all_come_back(machine):
    machine.spawn().exit()
    machine.drain_all_pages()
    machine.quicklists.trim()
    before = machine.nodes[0].free_pages
    for _ in range(3):
        p = machine.spawn()
        at = aligned(p, 3)
        p.touch(at, 3 * HUGE, write=True)
        p.madvise(at, 3 * HUGE, MADV_COLLAPSE)
        child = p.fork()
        child.write(at, b"1")
        grandchild = child.fork()
        p.write(at + HUGE, b"2")
        p.exit()
        grandchild.mprotect(at, HUGE, PROT_READ)
        grandchild.mremap(at + 2 * HUGE, HUGE, HUGE, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED,
                          at + HUGE)
        machine.check()
        child.exit()
        grandchild.madvise(at + HUGE, HUGE, MADV_FREE)
        grandchild.exit()
    machine.drain_all_pages()
    machine.quicklists.trim()
    assert machine.nodes[0].free_pages == before


def test_a_child_of_a_huge_page_faults_once(machine, p):
    """The host maps all of it at the first touch, whoever maps the huge page."""
    at = aligned(p)
    view = np.frombuffer(p.view(at, HUGE), dtype=np.uint8)
    view[:] = 5
    p.madvise(at, HUGE, MADV_COLLAPSE)
    child = p.fork()
    theirs = np.frombuffer(child.view(at, HUGE), dtype=np.uint8)
    faults = machine.hoststat["sigsegv"]
    assert theirs.sum() == 5 * HUGE
    assert machine.hoststat["sigsegv"] - faults == 1
    child.exit()
    faults = machine.hoststat["sigsegv"]
    view[:] = 6                         # the last owner: opened as a whole
    assert machine.hoststat["sigsegv"] - faults == 1 and is_huge(p, at)
    del view, theirs


def test_disabled_but_where_advised(machine):
    machine.sysfs[f"{THP}/enabled"] = "always"
    p = machine.spawn()
    at = aligned(p, 2)
    p.prctl(rm.PR_SET_THP_DISABLE, 1, rm.PR_THP_DISABLE_EXCEPT_ADVISED, 0, 0)
    p.write(at, b"1")
    assert p.rss == 1
    p.madvise(at + HUGE, HUGE, MADV_HUGEPAGE)
    p.write(at + HUGE, b"1")
    assert p.rss == 1 + PAGES and is_huge(p, at + HUGE)
    child = p.fork()
    child.madvise(at, HUGE, MADV_COLLAPSE)
    assert is_huge(child, at)
    p.prctl(rm.PR_SET_THP_DISABLE, 1, 0, 0, 0)
    p.munmap(at + HUGE, HUGE)
    p.mmap(at + HUGE, HUGE, RW, ANON | rm.MAP_FIXED)
    p.madvise(at + HUGE, HUGE, MADV_HUGEPAGE)
    p.write(at + HUGE, b"1")
    assert not is_huge(p, at + HUGE)


def free_frames(machine):
    machine.drain_all_pages()
    machine.quicklists.trim()
    return machine.nodes[0].free_pages


@pytest.mark.parametrize("raw", [False, True])
def test_the_huge_zero_page(machine, raw):
    p = machine.spawn()                     # no frame that is free is zero by itself
    size = sum(node.free_pages for node in machine.nodes) * 9 // 10 * PAGE_SIZE
    p.fill(p.mmap(None, size, RW, ANON), size, 0x5A)
    p.exit()
    before = free_frames(machine)
    p = machine.spawn()
    at = aligned(p, 2)
    p.madvise(at, 2 * HUGE, MADV_HUGEPAGE)
    machine.sysfs[f"{THP}/enabled"] = "madvise"
    view = np.frombuffer(p.view(at, 2 * HUGE), dtype=np.uint8)
    faults = machine.hoststat["sigsegv"]
    if raw:
        assert view.max() == 0
        assert machine.hoststat["sigsegv"] - faults == 2
    else:
        assert p.read(at, 2 * HUGE) == bytes(2 * HUGE)
    assert is_huge(p, at) and p.rss == 0 and p.min_flt == 2
    assert machine.vmstat["thp_zero_page_alloc"] == 1
    assert machine.vmstat["nr_anon_transparent_hugepages"] == 0
    machine.check()
    child = p.fork()
    if raw:
        view[PAGE_SIZE] = 7
    else:
        p.write(at + PAGE_SIZE, b"\7")
    assert p.rss == PAGES and is_huge(p, at) and is_huge(child, at)
    assert machine.vmstat["thp_fault_alloc"] == 1
    child.mprotect(at + HUGE, PAGE_SIZE, PROT_READ)     # splits it; all stays zero
    child.write(at + HUGE + PAGE_SIZE, b"\5")
    assert child.rss == 1 and not is_huge(child, at + HUGE)
    assert view[HUGE:].max() == 0 and child.read(at, HUGE) == bytes(HUGE)
    machine.check()
    p.exit()
    child.write(at, b"\3")
    assert child.read(at + HUGE + 2 * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    child.exit()
    del view
    assert free_frames(machine) == before


def test_the_huge_zero_page_is_a_choice(machine):
    path = f"{THP}/use_zero_page"
    assert machine.sysfs[path] == "1\n"
    machine.sysfs[f"{THP}/enabled"] = "always"
    for text in ("2", "", "yes"):
        with pytest.raises(OSError) as caught:
            machine.sysfs[path] = text
        assert caught.value.errno == errno.EINVAL
    machine.sysfs[path] = "0\n"
    p = machine.spawn()
    at = aligned(p, 3)
    p.read(at, 1)
    assert not is_huge(p, at)
    machine.sysfs[path] = "1"
    p.read(at + HUGE, 1)
    assert is_huge(p, at + HUGE)
    # Without memory for 2 MiB a page of zeros does.
    other = machine.spawn()
    where = aligned(other)
    p.exit()
    with machine.inject("page_alloc", nth=1):
        try:
            other.read(where, 1)
        except rm.OutOfMemory:
            pass
    assert other.read(where, 1) == b"\0"
    machine.check()


def test_a_pin_of_the_huge_zero_page(machine):
    machine.sysfs[f"{THP}/enabled"] = "always"
    p = machine.spawn()
    at = aligned(p)
    with p.pin(at, PAGE_SIZE) as view:
        assert is_huge(p, at) and bytes(view) == bytes(PAGE_SIZE)
        p.write(at + PAGE_SIZE, b"\1")          # not under the pin: one page
        assert p.rss == 1 and bytes(view) == bytes(PAGE_SIZE)
        machine.check()
    p.exit()


def free_pages(machine):
    machine.drain_all_pages()
    machine.quicklists.trim()
    for cache in machine.kmem_caches.values():
        cache.shrink()
    return machine.nodes[0].free_pages


def test_a_collapse_that_fails_takes_nothing(machine, p):
    at = aligned(p)
    p.write(at, b"x")
    p.madvise(at + 9 * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_INSTALL)
    before = free_pages(machine)
    assert refused(p, at) == errno.EINVAL       # when a folio was there already
    assert machine.vmstat["thp_collapse_alloc"] == 1
    assert free_pages(machine) == before


def test_the_huge_zero_page_stays_within_its_vma(machine, p):
    machine.sysfs[f"{THP}/enabled"] = "always"
    at = aligned(p)
    p.mprotect(at + HUGE - PAGE_SIZE, PAGE_SIZE, PROT_READ)
    p.read(at, 1)
    assert not is_huge(p, at)
    p.mprotect(at + HUGE - PAGE_SIZE, PAGE_SIZE, RW)
    p.madvise(at, HUGE, MADV_DONTNEED)
    p.read(at, 1)
    assert is_huge(p, at)


def test_the_huge_zero_page_covers_nothing_that_is_there(machine, p):
    at = aligned(p)
    p.write(at + 5 * PAGE_SIZE, b"x")
    machine.sysfs[f"{THP}/enabled"] = "always"
    p.read(at, 1)
    assert not is_huge(p, at)
    assert p.read(at + 5 * PAGE_SIZE, 1) == b"x"


def test_a_walk_sees_what_was_used_behind_a_huge_entry(machine, p):
    at = aligned(p)
    p.write(at, b"x")
    p.madvise(at, HUGE, MADV_COLLAPSE)
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "1"
    assert "accessed" not in p.walk(at)[-1].decoded["flags"]
    p.read(at + 7 * PAGE_SIZE, 1)
    assert is_huge(p, at)
    assert "accessed" in p.walk(at)[-1].decoded["flags"]


def test_bits_of_huge_entries_follow_their_use(machine, p):
    at = aligned(p, 3)
    p.fill(at, HUGE, 1)
    p.madvise(at, HUGE, MADV_COLLAPSE)
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "4"   # soft-dirty bits go

    def flags(process, where):
        step = process.walk(where)[-1]
        assert step.level == "pmd"
        return step.decoded["flags"]

    child = p.fork()
    assert "accessed" not in flags(child, at)           # not used through the child's yet
    assert {"accessed", "dirty"} <= flags(p, at) and "rw" not in flags(p, at) | flags(child, at)
    child.exit()
    p.madvise(at, HUGE, MADV_FREE)
    assert "dirty" not in flags(p, at)
    p.write(at, b"x")                                   # the last owner: opened as a whole
    assert {"rw", "dirty", "accessed", "soft_dirty"} <= flags(p, at)
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "4"
    assert "soft_dirty" not in flags(p, at)
    new = p.mremap(at, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + HUGE)
    assert "soft_dirty" in flags(p, new)                # what moved counts as dirtied


def test_a_store_to_what_was_given_up_is_noticed(machine, p):
    at = aligned(p)
    p.fill(at, HUGE, 1)
    p.madvise(at, HUGE, MADV_COLLAPSE)
    view = p.view(at, HUGE)
    view[0] = 2
    p.madvise(at, HUGE, MADV_FREE)
    assert view[9 * PAGE_SIZE] == 1                     # mapped again, and not for stores
    assert "LazyFree:           2048 kB" in p.smaps()
    view[9 * PAGE_SIZE] = 3
    assert "dirty" in p.walk(at)[-1].decoded["flags"]


@pytest.mark.parametrize("length", [PAGE_SIZE, HUGE - 2 * PAGE_SIZE])
def test_within_2_mib_there_is_nothing_to_collapse(p, length):
    at = aligned(p)
    p.fill(at, HUGE, 1)
    assert refused(p, at + PAGE_SIZE, length) == errno.EINVAL
    assert not is_huge(p, at)
