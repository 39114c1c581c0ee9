"""
``extfrag_index`` and ``unusable_index``: how broken up the free memory of a zone is.

Compare mm/vmstat.c:fill_contig_page_info(), __fragmentation_index(), unusable_free_index().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from realmem.procfs.buddyinfo import FreeAreas, machine_free_areas

EXTFRAG = "/sys/kernel/debug/extfrag"


def fragmentation_index(order: int, nr_free: Sequence[int]) -> int:
    """
    Say why an allocation of this order would fail, in thousandths.

    :param order: log2 of the pages asked for.
    :param nr_free: free blocks of the zone by order.
    :return: towards 0 for lack of memory, towards 1000 for fragmentation; -1000 when a block
        would fit, 0 when nothing is free.
    """
    blocks = sum(nr_free)
    if not blocks:
        return 0
    if any(nr_free[order:]):
        return -1000
    pages = sum(count << size for size, count in enumerate(nr_free))
    return 1000 - (1000 + (pages * 1000 >> order)) // blocks


def unusable_index(order: int, nr_free: Sequence[int]) -> int:
    """
    Give the share of free memory that lies in blocks too small for this order, in thousandths.

    :param order: log2 of the pages asked for.
    :param nr_free: free blocks of the zone by order.
    """
    pages = sum(count << size for size, count in enumerate(nr_free))
    if not pages:
        return 1000
    usable = sum(count << size for size, count in enumerate(nr_free) if size >= order)
    return (pages - usable) * 1000 // pages


def format_indexes(
    zones: Sequence[FreeAreas], index: Callable[[int, Sequence[int]], int], width: int
) -> str:
    """Write either file's text, with ``width`` columns before the point."""
    lines = []
    for zone in zones:
        text = f"Node {zone.nid}, zone {zone.name:>8} "
        for order in range(len(zone.nr_free)):
            value = index(order, zone.nr_free)
            whole, part = divmod(abs(value), 1000)
            text += f"{-whole if value < 0 else whole:{width}}.{part:03} "
        lines.append(text + "\n")
    return "".join(lines)


def machine_extfrag_index(machine: Any) -> str:
    """Give a machine's ``extfrag_index``."""
    return format_indexes(machine_free_areas(machine), fragmentation_index, 2)


def machine_unusable_index(machine: Any) -> str:
    """Give a machine's ``unusable_index``."""
    return format_indexes(machine_free_areas(machine), unusable_index, 1)
