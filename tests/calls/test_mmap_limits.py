"""mmap at the limits, what is locked and what is charged, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, FIXED, RW, P, refused, spans

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    RLIM_INFINITY,
)


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
    assert spans(p, a, "prot") == [(0, 1, RW), (1, 4, RW)]


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
