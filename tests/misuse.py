"""What tests of a misused page allocator share."""

from __future__ import annotations

import ctypes

from realmem import GFP


def free_everywhere(machine):
    machine.drain_all_pages()
    return [zone.free_area for node in machine.nodes for zone in node.zones]


def addresses_that_are_not_ours(machine):
    base = machine.va(0)
    page = machine.alloc_pages(GFP.KERNEL, 0)
    machine.free_page(page)
    buffer = ctypes.create_string_buffer(8192)
    yield "unaligned", base + 1
    yield "unaligned in a page", page.address + 2048
    yield "below", base - 4096
    yield "behind", base + (machine.nodes[-1].end_pfn << 12)
    yield "far behind", base + (1 << 44)
    yield "somebody else's", (ctypes.addressof(buffer) + 4095) & ~4095
    yield "one", 1
    yield "minus a page", -4096
    yield "Linux's own direct map", 0xFFFF888000000000
    yield "the last page", 2**64 - 4096
