"""Which pages a per-CPU list is refilled with: what taking them one by one would give."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

import realmem as rm
from realmem import GFP

ALL = GFP.KERNEL | GFP.MEMALLOC


@pytest.fixture
def machine() -> Iterator[rm.Machine]:
    with rm.Machine(nodes=1, memory="28M", zones={"DMA": 0, "DMA32": 0}) as machine:
        yield machine


def free_block(machine: rm.Machine, pages: dict[int, rm.Page], pfn: int, order: int) -> None:
    """Free a block of single pages, so that it stands merged at the head of its list."""
    for i in range(1 << order):
        machine.free_page(pages.pop(pfn + i))
    machine.drain_all_pages()


@pytest.mark.parametrize("seed", range(8))
def test_smallest_blocks_first_latest_freed_first_ascending_within(
    machine: rm.Machine, seed: int
) -> None:
    rng = random.Random(seed)
    pages = {page.pfn: page for page in machine.alloc_pages_bulk(ALL, 10**6)}
    normal = machine.nodes[0].zones[-1]
    # A block in every other region as large as four of it: neither its buddy nor its
    # parent's is free, so that nothing merges and nothing goes to a list's tail.
    freed: dict[int, list[int]] = {}
    region = max(p for p in pages) >> 6 << 6
    for _ in range(24):
        order = rng.randrange(5)
        region -= 64 * 2
        assert normal.start_pfn <= region
        assert all(region + i in pages for i in range(64))
        pfn = region + rng.randrange(64 >> order) * (1 << order)
        free_block(machine, pages, pfn, order)
        freed.setdefault(order, []).append(pfn)
    expected = [
        pfn + i
        for order in sorted(freed)
        for pfn in reversed(freed[order])
        for i in range(1 << order)
    ]
    got = machine.alloc_pages_bulk(ALL, len(expected))
    assert [page.pfn for page in got] == expected
    machine.check()


def test_a_run_is_cut_from_one_block_and_the_rest_stays(machine: rm.Machine) -> None:
    """After n singles of a large block, its free rest is the binary expansion of what is left."""
    pages = {page.pfn: page for page in machine.alloc_pages_bulk(ALL, 10**6)}
    top = max(pages) >> 9 << 9
    start = top - 1024
    free_block(machine, pages, start, 9)
    zone = machine.pfn_to_page(start).zone
    for n in (1, 2, 3, 63, 64, 65, 200, 511):
        got = machine.alloc_pages_bulk(ALL, n)
        assert [page.pfn for page in got] == list(range(start, start + n))
        machine.drain_all_pages()
        left = 512 - n
        assert zone.free_area == [left >> order & 1 for order in range(11)], n
        machine.free_pages_bulk(got)
        machine.drain_all_pages()
        assert zone.free_area == [0] * 9 + [1, 0]
    machine.check()
