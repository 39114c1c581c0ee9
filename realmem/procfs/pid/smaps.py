"""
``/proc/PID/smaps`` and ``smaps_rollup``: what of each VMA is in memory, and whose it is.

Compare fs/proc/task_mmu.c:show_smap(), __show_smap(), show_smaps_rollup().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.procfs.pid.maps import Area, Marks, area_of, format_area, parse_area
from realmem.procfs.pid.thp import ThpSettings, thp_eligible

_PAGE_KB = 1 << (PAGE_SHIFT - 10)
_HEAD = ("Size", "KernelPageSize", "MMUPageSize")
_PSS_PARTS = ("Pss_Anon", "Pss_File", "Pss_Shmem")
_USAGE = tuple(
    """
    Rss Pss Pss_Dirty Shared_Clean Shared_Dirty Private_Clean Private_Dirty Referenced Anonymous
    KSM LazyFree AnonHugePages ShmemPmdMapped FilePmdMapped Shared_Hugetlb Private_Hugetlb Swap
    SwapPss Locked
    """.split()
)
SMAPS_FIELDS = _HEAD + _USAGE
ROLLUP_FIELDS = (*_USAGE[:3], *_PSS_PARTS, *_USAGE[3:])

# The kernel side's counts of pages, and of bytes, by the names they are printed under.
_PAGES = {
    "Rss": "rss",
    "Shared_Clean": "shared_clean",
    "Shared_Dirty": "shared_dirty",
    "Private_Clean": "private_clean",
    "Private_Dirty": "private_dirty",
    "Referenced": "referenced",
    "Anonymous": "anonymous",
    "LazyFree": "lazyfree",
    "AnonHugePages": "anon_huge",
    "ShmemPmdMapped": "shmem_huge",
    "FilePmdMapped": "file_huge",
    "Swap": "swap",
}
_BYTES = {
    "Pss": "pss", "Pss_Dirty": "pss_dirty", "SwapPss": "swap_pss", "Locked": "locked",
}  # fmt: skip

# fs/proc/task_mmu.c:show_smap_vma_flags(), by bit number.
FLAG_NAMES: Mapping[int, str] = {
    0: "rd", 1: "wr", 2: "ex", 3: "sh", 4: "mr", 5: "mw", 6: "me", 7: "ms", 8: "gd", 9: "um",
    10: "pf", 11: "gu", 12: "uw", 13: "lo", 14: "io", 15: "sr", 16: "rr", 17: "dc", 18: "de",
    19: "lf", 20: "ac", 21: "nr", 22: "ht", 23: "sf", 24: "ar", 25: "wf", 26: "dd", 27: "sd",
    28: "mm", 29: "hg", 30: "nh", 31: "mg", 37: "ss", 40: "dp", 41: "ui", 42: "sl",
}  # fmt: skip


def flag_names(word: int) -> list[str]:
    """Name the bits of a vm_flags word in smaps's order."""
    return [FLAG_NAMES.get(bit, "??") for bit in range(word.bit_length()) if word >> bit & 1]


@dataclass
class SmapsEntry:
    """One VMA's part of the file; ``kb`` has an entry for each of SMAPS_FIELDS."""

    area: Area
    kb: Mapping[str, int]
    thp_eligible: int
    flags: list[str] = field(default_factory=list)


def _usage_lines(kb: Mapping[str, int], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield f"{name + ':':<16}{kb[name]:8} kB"


def format_smaps(entries: Iterable[SmapsEntry]) -> str:
    """Write the file's text."""
    lines: list[str] = []
    for entry in entries:
        lines.append(format_area(entry.area))
        lines += _usage_lines(entry.kb, SMAPS_FIELDS)
        lines.append(f"THPeligible:    {entry.thp_eligible:8}")
        lines.append("VmFlags: " + "".join(f"{name} " for name in entry.flags))
    return "".join(f"{line}\n" for line in lines)


def format_rollup(start: int, end: int, kb: Mapping[str, int]) -> str:
    """Write smaps_rollup's text; ``kb`` has an entry for each of ROLLUP_FIELDS."""
    head = format_area(Area(start, end, "---p", name="[rollup]"))
    return "".join(f"{line}\n" for line in (head, *_usage_lines(kb, ROLLUP_FIELDS)))


def parse_smaps(text: str) -> list[SmapsEntry]:
    """Read the file's text, ours or the kernel's; smaps_rollup is one entry."""
    entries: list[SmapsEntry] = []
    kb: dict[str, int] = {}
    for line in text.splitlines():
        area = parse_area(line)
        if area is not None:
            kb = {}
            entries.append(SmapsEntry(area, kb, 0))
            continue
        name, _, value = line.partition(":")
        if name == "VmFlags":
            entries[-1].flags = value.split()
        elif name == "THPeligible":
            entries[-1].thp_eligible = int(value)
        else:
            kb[name] = int(value.split()[0])
    return entries


def usage_kb(counts: Any) -> dict[str, int]:
    """Turn the kernel side's counts of a range into kB by the names they are printed under."""
    kb = {name: getattr(counts, key) * _PAGE_KB for name, key in _PAGES.items()}
    kb.update((name, getattr(counts, key) >> 10) for name, key in _BYTES.items())
    kb.update(KSM=0, Shared_Hugetlb=0, Private_Hugetlb=0)
    return kb


def _entry(process: Any, vma: Any, marks: Marks, settings: ThpSettings) -> SmapsEntry:
    kb = usage_kb(process.mm.core.smaps(vma.start, vma.end))
    kb.update(Size=(vma.end - vma.start) >> 10, KernelPageSize=_PAGE_KB, MMUPageSize=_PAGE_KB)
    eligible = thp_eligible(vma, settings)
    return SmapsEntry(area_of(vma, marks), kb, int(eligible), flag_names(vma.vm_flags_word))


def process_smaps(process: Any) -> str:
    """Give a process's smaps."""
    settings, marks = ThpSettings.of(process), Marks.of(process.mm)
    return format_smaps(_entry(process, vma, marks, settings) for vma in process.vmas)


def process_rollup(process: Any) -> str:
    """Give a process's smaps_rollup."""
    vmas = process.vmas
    pages = dict.fromkeys(_PAGES, 0)
    # Bytes are added up before they become kB, so that halves of pages are not lost.
    fractions = dict.fromkeys((*_BYTES, *_PSS_PARTS), 0)
    for vma in vmas:
        counts = process.mm.core.smaps(vma.start, vma.end)
        for name, key in _PAGES.items():
            pages[name] += getattr(counts, key)
        for name, key in _BYTES.items():
            fractions[name] += getattr(counts, key)
        for name in _PSS_PARTS:
            fractions[name] += getattr(counts, name.lower())
    kb = {name: count * _PAGE_KB for name, count in pages.items()}
    kb.update((name, count >> 10) for name, count in fractions.items())
    kb.update(KSM=0, Shared_Hugetlb=0, Private_Hugetlb=0)
    start, end = (vmas[0].start, vmas[-1].end) if vmas else (0, 0)
    return format_rollup(start, end, kb)
