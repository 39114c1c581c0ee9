"""process_madvise, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, P, as_advised, refused

from realmem.layout import MADV_COLD, MADV_DONTNEED, MAP_FIXED


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
def test_process_madvise_of_another(p, kind, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    with as_advised(kind) as other:
        assert other.process_madvise([(base, P)], MADV_COLD, p) == P
        refused(errno.EINVAL, other.process_madvise, [(base, P)], MADV_DONTNEED, p)
        other.capabilities.clear()
        refused(errno.EPERM, other.process_madvise, [(base, P)], MADV_COLD, p)
