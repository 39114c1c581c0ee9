"""munmap, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import FIXED, RW, WORD, P, refused, spans

from realmem.layout import TASK_SIZE


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
    assert spans(p, a, "prot") == [(0, 2, RW), (3, 9, RW)]
    p.munmap(a + 5 * P, P)
    p.munmap(a + P, 7 * P)
    assert spans(p, a, "prot") == [(0, 1, RW), (8, 9, RW)]
    p.munmap(a - 5 * P, 50 * P)
    assert p.vmas == [] and p.mm.core.counters[0] == 0
