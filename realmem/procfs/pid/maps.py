"""
``/proc/PID/maps``, and the line that opens each VMA's part of smaps.

Compare fs/proc/task_mmu.c:show_map_vma() => show_vma_header_prefix(), get_vma_name().  The same
model is read from the running kernel's file and made from a Process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from realmem.layout import PAGE_SHIFT

VM_READ, VM_WRITE, VM_EXEC, VM_MAYSHARE = 0x1, 0x2, 0x4, 0x80
# Where the name of a line begins: fs/seq_file.c:seq_pad() with show_map_vma()'s width.
NAME_COLUMN = 72
ANON_DEVICE = 0, 1      # the internal mount that shared anonymous memory lies on
SHARED_ANON = "/dev/zero (deleted)"


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


def is_heap(process: Any, vma: Any) -> bool:
    """Whether a VMA holds part of the heap (include/linux/mm.h:vma_is_initial_heap())."""
    mm = process.mm
    return bool(vma.start < mm.brk and vma.end > mm.start_brk)


def is_stack(process: Any, vma: Any) -> bool:
    """Whether a VMA is the first stack (include/linux/mm.h:vma_is_initial_stack())."""
    stack = process.mm.start_stack
    return bool(stack and vma.start <= stack <= vma.end)


def file_name(vma: Any) -> str:
    """Give the path of what is behind a VMA; empty for private anonymous memory."""
    if vma.file is None:
        return ""
    path = getattr(vma.file, "path", None)
    return str(path) if path else SHARED_ANON


def area_of(process: Any, vma: Any) -> Area:
    """Give a VMA of a process as the files show it."""
    word = vma.vm_flags_word
    perms = "".join(
        letter if word & bit else "-"
        for bit, letter in ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    ) + ("s" if word & VM_MAYSHARE else "p")
    if vma.file is not None:
        major, minor = getattr(vma.file, "device", ANON_DEVICE)
        name = f"[anon_shmem:{vma.name}]" if vma.name is not None else file_name(vma)
        return Area(
            vma.start, vma.end, perms, vma.pgoff << PAGE_SHIFT, major, minor,
            getattr(vma.file, "inode", 0), name.replace("\n", "\\012"),
        )  # fmt: skip
    name = ""
    if is_heap(process, vma):
        name = "[heap]"
    elif is_stack(process, vma):
        name = "[stack]"
    elif vma.name is not None:
        name = f"[anon:{vma.name}]"
    return Area(vma.start, vma.end, perms, name=name)


def areas(process: Any) -> Iterator[Area]:
    """Give the VMAs of a process in address order."""
    return (area_of(process, vma) for vma in process.vmas)


def process_maps(process: Any) -> str:
    """Give a process's file."""
    return format_maps(areas(process))
