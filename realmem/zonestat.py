"""
One moment of a machine's zones, as plain figures.

Everything that writes the kernel's text files or counters reads a machine through here, so that
those can be tested without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from realmem.layout import MIGRATE_NAMES, PAGEBLOCK_ORDER, ZONE_NAMES
from realmem.watermark import Watermark, zone_watermarks

NR_ZONE_KINDS = len(ZONE_NAMES)
MIGRATE_ISOLATE = MIGRATE_NAMES.index("Isolate")
MAX_ORDERS = 11


@dataclass(frozen=True)
class PcpStat:
    """Pages in the lists of one CPU, and how many they may hold."""

    cpu: int
    count: int
    high: int


@dataclass(frozen=True)
class ZoneStat:
    """One zone; a zone without memory has zeros and is not ``populated``."""

    nid: int
    kind: int
    start_pfn: int
    spanned: int
    present: int
    managed: int
    free: int
    watermark: Watermark
    lowmem_reserve: Sequence[int]
    batch: int
    high_min: int
    high_max: int
    nr_free: Sequence[Sequence[int]]
    """Free blocks, ``[order][migratetype]``."""
    pageblocks: Sequence[int]
    """Pageblocks by migratetype."""
    pgalloc: int
    """Pages ever allocated."""
    numa: Sequence[int]
    """hit, miss, foreign, interleave_hit, local, other."""
    pcp: Sequence[PcpStat] = ()

    @property
    def name(self) -> str:
        """Linux's name of it."""
        return ZONE_NAMES[self.kind]

    @property
    def populated(self) -> bool:
        """Whether there is memory in it (Linux's populated_zone)."""
        return self.present > 0

    @property
    def free_area(self) -> list[int]:
        """Free blocks by order."""
        return [sum(by_type) for by_type in self.nr_free]

    @property
    def free_in_pageblocks(self) -> int:
        """Free pages in blocks of a pageblock or more."""
        return sum(
            (sum(by_type) - by_type[MIGRATE_ISOLATE]) << order
            for order, by_type in enumerate(self.nr_free)
            if order >= PAGEBLOCK_ORDER
        )


def read_zones(machine: Any) -> list[ZoneStat]:
    """Read every zone of a machine: four for each node, in order, those without memory too."""
    return [zone for node in machine.nodes for zone in read_node_zones(machine, node)]


def read_node_zones(machine: Any, node: Any) -> list[ZoneStat]:
    """Read one node's four zones."""
    present = {zone.name: zone for zone in node.zones}
    return [
        _read_zone(machine._allocator, node.id, kind, present[name])
        if name in present
        else _empty_zone(node.id, kind)
        for kind, name in enumerate(ZONE_NAMES)
    ]


def _read_zone(allocator: Any, nid: int, kind: int, zone: Any) -> ZoneStat:
    stat = allocator.zone_stat(nid * NR_ZONE_KINDS + kind)
    by_cpu: dict[int, PcpStat] = {}
    for lists in stat["pcp"]:
        # Threads that ran on one CPU have lists of their own each; Linux has one for the CPU.
        cpu, count, high = lists["cpu"], lists["count"], lists["high"]
        if cpu in by_cpu:
            count, high = count + by_cpu[cpu].count, high + by_cpu[cpu].high
        by_cpu[cpu] = PcpStat(cpu, count, high)
    return ZoneStat(
        nid=nid,
        kind=kind,
        start_pfn=zone.start_pfn,
        spanned=zone.spanned_pages,
        present=zone.present_pages,
        managed=zone.managed_pages,
        free=stat["free_pages"],
        watermark=Watermark(
            zone.watermark.min, zone.watermark.low, zone.watermark.high, zone.watermark.promo
        ),
        lowmem_reserve=tuple(zone.lowmem_reserve),
        batch=stat["batch"],
        high_min=stat["high_min"],
        high_max=stat["high_max"],
        nr_free=stat["nr_free"],
        pageblocks=stat["pageblocks"],
        pgalloc=stat["pgalloc"],
        numa=tuple(stat["numa"]),
        pcp=tuple(by_cpu[cpu] for cpu in sorted(by_cpu)),
    )


def _empty_zone(nid: int, kind: int) -> ZoneStat:
    nothing = [0] * len(MIGRATE_NAMES)
    return ZoneStat(
        nid=nid,
        kind=kind,
        start_pfn=0,
        spanned=0,
        present=0,
        managed=0,
        free=0,
        # What the formulas give a zone of no pages: a Movable one still has a minimum.
        watermark=zone_watermarks([(kind, 0)], 0)[0],
        lowmem_reserve=(0,) * NR_ZONE_KINDS,
        batch=1,
        high_min=0,
        high_max=0,
        nr_free=[nothing] * MAX_ORDERS,
        pageblocks=nothing,
        pgalloc=0,
        numa=(0,) * 6,
    )
