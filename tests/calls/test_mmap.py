"""mmap: errnos, places and kinds, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, FIXED, RW, WORD, P, refused, spans

from realmem.layout import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    PROT_READ,
    TASK_SIZE,
)
from realmem.mm.vma import VM_MERGEABLE, VM_SOFTDIRTY


@pytest.mark.conformance("MM-01", "MM-02", "MM-03", "MM-13", "MM-21", "MM-22", "MM-24", "MM-41")
@pytest.mark.parametrize(
    "number, addr, length, flags, offset",
    [
        (errno.EINVAL, 0, 0, ANON, 0),
        (errno.ENOMEM, 0, WORD - P + 1, ANON, 0),
        (errno.ENOMEM, 0, -1, ANON, 0),
        (errno.ENOMEM, 0, TASK_SIZE + 1, ANON, 0),
        (errno.EINVAL, 0, P, MAP_ANONYMOUS, 0),
        (errno.EINVAL, 0, P, MAP_ANONYMOUS | MAP_SHARED_VALIDATE, 0),
        (errno.EINVAL, 0x7000_0001, P, FIXED, 0),
        (errno.EINVAL, 0x7000_0001, P, ANON | MAP_FIXED_NOREPLACE, 0),
        (errno.ENOMEM, -P, P, FIXED, 0),
        (errno.ENOMEM, TASK_SIZE, P, FIXED, 0),
        (errno.EINVAL, 0, P, ANON, 1),
        (errno.EOVERFLOW, 0, 2 * P, ANON, WORD - P),
        (errno.EINVAL, 0, P, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, 0),
        (errno.EINVAL, 0, P, MAP_DROPPABLE | MAP_ANONYMOUS | MAP_GROWSDOWN, 0),
        (errno.EBADF, 0, P, MAP_PRIVATE, 0),
    ],
)
def test_arguments_refused(p, number, addr, length, flags, offset):
    if length == 2 * P:
        offset = (1 << 64) - P      # pgoff + 2 does not wrap: the shift leaves 52 bits
        assert p.mmap(addr, length, RW, flags, None, offset) > 0
        return
    refused(number, p.mmap, addr, length, RW, flags, None, offset)
    assert p.vmas == []


@pytest.mark.conformance("MM-14", "MM-15")
def test_hints(p):
    base = p.mm.low + (1 << 26)
    assert p.mmap(base + 1, P, RW, ANON) == base
    other = p.mmap(base, P, PROT_READ, ANON)
    assert other != base and other % P == 0 and p.find_vma(base).prot == RW
    assert p.mmap(base - P, 2 * P, PROT_READ, ANON) not in (base - P, 0)
    assert p.mmap(TASK_SIZE - P, 2 * P, RW, ANON) < p.mm.high     # no such hint


@pytest.mark.conformance("MM-18")
def test_fixed_noreplace_replaces_nothing(p):
    a = p.mmap(None, 5 * P, RW, ANON)
    before = p.vmas
    for addr, pages in ((a, 5), (a + P, 2), (a - P, 3), (a + 4 * P, 3), (a - P, 9)):
        flags = ANON | MAP_FIXED_NOREPLACE
        refused(errno.EEXIST, p.mmap, addr, pages * P, PROT_READ, flags)
    assert p.vmas == before
    assert p.mmap(a + 5 * P, P, RW, ANON | MAP_FIXED_NOREPLACE) == a + 5 * P


@pytest.mark.conformance("MM-17", "VM-01", "VM-02", "VM-03")
def test_fixed_over_parts(p):
    a = p.mm.low + (1 << 26)
    p.mmap(a, 3 * P, RW, FIXED)
    p.mmap(a + P, P, PROT_READ, FIXED)
    assert spans(p, a, "prot") == [(0, 1, RW), (1, 2, PROT_READ), (2, 3, RW)]
    p.mmap(a + P, P, RW, FIXED)                             # in between: one VMA
    assert spans(p, a, "prot") == [(0, 3, RW)]
    p.mmap(a + 3 * P, P, RW, FIXED)                         # above: the left one grows
    (vma,) = p.vmas
    assert (vma.start, vma.end, vma.pgoff) == (a, a + 4 * P, a // P)
    p.mmap(a - P, P, RW, FIXED)                             # below: start and pgoff move
    (vma,) = p.vmas
    assert (vma.start, vma.end, vma.pgoff) == (a - P, a + 4 * P, a // P - 1)


@pytest.mark.conformance("MM-49")
def test_unfixed_maps_stack_up_downwards(p):
    a = p.mmap(None, P, RW, ANON)
    b = p.mmap(None, 3 * P, RW, ANON)
    assert b == a - 3 * P and spans(p, b, "prot") == [(0, 4, RW)]
    huge = p.mmap(None, 2 << 20, RW, ANON)
    assert huge % (2 << 20) == 0, "what fills huge pages lies on their bounds"
    assert p.mmap(None, 2 << 20, RW, ANON) == huge - (2 << 20)
    assert p.mmap(None, 2 << 20, RW, MAP_SHARED | MAP_ANONYMOUS) < huge


@pytest.mark.conformance("MM-48")
def test_32bit(p):
    a = p.mmap(None, P, RW, ANON | MAP_32BIT)
    b = p.mmap(None, 1 << 29, RW, ANON | MAP_32BIT | MAP_NORESERVE)
    assert 0x4000_0000 <= a < b and b + (1 << 29) <= 1 << 31
    refused(errno.ENOMEM, p.mmap, None, 1 << 30, RW, ANON | MAP_32BIT | MAP_NORESERVE)


@pytest.mark.conformance("MM-54")
def test_below_mmap_min_addr(q):
    low = q.mm.settings.mmap_min_addr
    assert q.mmap(low // 2, P, RW, ANON) == low
    refused(errno.EPERM, q.mmap, low - P, P, RW, FIXED)
    refused(errno.EPERM, q.mmap, 0, P, RW, FIXED)
    q.capabilities.add("CAP_SYS_RAWIO")
    assert q.mmap(0, P, RW, FIXED) == 0


@pytest.mark.conformance("MM-46")
def test_nothing_is_placed_right_below_a_stack(p):
    top = p.mmap(None, P, RW, ANON)
    stack = p.mmap(top - 4 * P, 4 * P, RW, FIXED | MAP_GROWSDOWN)
    below = p.mmap(None, P, RW, ANON)
    assert below == stack - 256 * P - P
    assert p.mmap(stack - 9 * P, P, RW, ANON) != stack - 9 * P, "nor where a hint says"
    assert p.mmap(stack - P, P, PROT_READ, FIXED) == stack - P


@pytest.mark.conformance("MM-38")
def test_populate(p):
    p.mmap(None, 4 * P, RW, ANON | MAP_POPULATE | MAP_NONBLOCK)
    assert p.rss == 0
    p.mmap(None, 4 * P, RW, ANON | MAP_POPULATE)
    assert p.rss == 4


def test_droppable(p):
    refused(errno.EINVAL, p.mmap, None, P, RW, MAP_DROPPABLE | MAP_ANONYMOUS | MAP_LOCKED)
    p.mmap(None, P, RW, MAP_DROPPABLE | MAP_ANONYMOUS)
    assert {"dp", "wf", "dd", "nr"} <= p.vmas[0].vm_flags and "ac" not in p.vmas[0].vm_flags


@pytest.mark.conformance("MM-56")
def test_hugetlb_without_huge_pages(p):
    """As on a host that has none reserved; what MAP_FIXED replaces has gone by then."""
    huge = 2 << 20
    a = p.mm.low + (1 << 26)
    p.mmap(a, huge, RW, FIXED)
    refused(errno.EINVAL, p.mmap, a + P, huge, RW, FIXED | MAP_HUGETLB)
    refused(errno.EINVAL, p.mmap, None, huge, RW, ANON | MAP_HUGETLB | 25 << MAP_HUGE_SHIFT)
    refused(errno.EINVAL, p.mmap, None, 0, RW, ANON | MAP_HUGETLB)
    refused(errno.EINVAL, p.mmap, None, huge, RW, ANON | MAP_HUGETLB, None, 1)
    refused(errno.ENOMEM, p.mmap, a + P, huge, RW, ANON | MAP_HUGETLB)
    assert spans(p, a, "prot") == [(0, 512, RW)]
    refused(errno.ENOMEM, p.mmap, a, P, RW, FIXED | MAP_HUGETLB)
    assert p.vmas == []


@pytest.mark.conformance("MM-60")
def test_new_vmas_are_soft_dirty(p):
    a = p.mmap(None, P, RW, ANON)
    assert p.find_vma(a).vm_flags_word & VM_SOFTDIRTY


@pytest.mark.conformance("VM-30")
def test_what_ksm_may_merge_still_merges(p):
    """PR_SET_MEMORY_MERGE: the bit is there before neighbours are compared."""
    p.mm.change(lambda plan: plan.set_def_flags(VM_MERGEABLE))
    a = p.mmap(None, P, RW, ANON)
    p.mmap(a - P, P, RW, FIXED)
    assert spans(p, a, "prot") == [(-1, 1, RW)] and "mg" in p.vmas[0].vm_flags
    s = p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert "mg" not in p.find_vma(s).vm_flags


def test_shared_memory_never_merges_with_new_maps(p):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    b = p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert b == a - P and len(p.vmas) == 2
    p.mprotect(a + P, P, PROT_READ)
    assert [(v.start - a) // P for v in p.vmas[1:]] == [0, 1, 2]
    assert [v.offset // P for v in p.vmas[1:]] == [0, 1, 2]
    p.mprotect(a + P, P, RW)
    assert len(p.vmas) == 2
