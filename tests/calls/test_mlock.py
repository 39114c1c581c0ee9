"""The mlock family, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, WORD, P, refused, spans, vm_lck

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PROT_NONE,
    PROT_READ,
)


def present(p, addr, n):
    return sum(p.mincore(addr, n * P))


@pytest.mark.conformance("ML-01")
def test_one_byte(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mlock(base + 100, 1)
    assert vm_lck(p) == 1 and p.mincore(base, 2 * P) == b"\1\0"
    p.munlock(base + P - 1, 2)
    assert vm_lck(p) == 0


@pytest.mark.conformance("ML-03", "ML-04", "ML-05")
@pytest.mark.parametrize(
    "pages, touched, length, locked",
    [(1, 0, P, 1), (8, 4, 8 * P, 8), (5, 1, 4 * P + 1, 5), (4, 4, 4 * P - 1, 4)],
)
def test_on_fault(p, base, pages, touched, length, locked):
    p.mmap(base, pages * P, RW, ANON | MAP_FIXED)
    if touched:
        p.touch(base, touched * P, True)
    p.mlock2(base, length, MLOCK_ONFAULT)
    assert vm_lck(p) == locked and present(p, base, pages) == touched
    assert "lf" in p.find_vma(base).vm_flags
    p.touch(base, pages * P, True)
    assert present(p, base, pages) == pages


@pytest.mark.conformance("ML-06", "ML-09")
def test_arguments(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    refused(errno.EINVAL, p.mlock2, base, P, 2)
    for call in (p.mlock, p.munlock):
        call(base, 0)
        call(base + 64 * P, 0)
        refused(errno.EINVAL, call, base, WORD - base)
        call(base, WORD - 1)            # rounds up to nothing
    assert vm_lck(p) == 0


@pytest.mark.conformance("ML-07", "ML-13")
def test_up_to_a_hole(p, base):
    for i in (0, 2):
        p.mmap(base + i * P, P, RW, ANON | MAP_FIXED)
    refused(errno.ENOMEM, p.mlock, base, 3 * P)
    assert spans(p, base, "locked") == [(0, 1, True), (2, 3, False)] and vm_lck(p) == 1
    assert present(p, base, 1) == 0, "nothing is brought in after a failure"
    refused(errno.ENOMEM, p.mlock, base + P, P)
    p.munlock(base + 2 * P, P)          # never was
    refused(errno.ENOMEM, p.munlock, base, 3 * P)
    assert vm_lck(p) == 0


@pytest.mark.conformance("ML-10")
def test_without_access(p, base):
    p.mmap(base, 2 * P, PROT_NONE, ANON | MAP_FIXED)
    refused(errno.ENOMEM, p.mlock, base, 2 * P)
    assert vm_lck(p) == 2 and p.find_vma(base).locked
    p.mprotect(base, 2 * P, RW)
    p.touch(base, 2 * P, True)
    assert vm_lck(p) == 2


@pytest.mark.conformance("ML-11")
def test_twice(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    for _ in range(2):
        p.mlock(base, 2 * P)
        assert vm_lck(p) == 2
    p.mlock2(base, 2 * P, MLOCK_ONFAULT)
    assert vm_lck(p) == 2 and "lf" in p.find_vma(base).vm_flags
    p.mlock(base, 2 * P)
    assert vm_lck(p) == 2 and "lf" not in p.find_vma(base).vm_flags


@pytest.mark.conformance("ML-12")
def test_at_the_limit(p, base):
    p.capabilities.clear()
    p.rlimit["MEMLOCK"] = 2 * P
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.mlock(base, 2 * P)
    p.mlock(base, 2 * P)
    refused(errno.ENOMEM, p.mlock, base + P, 2 * P)
    refused(errno.ENOMEM, p.mlock, base, 3 * P)
    p.rlimit["MEMLOCK"] = 0
    refused(errno.EPERM, p.mlock, base, P)
    p.munlock(base, 2 * P)
    p.capabilities.add("CAP_IPC_LOCK")
    p.mlock(base, 4 * P)
    assert vm_lck(p) == 4


@pytest.mark.conformance("ML-14")
def test_middle_unlocked(p, base):
    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.mlock(base, 3 * P)
    p.munlock(base + P, P)
    assert spans(p, base, "locked") == [(0, 1, True), (1, 2, False), (2, 3, True)]
    p.munlock(base, 3 * P)
    assert spans(p, base, "locked") == [(0, 3, False)] and vm_lck(p) == 0


@pytest.mark.conformance("ML-15")
def test_not_inherited(real):
    p = real
    a = p.mmap(None, 2 * P, RW, ANON)
    p.mlock(a, 2 * P)
    p.mlockall(MCL_FUTURE)
    child = p.fork()
    assert vm_lck(child) == 0 and not child.find_vma(a).locked
    assert vm_lck(p) == 2 and p.find_vma(a).locked
    child.mmap(None, P, RW, ANON)
    assert vm_lck(child) == 0


@pytest.mark.conformance("ML-17")
def test_all_with_limits(p, base):
    p.capabilities.clear()
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.rlimit["MEMLOCK"] = 3 * P
    refused(errno.ENOMEM, p.mlockall, MCL_CURRENT)
    assert vm_lck(p) == 0
    p.mlockall(MCL_FUTURE)
    p.rlimit["MEMLOCK"] = 0
    refused(errno.EPERM, p.mlockall, MCL_CURRENT)
    p.rlimit["MEMLOCK"] = 4 * P
    p.mlockall(MCL_CURRENT)
    assert vm_lck(p) == 4 and present(p, base, 4) == 4
    for flags in (0, MCL_ONFAULT, 8, MCL_CURRENT | 16):
        refused(errno.EINVAL, p.mlockall, flags)


@pytest.mark.conformance("ML-18", "ML-19")
def test_all_to_come(p, base):
    p.mlockall(MCL_FUTURE)
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    assert vm_lck(p) == 2 and present(p, base, 2) == 2
    p.mlockall(MCL_FUTURE | MCL_ONFAULT)
    p.mmap(base + 4 * P, 2 * P, RW, ANON | MAP_FIXED)
    assert vm_lck(p) == 4 and present(p, base + 4 * P, 2) == 0
    p.capabilities.clear()
    p.rlimit["MEMLOCK"] = 5 * P
    refused(errno.EAGAIN, p.mmap, base + 8 * P, 2 * P, RW, ANON | MAP_FIXED)
    p.munlockall()
    assert vm_lck(p) == 0
    p.mmap(base + 8 * P, 2 * P, RW, ANON | MAP_FIXED)
    assert vm_lck(p) == 0 and not any(locked for _, _, locked in spans(p, base, "locked"))


def test_current_on_fault(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    p.mlockall(MCL_CURRENT | MCL_ONFAULT)
    assert vm_lck(p) == 3 and present(p, base, 3) == 0
    assert all("lf" in vma.vm_flags for vma in p.vmas)


@pytest.mark.conformance("ML-20", "PF-12")
def test_smaps(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.mlock(a, 4 * P)
    lines = dict(line.split(":", 1) for line in p.smaps().splitlines()[1:])
    assert lines["Locked"].split() == lines["Size"].split() == lines["Rss"].split() == ["16", "kB"]
    assert "lo" in lines["VmFlags"].split()


@pytest.mark.conformance("ML-22")
def test_copies_are_taken_at_once(real):
    p = real
    a = p.mmap(None, 2 * P, RW, ANON)
    p.read(a, 2 * P)
    assert p.rss == 0
    p.mlock(a, 2 * P)
    assert p.rss == 2


@pytest.mark.conformance("ML-23")
def test_droppable(p, base):
    p.mmap(base, P, RW, MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED)
    p.mlock(base, P)
    assert not p.find_vma(base).locked and vm_lck(p) == 0
