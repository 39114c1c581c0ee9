"""The calls brk and sbrk (mm/mmap.c:brk(), mm/vma.c:do_brk_flags())."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import MAP_FIXED, PAGE_SHIFT, PAGE_SIZE, RLIM_INFINITY
from realmem.mm.limits import may_expand, mlock_future_ok
from realmem.mm.plan import LOCKED, Plan, fail
from realmem.mm.unmapped_area import get_unmapped_area, start_gap
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAY_ALL,
    VM_READ,
    VM_SOFTDIRTY,
    VM_WRITE,
    Vma,
    page_align,
)

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


def brk(mm: MemoryMap, addr: int) -> int:
    """
    Move the program break: the raw call, which never fails.

    :return: the break in force.
    """
    new = as_register(addr, "addr")
    try:
        return mm.change(lambda plan: _move(plan, new))
    except ProcessLookupError:
        raise
    except OSError:
        break_now: int = mm.tree.brk
        return break_now


def sbrk(mm: MemoryMap, increment: int) -> int:
    """
    Move the program break by so many bytes, as the C library does.

    :return: the break before.
    :raises OSError: ENOMEM.
    """
    by = as_register(increment, "increment")
    by -= WORD if by >= WORD // 2 else 0

    def planner(plan: Plan) -> int:
        old = plan.tree.brk
        if not 0 <= old + by < WORD:
            fail(errno.ENOMEM, "brk")
        if by:
            _move(plan, old + by)
        return old

    try:
        return mm.change(planner)
    except ProcessLookupError:
        raise
    except OSError as why:
        if why.errno != errno.ENOMEM:
            fail(errno.ENOMEM, "brk")       # as the C library calls every refusal
        raise


def _move(plan: Plan, new: int) -> int:
    mm = plan.mm
    now = plan.tree.brk
    if new < mm.start_brk:
        fail(errno.ENOMEM, "below the heap")
    limit = mm.rlimit["DATA"]
    if limit < RLIM_INFINITY and new - mm.start_brk > limit:
        fail(errno.ENOMEM, "RLIMIT_DATA")
    if new > WORD - PAGE_SIZE:
        fail(errno.ENOMEM, "brk")
    old_end, new_end = page_align(now), page_align(new)
    if old_end != new_end:
        if new <= now:
            # At least one VMA is there: the heap's, or what lies over it.
            if not plan.tree.overlaps(new_end, old_end):
                fail(errno.EINVAL, "nothing to shrink")
            plan.unmap(new_end, old_end)
        else:
            _grow(plan, old_end, new_end)
    plan.set_brk(new)
    return new


def _grow(plan: Plan, start: int, end: int) -> None:
    mm, length = plan.mm, end - start
    pages = length >> PAGE_SHIFT
    def_flags = plan.tree.def_flags
    get_unmapped_area(plan, start, length, MAP_FIXED)
    if not mlock_future_ok(plan, def_flags, length):
        fail(errno.EAGAIN, "RLIMIT_MEMLOCK")
    guard = mm.settings.stack_guard_gap
    above = plan.find(start)
    if (
        above is not None
        and above.start < end + PAGE_SIZE + guard
        and end + PAGE_SIZE > start_gap(above, guard)
    ):
        fail(errno.ENOMEM, "something is mapped there")
    flags = VM_READ | VM_WRITE | VM_MAY_ALL | VM_ACCOUNT | def_flags
    if not may_expand(plan, flags, pages):
        fail(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
    if len(plan.tree) > mm.settings.max_map_count:
        fail(errno.ENOMEM, "vm.max_map_count")
    plan.charge_pages(pages)
    below = plan.prev(start)
    heap = below is not None and below.end > mm.start_brk
    plan.insert(Vma(start, end, flags | VM_SOFTDIRTY), left=heap, right=False)
    plan.account(flags, pages)
    if flags & VM_LOCKED:
        plan.deltas[LOCKED] += pages
        plan.populate.append((start, end))
