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
from realmem.watermark import Watermark

NR_ZONE_KINDS = len(ZONE_NAMES)
MIGRATE_ISOLATE = MIGRATE_NAMES.index("Isolate")


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
    nr_reserved_highatomic: int = 0

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
    return [read_zone(machine._allocator, node.id, kind) for kind in range(NR_ZONE_KINDS)]


def read_zone(allocator: Any, nid: int, kind: int) -> ZoneStat:
    """Read one zone."""
    index = nid * NR_ZONE_KINDS + kind
    info, stat = allocator.zone_info(index), allocator.zone_stat(index)
    pcp = {cpu["cpu"]: PcpStat(cpu["cpu"], cpu["count"], cpu["high"]) for cpu in stat["pcp"]}
    # Lists of threads that are known by the fault handler only belong to no CPU.
    shared = pcp.pop(-1, None)
    if shared and shared.count:
        first = pcp.get(0, PcpStat(0, 0, 0))
        pcp[0] = PcpStat(0, first.count + shared.count, max(first.high, shared.high))
    return ZoneStat(
        nid=nid,
        kind=kind,
        start_pfn=info["start_pfn"],
        spanned=info["spanned_pages"],
        present=info["present_pages"],
        managed=info["managed_pages"],
        free=stat["free_pages"],
        watermark=Watermark(*info["watermark"]),
        lowmem_reserve=tuple(info["lowmem_reserve"]),
        batch=info["batch"],
        high_min=info["high_min"],
        high_max=info["high_max"],
        nr_free=stat["nr_free"],
        pageblocks=stat["pageblocks"],
        pgalloc=stat["pgalloc"],
        numa=tuple(stat["numa"]),
        pcp=tuple(pcp[cpu] for cpu in sorted(pcp)),
        nr_reserved_highatomic=stat["nr_reserved_highatomic"],
    )
