"""Advice that is kept in the flags of VMAs: what each makes of them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from realmem.layout import (
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WIPEONFORK,
)
from realmem.mm.plan import fail
from realmem.mm.vma import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_IO,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    Vma,
)


def ksm_compatible(vma: Vma) -> bool:
    """Whether equal pages of a VMA could be merged (mm/ksm.c:ksm_compatible())."""
    return not vma.vm_flags_word & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_DROPPABLE)


def _dofork(vma: Vma) -> int:
    if vma.vm_flags_word & VM_IO:
        fail(errno.EINVAL, "VM_IO")
    return vma.vm_flags_word & ~VM_DONTCOPY


def _wipeonfork(vma: Vma) -> int:
    if vma.object is not None or vma.vm_flags_word & VM_SHARED:
        fail(errno.EINVAL, "only private anonymous memory is wiped on fork")
    return vma.vm_flags_word | VM_WIPEONFORK


def _keeponfork(vma: Vma) -> int:
    if vma.vm_flags_word & VM_DROPPABLE:
        fail(errno.EINVAL, "MAP_DROPPABLE memory is wiped on fork")
    return vma.vm_flags_word & ~VM_WIPEONFORK


def _dodump(vma: Vma) -> int:
    if vma.vm_flags_word & (VM_SPECIAL | VM_DROPPABLE):
        fail(errno.EINVAL, "never dumped")
    return vma.vm_flags_word & ~VM_DONTDUMP


def _mergeable(vma: Vma) -> int:
    return vma.vm_flags_word | (VM_MERGEABLE if ksm_compatible(vma) else 0)


def _bits(*, clear: int = 0, set: int = 0) -> Callable[[Vma], int]:
    return lambda vma: vma.vm_flags_word & ~clear | set


FLAG_ADVICE: Mapping[int, Callable[[Vma], int]] = {
    MADV_NORMAL: _bits(clear=VM_RAND_READ | VM_SEQ_READ),
    MADV_RANDOM: _bits(clear=VM_SEQ_READ, set=VM_RAND_READ),
    MADV_SEQUENTIAL: _bits(clear=VM_RAND_READ, set=VM_SEQ_READ),
    MADV_DONTFORK: _bits(set=VM_DONTCOPY),
    MADV_DOFORK: _dofork,
    MADV_WIPEONFORK: _wipeonfork,
    MADV_KEEPONFORK: _keeponfork,
    MADV_DONTDUMP: _bits(set=VM_DONTDUMP),
    MADV_DODUMP: _dodump,
    MADV_MERGEABLE: _mergeable,
    MADV_UNMERGEABLE: _bits(clear=VM_MERGEABLE),
    MADV_HUGEPAGE: _bits(clear=VM_NOHUGEPAGE, set=VM_HUGEPAGE),
    MADV_NOHUGEPAGE: _bits(clear=VM_HUGEPAGE, set=VM_NOHUGEPAGE),
}
"""Advice to the rule that gives a VMA's new flags (mm/madvise.c:madvise_vma_behavior())."""
