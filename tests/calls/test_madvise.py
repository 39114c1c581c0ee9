"""madvise: errnos and flags, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, SHARED, WORD, P, flags, refused, spans

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
    MAP_FIXED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)


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
