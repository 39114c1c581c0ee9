"""The call mseal (mm/mseal.c:do_mseal())."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import PAGE_SIZE
from realmem.mm.plan import Plan, fail
from realmem.mm.vma import VM_SEALED, page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


def mseal(mm: MemoryMap, addr: int, length: int, flags: int = 0) -> None:
    """
    Seal a range: its VMAs can no longer be unmapped, moved, or given other rights.

    :raises OSError: EINVAL; ENOMEM, a hole, or a split that vm.max_map_count forbids.
    """
    start, length = as_register(addr, "addr"), as_register(length, "length")
    if as_register(flags, "flags"):
        fail(errno.EINVAL, "flags")
    if start % PAGE_SIZE:
        fail(errno.EINVAL, "address not aligned")
    rounded = page_align(length)
    if rounded >= WORD or start + rounded >= WORD:
        fail(errno.EINVAL, "length")
    end = start + rounded
    if end == start:
        return

    def planner(plan: Plan) -> None:
        vmas = plan.tree.span(start, end)
        at = start
        for vma in vmas:
            if vma.start > at:
                fail(errno.ENOMEM, "a hole")
            at = vma.end
        if at < end:
            fail(errno.ENOMEM, "not mapped")
        for vma in vmas:
            if not vma.vm_flags_word & VM_SEALED:
                plan.modify(
                    max(vma.start, start),
                    min(vma.end, end),
                    flags=vma.vm_flags_word | VM_SEALED,
                )

    mm.change(planner)
