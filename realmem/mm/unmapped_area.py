"""
Where a mapping goes.

Compare mm/mmap.c:__get_unmapped_area(), arch/x86/kernel/sys_x86_64.c, mm/huge_memory.c:
__thp_get_unmapped_area(), security/commoncap.c:cap_mmap_addr().
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.layout import MAP_32BIT, MAP_ABOVE4G, MAP_FIXED, PAGE_SIZE, TASK_SIZE
from realmem.mm.draft import Draft, fail
from realmem.mm.vma import VM_GROWSDOWN, Vma, page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

PMD_SIZE = 1 << 21
LOW_START, LOW_END = 0x4000_0000, 0x8000_0000       # what MAP_32BIT searches
FOUR_GIB = 1 << 32


def round_hint(mm: MemoryMap, hint: int) -> int:
    """Round a hint down to a page, and up to vm.mmap_min_addr (mm/mmap.c:round_hint_to_min())."""
    hint &= -PAGE_SIZE
    lowest = mm.settings.mmap_min_addr
    return page_align(lowest) if 0 < hint < lowest else hint


def start_gap(vma: Vma, guard: int) -> int:
    """Give where a VMA begins, the gap below a stack included (vm_start_gap())."""
    return max(vma.start - guard, 0) if vma.vm_flags_word & VM_GROWSDOWN else vma.start


def get_unmapped_area(
    plan: Draft, addr: int, length: int, flags: int, *, thp_aligned: bool = False
) -> int:
    """
    Check a fixed address, or find one.

    :param addr: the place, or a hint that round_hint() has seen.
    :param length: whole pages.
    :param flags: MAP_* bits.
    :param thp_aligned: private anonymous memory, which lies on 2 MiB bounds where it fills them.
    :raises OSError: ENOMEM, no room; EINVAL, misaligned; EPERM, below vm.mmap_min_addr.
    """
    if length > TASK_SIZE:
        fail(errno.ENOMEM, "longer than the address space")
    found: int | None = addr
    if not flags & MAP_FIXED:
        found = None
        if thp_aligned and addr == 0 and length % PMD_SIZE == 0:
            found = _aligned(plan, length, flags)
        if found is None:
            found = _search(plan, addr, length, flags)
        if found is None:
            fail(errno.ENOMEM, "no room in the address space")
    assert found is not None
    if found > TASK_SIZE - length:
        fail(errno.ENOMEM, "past the end of the address space")
    if found % PAGE_SIZE:
        fail(errno.EINVAL, "address not aligned")
    if found < plan.mm.settings.mmap_min_addr and not plan.mm.capable("CAP_SYS_RAWIO"):
        fail(errno.EPERM, "below vm.mmap_min_addr")
    return found


def _aligned(plan: Draft, length: int, flags: int) -> int | None:
    start = _search(plan, 0, length + PMD_SIZE, flags)
    if start is None:
        return None
    offset = -start % PMD_SIZE
    return start + (offset or PMD_SIZE)


def _search(plan: Draft, hint: int, length: int, flags: int) -> int | None:
    mm, tree = plan.mm, plan.tree
    guard = mm.settings.stack_guard_gap
    lowest = page_align(mm.settings.mmap_min_addr)
    if hint and hint <= TASK_SIZE - length:
        vma = tree.find(hint)
        fits = vma is None or hint + length <= start_gap(vma, guard)
        if fits and not (flags & MAP_32BIT and hint + length > LOW_END):
            return hint
    if flags & MAP_32BIT:
        return tree.gap_above(length, max(LOW_START, lowest), LOW_END, guard)
    if flags & MAP_ABOVE4G:
        lowest = max(lowest, FOUR_GIB)
    # One window holds what lies near each other; what does not fit gets another.
    found = tree.gap_below(length, max(mm.low, lowest), mm.mmap_base, guard)
    if found is None:
        found = tree.gap_below(length, lowest, mm.low, guard)
    if found is None:
        found = tree.gap_above(length, max(mm.high, lowest), TASK_SIZE, guard)
    return found
