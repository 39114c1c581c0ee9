"""What madvise does to pages and to what children get, line by line of the catalogue."""

from __future__ import annotations

import pytest
from fake_pages import ANON, RW, SHARED, P

from realmem.errors import SegmentationFault
from realmem.layout import (
    MADV_COLD,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_KEEPONFORK,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WIPEONFORK,
    PROT_NONE,
)


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


@pytest.mark.conformance("MA-34")
@pytest.mark.parametrize("advice", [MADV_COLD, MADV_PAGEOUT])
def test_what_others_use_too_is_left_alone(real, advice):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.write(a, b"x" * 4 * P)
    child = p.fork()
    child.touch(a, 4 * P)                   # used through its entries, too
    p.write(a, b"y")                        # the first page is its own again
    for one, referenced in ((p, 12 if advice == MADV_COLD else 16), (child, 16)):
        one.madvise(a + P if one is child else a, 3 * P if one is child else 4 * P, advice)
        assert one.rss == 4
        assert f"Referenced:           {referenced} kB" in one.smaps()
    assert p.read(a, 4 * P) == b"y" + b"x" * (4 * P - 1) and child.read(a, 4 * P) == b"x" * 4 * P
