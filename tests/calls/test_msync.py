"""msync of anonymous memory, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, WORD, P, refused

from realmem.layout import MAP_FIXED, MS_ASYNC, MS_INVALIDATE, MS_SYNC


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
