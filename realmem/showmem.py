"""The report that goes with an allocation failure; compare mm/show_mem.c:show_free_areas()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realmem.layout import MIGRATE_NAMES, PAGE_SHIFT

if TYPE_CHECKING:
    from realmem.machine import Machine
    from realmem.node import Node, Zone

_KB = PAGE_SHIFT - 10
_LETTERS = "UMEHI"  # unmovable, movable, reclaimable, high-atomic, isolated


def show_mem(machine: Machine) -> str:
    """Describe the free memory of every zone, the way the kernel does."""
    lines = ["Mem-Info:"]
    for node in machine.nodes:
        for zone in node.zones:
            lines.append(_marks(node, zone))
    for node in machine.nodes:
        for zone in node.zones:
            lines.append(_blocks(node, zone))
    return "\n".join(lines)


def _marks(node: Node, zone: Zone) -> str:
    marks = zone.watermark
    stat = zone._core.zone_stat(zone.index)
    listed = sum(entry["count"] for entry in stat["pcp"])
    reserves = " ".join(str(pages) for pages in zone.lowmem_reserve)
    return (
        f"Node {node.id} {zone.name} free:{zone.free_pages << _KB}kB min:{marks.min << _KB}kB "
        f"low:{marks.low << _KB}kB high:{marks.high << _KB}kB "
        f"reserved_highatomic:{stat['nr_reserved_highatomic'] << _KB}KB "
        f"present:{zone.present_pages << _KB}kB managed:{zone.managed_pages << _KB}kB "
        f"free_pcp:{listed << _KB}kB lowmem_reserve[]: {reserves}"
    )


def _blocks(node: Node, zone: Zone) -> str:
    by_type = zone.free_area_by_type
    parts = []
    for order, count in enumerate(zone.free_area):
        letters = "".join(
            letter
            for letter, name in zip(_LETTERS, MIGRATE_NAMES, strict=True)
            if by_type[name][order]
        )
        parts.append(f"{count}*{4 << order}kB" + (f" ({letters})" if letters else ""))
    return f"Node {node.id} {zone.name}: {' '.join(parts)} = {zone.free_pages << _KB}kB"
