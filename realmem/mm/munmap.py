"""The call munmap (mm/vma.c:do_vmi_munmap())."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import as_register
from realmem.layout import PAGE_SIZE, TASK_SIZE
from realmem.mm.plan import Plan, fail
from realmem.mm.vma import page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


def munmap(mm: MemoryMap, addr: int, length: int) -> None:
    """
    Unmap what is in a range; VMAs across its ends are split.

    :raises OSError: EINVAL, a misaligned, empty or impossible range; ENOMEM, a split that
        vm.max_map_count forbids; EPERM, a sealed VMA.
    """
    addr, length = as_register(addr, "addr"), as_register(length, "length")
    if addr % PAGE_SIZE or addr > TASK_SIZE or length > TASK_SIZE - addr or length == 0:
        fail(errno.EINVAL)
    end = addr + page_align(length)

    def planner(plan: Plan) -> None:
        plan.unmap(addr, end)

    mm.change(planner)
