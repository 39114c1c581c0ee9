"""mmap, munmap, mprotect, mseal: errnos and layouts, line by line of the catalogue."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_core import as_process, processes

from realmem.layout import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
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
    PAGE_SIZE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIM_INFINITY,
    TASK_SIZE,
)
from realmem.mm.vma import VM_MERGEABLE, VM_SOFTDIRTY

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANON | MAP_FIXED
WORD = 1 << 64
UNKNOWN = 0x80000000                # a flag that no kernel knows


@pytest.fixture(params=processes())
def p(request):
    with as_process(request.param) as process:
        yield process


@pytest.fixture
def q(p):
    """Give a process without capabilities."""
    p.capabilities.clear()
    return p


def refused(number, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno)


def spans(p, base):
    """Pages of each VMA, from ``base`` on."""
    return [((v.start - base) // P, (v.end - base) // P, v.prot) for v in p.vmas]


# ---- mmap: arguments ----


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
    assert spans(p, a) == [(0, 1, RW), (1, 2, PROT_READ), (2, 3, RW)]
    p.mmap(a + P, P, RW, FIXED)                             # in between: one VMA
    assert spans(p, a) == [(0, 3, RW)]
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
    assert b == a - 3 * P and spans(p, b) == [(0, 4, RW)]
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


# ---- mmap: limits ----


@pytest.mark.conformance("MM-27")
def test_at_rlimit_as_what_is_replaced_is_credited(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    p.rlimit["AS"] = 4 * P
    assert p.mmap(a, 4 * P, PROT_READ, FIXED) == a
    refused(errno.ENOMEM, p.mmap, None, P, PROT_NONE, ANON)
    p.rlimit["AS"] = RLIM_INFINITY
    assert p.mmap(None, P, PROT_NONE, ANON)


def test_a_refused_fixed_map_leaves_what_it_cut(p):
    """As Linux: VMAs are split first, limits checked then."""
    a = p.mmap(None, 4 * P, RW, ANON)
    p.rlimit["AS"] = 4 * P
    refused(errno.ENOMEM, p.mmap, a + P, 9 * P, RW, FIXED)
    assert spans(p, a) == [(0, 1, RW), (1, 4, RW)]


@pytest.mark.conformance("MM-28", "MP-12")
def test_rlimit_data(p):
    p.mmap(None, 2 * P, RW, ANON)
    p.rlimit["DATA"] = 2 * P
    refused(errno.ENOMEM, p.mmap, None, P, RW, ANON)
    a = p.mmap(None, P, PROT_READ, ANON)
    p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    p.mmap(None, P, RW, ANON | MAP_GROWSDOWN)
    refused(errno.ENOMEM, p.mprotect, a, P, RW)
    assert p.find_vma(a).prot == PROT_READ


@pytest.mark.conformance("MM-29", "MU-08", "MP-11")
def test_max_map_count(p):
    p.mm.settings.max_map_count = 10
    try:
        a = p.mm.low + (1 << 26)
        for i in range(11):
            p.mmap(a + 2 * i * P, 2 * P, (RW, PROT_READ)[i % 2], FIXED)
        assert len(p.vmas) == 11
        refused(errno.ENOMEM, p.mmap, None, P, PROT_EXEC, ANON)
        p.munmap(a + 20 * P, 2 * P)
        assert len(p.vmas) == 10
        p.mmap(a, 3 * P, RW, FIXED)             # cuts the second, takes its own place
        before = p.vmas
        refused(errno.ENOMEM, p.mprotect, a + P, P, PROT_NONE)
        refused(errno.ENOMEM, p.munmap, a + P, P)
        assert p.vmas == before
        p.munmap(a, P)                          # at an edge
        assert p.vmas[0].start == a + P
    finally:
        p.mm.settings.max_map_count = 65530


@pytest.mark.conformance("MM-39")
def test_locked_counts(p):
    a = p.mmap(None, 1 << 20, RW, ANON | MAP_LOCKED)
    assert p.mm.core.counters[4] == 256
    assert p.find_vma(a).locked and p.rss == 256
    p.munmap(a, P)
    assert p.mm.core.counters[4] == 255


@pytest.mark.conformance("MM-40")
def test_locked_within_rlimit(q):
    q.rlimit["MEMLOCK"] = 0
    refused(errno.EPERM, q.mmap, None, P, RW, ANON | MAP_LOCKED)
    q.rlimit["MEMLOCK"] = 2 * P
    refused(errno.EAGAIN, q.mmap, None, 3 * P, RW, ANON | MAP_LOCKED)
    q.mmap(None, 2 * P, RW, ANON | MAP_LOCKED)
    refused(errno.EAGAIN, q.mmap, None, P, RW, ANON | MAP_LOCKED)
    q.capabilities.add("CAP_IPC_LOCK")
    q.mmap(None, 3 * P, RW, ANON | MAP_LOCKED)


# ---- mmap: kinds ----


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
    assert spans(p, a) == [(0, 512, RW)]
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
    assert spans(p, a) == [(-1, 1, RW)] and "mg" in p.vmas[0].vm_flags
    s = p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert "mg" not in p.find_vma(s).vm_flags


# ---- mmap: files ----


@pytest.mark.conformance("MM-08", "MM-09")
def test_descriptors(p, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(P))
    refused(errno.EBADF, p.mmap, None, P, RW, MAP_PRIVATE, 99999)
    refused(errno.EBADF, p.mmap, None, P, RW, MAP_PRIVATE, -1)
    for mode, number in ((os.O_PATH, errno.EBADF), (os.O_WRONLY, errno.EACCES)):
        fd = os.open(path, mode)
        try:
            for prot in (PROT_READ, PROT_WRITE, RW):
                for kind in (MAP_PRIVATE, MAP_SHARED):
                    refused(number, p.mmap, None, P, prot, kind, fd)
        finally:
            os.close(fd)
    with path.open("rb") as file:
        refused(errno.EACCES, p.mmap, None, P, RW, MAP_SHARED, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, MAP_PRIVATE | MAP_HUGETLB, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, MAP_PRIVATE | MAP_GROWSDOWN, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, 0, file)
        refused(errno.EOPNOTSUPP, p.mmap, None, P, RW, MAP_PRIVATE, file)
    refused(errno.ENOENT, p.mmap, None, P, RW, MAP_PRIVATE, tmp_path / "none")
    refused(errno.ENODEV, p.mmap, None, P, PROT_READ, MAP_PRIVATE, tmp_path)
    refused(errno.ENODEV, p.mmap, None, P, RW, MAP_PRIVATE, "/dev/null")
    with pytest.raises(TypeError):
        p.mmap(None, P, RW, MAP_PRIVATE, 1.5)
    assert p.vmas == []


@pytest.mark.conformance("MM-05", "MM-06")
def test_unknown_flags(p):
    for flags, number in (
        (MAP_SHARED_VALIDATE | UNKNOWN, errno.EOPNOTSUPP),
        (MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, errno.EOPNOTSUPP),
    ):
        refused(number, p.mmap, 1 << 30, P, RW, flags, "/dev/zero")
    assert p.mmap(None, P, RW, MAP_SHARED | UNKNOWN, "/dev/zero")


@pytest.mark.conformance("MM-23")
def test_offsets(p):
    for offset, pages, fits in ((0, 1, True), (WORD - 2 * P, 1, True), (WORD - P, 1, False)):
        if fits:
            assert p.mmap(None, pages * P, RW, MAP_PRIVATE, "/dev/zero", offset)
        else:
            refused(
                errno.EOVERFLOW, p.mmap, None, pages * P, RW, MAP_PRIVATE, "/dev/zero", offset
            )


def test_offsets_of_files(p, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    top = 1 << 63
    refused(errno.EOVERFLOW, p.mmap, None, P, PROT_READ, MAP_PRIVATE, path, top)
    refused(errno.EOVERFLOW, p.mmap, None, 2 * P, PROT_READ, MAP_PRIVATE, path, top - P)


def test_dev_zero(p):
    p.mmap(None, P, RW, MAP_PRIVATE, "/dev/zero", 3 * P)
    (vma,) = p.vmas
    assert (vma.file, vma.offset, vma.anon) == ("/dev/zero", 3 * P, False)
    assert vma.private_anon
    with Path("/dev/zero").open("r+b") as zero:
        for _ in range(2):
            p.mmap(None, P, RW, MAP_SHARED, zero)
    first, second, _ = p.vmas
    assert first.object is not second.object        # each map is an object of its own
    assert first.file == "/dev/zero (deleted)" and first.flags & MAP_SHARED


def test_shared_memory_never_merges_with_new_maps(p):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    b = p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert b == a - P and len(p.vmas) == 2
    p.mprotect(a + P, P, PROT_READ)
    assert [(v.start - a) // P for v in p.vmas[1:]] == [0, 1, 2]
    assert [v.offset // P for v in p.vmas[1:]] == [0, 1, 2]
    p.mprotect(a + P, P, RW)
    assert len(p.vmas) == 2


# ---- munmap ----


@pytest.mark.conformance("MU-02", "MU-03")
@pytest.mark.parametrize(
    "addr, length",
    [(1, P), (P, 0), (P, WORD - P + 1), (TASK_SIZE, P), (TASK_SIZE - P, 2 * P), (-P, P)],
)
def test_munmap_refused(p, addr, length):
    refused(errno.EINVAL, p.munmap, addr, length)


@pytest.mark.conformance("MU-04", "MU-05", "MU-06", "MU-07")
def test_munmap_parts(p):
    a = p.mm.low + (1 << 26)
    assert p.munmap(a, 1 << 20) is None
    p.mmap(a, 9 * P, RW, FIXED)
    p.munmap(a + 2 * P, 1)
    assert spans(p, a) == [(0, 2, RW), (3, 9, RW)]
    p.munmap(a + 5 * P, P)
    p.munmap(a + P, 7 * P)
    assert spans(p, a) == [(0, 1, RW), (8, 9, RW)]
    p.munmap(a - 5 * P, 50 * P)
    assert p.vmas == [] and p.mm.core.counters[0] == 0


# ---- mprotect ----


@pytest.mark.conformance("MP-02", "MP-03", "MP-04", "MP-16")
def test_mprotect_arguments(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    refused(errno.EINVAL, p.mprotect, a + 1, 0, RW)
    assert p.mprotect(1 << 40, 0, RW) is None
    refused(errno.ENOMEM, p.mprotect, a, -1, PROT_READ)
    refused(errno.EINVAL, p.mprotect, a, P, PROT_READ | PROT_GROWSDOWN | PROT_GROWSUP)
    refused(errno.EINVAL, p.mprotect, a, P, PROT_READ | PROT_GROWSDOWN)
    refused(errno.EINVAL, p.mprotect, a, P, PROT_READ | PROT_GROWSUP)
    refused(errno.EINVAL, p.mprotect, a, P, 0x10)
    refused(errno.ENOMEM, p.mprotect, 1 << 40, P, RW)
    assert spans(p, a) == [(0, 4, RW)]


@pytest.mark.conformance("MP-09", "MP-10")
def test_mprotect_splits_and_merges(p):
    a = p.mmap(None, 5 * P, RW, ANON)
    p.mprotect(a + P, P, PROT_READ)
    assert spans(p, a) == [(0, 1, RW), (1, 2, PROT_READ), (2, 5, RW)]
    assert [v.pgoff - a // P for v in p.vmas] == [0, 1, 2]
    p.mprotect(a, 4 * P, PROT_READ)
    assert spans(p, a) == [(0, 4, PROT_READ), (4, 5, RW)]
    p.mprotect(a, 5 * P, RW)
    assert spans(p, a) == [(0, 5, RW)]


def test_mprotect_changes_what_comes_before_a_hole(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    p.munmap(a + 2 * P, P)
    refused(errno.ENOMEM, p.mprotect, a, 4 * P, PROT_READ)
    assert spans(p, a) == [(0, 2, PROT_READ), (3, 4, RW)]
    refused(errno.ENOMEM, p.mprotect, a + 2 * P, 2 * P, PROT_READ)
    assert spans(p, a) == [(0, 2, PROT_READ), (3, 4, RW)]


def test_mprotect_growsdown_takes_the_whole_stack(p):
    a = p.mmap(None, 4 * P, RW, ANON | MAP_GROWSDOWN)
    p.mprotect(a + 2 * P, P, PROT_READ | PROT_GROWSDOWN)
    assert spans(p, a) == [(0, 3, PROT_READ), (3, 4, RW)]


# ---- mseal ----


@pytest.mark.conformance("MP-17", "MP-19", "MP-20")
def test_sealed(p):
    a = p.mmap(None, 6 * P, RW, ANON)
    refused(errno.EINVAL, p.mseal, a, P, 1)
    refused(errno.EINVAL, p.mseal, a + 1, P)
    refused(errno.EINVAL, p.mseal, a, -1)
    refused(errno.ENOMEM, p.mseal, a + 5 * P, 2 * P)
    assert p.mseal(a, 0) is None
    p.mseal(a + 2 * P, 2 * P)
    before = p.vmas
    assert [("sl" in v.vm_flags) for v in before] == [False, True, False]
    refused(errno.EPERM, p.munmap, a, 6 * P)
    refused(errno.EPERM, p.munmap, a + 3 * P, P)
    refused(errno.EPERM, p.mprotect, a + 2 * P, P, PROT_READ)
    refused(errno.EPERM, p.mprotect, a + 2 * P, P, RW)
    refused(errno.EPERM, p.mmap, a + 2 * P, P, RW, FIXED)
    assert p.vmas == before
    p.mseal(a, 6 * P)
    assert spans(p, a) == [(0, 6, RW)]


# ---- overcommit ----


@pytest.mark.conformance("OC-04")
def test_what_is_charged(p):
    mmu = p.mm.core.mmu
    start = mmu.committed

    def charged():
        return mmu.committed - start

    a = p.mmap(None, 8 * P, RW, ANON)
    assert charged() == 8
    p.mmap(None, 8 * P, PROT_READ, ANON)
    p.mmap(None, 8 * P, RW, ANON | MAP_NORESERVE)
    p.mmap(None, 8 * P, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE)
    assert charged() == 8
    s = p.mmap(None, 8 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert charged() == 16
    p.munmap(s, 8 * P)
    assert charged() == 8
    p.mprotect(a, 4 * P, PROT_READ)         # never written: it can go back
    assert charged() == 4
    p.mprotect(a, 8 * P, RW)
    assert charged() == 8
    p.mmap(a, 4 * P, PROT_READ, FIXED)
    p.munmap(a, 8 * P)
    assert charged() == 0
