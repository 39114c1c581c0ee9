"""brk and sbrk, line by line of the catalogue."""

from __future__ import annotations

import pytest
from fake_pages import FIXED, RW, P

from realmem.layout import MAP_GROWSDOWN, PROT_READ, RLIM_INFINITY
from realmem.mm.vma import VM_LOCKED


@pytest.fixture
def heap(p):
    return p.brk()


def pages(p):
    return sum(v.end - v.start for v in p.vmas) // P


@pytest.mark.conformance("BR-01", "BR-02")
def test_what_cannot_be_leaves_the_break(p, heap):
    assert p.brk(-1) == heap == p.brk(0) == p.brk(heap - 1) == p.brk(1 << 63)
    assert p.vmas == []


@pytest.mark.conformance("BR-03", "BR-04")
def test_sbrk_is_exact(p, heap):
    for _ in range(3):
        assert p.sbrk(2 * P - 1) == heap
        assert p.sbrk(0) == heap + 2 * P - 1 and pages(p) == 2
        assert p.sbrk(1 - 2 * P) == heap + 2 * P - 1
        assert p.sbrk(0) == heap and pages(p) == 0
    for i in range(0, 5000, 7):
        assert p.sbrk(7) == heap + i
        assert pages(p) == -(-(i + 7) // P)
    assert len(p.vmas) == 1


@pytest.mark.conformance("BR-08", "BR-12")
def test_the_break_drops_over_whatever_is_there(p, heap):
    p.brk(heap + 8 * P)
    p.mprotect(heap + 2 * P, P, PROT_READ)
    p.mprotect(heap + 5 * P, P, PROT_READ)
    p.mmap(heap + 7 * P, P, PROT_READ, FIXED)
    assert len(p.vmas) == 6
    assert p.brk(heap + 10 * P) == heap + 10 * P            # on top of it
    assert p.brk(heap + P) == heap + P
    assert [(v.start, v.end) for v in p.vmas] == [(heap, heap + P)]
    p.munmap(heap, P)
    assert p.brk(heap) == heap + P, "nothing to shrink: refused"


@pytest.mark.conformance("BR-10")
def test_rlimit_data(p, heap):
    p.brk(heap + 2 * P)
    p.rlimit["DATA"] = 0
    assert p.brk(heap + 3 * P) == heap + 2 * P
    with pytest.raises(OSError, match="Cannot allocate"):
        p.sbrk(P)
    assert p.brk(heap) == heap
    p.rlimit["DATA"] = 3 * P
    assert p.brk(heap + 3 * P) == heap + 3 * P
    assert p.brk(heap + 3 * P + 1) == heap + 3 * P
    p.rlimit["DATA"] = RLIM_INFINITY
    p.rlimit["AS"] = 4 * P
    assert p.brk(heap + 5 * P) == heap + 3 * P
    assert p.brk(heap + 4 * P) == heap + 4 * P


@pytest.mark.conformance("BR-11")
def test_a_page_stays_free_above(p, heap):
    p.mmap(heap + 10 * P, P, RW, FIXED)
    assert p.brk(heap + 9 * P + 1) == heap and p.vmas[0].start == heap + 10 * P
    assert p.brk(heap + 10 * P) == heap
    assert p.brk(heap + 9 * P) == heap + 9 * P
    stack = heap + 400 * P
    p.munmap(heap + 10 * P, P)
    p.mmap(stack, P, RW, FIXED | MAP_GROWSDOWN)
    assert p.brk(stack - 257 * P + 1) == heap + 9 * P
    assert p.brk(stack - 257 * P) == stack - 257 * P


@pytest.mark.conformance("BR-13", "BR-14")
def test_absurd_increments(p, heap):
    p.sbrk(P)
    for increment in (1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63)):
        with pytest.raises(OSError, match="Cannot allocate"):
            p.sbrk(increment)
    assert p.sbrk(0) == heap + P and pages(p) == 1
    try:
        p.sbrk(0x8000_0004)
    except OSError:
        assert p.sbrk(0) == heap + P
    else:
        assert p.sbrk(0) == heap + P + 0x8000_0004
        assert p.sbrk(-0x8000_0004) == heap + P + 0x8000_0004
    assert p.sbrk(0) == heap + P


@pytest.mark.conformance("BR-16")
def test_locked_for_the_future(p, heap):
    def lock_what_comes(plan):
        plan.set_def_flags(VM_LOCKED)

    p.mm.change(lock_what_comes)
    p.rlimit["MEMLOCK"] = 3 * P
    p.capabilities.discard("CAP_IPC_LOCK")
    assert p.brk(heap + 2 * P) == heap + 2 * P
    assert p.rss == 2 and p.mm.core.counters[4] == 2
    assert p.brk(heap + 4 * P) == heap + 2 * P
    assert p.brk(heap + 3 * P) == heap + 3 * P
    assert p.brk(heap) == heap and p.mm.core.counters[4] == 0


def test_the_heap_does_not_swallow_what_is_below_or_above(p, heap):
    p.mmap(heap - P, P, RW, FIXED)
    p.brk(heap + P)
    assert len(p.vmas) == 2
    p.mmap(heap + P, P, RW, FIXED)          # merges: it is a plain map
    assert len(p.vmas) == 2 and p.brk(heap + 5 * P) == heap + P
