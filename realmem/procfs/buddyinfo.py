"""
``/proc/buddyinfo``: free blocks of each zone by order.

Compare mm/vmstat.c:frag_show_print().
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from realmem.zonestat import read_zones


@dataclass
class FreeAreas:
    """One populated zone's free blocks by order."""

    nid: int
    name: str
    nr_free: Sequence[int]


def format_buddyinfo(zones: Iterable[FreeAreas]) -> str:
    """Write the file's text."""
    return "".join(
        f"Node {zone.nid}, zone {zone.name:>8} "
        + "".join(f"{blocks:6} " for blocks in zone.nr_free)
        + "\n"
        for zone in zones
    )


_LINE = re.compile(r"Node (\d+), zone +(\S+) (.*)")


def parse_buddyinfo(text: str) -> list[FreeAreas]:
    """Read the file's text, ours or the running kernel's."""
    return [
        FreeAreas(int(nid), name, [int(blocks) for blocks in counts.split()])
        for nid, name, counts in _LINE.findall(text)
    ]


def machine_free_areas(machine: Any) -> list[FreeAreas]:
    """Read the free areas of a machine's populated zones."""
    return [
        FreeAreas(zone.nid, zone.name, zone.free_area)
        for zone in read_zones(machine)
        if zone.populated
    ]


def machine_buddyinfo(machine: Any) -> str:
    """Give a machine's file."""
    return format_buddyinfo(machine_free_areas(machine))
