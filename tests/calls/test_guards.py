"""Guard regions, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, P, flags, refused

from realmem.errors import SegmentationFault
from realmem.layout import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_MAYMOVE,
)


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
    return [bool(word >> 58 & 1) for word in p.pagemap(base, n)]


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


@pytest.mark.conformance("GD-11")
def test_guards_over_a_hole_in_their_object(real):
    p = real
    a = p.mmap(None, 3 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    p.write(a, b"x" * 3 * P)
    p.madvise(a + P, P, MADV_GUARD_INSTALL)
    b = p.mremap(a, 0, 3 * P, MREMAP_MAYMOVE)
    for by in (b, a):                       # through another mapping, and through their own
        p.write(b, b"y" * 3 * P)
        p.madvise(by, 3 * P, MADV_REMOVE)
        assert p.read(b, 3 * P) == bytes(3 * P)
        assert guards(p, a, 3) == [False, True, False]
    with pytest.raises(SegmentationFault):
        p.read(a, 2 * P)
    p.madvise(a, 3 * P, MADV_GUARD_REMOVE)
    assert p.read(a, 3 * P) == bytes(3 * P)
