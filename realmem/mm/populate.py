"""
Faulting ranges in ahead of their use.

Compare mm/gup.c:__mm_populate() => populate_vma_page_range().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from realmem.mm.vma import (
    VM_ACCESS_FLAGS,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

FAULT_NO_ACCESS = -1        # among core.populate()'s answers: that of a VMA nobody may touch


def mm_populate(mm: MemoryMap, start: int, end: int, *, ignore_errors: bool = True) -> int:
    """
    Fault in what is mapped in a range; holes are passed over.

    :param ignore_errors: go on with the next VMA after a failure.
    :return: 0, or what core.populate() said of the page that could not be had.
    """
    tree = mm.core.tree
    at = start
    while at < end:
        vma = tree.find(at)
        if vma is None or vma.start >= end:
            break
        at, last = max(at, vma.start), min(end, vma.end)
        flags = vma.vm_flags_word
        if not flags & (VM_IO | VM_PFNMAP | VM_LOCKONFAULT):
            if flags & VM_ACCESS_FLAGS:
                # What is private gets its own copy at once, what is shared may stay clean.
                write = flags & (VM_WRITE | VM_SHARED) == VM_WRITE
                rc = int(mm.core.populate(at, last, write)[0])
            else:
                rc = FAULT_NO_ACCESS
            if rc and not ignore_errors:
                return rc
        at = last
    return 0
