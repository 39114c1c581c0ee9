"""Advice that is about pages, and leaves VMAs as they are."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.layout import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MADV_WILLNEED,
)
from realmem.mm.collapse import collapse
from realmem.mm.plan import fail
from realmem.mm.vma import VM_LOCKED, VM_MAYWRITE, VM_PFNMAP, VM_SHARED, VM_SPECIAL, Vma

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

Piece = partial[Any]
"""A call of the kernel side."""
Rule = Callable[["MemoryMap", Vma, int, int], "Piece | None"]


def run(pieces: list[Piece]) -> None:
    """
    Make the calls one after the other.

    No bytecode runs in between, so that a KeyboardInterrupt comes before all of them or after.
    """
    deque(map(partial.__call__, pieces), maxlen=0)


def _madvise(what: str) -> Rule:
    return lambda mm, vma, start, end: partial(mm.core.madvise, start, end, what)


def _unless(forbidden: int, rule: Rule) -> Rule:
    def checked(mm: MemoryMap, vma: Vma, start: int, end: int) -> Piece | None:
        if vma.vm_flags_word & forbidden:
            fail(errno.EINVAL, "locked or special")
        return rule(mm, vma, start, end)

    return checked


def _zap(mm: MemoryMap, vma: Vma, start: int, end: int) -> Piece:
    return partial(mm.core.zap, start, end)


def _free(mm: MemoryMap, vma: Vma, start: int, end: int) -> Piece:
    if not vma.private_anon:
        fail(errno.EINVAL, "MADV_FREE is for private anonymous memory")
    return partial(mm.core.madvise, start, end, "free")


def _remove(mm: MemoryMap, vma: Vma, start: int, end: int) -> Piece:
    """Take a hole out of the object behind a shared mapping (mm/madvise.c:madvise_remove())."""
    if vma.vm_flags_word & VM_LOCKED or vma.object is None:
        fail(errno.EINVAL, "locked, or nothing is behind it")
    if vma.vm_flags_word & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
        fail(errno.EACCES, "not a shared mapping that could be written to")
    if vma.inode is None:
        return partial(mm.core.madvise, start, end, "remove")
    return partial(_punch, vma.inode, *vma.pages_at(start, end))


def _punch(inode: Any, first: int, last: int) -> None:
    number = inode.punch(first, last)
    if number:
        fail(number, "fallocate(FALLOC_FL_PUNCH_HOLE)")


def _will_need(mm: MemoryMap, vma: Vma, start: int, end: int) -> Piece | None:
    """Read a file's pages, or swapped ones, ahead (mm/madvise.c:madvise_willneed())."""
    if vma.inode is None:
        return partial(mm.core.madvise, start, end, "willneed")
    return partial(vma.inode.read_ahead, *vma.pages_at(start, end), -1)


PAGE_ADVICE: Mapping[int, Rule] = {
    MADV_WILLNEED: _will_need,
    MADV_COLD: _unless(VM_LOCKED | VM_PFNMAP, _madvise("cold")),
    MADV_PAGEOUT: _unless(VM_LOCKED | VM_PFNMAP, _madvise("pageout")),
    MADV_DONTNEED: _unless(VM_LOCKED | VM_PFNMAP, _zap),
    MADV_DONTNEED_LOCKED: _unless(VM_PFNMAP, _zap),
    MADV_REMOVE: _remove,
    MADV_FREE: _unless(VM_LOCKED | VM_PFNMAP, _free),
    MADV_GUARD_INSTALL: _unless(VM_LOCKED | VM_SPECIAL, _madvise("guard_install")),
    MADV_COLLAPSE: collapse,
    MADV_GUARD_REMOVE: _unless(VM_SPECIAL, _madvise("guard_remove")),
}
"""Advice to the rule that gives what is to be done in one VMA."""
