"""mprotect and mseal: errnos and layouts, line by line of the catalogue."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fake_pages import ANON, FIXED, RW, P, refused, spans

from realmem.layout import (
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_WRITE,
)


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
    assert spans(p, a, "prot") == [(0, 4, RW)]


@pytest.mark.conformance("MP-09", "MP-10")
def test_mprotect_splits_and_merges(p):
    a = p.mmap(None, 5 * P, RW, ANON)
    p.mprotect(a + P, P, PROT_READ)
    assert spans(p, a, "prot") == [(0, 1, RW), (1, 2, PROT_READ), (2, 5, RW)]
    assert [v.pgoff - a // P for v in p.vmas] == [0, 1, 2]
    p.mprotect(a, 4 * P, PROT_READ)
    assert spans(p, a, "prot") == [(0, 4, PROT_READ), (4, 5, RW)]
    p.mprotect(a, 5 * P, RW)
    assert spans(p, a, "prot") == [(0, 5, RW)]


def test_mprotect_changes_what_comes_before_a_hole(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    p.munmap(a + 2 * P, P)
    refused(errno.ENOMEM, p.mprotect, a, 4 * P, PROT_READ)
    assert spans(p, a, "prot") == [(0, 2, PROT_READ), (3, 4, RW)]
    refused(errno.ENOMEM, p.mprotect, a + 2 * P, 2 * P, PROT_READ)
    assert spans(p, a, "prot") == [(0, 2, PROT_READ), (3, 4, RW)]


@pytest.mark.conformance("MP-05")
def test_shared_memory_of_what_was_opened_for_reading(p):
    with Path("/dev/zero").open("rb") as file:
        a = p.mmap(None, 2 * P, PROT_READ, MAP_SHARED, file)
        b = p.mmap(None, 2 * P, PROT_READ, MAP_PRIVATE, file)
    for prot in (PROT_WRITE, RW):
        refused(errno.EACCES, p.mprotect, a, P, prot)
    assert p.find_vma(a).prot == PROT_READ and p.find_vma(a).end == a + 2 * P
    p.mprotect(b, 2 * P, RW)                # a private copy may be written
    assert p.find_vma(b).prot == RW


def test_mprotect_growsdown_takes_the_whole_stack(p):
    a = p.mmap(None, 4 * P, RW, ANON | MAP_GROWSDOWN)
    p.mprotect(a + 2 * P, P, PROT_READ | PROT_GROWSDOWN)
    assert spans(p, a, "prot") == [(0, 3, PROT_READ), (3, 4, RW)]


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
    assert spans(p, a, "prot") == [(0, 6, RW)]
