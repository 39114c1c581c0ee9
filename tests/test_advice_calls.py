"""madvise, process_madvise, mincore, msync, prctl: line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_core import processes
from fake_pages import as_advised

from realmem import layout
from realmem.errors import SegmentationFault
from realmem.layout import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_SOFT_OFFLINE,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
)

P = PAGE_SIZE
WORD = 1 << 64
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
SHARED = MAP_SHARED | MAP_ANONYMOUS


@pytest.fixture(params=processes())
def p(request):
    with as_advised(request.param) as process:
        yield process


@pytest.fixture(params=processes()[1:])
def real(request):
    with as_advised(request.param) as process:
        yield process


@pytest.fixture
def base(p):
    """Give an address with nothing near it."""
    return p.mm.low + (1 << 28)


def refused(number, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno)


def spans(p, base):
    return [((v.start - base) // P, (v.end - base) // P) for v in p.vmas]


def flags(p, addr):
    return p.find_vma(addr).vm_flags


# ---- madvise ----


@pytest.mark.conformance("MA-01", "MA-03", "MA-04")
def test_arguments(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    for advice in (MADV_DONTNEED, MADV_SEQUENTIAL, MADV_POPULATE_READ, MADV_GUARD_INSTALL):
        refused(errno.EINVAL, p.madvise, base + 1, P, advice)
        refused(errno.EINVAL, p.madvise, base, WORD - 1, advice)
        refused(errno.EINVAL, p.madvise, base, WORD - base, advice)
        p.madvise(base + 64 * P, 0, advice)
    refused(errno.EINVAL, p.madvise, base, 0, 7)
    refused(errno.EINVAL, p.madvise, base, P, -1)
    p.madvise(base, 1, MADV_RANDOM)
    assert "rr" in flags(p, base)


@pytest.mark.conformance("MA-05")
@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_SEQUENTIAL])
def test_a_hole_stops_nothing(p, base, advice):
    for i in (1, 3):
        p.mmap(base + i * P, P, RW, ANON | MAP_FIXED)
        p.touch(base + i * P, P, True)
    refused(errno.ENOMEM, p.madvise, base, 6 * P, advice)
    if advice == MADV_DONTNEED:
        assert p.rss == 0
    else:
        assert all("sr" in vma.vm_flags for vma in p.vmas)
    refused(errno.ENOMEM, p.madvise, base + 32 * P, P, advice)


@pytest.mark.conformance("VM-22", "MA-37")
@pytest.mark.parametrize(
    "advice, name, opposite",
    [
        (MADV_DONTFORK, "dc", MADV_DOFORK),
        (MADV_SEQUENTIAL, "sr", MADV_NORMAL),
        (MADV_RANDOM, "rr", MADV_NORMAL),
        (MADV_DONTDUMP, "dd", MADV_DODUMP),
        (MADV_WIPEONFORK, "wf", MADV_KEEPONFORK),
        (MADV_MERGEABLE, "mg", MADV_UNMERGEABLE),
    ],
)
def test_flags_split_and_merge(p, base, advice, name, opposite):
    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.madvise(base + P, P, advice)
    assert spans(p, base) == [(0, 1), (1, 2), (2, 3)]
    assert [name in vma.vm_flags for vma in p.vmas] == [False, True, False]
    p.madvise(base + P, P, opposite)
    assert spans(p, base) == [(0, 3)] and name not in flags(p, base)


@pytest.mark.conformance("VM-22")
def test_huge_pages_by_advice(p, base):
    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.madvise(base + P, P, MADV_HUGEPAGE)
    assert "hg" in flags(p, base + P) and "nh" not in flags(p, base + P)
    p.madvise(base + P, P, MADV_NOHUGEPAGE)
    assert "nh" in flags(p, base + P) and "hg" not in flags(p, base + P)
    assert spans(p, base) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.conformance("VM-23", "GD-13")
@pytest.mark.parametrize("advice", [
    MADV_DONTNEED, MADV_FREE, MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ,
    MADV_POPULATE_WRITE, MADV_GUARD_INSTALL,
])  # fmt: skip
def test_pages_split_nothing(p, base, advice):
    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.touch(base, 3 * P, True)
    p.madvise(base + P, P, advice)
    assert spans(p, base) == [(0, 3)]


def test_sequential_and_random_exclude_each_other(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    for advice, here, gone in [(MADV_RANDOM, "rr", "sr"), (MADV_SEQUENTIAL, "sr", "rr")]:
        p.madvise(base, P, advice)
        assert here in flags(p, base) and gone not in flags(p, base)


@pytest.mark.conformance("MA-11", "MA-36", "GD-10", "MA-18")
def test_locked_memory(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mlock(base, 2 * P)
    for advice in (MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_GUARD_INSTALL):
        refused(errno.EINVAL, p.madvise, base, P, advice)
    assert p.rss == 2
    p.madvise(base, P, MADV_GUARD_REMOVE)
    p.madvise(base, P, MADV_DONTNEED_LOCKED)
    assert p.rss == 1
    p.mmap(base + 4 * P, P, RW, SHARED | MAP_FIXED)
    p.mlock(base + 4 * P, P)
    refused(errno.EINVAL, p.madvise, base + 4 * P, P, MADV_REMOVE)


@pytest.mark.conformance("MA-13", "MA-18", "MA-20")
def test_kinds_of_memory(p, base):
    p.mmap(base, P, RW, SHARED | MAP_FIXED)
    p.mmap(base + 2 * P, P, RW, ANON | MAP_FIXED)
    refused(errno.EINVAL, p.madvise, base, P, MADV_FREE)
    refused(errno.EINVAL, p.madvise, base, P, MADV_WIPEONFORK)
    p.madvise(base + 2 * P, P, MADV_FREE)
    refused(errno.EINVAL, p.madvise, base + 2 * P, P, MADV_REMOVE)
    p.madvise(base, P, MADV_REMOVE)
    p.madvise(base, P, MADV_MERGEABLE)
    assert "mg" not in flags(p, base)
    refused(errno.EINVAL, p.madvise, base + 2 * P, P, MADV_COLLAPSE)


@pytest.mark.conformance("MA-27", "MA-31")
def test_populate_refused(p, base):
    p.mmap(base, P, PROT_READ, ANON | MAP_FIXED)
    p.mmap(base + P, P, PROT_WRITE, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, PROT_EXEC, ANON | MAP_FIXED)
    p.mmap(base + 3 * P, P, PROT_NONE, ANON | MAP_FIXED)
    p.mmap(base + 4 * P, 2 * P, RW, ANON | MAP_FIXED)
    p.madvise(base, P, MADV_POPULATE_READ)
    p.madvise(base + P, P, MADV_POPULATE_WRITE)
    refused(errno.EINVAL, p.madvise, base, P, MADV_POPULATE_WRITE)
    for i in (1, 2, 3):
        refused(errno.EINVAL, p.madvise, base + i * P, P, MADV_POPULATE_READ)
    p.madvise(base + 5 * P, P, MADV_GUARD_INSTALL)
    refused(errno.EFAULT, p.madvise, base + 4 * P, 2 * P, MADV_POPULATE_WRITE)
    refused(errno.ENOMEM, p.madvise, base + 8 * P, P, MADV_POPULATE_READ)
    # What comes before the failure is there.
    assert p.mincore(base + 4 * P, 2 * P) == b"\1\0"


@pytest.mark.conformance("MA-39", "MA-40")
def test_process_madvise(p, base):
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.touch(base, 4 * P, True)
    assert p.process_madvise([(base, P), (base + 2 * P, 2 * P)], MADV_COLD) == 3 * P
    assert p.process_madvise([(base, P), (base + 16 * P, P), (base, P)], MADV_COLD) == P
    refused(errno.ENOMEM, p.process_madvise, [(base + 16 * P, P), (base, P)], MADV_COLD)
    assert p.process_madvise([(base, 0)], MADV_COLD) == 0
    assert p.process_madvise([], MADV_COLD) == 0
    refused(errno.EINVAL, p.process_madvise, [(base, 0)], 7)
    refused(errno.EINVAL, p.process_madvise, [(base, P)] * 1025, MADV_COLD)
    refused(errno.EINVAL, p.process_madvise, [(base, -1)], MADV_COLD)
    assert p.process_madvise([(base, P)], MADV_DONTNEED) == P       # its own memory


@pytest.mark.conformance("MA-39")
def test_process_madvise_of_another(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    with as_advised("model" if not hasattr(p, "fork") else "real") as other:
        assert other.process_madvise([(base, P)], MADV_COLD, p) == P
        refused(errno.EINVAL, other.process_madvise, [(base, P)], MADV_DONTNEED, p)
        other.capabilities.clear()
        refused(errno.EPERM, other.process_madvise, [(base, P)], MADV_COLD, p)


def test_memory_failure_takes_rights(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    refused(errno.EINVAL, p.madvise, base, P, MADV_SOFT_OFFLINE)
    p.capabilities.clear()
    refused(errno.EPERM, p.madvise, base, P, MADV_SOFT_OFFLINE)


@pytest.mark.conformance("MP-18")
def test_sealed(p, base):
    p.mmap(base, P, PROT_READ, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, RW, ANON | MAP_FIXED)
    p.mmap(base + 4 * P, P, PROT_READ, SHARED | MAP_FIXED)
    for i in (0, 2, 4):
        p.mseal(base + i * P, P)
    for advice in (MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL, MADV_DONTFORK, MADV_WIPEONFORK):
        refused(errno.EPERM, p.madvise, base, P, advice)
        p.madvise(base + 2 * P, P, advice)
    p.madvise(base + 4 * P, P, MADV_DONTNEED)
    p.madvise(base, P, MADV_RANDOM)


@pytest.mark.conformance("GD-03", "GD-04")
def test_guards_across_a_hole(p, base):
    for i in (0, 2):
        p.mmap(base + i * P, P, RW, ANON | MAP_FIXED)
    for _ in range(2):
        refused(errno.ENOMEM, p.madvise, base, 3 * P, MADV_GUARD_INSTALL)
        assert guards(p, base, 3) == [True, False, True]
    for _ in range(2):
        refused(errno.ENOMEM, p.madvise, base, 3 * P, MADV_GUARD_REMOVE)
        assert guards(p, base, 3) == [False] * 3
    assert "gu" in flags(p, base)


def guards(p, base, n):
    if hasattr(p, "page_states"):
        return [state == "g" for state in p.page_states(base, n)]
    return [bool(word >> 58 & 1) for word in p.pagemap(base, n)]


# ---- contents ----


@pytest.mark.conformance("MA-09", "MA-10", "MA-17")
def test_what_is_dropped(real):
    p = real
    a, b = p.mmap(None, P, RW, ANON), p.mmap(None, 2 * P, RW, SHARED)
    p.write(a, b"x")
    p.write(b, b"y" * 2 * P)
    p.mprotect(a, P, PROT_NONE)
    p.madvise(a, P, MADV_DONTNEED)
    p.mprotect(a, P, RW)
    assert p.read(a, P) == bytes(P)
    p.madvise(b, 2 * P, MADV_DONTNEED)
    assert p.read(b, 2 * P) == b"y" * 2 * P
    c = p.mremap(b, 0, 2 * P, 1)
    p.madvise(c, P, MADV_REMOVE)
    assert p.read(b, 2 * P) == bytes(P) + b"y" * P


@pytest.mark.conformance("MA-19", "MA-21", "MA-23")
def test_forks(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.write(a, b"x" * 4 * P)
    p.madvise(a, P, MADV_WIPEONFORK)
    p.madvise(a + P, P, MADV_WIPEONFORK)
    p.madvise(a + P, P, MADV_KEEPONFORK)
    p.madvise(a + 2 * P, P, MADV_DONTFORK)
    p.madvise(a + 3 * P, P, MADV_DONTFORK)
    p.madvise(a + 3 * P, P, MADV_DOFORK)
    child = p.fork()
    assert child.read(a, 2 * P) == bytes(P) + b"x" * P
    assert child.read(a + 3 * P, 1) == b"x"
    with pytest.raises(SegmentationFault):
        child.read(a + 2 * P, 1)
    child.write(a, b"c")
    assert child.fork().read(a, 1) == b"\0" and p.read(a, 1) == b"x"


@pytest.mark.conformance("MA-32")
def test_populated(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.madvise(a, 4 * P, MADV_POPULATE_READ)
    assert p.rss == 0 and all(word >> 63 for word in p.pagemap(a, 4))
    p.madvise(a, 2 * P, MADV_POPULATE_WRITE)
    assert p.rss == 2


@pytest.mark.conformance("MA-12")
def test_part_of_a_huge_page(real):
    p = real
    p.mm.core.mmu.set_folios(1 << 9, 0)
    a = p.mmap(None, 512 * P, RW, ANON)
    assert a % (512 * P) == 0
    p.write(a, b"x")
    assert p.rss == 512 and p.walk(a)[-1].level == "pmd"
    p.write(a, b"x" * 512 * P)
    p.madvise(a + 5 * P, 3 * P, MADV_DONTNEED)
    assert p.rss == 509
    assert p.read(a, 512 * P) == b"x" * 5 * P + bytes(3 * P) + b"x" * 504 * P


@pytest.mark.conformance("MA-35")
def test_cold(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.write(a, b"x" * 4 * P)
    assert "Referenced:           16 kB" in p.smaps()
    p.madvise(a, 4 * P, MADV_COLD)
    assert "Referenced:            0 kB" in p.smaps()
    assert p.read(a, 4 * P) == b"x" * 4 * P and p.rss == 4


@pytest.mark.conformance("GD-01", "GD-02", "GD-12")
def test_guards(real):
    p = real
    a = p.mmap(None, 3 * P, RW, ANON)
    p.write(a, b"x" * 3 * P)
    p.madvise(a + P, P, MADV_GUARD_INSTALL)
    assert p.rss == 2
    with pytest.raises(SegmentationFault) as caught:
        p.write(a, b"y" * 3 * P)
    assert caught.value.done == P
    word = p.pagemap(a + P, 1)[0]
    assert word >> 58 & 1 and not word >> 62
    p.madvise(a, 3 * P, MADV_DONTNEED)
    assert p.pagemap(a + P, 1)[0] >> 58 & 1, "they outlive MADV_DONTNEED"
    p.madvise(a + P, P, MADV_GUARD_REMOVE)
    assert p.read(a, 3 * P) == bytes(3 * P)


@pytest.mark.conformance("GD-07")
def test_guards_are_inherited(real):
    p = real
    a = p.mmap(None, P, RW, ANON)
    p.madvise(a, P, MADV_GUARD_INSTALL)
    child = p.fork()
    child.madvise(a, P, MADV_GUARD_REMOVE)
    child.write(a, b"x")
    with pytest.raises(SegmentationFault):
        p.read(a, 1)


# ---- mincore and msync ----


@pytest.mark.conformance("MC-03", "MC-05", "MC-06")
def test_mincore_arguments(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.touch(base, P, True)
    assert p.mincore(base, 2 * P) == p.mincore(base, P + 1) == b"\1\0"
    assert p.mincore(base, 0) == p.mincore(base + 64 * P, 0) == b""
    refused(errno.EINVAL, p.mincore, base + 1, P)
    refused(errno.ENOMEM, p.mincore, base, 3 * P)
    refused(errno.ENOMEM, p.mincore, base, WORD - 1)
    refused(errno.ENOMEM, p.mincore, TASK_SIZE, 1)


@pytest.mark.conformance("MC-07", "MC-12", "MC-14")
def test_mincore(real):
    p = real
    a = p.mmap(None, 3 * P, RW, ANON)
    p.write(a, b"x")
    p.read(a + P, 1)
    assert p.mincore(a, 3 * P) == b"\1\1\0"
    p.mprotect(a, 3 * P, PROT_NONE)
    assert p.mincore(a, 3 * P) == b"\1\1\0"
    b = p.mmap(None, 3 * P, RW, ANON)
    p.mlock(b, 3 * P)
    assert p.mincore(b, 3 * P) == b"\1\1\1"


@pytest.mark.conformance("MS-01", "MS-03", "MS-05")
def test_msync(p, base):
    for i in (0, 2):
        p.mmap(base + i * P, P, RW, ANON | MAP_FIXED)
    refused(errno.EINVAL, p.msync, base, P, MS_SYNC | MS_ASYNC)
    refused(errno.EINVAL, p.msync, base, P, 8)
    refused(errno.EINVAL, p.msync, base + 1, P, MS_SYNC)
    refused(errno.ENOMEM, p.msync, base, WORD - P, MS_SYNC)
    p.msync(base, P, 0)
    p.msync(base, 1, MS_SYNC)
    p.msync(base + 8 * P, 0, MS_SYNC)
    p.msync(base, WORD - 1, MS_SYNC)        # rounds up to nothing
    for how in (MS_SYNC, MS_ASYNC, 0):
        refused(errno.ENOMEM, p.msync, base, 3 * P, how)
    p.mlock(base + 2 * P, P)
    refused(errno.EBUSY, p.msync, base + 2 * P, P, MS_INVALIDATE)
    refused(errno.EBUSY, p.msync, base, 3 * P, MS_INVALIDATE | MS_SYNC)


# ---- prctl ----


@pytest.mark.conformance("MM-59")
def test_names(p, base):
    def name(value, start=base, length=P):
        return p.prctl(layout.PR_SET_VMA, layout.PR_SET_VMA_ANON_NAME, start, length, value)

    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 4 * P, P, RW, SHARED | MAP_FIXED)
    assert name("test", base + P) == 0
    assert [vma.name for vma in p.vmas[:3]] == [None, "test", None]
    name("")
    assert p.find_vma(base).name == ""
    name(None, length=3 * P)
    assert spans(p, base)[0] == (0, 3) and p.find_vma(base).name is None
    refused(errno.ENOMEM, name, "both", base, 5 * P)
    assert [vma.name for vma in p.vmas] == ["both", "both"]
    for bad in ("a[b", "a]b", "a`b", "a$b", "a\\b", "\n", "é", "x" * 80):
        refused(errno.EINVAL, name, bad)
    name("x" * 79)
    refused(errno.EINVAL, name, "x", base + 1)
    refused(errno.EINVAL, name, "x", base, -1)
    assert name("x", base + 64 * P, 0) == 0
    with pytest.raises(TypeError):
        name(b"bytes")
    refused(errno.EINVAL, p.prctl, layout.PR_SET_VMA, 1, base, P, "x")


def test_thp_disable(p):
    ask = layout.PR_GET_THP_DISABLE
    assert p.prctl(ask) == 0
    for args, number in [((1,), 1), ((1, 2), 3), ((0,), 0)]:
        assert p.prctl(layout.PR_SET_THP_DISABLE, *args) == 0
        assert p.prctl(ask) == number
    for args in [(0, 2), (1, 1), (1, 4), (1, 0, 1), (1, 0, 0, 1)]:
        refused(errno.EINVAL, p.prctl, layout.PR_SET_THP_DISABLE, *args)
    refused(errno.EINVAL, p.prctl, ask, 1)
    refused(errno.EINVAL, p.prctl, 9999)
    with pytest.raises(TypeError):
        p.prctl(ask, 0, 0, 0, 0, 0)


@pytest.mark.conformance("VM-30")
def test_memory_merge(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, RW, SHARED | MAP_FIXED)
    assert p.prctl(layout.PR_SET_MEMORY_MERGE, 1) == 0 == p.prctl(layout.PR_SET_MEMORY_MERGE, 1)
    assert p.prctl(layout.PR_GET_MEMORY_MERGE) == 1
    assert "mg" in flags(p, base) and "mg" not in flags(p, base + 2 * P)
    p.mmap(base + P, P, RW, ANON | MAP_FIXED)
    assert spans(p, base) == [(0, 2), (2, 3)]
    p.mmap(base + 8 * P, P, RW, SHARED | MAP_FIXED)
    assert "mg" not in flags(p, base + 8 * P)
    p.mlockall(2)
    p.munlockall()
    assert p.prctl(layout.PR_GET_MEMORY_MERGE) == 1
    assert p.prctl(layout.PR_SET_MEMORY_MERGE, 0) == 0 == p.prctl(layout.PR_GET_MEMORY_MERGE)
    assert "mg" not in flags(p, base)
    refused(errno.EINVAL, p.prctl, layout.PR_SET_MEMORY_MERGE, 1, 1)


@pytest.mark.conformance("FK-23")
def test_memory_merge_is_inherited(real):
    p = real
    p.prctl(layout.PR_SET_MEMORY_MERGE, 1)
    p.prctl(layout.PR_SET_THP_DISABLE, 1)
    child = p.fork()
    assert child.prctl(layout.PR_GET_MEMORY_MERGE) == child.prctl(layout.PR_GET_THP_DISABLE) == 1
