"""Files under ``/sys/kernel/mm/transparent_hugepage``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from realmem.layout import PAGE_SIZE
from realmem.procfs.tree import TextFile
from realmem.thp import ORDER_WORDS, ORDERS, PMD_ORDER, TOP_WORDS, choices, size_name

THP = "/sys/kernel/mm/transparent_hugepage"


def thp_files(machine: Any) -> Iterator[tuple[str, TextFile]]:
    """Give them: the switches can be written."""
    thp = machine.thp
    yield f"{THP}/enabled", TextFile(lambda: choices(TOP_WORDS, thp.enabled), thp.set_enabled)
    yield f"{THP}/hpage_pmd_size", TextFile(lambda: f"{PAGE_SIZE << PMD_ORDER}\n")
    yield f"{THP}/use_zero_page", TextFile(
        lambda: f"{int(thp.use_zero_page)}\n", thp.set_use_zero_page)
    for order in ORDERS:
        at = f"{THP}/{size_name(order)}"

        def enabled(order: int = order) -> str:
            return choices(ORDER_WORDS, thp.orders[order])

        yield f"{at}/enabled", TextFile(enabled, partial(thp.set_order, order))
        for which, name in enumerate(("anon_fault_alloc", "anon_fault_fallback")):
            yield f"{at}/stats/{name}", TextFile(_count(thp, which, order))


def _count(thp: Any, which: int, order: int) -> Callable[[], str]:
    return lambda: f"{thp.counts()[which][order]}\n"
