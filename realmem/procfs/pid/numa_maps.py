"""
``/proc/PID/numa_maps``: each VMA's policy, and the nodes that its pages lie on.

Compare fs/proc/task_mmu.c:show_numa_map().
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from realmem.layout import PAGE_SIZE
from realmem.procfs.pid.maps import Marks


@dataclass
class NumaArea:
    """One VMA's line; counts are in pages."""

    start: int
    policy: str = "default"
    place: str = ""
    """``file=PATH``, ``heap``, ``stack`` or nothing."""
    huge: bool = False
    anon: int = 0
    dirty: int = 0
    mapped: int = 0
    """All of its pages; not shown where they are all anonymous or all dirty."""
    mapmax: int = 0
    swapcache: int = 0
    active: int = 0
    writeback: int = 0
    nodes: Mapping[int, int] = field(default_factory=dict)
    page_kb: int = PAGE_SIZE >> 10


def _words(area: NumaArea) -> Iterable[str]:
    yield f"{area.start:08x}"
    yield area.policy
    if area.place:
        yield area.place
    if area.huge:
        yield "huge"
    if not area.mapped:
        return
    if area.anon:
        yield f"anon={area.anon}"
    if area.dirty:
        yield f"dirty={area.dirty}"
    if area.mapped not in (area.anon, area.dirty):
        yield f"mapped={area.mapped}"
    if area.mapmax > 1:
        yield f"mapmax={area.mapmax}"
    if area.swapcache:
        yield f"swapcache={area.swapcache}"
    if area.active < area.mapped and not area.huge:
        yield f"active={area.active}"
    if area.writeback:
        yield f"writeback={area.writeback}"
    yield from (f"N{node}={pages}" for node, pages in sorted(area.nodes.items()) if pages)
    yield f"kernelpagesize_kB={area.page_kb}"


def format_numa_maps(areas: Iterable[NumaArea]) -> str:
    """Write the file's text."""
    return "".join(f"{' '.join(_words(area))}\n" for area in areas)


_NODE = re.compile(r"N(\d+)=(\d+)")
_COUNTS = ("anon", "dirty", "mapped", "mapmax", "swapcache", "active", "writeback")


def parse_numa_maps(text: str) -> list[NumaArea]:
    """Read the file's text, ours or the kernel's."""
    areas = []
    for line in text.splitlines():
        start, policy, *words = line.split(" ")
        area = NumaArea(int(start, 16), policy)
        nodes: dict[int, int] = {}
        counts: dict[str, int] = {}
        for word in words:
            name, _, value = word.partition("=")
            node = _NODE.fullmatch(word)
            if node is not None:
                nodes[int(node[1])] = int(node[2])
            elif name in _COUNTS:
                counts[name] = int(value)
            elif name == "kernelpagesize_kB":
                area.page_kb = int(value)
            elif word == "huge":
                area.huge = True
            elif word in ("heap", "stack") or name == "file":
                area.place = word
            else:
                area.policy += f" {word}"       # "prefer (many)", "weighted interleave"
        area.nodes = nodes
        area.mapped = sum(nodes.values())
        # What is not written equals all of them, or is none.
        area.active = counts.get("active", area.mapped)
        for name in ("anon", "dirty", "mapmax", "swapcache", "writeback"):
            setattr(area, name, counts.get(name, 0))
        areas.append(area)
    return areas


def _place(vma: Any, marks: Marks) -> str:
    if vma.file is not None:
        # fs/seq_file.c:seq_path() with show_numa_map()'s set of characters
        special = "\n\t= \\"
        return "file=" + "".join(f"\\{ord(c):03o}" if c in special else c for c in vma.file)
    if marks.is_heap(vma):
        return "heap"
    return "stack" if marks.is_stack(vma) else ""


def _numa_area(process: Any, vma: Any, marks: Marks) -> NumaArea:
    anon, dirty, mapmax, active, nodes, _ = process.mm.core.numa(vma.start, vma.end)
    return NumaArea(
        vma.start,
        "default" if vma.policy is None else str(vma.policy),
        _place(vma, marks),
        anon=anon,
        dirty=dirty,
        mapped=sum(nodes),
        mapmax=mapmax,
        active=active,
        nodes=dict(enumerate(nodes)),
    )


def process_numa_maps(process: Any) -> str:
    """Give a process's file."""
    marks = Marks.of(process.mm)
    return format_numa_maps(_numa_area(process, vma, marks) for vma in process.vmas)
