"""
Whether a VMA could have huge pages: the ``THPeligible`` line of smaps.

Compare mm/huge_memory.c:__thp_vma_allowable_orders() with TVA_SMAPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.mm.vma import VM_HUGEPAGE, VM_NOHUGEPAGE


@dataclass(frozen=True)
class ThpSettings:
    """
    What sysfs and the process allow.

    :ivar enabled: the word chosen in ``transparent_hugepage/enabled``.
    :ivar orders: order to the word chosen in ``hugepages-*kB/enabled``.
    :ivar disabled: whether the process did PR_SET_THP_DISABLE.
    """

    enabled: str
    orders: dict[int, str]
    disabled: bool

    @classmethod
    def of(cls, process: Any) -> ThpSettings:
        """Read those that hold for a process."""
        thp = process.machine.thp
        disabled = bool(process.mm.thp_disabled)
        return cls(thp.enabled, dict(thp.orders), disabled)


def thp_eligible(vma: Any, settings: ThpSettings) -> bool:
    """Whether a fault or the collapser could give a VMA a folio of some order."""
    word = vma.vm_flags_word
    if vma.object is not None or settings.disabled or word & VM_NOHUGEPAGE:
        return False
    for order, choice in settings.orders.items():
        rule = settings.enabled if choice == "inherit" else choice
        if rule == "always" or (rule == "madvise" and word & VM_HUGEPAGE):
            size = 1 << (order + PAGE_SHIFT)
            if (vma.end & -size) - size >= vma.start:
                return True
    return False
