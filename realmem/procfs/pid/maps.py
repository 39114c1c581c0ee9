"""
``/proc/PID/maps``, and the line that opens each VMA's part of smaps.

Compare fs/proc/task_mmu.c:show_map_vma() => show_vma_header_prefix(), get_vma_name().  The same
model is read from the running kernel's file and made from a Process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realmem.mm.vma import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE

# Where the name of a line begins: fs/seq_file.c:seq_pad() with show_map_vma()'s width.
NAME_COLUMN = 72
ANON_DEVICE = 0, 1      # the internal mount that shared anonymous memory lies on


@dataclass(frozen=True)
class Area:
    """One VMA as the files show it."""

    start: int
    end: int
    perms: str
    offset: int = 0
    """Bytes into what is behind it; 0 for private anonymous memory."""
    major: int = 0
    minor: int = 0
    inode: int = 0
    name: str = ""


def format_area(area: Area) -> str:
    """Write one line, without its end."""
    line = (
        f"{area.start:08x}-{area.end:08x} {area.perms} {area.offset:08x} "
        f"{area.major:02x}:{area.minor:02x} {area.inode} "
    )
    # A line without a name ends in the space that would part them.
    return f"{line:<{NAME_COLUMN}} {area.name}" if area.name else line


def format_maps(areas: Iterable[Area]) -> str:
    """Write the file's text."""
    return "".join(f"{format_area(area)}\n" for area in areas)


_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)


def parse_area(line: str) -> Area | None:
    """Read one line; None if it is another kind of line."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    start, end, perms, offset, major, minor, inode, name = match.groups()
    return Area(
        int(start, 16), int(end, 16), perms, int(offset, 16), int(major, 16), int(minor, 16),
        int(inode), name,
    )  # fmt: skip


def parse_maps(text: str) -> list[Area]:
    """Read the file's text, ours or the kernel's."""
    areas = [parse_area(line) for line in text.splitlines()]
    return [area for area in areas if area is not None]


@dataclass(frozen=True)
class Marks:
    """Places in an address space that name the VMAs around them; 0 is none."""

    start_brk: int = 0
    brk: int = 0
    stack: int = 0

    @classmethod
    def of(cls, mm: Any) -> Marks:
        """Read those of a process."""
        return cls(mm.start_brk, mm.tree.brk, mm.start_stack)

    def is_heap(self, vma: Any) -> bool:
        """Whether a VMA holds part of the heap (mm.h:vma_is_initial_heap())."""
        return bool(vma.start < self.brk and vma.end > self.start_brk)

    def is_stack(self, vma: Any) -> bool:
        """Whether a VMA is the first stack (mm.h:vma_is_initial_stack())."""
        return bool(self.stack and vma.start <= self.stack <= vma.end)


def _place(vma: Any) -> tuple[int, int, int]:
    """Give the device and the inode of what is behind a VMA."""
    if vma.object is None:
        return 0, 0, 0
    if vma.anon:
        return *ANON_DEVICE, getattr(vma.object, "inode", 0)
    if vma.inode is not None:
        device, number = vma.inode.key
        return os.major(device), os.minor(device), number
    try:
        found = Path(vma.file).stat()
    except OSError:
        return 0, 0, 0
    return os.major(found.st_dev), os.minor(found.st_dev), found.st_ino


def area_of(vma: Any, marks: Marks) -> Area:
    """Give a VMA as the files show it."""
    word = vma.vm_flags_word
    perms = "".join(
        letter if word & bit else "-"
        for bit, letter in ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    ) + ("s" if word & VM_MAYSHARE else "p")
    if vma.object is not None:
        shown = vma.file if vma.name is None else f"[anon_shmem:{vma.name}]"
        return Area(
            vma.start, vma.end, perms, vma.offset, *_place(vma), shown.replace("\n", "\\012")
        )
    name = ""
    if marks.is_heap(vma):
        name = "[heap]"
    elif marks.is_stack(vma):
        name = "[stack]"
    elif vma.name is not None:
        name = f"[anon:{vma.name}]"
    return Area(vma.start, vma.end, perms, name=name)


def areas(process: Any) -> Iterator[Area]:
    """Give the VMAs of a process in address order."""
    marks = Marks.of(process.mm)
    return (area_of(vma, marks) for vma in process.vmas)


def process_maps(process: Any) -> str:
    """Give a process's file."""
    return format_maps(areas(process))
