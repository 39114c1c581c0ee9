"""
Linux's formulas for watermarks, reserves and per-CPU list sizes, as pure functions.

They take managed pages, sysctls and CPU counts and nothing of ours, so that they can be asked for
the zones of the machine underneath as well: ``tests/test_watermark.py`` holds them against the
running kernel's ``/proc/zoneinfo``.  All integer arithmetic, rounded where the kernel rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import NamedTuple

from realmem.layout import PAGE_SHIFT, PAGE_SIZE

ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE = range(4)

KB_SHIFT = PAGE_SHIFT - 10
"""kB to pages and back."""

DEFAULT_WATERMARK_SCALE_FACTOR = 10
DEFAULT_LOWMEM_RESERVE_RATIO = (256, 256, 32, 0)

MIN_FREE_KBYTES_FLOOR = 128
MIN_FREE_KBYTES_CEILING = 262144

SWAP_CLUSTER_MAX = 32
MOVABLE_MIN_CEILING = 128

MIN_PERCPU_PAGELIST_HIGH_FRACTION = 8
"""What one per-CPU list may grow to, as a share of its zone, when nobody set a share."""

PCP_BATCH_CEILING = (256 << 10) // PAGE_SIZE

MIGRATE_PCPTYPES = 3
PAGEBLOCK_PAGES = 512


class Watermark(NamedTuple):
    """A zone's marks, in free pages."""

    min: int
    low: int
    high: int
    promo: int


class ZonePages(NamedTuple):
    """What the formulas need to know of one zone."""

    kind: int
    managed: int


def default_min_free_kbytes(lowmem_pages: int) -> int:
    """
    Give what the kernel sets ``vm.min_free_kbytes`` to at boot.

    It grows with the square root of memory.  Compare
    mm/page_alloc.c:calculate_min_free_kbytes().

    :param lowmem_pages: pages outside Movable zones, see nr_free_buffer_pages.
    :return: kB.
    """
    lowmem_kbytes = lowmem_pages << KB_SHIFT
    return min(max(isqrt(lowmem_kbytes * 16), MIN_FREE_KBYTES_FLOOR), MIN_FREE_KBYTES_CEILING)


def nr_free_buffer_pages(zones: Iterable[tuple[int, int, int]]) -> int:
    """
    Count the pages above the high marks that GFP_USER may use.

    Compare mm/page_alloc.c:nr_free_buffer_pages().  It walks the calling node's fallback list,
    which holds every node's zones.

    :param zones: (kind, managed pages, high mark) of every zone of every node; while the marks
        are being computed for the first time they are 0.
    """
    return sum(
        managed - high for kind, managed, high in zones if kind <= ZONE_NORMAL and managed > high
    )


