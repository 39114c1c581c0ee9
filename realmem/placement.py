"""Where the host has really put memory: by move_pages, else by numa_maps, else unknown."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from realmem._core import pool as core
from realmem.host.sysfs import read_text
from realmem.layout import PAGE_SIZE

# Refusals of mbind and move_pages that come from containers, not from bad arguments.
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


@dataclass(frozen=True)
class Placement:
    """
    Where a node's memory lies.

    :ivar host_node: that was asked for.
    :ivar bound: mbind accepted it.
    :ivar verified: it is bound, so it stays, and the kernel said of each page where it lies.
    :ivar misplaced_pages: 4 KiB pages found elsewhere; 0 too where nobody could be asked.
    :ivar reason: what kept it from being bound or verified, such as ``"mbind: EPERM"``.
    """

    host_node: int | None
    bound: bool
    verified: bool
    misplaced_pages: int
    reason: str | None


def locate(
    where: int, size: int, page_bytes: int, host_node: int | None, refusal: str | None
) -> Placement:
    """
    Ask the kernel where a populated mapping of this process lies.

    :param page_bytes: what it is mapped by.
    :param host_node: where it should lie, or None for anywhere.
    :param refusal: why it could not be bound there, or None.
    """
    bound = refusal is None
    if host_node is None:
        return Placement(None, False, False, 0, refusal)
    wrong, why = core.misplaced(where, size, page_bytes, host_node)
    if not why:
        return Placement(host_node, bound, bound, wrong * (page_bytes // PAGE_SIZE), refusal)
    reason = f"move_pages: {errno.errorcode.get(why, why)}"
    refusal = f"{refusal}, {reason}" if refusal else reason
    counted = numa_maps_pages(where, size)
    if sum(counted.values()) != size // PAGE_SIZE:
        return Placement(host_node, bound, False, 0, refusal)
    misplaced = sum(pages for node, pages in counted.items() if node != host_node)
    return Placement(host_node, bound, bound, misplaced, refusal)


def numa_maps_pages(where: int, size: int) -> dict[int, int]:
    """Count 4 KiB pages by host node as /proc/self/numa_maps does for a range."""
    counted: dict[int, int] = {}
    for line in (read_text(Path("/proc/self/numa_maps")) or "").splitlines():
        words = line.split()
        if not where <= int(words[0], 16) < where + size:
            continue
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        unit = int(fields.get("kernelpagesize_kB", "4")) // 4
        for name, value in fields.items():
            if name[0] == "N" and name[1:].isdigit():
                counted[int(name[1:])] = counted.get(int(name[1:]), 0) + int(value) * unit
    return counted


def pmd_mapped(where: int, size: int) -> int:
    """Add up what /proc/self/smaps says a range has mapped by huge pages."""
    total = 0
    inside = False
    for line in (read_text(Path("/proc/self/smaps")) or "").splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            inside = where <= int(first.partition("-")[0], 16) < where + size
        elif inside and first == "ShmemPmdMapped:":
            total += int(rest.split()[0]) * 1024
    return total
