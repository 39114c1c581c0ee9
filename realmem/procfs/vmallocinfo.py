"""
``/proc/vmallocinfo``: the areas of the vmalloc area, by address.

Addresses are those that ``vmalloc()`` gave, real pointers of this process.  The caller is Python
code, as ``name+offset/length`` of its bytecode.

Compare mm/vmalloc.c:vmalloc_info_show(), show_purge_info().
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

VM_ALLOC = 0x2
VM_MAP = 0x4
VMAP_RAM = 0x10000

Area = tuple[int, int, int, int, Mapping[int, int], str]
"""Start, end, flags, pages, pages on each node, caller."""


def format_vmallocinfo(areas: Iterable[Area]) -> str:
    """Write the file's text."""
    return "".join(f"{_line(*area)}\n" for area in areas)


def _line(
    start: int, end: int, flags: int, pages: int, nodes: Mapping[int, int], caller: str
) -> str:
    head = f"0x{start:016x}-0x{end:016x} {end - start:7}"
    if not flags:
        return f"{head} unpurged vm_area"
    if flags & VMAP_RAM:
        return f"{head} vm_map_ram"
    if caller:
        head += f" {caller}"
    if flags & VM_MAP:
        return f"{head} vmap"           # the pages are not its own: no count of them
    on = "".join(f" N{node}={count}" for node, count in sorted(nodes.items()) if count)
    return f"{head} pages={pages} vmalloc{on}"


_LINE = re.compile(
    r"^0x([0-9a-f]{16})-0x([0-9a-f]{16}) +(\d+)"
    r"(?: (?P<caller>(?!pages=|phys=)[^ =]+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?))?"
    r"(?: pages=(?P<pages>\d+))?(?: phys=(?P<phys>\S+))?"
    r"(?P<words>(?: (?:ioremap|sparse|vmalloc|vmap|user|dma-coherent|vpages|vm_map_ram"
    r"|unpurged|vm_area))*)"
    r"(?P<nodes>(?: N\d+=\d+)*)$"
)


def parse_vmallocinfo(text: str) -> list[dict[str, Any]]:
    """
    Read the file's text.

    :return: for each line a dict: start, end, size, caller, pages (None where there is none),
        words (a list), nodes (a dict).
    :raises ValueError: a line of another form.
    """
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"no line of vmallocinfo: {line!r}")
        nodes = (part[1:].split("=") for part in match["nodes"].split())
        found.append(
            {
                "start": int(match[1], 16),
                "end": int(match[2], 16),
                "size": int(match[3]),
                "caller": match["caller"],
                "pages": None if match["pages"] is None else int(match["pages"]),
                "words": match["words"].split(),
                "nodes": {int(node): int(count) for node, count in nodes},
            }
        )
    return found


def machine_vmallocinfo(machine: Any) -> str:
    """Give a machine's ``/proc/vmallocinfo``."""
    return format_vmallocinfo(machine._vmalloc.areas())
