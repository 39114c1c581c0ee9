"""
The calls mlock, mlock2, munlock, mlockall, munlockall.

Compare mm/mlock.c.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
)
from realmem.mm.faultin import FAULT_HOST, FAULT_OOM
from realmem.mm.limits import can_do_mlock
from realmem.mm.plan import LOCKED, TOTAL, Plan, fail
from realmem.mm.populate import mm_populate
from realmem.mm.vma import (
    VM_DROPPABLE,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_SPECIAL,
    Vma,
    page_align,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


def mlock(mm: MemoryMap, addr: int, length: int) -> None:
    """
    Lock a range in memory, and fault it in.

    :raises OSError: EPERM, EINVAL, ENOMEM or EAGAIN, as Linux's.
    """
    _do_mlock(mm, addr, length, VM_LOCKED)


def mlock2(mm: MemoryMap, addr: int, length: int, flags: int) -> None:
    """
    Lock a range, with MLOCK_ONFAULT each page as it is first touched.

    :raises OSError: as mlock(), and EINVAL for other flags.
    """
    flags = as_register(flags, "flags")
    if flags & ~MLOCK_ONFAULT:
        fail(errno.EINVAL, "unknown flags")
    _do_mlock(mm, addr, length, VM_LOCKED | (VM_LOCKONFAULT if flags else 0))


def munlock(mm: MemoryMap, addr: int, length: int) -> None:
    """
    Unlock a range.

    :raises OSError: EINVAL; ENOMEM, a hole, or vm.max_map_count.
    """
    start, length = _whole_pages(addr, length)
    mm.change(lambda plan: _apply(plan, start, length, 0))


def mlockall(mm: MemoryMap, flags: int) -> None:
    """
    Lock all that is mapped, all that will be, or both.

    :raises OSError: EINVAL, flags; EPERM or ENOMEM, RLIMIT_MEMLOCK.
    """
    flags = as_register(flags, "flags")
    if not flags or flags == MCL_ONFAULT or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        fail(errno.EINVAL, "flags")
    if not can_do_mlock(mm):
        fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")

    def planner(plan: Plan) -> None:
        if (
            flags & MCL_CURRENT
            and plan.counter(TOTAL) > mm.rlimit["MEMLOCK"] >> PAGE_SHIFT
            and not mm.capable("CAP_IPC_LOCK")
        ):
            fail(errno.ENOMEM, "RLIMIT_MEMLOCK")
        _apply_to_all(plan, flags)

    mm.change(planner)
    if flags & MCL_CURRENT:
        mm_populate(mm, 0, TASK_SIZE)


def munlockall(mm: MemoryMap) -> None:
    """Unlock all that is mapped, and all that will be."""
    mm.change(lambda plan: _apply_to_all(plan, 0))


def _whole_pages(addr: int, length: int) -> tuple[int, int]:
    start, length = as_register(addr, "addr"), as_register(length, "length")
    return start & -PAGE_SIZE, page_align((length + start % PAGE_SIZE) % WORD) % WORD


def _do_mlock(mm: MemoryMap, addr: int, length: int, flags: int) -> None:
    start, length = _whole_pages(addr, length)
    if not can_do_mlock(mm):
        fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")

    def planner(plan: Plan) -> None:
        limit = mm.rlimit["MEMLOCK"] >> PAGE_SHIFT
        if not mm.capable("CAP_IPC_LOCK"):
            wanted = (length >> PAGE_SHIFT) + plan.counter(LOCKED)
            if wanted > limit:
                wanted -= _locked_pages(plan, start, length)
            if wanted > limit:
                fail(errno.ENOMEM, "RLIMIT_MEMLOCK")
        _apply(plan, start, length, flags)

    mm.change(planner)
    rc = mm_populate(mm, start, start + length, ignore_errors=False)
    if rc:
        # mm/mlock.c:__mlock_posix_error_return()
        no_frame = rc in (FAULT_OOM, FAULT_HOST)
        fail(errno.EAGAIN if no_frame else errno.ENOMEM, "locked, but not all of it is there")


def _locked_pages(plan: Plan, start: int, length: int) -> int:
    """Count pages of a range that are locked (mm/mlock.c:count_mm_mlocked_page_nr())."""
    end = min(start + length, WORD)
    return sum(
        (min(vma.end, end) - max(vma.start, start)) >> PAGE_SHIFT
        for vma in plan.tree.span(start, end)
        if vma.vm_flags_word & VM_LOCKED
    )


def _apply(plan: Plan, start: int, length: int, flags: int) -> None:
    """Give a range the lock flags, up to the first hole (mm/mlock.c:apply_vma_lock_flags())."""
    end = start + length
    if end >= WORD:
        fail(errno.EINVAL, "the range wraps around")
    at = start
    while at < end:
        vma = plan.find(at)
        if vma is None or vma.start > at:
            fail(errno.ENOMEM, "a hole in the range")
        last = min(vma.end, end)
        _fixup(plan, vma, at, last, vma.vm_flags_word & ~VM_LOCKED_MASK | flags)
        at = last


def _apply_to_all(plan: Plan, flags: int) -> None:
    """Compare mm/mlock.c:apply_mlockall_flags()."""
    wanted = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    future = wanted if flags & MCL_FUTURE else 0
    plan.set_def_flags(plan.tree.def_flags & ~VM_LOCKED_MASK | future)
    if flags & MCL_FUTURE and not flags & MCL_CURRENT:
        return
    current = wanted if flags & MCL_CURRENT else 0
    for vma in plan.before:
        new = vma.vm_flags_word & ~VM_LOCKED_MASK | current
        # A whole VMA is never split, so nothing here can fail.
        _fixup(plan, vma, vma.start, vma.end, new)


def _fixup(plan: Plan, vma: Vma, start: int, end: int, new: int) -> None:
    """Compare mm/mlock.c:mlock_fixup()."""
    old = vma.vm_flags_word
    if new == old or old & (VM_SPECIAL | VM_DROPPABLE):
        return
    plan.modify(start, end, flags=new)
    pages = (end - start) >> PAGE_SHIFT
    if not new & VM_LOCKED:
        plan.deltas[LOCKED] -= pages
        plan.lock(start, end, False)
    elif not old & VM_LOCKED:
        plan.deltas[LOCKED] += pages
        plan.lock(start, end, True)
