"""mincore, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, WORD, P, refused

from realmem.layout import MAP_FIXED, PROT_NONE, TASK_SIZE


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
