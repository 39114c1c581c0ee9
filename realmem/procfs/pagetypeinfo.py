"""
``/proc/pagetypeinfo``: free blocks of each zone by migratetype and order, pageblocks by type.

Compare mm/vmstat.c:pagetypeinfo_show().
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from realmem.layout import MIGRATE_NAMES, PAGEBLOCK_ORDER
from realmem.zonestat import ZoneStat, read_node_zones

FREE_COUNT_LIMIT = 100000
"""Linux walks its lists under the zone's lock and stops counting here."""


@dataclass
class ZoneTypes:
    """One populated zone."""

    name: str
    free: dict[str, Sequence[int]]
    """Migratetype to free blocks by order."""
    pageblocks: dict[str, int] = field(default_factory=dict)
    """Migratetype to pageblocks."""


@dataclass
class NodeTypes:
    """One node with memory; the file repeats its headings for each."""

    nid: int
    pageblock_order: int
    zones: list[ZoneTypes]


def format_pagetypeinfo(nodes: Iterable[NodeTypes]) -> str:
    """Write the file's text."""
    return "".join(f"{line}\n" for node in nodes for line in _node_lines(node))


def _node_lines(node: NodeTypes) -> Iterator[str]:
    orders = len(next(iter(node.zones[0].free.values())))
    yield f"Page block order: {node.pageblock_order}"
    yield f"Pages per block:  {1 << node.pageblock_order}"
    yield ""
    title = "Free pages count per migrate type at order"
    yield f"{title:<43} " + "".join(f"{order:6} " for order in range(orders))
    for zone in node.zones:
        for migratetype, blocks in zone.free.items():
            counts = "".join(
                f"{count:6} " if count < FREE_COUNT_LIMIT else f">{FREE_COUNT_LIMIT:6} "
                for count in blocks
            )
            yield f"Node {node.nid:4}, zone {zone.name:>8}, type {migratetype:>12} {counts}"
    yield ""
    title = "Number of blocks type "
    yield f"{title:<23}" + "".join(f"{name:>12} " for name in node.zones[0].pageblocks)
    for zone in node.zones:
        counts = "".join(f"{count:12} " for count in zone.pageblocks.values())
        yield f"Node {node.nid}, zone {zone.name:>8} {counts}"


_FREE = re.compile(r"Node +(\d+), zone +(\S+), type +(\S+) (.*)")
_BLOCKS = re.compile(r"Node (\d+), zone +(\S+) +([\d ]+)$")


def parse_pagetypeinfo(text: str) -> list[NodeTypes]:
    """Read the file's text, ours or the running kernel's."""
    nodes: list[NodeTypes] = []
    order = 0
    types: list[str] = []
    for line in text.splitlines():
        if line.startswith("Page block order:"):
            order = int(line.split(":")[1])
        elif line.startswith("Number of blocks type"):
            types = line.split()[4:]
        elif free := _FREE.match(line):
            nid, name = int(free[1]), free[2]
            if not nodes or nodes[-1].nid != nid:
                nodes.append(NodeTypes(nid, order, []))
            zones = nodes[-1].zones
            if not zones or zones[-1].name != name:
                zones.append(ZoneTypes(name, {}))
            zones[-1].free[free[3]] = [int(count.lstrip(">")) for count in free[4].split()]
        elif blocks := _BLOCKS.match(line):
            zone = next(zone for zone in nodes[-1].zones if zone.name == blocks[2])
            zone.pageblocks = dict(zip(types, map(int, blocks[3].split()), strict=True))
    return nodes


def machine_pagetypeinfo(machine: Any) -> str:
    """Give a machine's file."""
    nodes = []
    for node in machine.nodes:
        zones = [zone for zone in read_node_zones(machine, node) if zone.populated]
        if zones:
            nodes.append(
                NodeTypes(node.id, PAGEBLOCK_ORDER, [_zone_types(zone) for zone in zones])
            )
    return format_pagetypeinfo(nodes)


def _zone_types(zone: ZoneStat) -> ZoneTypes:
    free: dict[str, Sequence[int]] = {
        name: [by_type[migratetype] for by_type in zone.nr_free]
        for migratetype, name in enumerate(MIGRATE_NAMES)
    }
    return ZoneTypes(zone.name, free, dict(zip(MIGRATE_NAMES, zone.pageblocks, strict=True)))
