"""
``/proc/meminfo`` and a node's ``meminfo``: sizes in kB, huge pages in numbers.

Compare fs/proc/meminfo.c:meminfo_proc_show(), drivers/base/node.c:node_read_meminfo().
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from realmem.thp import PMD_ORDER
from realmem.vmstat import NODE_STAT_ITEMS, node_counters, total_reserve
from realmem.watermark import KB_SHIFT
from realmem.zonestat import ZoneStat, read_node_zones, read_zones

COUNTED = frozenset(("HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"))
"""The lines that are numbers of pages; all others are kB."""


# Longer than the column that names have.
LONG_NAMES = frozenset(("HardwareCorrupted",))


def format_meminfo(figures: Mapping[str, int]) -> str:
    """Write ``/proc/meminfo``'s text."""
    lines = []
    for name, value in figures.items():
        unit = "" if name in COUNTED else " kB"
        if name in COUNTED or name in LONG_NAMES:
            lines.append(f"{name + ':':<19}{value:5}{unit}\n")
        else:
            lines.append(f"{name + ':':<16}{value:8}{unit}\n")
    return "".join(lines)


def format_node_meminfo(nid: int, figures: Mapping[str, int]) -> str:
    """Write a node's ``meminfo`` text."""
    return "".join(
        f"Node {nid} {name + ':':<17}{value:5}\n"
        if name in COUNTED
        else f"Node {nid} {name + ':':<16}{value:8} kB\n"
        for name, value in figures.items()
    )


_LINE = re.compile(r"^(?:Node \d+ )?(\S+): +(\d+)(?: kB)?$", re.MULTILINE)


def parse_meminfo(text: str) -> dict[str, int]:
    """Read either file's text, in its order; kB, or numbers of huge pages."""
    return {name: int(value) for name, value in _LINE.findall(text)}


def machine_meminfo(machine: Any) -> str:
    """Give a machine's ``/proc/meminfo``."""
    zones = read_zones(machine)
    total = sum(zone.managed for zone in zones)
    free = sum(zone.free for zone in zones)
    gauges = dict.fromkeys(NODE_STAT_ITEMS, 0)
    for node in machine.nodes:
        for name, pages in node_counters(machine, node.id).items():
            gauges[name] += pages
    swap_pages, swap_free, swap_cached = _swap_counts(machine)
    figures = {
        "MemTotal": total << KB_SHIFT,
        "MemFree": free << KB_SHIFT,
        "MemAvailable": max(free - total_reserve(zones), 0) << KB_SHIFT,
        "Buffers": 0,
        "Cached": gauges["nr_file_pages"] << KB_SHIFT,
        "SwapCached": swap_cached << KB_SHIFT,
        **_lru_figures(gauges),
        "SwapTotal": swap_pages << KB_SHIFT,
        "SwapFree": swap_free << KB_SHIFT,
        "Zswap": 0,
        "Zswapped": 0,
        "Dirty": gauges["nr_dirty"] << KB_SHIFT,
        "Writeback": 0,
        "AnonPages": gauges["nr_anon_pages"] << KB_SHIFT,
        "Mapped": gauges["nr_mapped"] << KB_SHIFT,
        "Shmem": gauges["nr_shmem"] << KB_SHIFT,
        **_slab_figures(gauges),
        **_kernel_figures(gauges, machine.quicklists.pages),
        "CommitLimit": machine.sysctl.settings.commit_limit(total) << KB_SHIFT,
        "Committed_AS": machine.committed_pages << KB_SHIFT,
        # The last byte is not Linux's either, hence its odd number.
        "VmallocTotal": (machine.vmalloc_space - 1) >> 10,
        "VmallocUsed": machine._vmalloc.nr_pages << KB_SHIFT,
        "VmallocChunk": 0,
        "Percpu": 0,
        **_huge_figures(gauges),
        "Balloon": 0,
        "HugePages_Total": 0,
        "HugePages_Free": 0,
        "HugePages_Rsvd": 0,
        "HugePages_Surp": 0,
        "Hugepagesize": 2048,
        "Hugetlb": 0,
        **_direct_map_figures(machine, zones),
    }
    return format_meminfo(figures)


