"""
Whether a VMA could have huge pages: the ``THPeligible`` line of smaps.

Compare mm/huge_memory.c:__thp_vma_allowable_orders() with TVA_SMAPS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.mm.vma import VM_HUGEPAGE, VM_NOHUGEPAGE

PMD_ORDER = 9
_SYSFS = "/sys/kernel/mm/transparent_hugepage"
_CHOSEN = re.compile(r"\[(\w+)\]")


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
        sysfs = process.machine.sysfs
        disabled = bool(getattr(process.mm, "thp_disabled", 0))
        if f"{_SYSFS}/enabled" not in sysfs:
            return cls("never", {}, disabled)
        orders = {}
        for order in range(2, PMD_ORDER + 1):
            path = f"{_SYSFS}/hugepages-{1 << (order + PAGE_SHIFT - 10)}kB/enabled"
            if path in sysfs:
                orders[order] = _chosen(sysfs[path])
        # A kernel without settings for each order has the one for the largest.
        return cls(_chosen(sysfs[f"{_SYSFS}/enabled"]), orders or {PMD_ORDER: "inherit"}, disabled)


def _chosen(text: str) -> str:
    match = _CHOSEN.search(text)
    return match[1] if match else "never"


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