def thp_min_free_kbytes(nr_populated_zones: int, buffer_pages: int) -> int:
    """
    Give what enabling transparent huge pages raises ``vm.min_free_kbytes`` to.

    Two pageblocks of each zone stay free, and room for each of the three migratetypes to keep
    the other two apart; never more than a twentieth of lowmem.  It only ever raises: the caller
    takes the maximum with what is set.  Compare
    mm/khugepaged.c:set_recommended_min_free_kbytes().

    :param nr_populated_zones: populated zones up to Normal, over all nodes.
    :param buffer_pages: nr_free_buffer_pages with the marks in force.
    :return: kB.
    """
    pageblocks = nr_populated_zones * (2 + MIGRATE_PCPTYPES * MIGRATE_PCPTYPES)
    return min(pageblocks * PAGEBLOCK_PAGES, buffer_pages // 20) << KB_SHIFT


def zone_watermarks(
    managed_by_zone: Sequence[tuple[int, int]],
    min_free_kbytes: int,
    watermark_scale_factor: int = DEFAULT_WATERMARK_SCALE_FACTOR,
) -> list[Watermark]:
    """
    Share ``vm.min_free_kbytes`` out over the zones and set the marks above it.

    A zone gets the part of it that its size is of all lowmem.  The three other marks lie one
    step apart each: a quarter of that part, or the scale factor's share of the zone if that is
    larger.  A Movable zone keeps only a token minimum, but its step still comes from its size.
    Compare mm/page_alloc.c:__setup_per_zone_wmarks().

    :param managed_by_zone: (kind, managed pages) of every zone of every node.
    :param min_free_kbytes: the sysctl, kB.
    :param watermark_scale_factor: the sysctl, in 1/10000 of a zone.
    :return: one Watermark for each zone given, in that order, without any boost.
    """
    pages_min = min_free_kbytes >> KB_SHIFT
    lowmem_pages = sum(managed for kind, managed in managed_by_zone if kind != ZONE_MOVABLE)
    marks = []
    for kind, managed in managed_by_zone:
        # Linux would divide by zero on a machine of Movable memory only; ours may have one.
        share = pages_min * managed // lowmem_pages if lowmem_pages else 0
        lowest = share
        if kind == ZONE_MOVABLE:
            lowest = min(max(managed // 1024, SWAP_CLUSTER_MAX), MOVABLE_MIN_CEILING)
        step = max(share >> 2, managed * watermark_scale_factor // 10000)
        marks.append(Watermark(lowest, lowest + step, lowest + 2 * step, lowest + 3 * step))
    return marks


def lowmem_reserve(
    managed_by_kind: Sequence[int], ratios: Sequence[int] = DEFAULT_LOWMEM_RESERVE_RATIO
) -> list[list[int]]:
    """
    Give the pages of each zone that callers who could have used a higher zone must leave.

    Compare mm/page_alloc.c:setup_per_zone_lowmem_reserve().

    :param managed_by_kind: managed pages of one node's zones, lowest first, 0 for an absent one.
    :param ratios: ``vm.lowmem_reserve_ratio``; 0 reserves nothing.
    :return: ``[i][j]``, what zone i keeps from a caller whose highest zone is j.
    """
    nr_zones = len(managed_by_kind)
    reserve = [[0] * nr_zones for _ in range(nr_zones)]
    for lower, managed in enumerate(managed_by_kind[:-1]):
        ratio = ratios[lower]
        if not ratio or not managed:
            continue
        above = 0
        for upper in range(lower + 1, nr_zones):
            above += managed_by_kind[upper]
            reserve[lower][upper] = above // ratio
    return reserve


def zone_batchsize(managed: int) -> int:
    """
    Give how many pages a per-CPU list is filled or drained by at a time.

    About 1/4096 of the zone, at most 256 KiB, moved off a power of two so that CPUs which take
    turns do not always hand the same blocks to each other.  Compare
    mm/page_alloc.c:zone_batchsize().

    :param managed: managed pages of the zone.
    :return: pages, at least 1.
    """
    batch = min(managed >> 12, PCP_BATCH_CEILING)
    if batch <= 1:
        return 1
    scaled = batch + batch // 2
    return (1 << (scaled.bit_length() - 1)) - 1


def zone_high(
    managed: int,
    low_mark: int,
    batch: int,
    cpus_of_node: int,
    nr_online_cpus: int,
    high_fraction: int = 0,
) -> tuple[int, int]:
    """
    Give the bounds between which one CPU's page list of a zone sizes itself.

    The lists of all CPUs of the node together hold the zone's low mark at least and an eighth of
    the zone at most; a set ``vm.percpu_pagelist_high_fraction`` pins both to its share.  Compare
    mm/page_alloc.c:zone_set_pageset_high_and_batch() => zone_highsize().

    :param managed: managed pages of the zone.
    :param low_mark: its low watermark, pages.
    :param batch: zone_batchsize(managed).
    :param cpus_of_node: CPUs of the zone's node; 0 makes every CPU of the machine share.
    :param nr_online_cpus: CPUs of the machine.
    :param high_fraction: the sysctl; 0 means self-sizing.
    :return: (high_min, high_max), pages of one CPU.
    """
    cpus = cpus_of_node or nr_online_cpus
    floor = batch << 2
    if high_fraction:
        high = max(managed // high_fraction // cpus, floor)
        return high, high
    high_max = managed // MIN_PERCPU_PAGELIST_HIGH_FRACTION // cpus
    return max(low_mark // cpus, floor), max(high_max, floor)


def totalreserve_pages(zones: Iterable[tuple[int, int, Sequence[int]]]) -> int:
    """
    Count the pages that user memory can't have: the high marks and the largest reserves.

    Compare mm/page_alloc.c:calculate_totalreserve_pages().

    :param zones: (managed pages, high mark, lowmem_reserve) of every zone.
    """
    return sum(min(max(reserve) + high, managed) for managed, high, reserve in zones)


def stat_threshold(managed: int, nr_online_cpus: int) -> int:
    """
    Give how far a CPU's counters of a zone may run ahead of the zone's own.

    Compare mm/vmstat.c:calculate_normal_threshold().

    :param managed: managed pages of the zone.
    :param nr_online_cpus: CPUs of the machine.
    """
    mem_128mib = managed >> (27 - PAGE_SHIFT)
    return min(125, 2 * nr_online_cpus.bit_length() * (1 + mem_128mib.bit_length()))
