"""The report that goes with an allocation failure; compare mm/show_mem.c:show_free_areas()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realmem.layout import PAGE_SHIFT
from realmem.zonestat import ZoneStat, read_zones

if TYPE_CHECKING:
    from realmem.machine import Machine

_KB = PAGE_SHIFT - 10
_LETTERS = "UMEHI"  # unmovable, movable, reclaimable, high-atomic, isolated


def show_mem(machine: Machine) -> str:
    """Describe the free memory of every zone, the way the kernel does."""
    zones = [zone for zone in read_zones(machine) if zone.populated]
    return "\n".join(["Mem-Info:", *map(_marks, zones), *map(_blocks, zones)])


def _marks(zone: ZoneStat) -> str:
    marks = zone.watermark
    reserves = " ".join(str(pages) for pages in zone.lowmem_reserve)
    return (
        f"Node {zone.nid} {zone.name} free:{zone.free << _KB}kB min:{marks.min << _KB}kB "
        f"low:{marks.low << _KB}kB high:{marks.high << _KB}kB "
        f"reserved_highatomic:{zone.nr_reserved_highatomic << _KB}KB "
        f"present:{zone.present << _KB}kB managed:{zone.managed << _KB}kB "
        f"free_pcp:{sum(cpu.count for cpu in zone.pcp) << _KB}kB lowmem_reserve[]: {reserves}"
    )


def _blocks(zone: ZoneStat) -> str:
    parts = []
    for order, by_type in enumerate(zone.nr_free):
        letters = "".join(
            letter for letter, count in zip(_LETTERS, by_type, strict=True) if count
        )
        parts.append(f"{sum(by_type)}*{4 << order}kB" + (f" ({letters})" if letters else ""))
    return f"Node {zone.nid} {zone.name}: {' '.join(parts)} = {zone.free << _KB}kB"
