"""Where a machine's memory lies: nodes, zones and struct page arrays by physical address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from realmem.layout import (
    MAX_NR_ZONES,
    MAX_PAGE_ORDER,
    PAGE_SHIFT,
    PAGE_SIZE,
    STRUCT_PAGE_SIZE,
    ZONE_NAMES,
    parse_size,
)

MAX_BLOCK = PAGE_SIZE << MAX_PAGE_ORDER
# One page of struct pages describes this much memory; less cannot be mapped on its own.
LEAST_MEMORY = PAGE_SIZE // STRUCT_PAGE_SIZE * PAGE_SIZE

DEFAULT_ZONES: dict[str, int | str] = {"DMA": "16M", "DMA32": "4G", "Movable": "0"}


@dataclass(frozen=True)
class NodeRange:
    """
    One node's physical memory, in frames.

    :ivar zones: (start_pfn, pages) by kind of zone.
    """

    start_pfn: int
    pages: int
    memmap_pfn: int
    memmap_pages: int
    zones: list[tuple[int, int]] = field(default_factory=list)

    @property
    def managed(self) -> list[int]:
        """Pages of each zone that are left beside the struct page array."""
        return [pages - self._taken(start, pages) for start, pages in self.zones]

    def _taken(self, start: int, pages: int) -> int:
        low = max(start, self.memmap_pfn)
        high = min(start + pages, self.memmap_pfn + self.memmap_pages)
        return max(high - low, 0)


def parse_zones(zones: Mapping[str, int | str] | None) -> dict[str, int | str]:
    """
    Complete and check the ``zones`` option.

    :param zones: ends of DMA and DMA32 by physical address; Movable as a size or a share of
        each node such as ``"25%"``, taken from the top.  None for x86-64's.
    :raises ValueError: an unknown zone, or ends out of order or not multiples of 4 MiB.
    :raises TypeError: not a mapping, or not sizes.
    """
    if zones is None:
        zones = {}
    if not isinstance(zones, Mapping):
        raise TypeError(f"zones must be a mapping from zone names to sizes, not {zones!r}")
    unknown = set(zones) - set(DEFAULT_ZONES)
    if unknown:
        raise ValueError(f"unknown zone {unknown.pop()!r}: the option knows DMA, DMA32, Movable")
    merged = {**DEFAULT_ZONES, **zones}
    result: dict[str, int | str] = {"Movable": merged["Movable"]}
    for name in ("DMA", "DMA32"):
        end = parse_size(merged[name], f"zones[{name!r}]")
        if end % MAX_BLOCK:
            raise ValueError(f"zones[{name!r}] must be a multiple of 4M: {merged[name]}")
        result[name] = end
    if int(result["DMA32"]) < int(result["DMA"]):
        raise ValueError("zones: DMA32 ends below DMA")
    movable_pages(merged["Movable"], MAX_BLOCK >> PAGE_SHIFT)
    return result


def movable_pages(share: int | str, pages: int) -> int:
    """Give how many of a node's pages go to the Movable zone, rounded to blocks of 4 MiB."""
    if isinstance(share, str) and share.strip().endswith("%"):
        try:
            percent = float(share.strip()[:-1])
        except ValueError:
            raise ValueError(f"zones['Movable'] is not a share: {share!r}") from None
        if not 0 <= percent <= 100:
            raise ValueError(f"zones['Movable'] is not within 0% and 100%: {share!r}")
        wanted = int(pages * percent / 100)
    else:
        wanted = min(parse_size(share, "zones['Movable']") >> PAGE_SHIFT, pages)
    block = 1 << MAX_PAGE_ORDER
    return wanted // block * block


def lay_out(sizes: Sequence[int], zones: Mapping[str, int | str]) -> list[NodeRange]:
    """
    Lay nodes one after the other from physical address 0.

    Each node starts at a multiple of the largest block, and gives the top of its kernel
    memory to its own struct page array, as Linux's boot allocator does.

    :param sizes: bytes of each node; 0 for a node without memory.
    :param zones: as parse_zones() returns them.
    :raises ValueError: a size that is no multiple of 4 KiB, or too small to hold anything.
    """
    ranges = []
    at = 0
    for size in sizes:
        if size % PAGE_SIZE:
            raise ValueError(f"memory must be a multiple of {PAGE_SIZE} bytes: {size}")
        if 0 < size < LEAST_MEMORY:
            raise ValueError(f"memory of a node must be at least {LEAST_MEMORY} bytes: {size}")
        ranges.append(_lay_out_node(at >> PAGE_SHIFT, size >> PAGE_SHIFT, zones))
        at += (size + MAX_BLOCK - 1) // MAX_BLOCK * MAX_BLOCK
    return ranges


def _lay_out_node(start: int, pages: int, zones: Mapping[str, int | str]) -> NodeRange:
    memmap = (pages * STRUCT_PAGE_SIZE + PAGE_SIZE - 1) >> PAGE_SHIFT
    end = start + pages
    kernel_end = (end - movable_pages(zones["Movable"], pages)) >> MAX_PAGE_ORDER << MAX_PAGE_ORDER
    if movable_pages(zones["Movable"], pages) == 0:
        kernel_end = end
    kernel_end = max(kernel_end, start)
    top = kernel_end if kernel_end - start >= memmap else end
    bounds = (
        0,
        int(zones["DMA"]) >> PAGE_SHIFT,
        int(zones["DMA32"]) >> PAGE_SHIFT,
        max(kernel_end, int(zones["DMA32"]) >> PAGE_SHIFT),
    )
    spans = []
    for kind in range(MAX_NR_ZONES - 1):
        low = max(start, bounds[kind])
        high = min(kernel_end, bounds[kind + 1])
        spans.append((low, high - low) if high > low else (start, 0))
    spans.append((kernel_end, end - kernel_end) if end > kernel_end else (start, 0))
    return NodeRange(start, pages, top - memmap, memmap, spans)


def zone_name(kind: int) -> str:
    """Give the name of a kind of zone."""
    return ZONE_NAMES[kind]
