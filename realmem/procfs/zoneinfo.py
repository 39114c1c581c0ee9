"""
``/proc/zoneinfo``: each zone's marks, counters and per-CPU lists.

Compare mm/vmstat.c:zoneinfo_show_print().  The same model is read from the running kernel's file
and made from a Machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realmem.vmstat import node_counters, zone_counters
from realmem.watermark import stat_threshold
from realmem.zonestat import PcpStat, ZoneStat, read_node_zones


@dataclass
class Pageset:
    """One CPU's page list of a zone, in pages."""

    cpu: int
    count: int
    high: int
    batch: int
    high_min: int
    high_max: int
    stat_threshold: int
    """How far this CPU's counters may run before they are folded into the zone's."""


@dataclass
class ZoneRecord:
    """One zone as the file shows it, in pages."""

    nid: int
    name: str
    free: int
    boost: int
    min: int
    low: int
    high: int
    promo: int
    spanned: int
    present: int
    managed: int
    cma: int
    protection: Sequence[int]
    node_stats: Mapping[str, int] | None = None
    """The node's counters: in its first populated zone only."""
    stats: Mapping[str, int] | None = None
    """The zone's counters and NUMA events; None for a zone without pages, which ends here."""
    pagesets: list[Pageset] = field(default_factory=list)
    node_unreclaimable: int = 0
    start_pfn: int = 0


PAGES_FIELDS = (
    "free",
    "boost",
    "min",
    "low",
    "high",
    "promo",
    "spanned",
    "present",
    "managed",
    "cma",
)
_PAGESET_FIELDS = ("count", "high", "batch", "high_min", "high_max")


def format_zoneinfo(zones: Iterable[ZoneRecord]) -> str:
    """Write the file's text."""
    return "".join(f"{line}\n" for zone in zones for line in _zone_lines(zone))


def _zone_lines(zone: ZoneRecord) -> Iterator[str]:
    yield f"Node {zone.nid}, zone {zone.name:>8}"
    if zone.node_stats is not None:
        yield "  per-node stats"
        for name, value in zone.node_stats.items():
            yield f"      {name:<12} {value}"
    for name in PAGES_FIELDS:
        lead = "  pages " if name == "free" else "        "
        yield f"{lead}{name:<8} {getattr(zone, name)}"
    yield f"        protection: ({', '.join(map(str, zone.protection))})"
    if zone.stats is None:
        return
    for name, value in zone.stats.items():
        yield f"      {name:<12} {value}"
    yield "  pagesets"
    for pageset in zone.pagesets:
        yield f"    cpu: {pageset.cpu}"
        for name in _PAGESET_FIELDS:
            label = name + ":"
            yield f"              {label:<9} {getattr(pageset, name)}"
        yield f"  vm stats threshold: {pageset.stat_threshold}"
    yield f"  node_unreclaimable:  {zone.node_unreclaimable}"
    yield f"  start_pfn:           {zone.start_pfn}"


_HEAD = re.compile(r"Node (\d+), zone +(\S+)$", re.MULTILINE)
_COUNTER = re.compile(r"      (\w+) +(\d+)$")


def parse_zoneinfo(text: str) -> list[ZoneRecord]:
    """
    Read the file's text, ours or any kernel's since 6.0.

    Fields that an older kernel does not print are 0.
    """
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _parse_zone(int(head[1]), head[2], text[head.end() : end].splitlines()[1:])
        for head, end in zip(heads, ends, strict=True)
    ]


def _parse_zone(nid: int, name: str, lines: list[str]) -> ZoneRecord:
    pages = dict.fromkeys(PAGES_FIELDS, 0)
    protection: list[int] = []
    node_stats: dict[str, int] | None = None
    stats: dict[str, int] | None = None
    pagesets: list[dict[str, int]] = []
    tail = {"node_unreclaimable": 0, "start_pfn": 0}
    in_node_stats = False
    for line in lines:
        words = line.replace(":", " ").split()
        counter = _COUNTER.match(line)
        if line == "  per-node stats":
            node_stats, in_node_stats = {}, True
        elif counter is not None:
            if in_node_stats and node_stats is not None:
                node_stats[counter[1]] = int(counter[2])
            else:
                stats = {} if stats is None else stats
                stats[counter[1]] = int(counter[2])
        elif words[0] == "pages":
            in_node_stats = False
            pages["free"] = int(words[2])
        elif words[0] == "protection":
            protection = [int(number) for number in re.findall(r"\d+", line)]
        elif words[0] == "cpu":
            pagesets.append({**dict.fromkeys(_PAGESET_FIELDS, 0), "cpu": int(words[1])})
        elif words[0] == "vm":
            pagesets[-1]["stat_threshold"] = int(words[3])
        elif words[0] in tail:
            tail[words[0]] = int(words[1])
        elif line.startswith("              "):
            pagesets[-1][words[0]] = int(words[1])
        elif words[0] in pages:
            pages[words[0]] = int(words[1])
    return ZoneRecord(
        nid,
        name,
        **pages,
        protection=protection,
        node_stats=node_stats,
        stats=stats,
        pagesets=[Pageset(**pageset) for pageset in pagesets],
        **tail,
    )


def machine_zoneinfo(machine: Any) -> str:
    """Give a machine's file."""
    cpus = sorted(cpu for node in machine.nodes for cpu in node.cpus)
    records = []
    for node in machine.nodes:
        node_stats: Mapping[str, int] | None = node_counters(machine, node.id)
        for zone in read_node_zones(machine, node):
            records.append(_zone_record(zone, cpus, machine.cpus))
            if zone.populated:
                records[-1].node_stats = node_stats
                node_stats = None
    return format_zoneinfo(records)


def _zone_record(zone: ZoneStat, cpus: Sequence[int], nr_cpus: int) -> ZoneRecord:
    mark = zone.watermark
    record = ZoneRecord(
        nid=zone.nid,
        name=zone.name,
        free=zone.free,
        boost=0,
        min=mark.min,
        low=mark.low,
        high=mark.high,
        promo=mark.promo,
        spanned=zone.spanned,
        present=zone.present,
        managed=zone.managed,
        cma=0,
        protection=zone.lowmem_reserve,
    )
    if zone.populated:
        record.stats = zone_counters([zone])
        record.start_pfn = zone.start_pfn
        record.pagesets = _pagesets(zone, cpus, stat_threshold(zone.managed, nr_cpus))
    return record


def _pagesets(zone: ZoneStat, cpus: Sequence[int], threshold: int) -> list[Pageset]:
    lists = {pcp.cpu: pcp for pcp in zone.pcp}
    pagesets = []
    for cpu in sorted({*cpus, *lists}):
        # A list that was never used may hold nothing yet, as on the kernel.
        pcp = lists.get(cpu) or PcpStat(cpu, 0, 0)
        pagesets.append(
            Pageset(cpu, pcp.count, pcp.high, zone.batch, zone.high_min, zone.high_max, threshold)
        )
    return pagesets
