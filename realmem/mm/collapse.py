"""MADV_COLLAPSE: make huge pages of small ones, now."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.mm.plan import fail
from realmem.mm.vma import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_SPECIAL, Vma

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

HPAGE_PMD_SIZE = 2 << 20


def collapse(mm: MemoryMap, vma: Vma, start: int, end: int) -> None:
    """
    Check that a VMA may have huge pages, whatever sysfs says (mm/khugepaged.c:madvise_collapse()).

    :raises OSError: EINVAL, it may not, or has no page yet; ENOMEM, there is no huge page.
    """
    flags = vma.vm_flags_word
    disabled = mm.thp_disabled and not (mm.thp_disabled == 3 and flags & VM_HUGEPAGE)
    top = vma.end & -HPAGE_PMD_SIZE
    if (
        disabled
        or flags & (VM_NOHUGEPAGE | VM_SPECIAL)
        or top - HPAGE_PMD_SIZE < vma.start
        or (vma.private_anon and not mm.core.anon_vma(vma.start)[0])
    ):
        fail(errno.EINVAL, "no huge page may lie there")
    if -(-start // HPAGE_PMD_SIZE) * HPAGE_PMD_SIZE < end & -HPAGE_PMD_SIZE:
        fail(errno.ENOMEM, "no huge page is to be had")
