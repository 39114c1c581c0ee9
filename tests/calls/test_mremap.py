"""mremap: errnos, layouts and contents, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, SHARED, P, refused, spans, vm_lck

from realmem.layout import (
    MADV_GUARD_INSTALL,
    MAP_FIXED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    TASK_SIZE,
)
from realmem.mm.vma import VM_DONTEXPAND, VM_MAYREAD, VM_PFNMAP, VM_READ, Vma

MOVE = MREMAP_MAYMOVE
TO = MREMAP_MAYMOVE | MREMAP_FIXED
LEAVE = MREMAP_MAYMOVE | MREMAP_DONTUNMAP


@pytest.mark.conformance("MR-01", "MR-02", "MR-03", "MR-04", "MR-06")
def test_arguments_refused(p, base):
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    far = base + 64 * P
    for number, *args in [
        (errno.EINVAL, base + 1, P, P, MOVE, 0),
        (errno.EFAULT, base - P, P, 2 * P, MOVE, 0),
        (errno.EFAULT, base - P, P, P, 0, 0),
        (errno.EINVAL, base, P, 0, MOVE, 0),
        (errno.EINVAL, base, P, -1, MOVE, 0),               # rounds up to 0
        (errno.EINVAL, base, P, TASK_SIZE + 1, MOVE, 0),
        (errno.EINVAL, base, P, P, 8, 0),
        (errno.EINVAL, base, P, P, MREMAP_FIXED, far),
        (errno.EINVAL, base, P, P, MREMAP_DONTUNMAP, 0),
        (errno.EINVAL, base, P, 2 * P, LEAVE, 0),
        (errno.EINVAL, base, P, P, TO, far + 1),
        (errno.EINVAL, base, P, P, TO, TASK_SIZE),
        (errno.EINVAL, base, 2 * P, 2 * P, TO, base + P),   # overlaps
        (errno.EINVAL, base, 0, P, MOVE, 0),                # private memory is not duplicated
        (errno.EFAULT, far, P, P, TO, base),
    ]:
        refused(number, p.mremap, *args)
    assert spans(p, base) == [(0, 4)]


@pytest.mark.conformance("MR-08")
def test_shrink_across_vmas(p, base):
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.mprotect(base + 2 * P, P, PROT_READ)
    p.touch(base, P, True)
    assert p.mremap(base, 4 * P, P) == base
    assert spans(p, base) == [(0, 1)] and p.rss == 1


@pytest.mark.conformance("MR-09")
def test_grow_in_place(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    assert p.mremap(base, 2 * P, 5 * P) == base
    assert spans(p, base) == [(0, 5)]
    # Of its tail alone, too.
    assert p.mremap(base + 4 * P, P, 2 * P) == base + 4 * P
    assert spans(p, base) == [(0, 6)]


@pytest.mark.conformance("MR-11")
def test_grow_elsewhere(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, PROT_NONE, ANON | MAP_FIXED)
    refused(errno.ENOMEM, p.mremap, base, 2 * P, 3 * P)
    new = p.mremap(base, 2 * P, 3 * P, MOVE)
    assert p.find_vma(new).start == new and p.find_vma(new).end == new + 3 * P
    assert p.find_vma(base).start == base + 2 * P


@pytest.mark.conformance("MR-12")
def test_past_the_end_of_the_vma(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, 2 * P, PROT_READ, ANON | MAP_FIXED)
    refused(errno.EFAULT, p.mremap, base, 4 * P, 5 * P, MOVE)
    refused(errno.EFAULT, p.mremap, base, 3 * P, 5 * P, TO, base + 32 * P)
    assert spans(p, base) == [(0, 2), (2, 4)]


@pytest.mark.conformance("MR-13")
def test_onto_another_mapping(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 8 * P, 4 * P, PROT_READ, ANON | MAP_FIXED)
    p.touch(base, 2 * P, True)
    assert p.mremap(base, 2 * P, 2 * P, TO, base + 9 * P) == base + 9 * P
    assert spans(p, base) == [(8, 9), (9, 11), (11, 12)] and p.rss == 2


@pytest.mark.conformance("MR-14")
def test_shrinking_move_of_two_vmas(p, base):
    """Linux 6.18 looks before it unmaps: what remains must be of the first; then both happen."""
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, 2 * P, PROT_READ, ANON | MAP_FIXED)
    p.mmap(base + 8 * P, 4 * P, PROT_READ, ANON | MAP_FIXED)
    refused(errno.EFAULT, p.mremap, base, 4 * P, 3 * P, TO, base + 8 * P)
    assert spans(p, base) == [(0, 2), (2, 4), (8, 12)]
    assert p.mremap(base, 4 * P, P, TO, base + 8 * P) == base + 8 * P
    assert spans(p, base) == [(8, 9), (9, 12)]


@pytest.mark.conformance("MR-15")
def test_shared_memory_is_duplicated(p, base):
    p.mmap(base, 2 * P, RW, SHARED | MAP_FIXED)
    new = p.mremap(base, 0, 2 * P, MOVE)
    one, other = p.find_vma(base), p.find_vma(new)
    assert new != base and one.object is other.object and other.start == new
    assert p.mremap(base, 0, P, TO, base + 16 * P) == base + 16 * P


@pytest.mark.conformance("MR-15", "MR-19")
def test_shared_contents(real):
    from realmem.errors import BusError

    p = real
    a = p.mmap(None, 2 * P, RW, SHARED)
    p.write(a, b"1" * P + b"2" * P)
    b = p.mremap(a, 0, 2 * P, MOVE)
    p.write(b, b"3")
    assert p.read(a, 1) == b"3" and p.read(b + P, P) == b"2" * P
    p.mremap(a, 2 * P, P)
    a = p.mremap(a, P, 3 * P, MOVE)
    assert p.read(a + P, P) == b"2" * P
    with pytest.raises(BusError):
        p.read(a + 2 * P, 1)


@pytest.mark.conformance("MR-20", "MR-21")
def test_source_left_mapped(real):
    p = real
    a = p.mmap(None, 2 * P, RW, ANON)
    p.write(a, b"x" * 2 * P)
    b = p.mremap(a, 2 * P, 2 * P, LEAVE)
    assert p.read(b, 2 * P) == b"x" * 2 * P and p.read(a, 2 * P) == bytes(2 * P)
    a = p.mmap(None, P, RW, SHARED)
    p.write(a, b"s")
    b = p.mremap(a, P, P, LEAVE)
    assert p.read(a, 1) == p.read(b, 1) == b"s"


@pytest.mark.conformance("MR-22")
def test_source_left_mapped_onto_part_of_another(real):
    p = real
    base = p.mm.low + (1 << 28)
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 8 * P, 4 * P, RW, ANON | MAP_FIXED)
    p.write(base, b"a" * 4 * P)
    p.write(base + 8 * P, b"b" * 4 * P)
    p.mremap(base + P, 2 * P, 2 * P, LEAVE | MREMAP_FIXED, base + 9 * P)
    assert p.read(base + 8 * P, 4 * P) == b"b" * P + b"a" * 2 * P + b"b" * P
    assert p.read(base, 4 * P) == b"a" * P + bytes(2 * P) + b"a" * P


@pytest.mark.conformance("MR-23")
def test_source_left_mapped_is_unlocked(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mlock(base, 2 * P)
    new = p.mremap(base, 2 * P, 2 * P, LEAVE)
    assert vm_lck(p) == 2 and p.find_vma(new).locked and not p.find_vma(base).locked
    p.munmap(new, 2 * P)
    assert vm_lck(p) == 0


@pytest.mark.conformance("MR-27")
def test_growth_of_locked_memory(p, base):
    p.capabilities.clear()
    p.rlimit["MEMLOCK"] = 4 * P
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.mlock(base, 2 * P)
    refused(errno.EAGAIN, p.mremap, base, 2 * P, 5 * P, MOVE)
    assert p.mremap(base, 2 * P, 4 * P) == base
    assert vm_lck(p) == 4 and p.rss == 4
    p.rlimit["MEMLOCK"] = 0
    refused(errno.EAGAIN, p.mremap, base, 4 * P, 5 * P, MOVE)


@pytest.mark.conformance("MR-28")
def test_address_space_limit(p, base):
    p.mmap(base, 2 * P, RW, ANON | MAP_FIXED)
    p.rlimit["AS"] = 3 * P
    refused(errno.ENOMEM, p.mremap, base, 2 * P, 4 * P, MOVE)
    refused(errno.ENOMEM, p.mremap, base, 2 * P, 2 * P, LEAVE)
    assert p.mremap(base, 2 * P, 3 * P) == base
    p.rlimit["AS"] = 1 << 40
    p.rlimit["DATA"] = 3 * P
    refused(errno.ENOMEM, p.mremap, base, 3 * P, 4 * P, MOVE)


@pytest.mark.conformance("MR-30")
def test_hole_is_filled(p, base):
    p.mmap(base, 6 * P, RW, ANON | MAP_FIXED)
    p.touch(base, 6 * P, True)
    p.munmap(base + 2 * P, 2 * P)
    assert spans(p, base) == [(0, 2), (4, 6)]
    assert p.mremap(base, 2 * P, 4 * P) == base
    assert spans(p, base) == [(0, 6)]


@pytest.mark.conformance("MR-32")
def test_bytes_survive_other_alignments(real):
    p = real
    base = p.mm.low + (1 << 28)
    length = 600 * P
    p.mmap(base, length, RW, ANON | MAP_FIXED)
    data = b"".join(i.to_bytes(2, "little") * (P // 2) for i in range(600))
    p.write(base, data)
    for to in (base + (1 << 25) + P, base + (3 << 21) + 511 * P, base + (1 << 27)):
        p.mmap(to - P, P, RW, ANON | MAP_FIXED)
        p.write(to - P, b"before" * 600)
        assert p.mremap(base, length, length, TO, to) == to
        assert p.read(to, length) == data and p.read(to - P, 3600) == b"before" * 600
        base = to


@pytest.mark.conformance("MR-33", "GD-09")
def test_pages_keep_their_state_and_frame(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    p.write(a, b"x")
    p.read(a + P, 1)
    p.madvise(a + 2 * P, P, MADV_GUARD_INSTALL)
    before = p.pagemap(a, 4)
    b = p.mremap(a, 4 * P, 4 * P, TO, a - (1 << 24))
    soft_dirty = 1 << 55
    assert [w & ~soft_dirty for w in p.pagemap(b, 4)] == [w & ~soft_dirty for w in before]
    assert p.pagemap(a, 4) == [0] * 4
    b = p.mremap(b, 4 * P, 2 * P)
    b = p.mremap(b, 2 * P, 4 * P)
    assert not any(word >> 56 & 0xFF for word in p.pagemap(b + 2 * P, 2)), "cut off, they are gone"


@pytest.mark.conformance("MR-34")
def test_reverse_map_follows(real):
    p = real
    a = p.mmap(None, 2 * P, RW, ANON)
    p.write(a, b"x" * 2 * P)
    page = p.machine.pfn_to_page(p.walk(a + P)[-1].decoded["pfn"])
    assert page.mappings == [(p.pid, a + P)]
    b = p.mremap(a, 2 * P, 2 * P, TO, a - (1 << 24))
    assert page.mappings == [(p.pid, b + P)] and page.mapcount == 1
    child = p.fork()
    child.mremap(b, 2 * P, 2 * P, TO, a)
    assert page.mappings == sorted([(p.pid, b + P), (child.pid, a + P)])
    p.write(b, b"y" * 2 * P)
    assert page.mappings == [(child.pid, a + P)]


@pytest.mark.conformance("MR-36")
def test_several_vmas_move_together(p, base):
    p.mmap(base, 6 * P, RW, ANON | MAP_FIXED)
    p.mprotect(base + P, P, PROT_READ)
    p.munmap(base + 3 * P, P)
    to = base + 64 * P
    assert p.mremap(base, 6 * P, 6 * P, TO, to) == to
    assert spans(p, to) == [(0, 1), (1, 2), (2, 3), (4, 6)]
    # A hole at the start is no start; nothing at all neither.
    refused(errno.EFAULT, p.mremap, to + 3 * P, 3 * P, 3 * P, TO, base)
    refused(errno.EFAULT, p.mremap, base, 6 * P, 6 * P, TO, base + 32 * P)


@pytest.mark.conformance("MR-36", "MP-17")
def test_several_vmas_move_up_to_one_that_can_not(p, base):
    p.mmap(base, 4 * P, RW, ANON | MAP_FIXED)
    p.mseal(base + 2 * P, P)
    to = base + 64 * P
    refused(errno.EPERM, p.mremap, base, 4 * P, 4 * P, TO, to)
    assert spans(p, base) == [(2, 3), (3, 4), (64, 66)]
    refused(errno.EPERM, p.mremap, base + 2 * P, P, 2 * P, MOVE)
    refused(errno.EPERM, p.mremap, base + 3 * P, P, P, TO, base + 2 * P)


def test_too_many_vmas(p, base):
    settings = p.mm.settings
    settings.max_map_count = 12
    for i in range(7):
        p.mmap(base + 2 * i * P, P, RW, ANON | MAP_FIXED)
    refused(errno.ENOMEM, p.mremap, base, P, P, TO, base + 64 * P)
    p.munmap(base + 12 * P, P)
    assert p.mremap(base, P, P, TO, base + 64 * P) == base + 64 * P


def put(p, base, pages, flags, pgoff=None):
    """Map what no call here can: as a driver would, or at an odd offset."""

    def planner(plan):
        plan.insert(Vma(base, base + pages * P, flags, pgoff))
        plan.account(flags, pages)

    p.mm.change(planner)


@pytest.mark.conformance("MR-25")
@pytest.mark.parametrize("special", [VM_DONTEXPAND, VM_PFNMAP])
def test_drivers_mappings_do_not_grow(p, base, special):
    put(p, base, 2, VM_READ | VM_MAYREAD | special)
    refused(errno.EINVAL, p.mremap, base, 2 * P, 2 * P, LEAVE)
    for how in (0, MOVE):
        refused(errno.EFAULT, p.mremap, base, 2 * P, 3 * P, how)
    refused(errno.EFAULT, p.mremap, base, 2 * P, 3 * P, TO, base + 16 * P)
    assert spans(p, base) == [(0, 2)]
    assert p.mremap(base, 2 * P, P) == base                 # it may shrink, and move
    assert p.mremap(base, P, P, TO, base + 16 * P) == base + 16 * P
    assert spans(p, base) == [(16, 17)]


@pytest.mark.conformance("MR-26")
def test_offsets_do_not_wrap_around(p, base):
    """As vm_pgoff stands in 64 bits; x86-64's calls themselves give no more than 52."""
    put(p, base, 1, VM_READ | VM_MAYREAD, (1 << 64) - 3)
    for how in (0, MOVE):
        refused(errno.EINVAL, p.mremap, base, P, 3 * P, how)
    assert p.mremap(base, P, 2 * P) == base
    assert spans(p, base) == [(0, 2)]
