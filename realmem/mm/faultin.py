"""
MADV_POPULATE_READ and MADV_POPULATE_WRITE: fault a range in, and say what fails.

Compare mm/madvise.c:madvise_populate() => mm/gup.c:faultin_page_range().
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.mm.draft import fail
from realmem.mm.vma import VM_IO, VM_PFNMAP, VM_READ, VM_WRITE

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

# Of core.populate()'s answers, those where a frame or the host's memory lacked.
FAULT_OOM, FAULT_HOST = 3, 4


def faultin_range(mm: MemoryMap, start: int, end: int, *, write: bool) -> None:
    """
    Fault in a range.

    :raises OSError: ENOMEM, a hole, or no frame; EINVAL, rights that forbid it; EFAULT, a page
        that can't be had.
    """
    while start < end:
        vma = mm.find_vma(start)
        if vma is None or vma.start > start:
            fail(errno.ENOMEM, "a hole in the range")
        flags = vma.vm_flags_word
        if flags & (VM_IO | VM_PFNMAP) or not flags & (VM_WRITE if write else VM_READ):
            fail(errno.EINVAL, "the mapping's rights")
        last = min(end, vma.end)
        rc = mm.core.populate(start, last, write)[0]
        if rc:
            fail(errno.ENOMEM if rc in (FAULT_OOM, FAULT_HOST) else errno.EFAULT)
        start = last