def _swap_counts(machine: Any) -> tuple[int, int, int]:
    mmu = machine._paging.mmu if machine._paging is not None else None
    return mmu.swap_counts if mmu is not None else (0, 0, 0)


def machine_node_meminfo(machine: Any, node: Any) -> str:
    """Give a node's ``meminfo``."""
    zones = read_node_zones(machine, node)
    total = sum(zone.managed for zone in zones)
    free = sum(zone.free for zone in zones)
    gauges = node_counters(machine, node.id)
    figures = {
        "MemTotal": total << KB_SHIFT,
        "MemFree": free << KB_SHIFT,
        "MemUsed": (total - free) << KB_SHIFT,
        "SwapCached": 0,
        **_lru_figures(gauges),
        "Dirty": gauges["nr_dirty"] << KB_SHIFT,
        "Writeback": 0,
        "FilePages": gauges["nr_file_pages"] << KB_SHIFT,
        "Mapped": gauges["nr_mapped"] << KB_SHIFT,
        "AnonPages": gauges["nr_anon_pages"] << KB_SHIFT,
        "Shmem": gauges["nr_shmem"] << KB_SHIFT,
        **_kernel_figures(gauges),
        **_slab_figures(gauges),
        **_huge_figures(gauges),
        "HugePages_Total": 0,
        "HugePages_Free": 0,
        "HugePages_Surp": 0,
    }
    return format_node_meminfo(node.id, figures)


def _lru_figures(gauges: Mapping[str, int]) -> dict[str, int]:
    def kb(*names: str) -> int:
        return sum(gauges[name] for name in names) << KB_SHIFT

    return {
        "Active": kb("nr_active_anon", "nr_active_file"),
        "Inactive": kb("nr_inactive_anon", "nr_inactive_file"),
        "Active(anon)": kb("nr_active_anon"),
        "Inactive(anon)": kb("nr_inactive_anon"),
        "Active(file)": kb("nr_active_file"),
        "Inactive(file)": kb("nr_inactive_file"),
        "Unevictable": kb("nr_unevictable"),
        "Mlocked": kb("nr_unevictable"),
    }


def _kernel_figures(gauges: Mapping[str, int], quicklists: int | None = None) -> dict[str, int]:
    lists = {} if quicklists is None else {"Quicklists": quicklists << KB_SHIFT}
    return {
        "KernelStack": gauges["nr_kernel_stack"],
        "PageTables": gauges["nr_page_table_pages"] << KB_SHIFT,
        **lists,        # Linux's line until 5.2
        "SecPageTables": 0,
        "NFS_Unstable": 0,
        "Bounce": 0,
        "WritebackTmp": 0,
    }


def _slab_figures(gauges: Mapping[str, int]) -> dict[str, int]:
    reclaimable = gauges["nr_slab_reclaimable"] << KB_SHIFT
    unreclaimable = gauges["nr_slab_unreclaimable"] << KB_SHIFT
    return {
        "KReclaimable": reclaimable + (gauges["nr_kernel_misc_reclaimable"] << KB_SHIFT),
        "Slab": reclaimable + unreclaimable,
        "SReclaimable": reclaimable,
        "SUnreclaim": unreclaimable,
    }


def _huge_figures(gauges: Mapping[str, int]) -> dict[str, int]:
    def kb(name: str) -> int:
        return gauges[name] << PMD_ORDER + KB_SHIFT

    return {
        "AnonHugePages": kb("nr_anon_transparent_hugepages"),
        "ShmemHugePages": kb("nr_shmem_hugepages"),
        "ShmemPmdMapped": kb("nr_shmem_pmdmapped"),
        "FileHugePages": kb("nr_file_hugepages"),
        "FilePmdMapped": kb("nr_file_pmdmapped"),
    }


def _direct_map_figures(machine: Any, zones: list[ZoneStat]) -> dict[str, int]:
    """Say in pages of what size the host maps our direct map."""
    sizes = {"DirectMap4k": 0, "DirectMap2M": 0, "DirectMap1G": 0}
    kind = {"hugetlb-2M": "DirectMap2M", "hugetlb-1G": "DirectMap1G"}
    backing = kind.get(getattr(machine, "backing", "4K"), "DirectMap4k")
    sizes[backing] = sum(zone.present for zone in zones) << KB_SHIFT
    return sizes

