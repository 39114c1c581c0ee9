"""mmap and its kin on real memory: contents, faults, limits that faults meet."""

from __future__ import annotations

import errno
import random
import sys

import pytest

from realmem.errors import SegmentationFault
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SEGV_ACCERR,
    SEGV_MAPERR,
)
from realmem.machine import Machine

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANON | MAP_FIXED



@pytest.fixture
def machine():
    with Machine(nodes=1, memory="64M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def p(machine):
    return machine.spawn()


def fault_code(call, *args):
    with pytest.raises(SegmentationFault) as caught:
        call(*args)
    return caught.value.code


@pytest.mark.conformance("MM-16")
def test_fixed_over_the_middle_reads_zero(p):
    a = p.mmap(None, 3 * P, RW, ANON)
    p.write(a, b"x" * 3 * P)
    p.mmap(a + P, P, RW, FIXED)
    assert p.read(a, 3 * P) == b"x" * P + bytes(P) + b"x" * P and len(p.vmas) == 1


@pytest.mark.conformance("MM-31")
def test_no_vma(machine, p):
    before = machine.vmstat["pgfault"]
    assert fault_code(p.read, 1 << 30, 1) == SEGV_MAPERR
    assert machine.vmstat["pgfault"] == before


@pytest.mark.conformance("MM-34", "MM-37")
def test_populated_pages_are_present(p):
    a = p.mmap(None, 8 * P, RW, ANON | MAP_POPULATE)
    assert p.rss == 8 and all(p.walk(a + i * P)[-1].level == "pte" for i in range(8))
    faults = p.min_flt
    p.touch(a, 8 * P, True)
    assert p.min_flt == faults
    b = p.mmap(None, 8 * P, PROT_READ, ANON | MAP_POPULATE)
    assert p.rss == 8, "zero pages are nobody's"
    assert p.walk(b)[-1].level == "pte" and "present" in p.walk(b)[-1].decoded["flags"]
    faults = p.min_flt
    p.read(b, 8 * P)
    assert p.min_flt == faults


@pytest.mark.conformance("MM-43", "MM-44")
@pytest.mark.parametrize("prot, grows, dies", [(RW, 0, True), (PROT_NONE, 0, False),
                                               (RW, MAP_GROWSDOWN, False)])
def test_growth_keeps_its_distance(p, prot, grows, dies):
    top = p.mm.low + (1 << 28)
    p.mmap(top - P, P, RW, FIXED | MAP_GROWSDOWN)
    p.mmap(top - 200 * P, P, prot, FIXED | grows)
    if dies:
        assert fault_code(p.write, top - 2 * P, b"x") == SEGV_MAPERR
        assert p.find_vma(top - 1).start == top - P
    else:
        p.write(top - 2 * P, b"x")
        assert p.find_vma(top - 1).start == top - 2 * P
        p.munmap(top - P, P)
        assert p.read(top - 2 * P, 1) == b"x"


@pytest.mark.conformance("MM-52")
def test_each_map_of_dev_zero_is_its_own_object(p):
    a, b = (p.mmap(None, P, RW, MAP_SHARED, "/dev/zero") for _ in range(2))
    p.write(a, b"x")
    assert p.read(a, 1) == b"x" and p.read(b, 1) == b"\0"


@pytest.mark.conformance("MU-09")
def test_everything_comes_back(p):
    mmu = p.mm.core.mmu
    before = mmu.committed, p.rss, p.mm.core.counters
    a = p.mmap(None, 16 * P, RW, ANON | 0x2000)
    p.write(a, b"x" * 16 * P)
    p.munmap(a, 16 * P)
    assert (mmu.committed, p.rss, p.mm.core.counters) == before


@pytest.mark.conformance("MP-07", "MP-08")
def test_rights(p):
    a = p.mmap(None, P, RW, ANON)
    p.write(a, b"data")
    p.mprotect(a, P, PROT_NONE)
    assert p.rss == 1 and fault_code(p.read, a, 1) == SEGV_ACCERR
    p.mprotect(a, P, PROT_READ)
    assert p.read(a, 4) == b"data" and fault_code(p.write, a, b"x") == SEGV_ACCERR
    with pytest.raises(SegmentationFault), p.guard():
        p.view(a, P)[0] = 1
    p.mprotect(a, P, RW)
    p.write(a, b"x")
    assert p.read(a, 4) == b"xata"


@pytest.mark.conformance("MP-13", "OC-02", "OC-03", "OC-06", "FK-18")
def test_overcommit(p):
    mmu, settings = p.mm.core.mmu, p.mm.settings
    total = mmu.total_pages
    with pytest.raises(OSError) as caught:
        p.mmap(None, (total + 1) * P, RW, ANON)
    assert caught.value.errno == errno.ENOMEM
    many = [p.mmap(None, total * P, RW, ANON) for _ in range(2)]
    for a in many:
        p.munmap(a, total * P)
    settings.set("vm.overcommit_memory", 1)
    p.munmap(p.mmap(None, (total + 1) * P, RW, ANON), (total + 1) * P)
    settings.set("vm.overcommit_memory", 2)
    settings.set("vm.admin_reserve_kbytes", 0)
    settings.set("vm.user_reserve_kbytes", 0)
    limit = settings.commit_limit(total) - mmu.committed
    read_only = p.mmap(None, limit * P, PROT_READ, ANON)
    half = limit // 2 + 8
    a = p.mmap(None, half * P, RW, ANON)
    for call, args in (
        (p.mmap, (None, half * P, RW, ANON)),
        (p.mprotect, (read_only, half * P, RW)),
        (p.fork, ()),
    ):
        with pytest.raises(OSError) as caught:
            call(*args)
        assert caught.value.errno == errno.ENOMEM
    assert p.find_vma(read_only).prot == PROT_READ
    p.munmap(a, half * P)
    p.mmap(None, 8 * P, RW, ANON)
    before = mmu.committed
    child = p.fork()
    assert mmu.committed == before + 8
    child.exit()
    assert mmu.committed == before


@pytest.mark.conformance("OC-08")
def test_what_each_limit_counts(p):
    p.rlimit["AS"] = 100 * P
    p.mmap(None, 100 * P, PROT_NONE, ANON)
    with pytest.raises(OSError):
        p.mmap(None, P, PROT_NONE, ANON)
    p.rlimit["AS"] = 1 << 40
    top = p.mm.low + (1 << 28)
    p.mmap(top - P, P, RW, FIXED | MAP_GROWSDOWN)
    p.rlimit["STACK"] = 3 * P
    p.write(top - 3 * P, b"x")
    assert fault_code(p.write, top - 4 * P, b"x") == SEGV_MAPERR


@pytest.mark.conformance("BR-05", "BR-06", "BR-07")
def test_what_the_heap_holds(p):
    heap = p.sbrk(2 * P)
    p.write(heap + P, b"a" * P)
    p.brk(heap + P + 100)
    assert p.read(heap + P + 200, 1) == b"a"        # the last page is whole
    child = p.fork()
    assert child.read(heap + P + 200, 1) == b"a"
    p.brk(heap + 2 * P)
    assert p.read(heap + P + 200, 1) == b"a"        # nothing was unmapped
    p.brk(heap + P)
    assert fault_code(p.read, heap + P, 1) == SEGV_MAPERR
    p.brk(heap + 2 * P)
    assert p.read(heap + P, P) == bytes(P)
    assert child.brk() == heap + P + 100
    child.exit()


@pytest.mark.conformance("BR-15", "BR-19")
def test_breaks_of_parent_and_child(p):
    heap = p.sbrk(64 * P)
    faults = p.min_flt
    child = p.fork()
    assert p.min_flt == faults and child.min_flt == 0
    child.brk(heap + P)
    assert p.brk() == heap + 64 * P and child.brk() == heap + P
    for one in (p, child):
        one.write(heap, b"x")
    child.exit()


@pytest.mark.conformance("BR-17")
def test_a_hundred_rounds_leave_nothing(machine, p):
    frees = set()
    for _ in range(100):
        child = p.fork()
        heap = child.sbrk(20 * P)
        child.touch(heap, 20 * P, True)
        child.sbrk(-10 * P)
        child.exit()
        p.wait()
        machine.drain_all_pages()
        machine.quicklists.trim()
        frees.add(machine.vmstat["nr_free_pages"])
    assert max(frees) - min(frees) <= 8, "but for slabs that fill up"


@pytest.mark.conformance("VM-28")
@pytest.mark.parametrize("point", ["slab", "page_alloc"])
def test_a_split_without_memory_changes_nothing(machine, p, point):
    a = p.mmap(None, 9 * P, RW, ANON | MAP_POPULATE)
    p.fork()
    refused = 0
    for nth in range(1, 6):
        for call, args in (
            (p.munmap, (a + 3 * P, P)),
            (p.mprotect, (a + 5 * P, P, PROT_READ)),
            (p.mmap, (a + 3 * P, P, PROT_READ, FIXED)),
        ):
            before = p.vmas
            counters, committed = p.mm.core.counters, p.mm.core.mmu.committed
            with machine.inject(point, nth=nth):
                try:
                    call(*args)
                except OSError as error:
                    assert error.errno == errno.ENOMEM and p.vmas == before
                    assert (p.mm.core.counters, p.mm.core.mmu.committed) == (counters, committed)
                    refused += 1
            machine.check()
            p.mmap(a, 9 * P, RW, FIXED)
    assert refused or point == "page_alloc", "slab memory enters every split"


def test_calls_interrupted_anywhere(machine, p, soak_factor):
    """KeyboardInterrupt before any line of a call: it is done or not, and the books are right."""
    rng = random.Random(3)
    a, heap = p.mm.low + (1 << 27), p.brk()
    calls = [
        lambda i, n: p.mmap(
            a + i * P, n * P, rng.choice([PROT_READ, RW]), FIXED | rng.choice([0, MAP_POPULATE])
        ),
        lambda i, n: p.munmap(a + i * P, n * P),
        lambda i, n: p.mprotect(a + i * P, n * P, rng.choice([PROT_READ, RW])),
        lambda i, n: p.brk(heap + n * P),
        lambda i, n: p.fork().exit(),
    ]
    interrupted = 0
    for round_ in range(int(300 * soak_factor)):
        left = [rng.randrange(450)]

        def tracer(frame, event, arg, left=left):
            ours = "realmem/mm" in frame.f_code.co_filename
            if event == "line" and (ours or "realmem/process" in frame.f_code.co_filename):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return tracer

        call, args = rng.choice(calls), (rng.randrange(20), rng.randrange(1, 6))
        sys.settrace(tracer)
        try:
            call(*args)
        except KeyboardInterrupt:
            interrupted += 1
        except OSError as error:
            assert error.errno == errno.ENOMEM      # a hole
        finally:
            sys.settrace(None)
        if round_ % 10 == 0:
            machine.check()
            assert p.mm.core.counters[0] == sum(v.pages for v in p.vmas)
        for other in list(machine.processes.values()):
            if other is not p:
                other.exit()
    assert interrupted > 50
