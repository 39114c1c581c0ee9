"""What advice a sealed VMA still takes (mm/madvise.c:can_madvise_modify())."""

from __future__ import annotations

from realmem.layout import (
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_REMOVE,
    MADV_WIPEONFORK,
)
from realmem.mm.vma import VM_SEALED, VM_WRITE, Vma

_DISCARDS = {
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_REMOVE,
    MADV_WIPEONFORK,
}


def may_advise(vma: Vma, advice: int) -> bool:
    """Whether advice leaves alone what a seal protects: contents that can't be written to."""
    return (
        not vma.vm_flags_word & VM_SEALED
        or advice not in _DISCARDS
        or vma.object is not None
        or bool(vma.vm_flags_word & VM_WRITE)
    )
