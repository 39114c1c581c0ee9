"""MADV_COLLAPSE: make huge pages of small ones, now."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.mm.plan import fail
from realmem.mm.vma import VM_NOHUGEPAGE, VM_SPECIAL, Vma

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

HPAGE_PMD_SIZE = 2 << 20


def collapse(mm: MemoryMap, vma: Vma, start: int, end: int) -> partial[Any]:
    """
    Check that a VMA may have huge pages, whatever sysfs says (mm/khugepaged.c:madvise_collapse()).

    Shared memory may not: its switch, ``shmem_enabled``, is off.

    :return: the call that makes them.
    :raises OSError: EINVAL, it may not, or has no page yet.
    """
    if (
        mm.thp_disabled == 1
        or vma.vm_flags_word & (VM_NOHUGEPAGE | VM_SPECIAL)
        or (vma.end & -HPAGE_PMD_SIZE) - HPAGE_PMD_SIZE < vma.start
        or not vma.private_anon
        or not mm.core.anon_vma(vma.start)[0]
    ):
        fail(errno.EINVAL, "no huge page may lie there")
    return partial(mm.core.collapse, start, end)
