"""The formulas against worked figures and against the running kernel's own zones."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem import watermark as wm
from realmem.procfs.zoneinfo import ZoneRecord, parse_zoneinfo
from realmem.watermark import Watermark

MIB = 256  # pages
GIB = 262144  # pages
KINDS = {"DMA": 0, "DMA32": 1, "Normal": 2, "Movable": 3, "Device": 4}
VM = Path("/proc/sys/vm")


def sysctl(name: str) -> list[int]:
    return [int(word) for word in (VM / name).read_text().split()]


# ---- worked figures ----


@pytest.mark.conformance("WM-01")
@pytest.mark.parametrize(
    ("pages", "kbytes"),
    [
        (16 * MIB, 512),
        (64 * MIB, 1024),
        (128 * MIB, 1448),
        (256 * MIB, 2048),
        (512 * MIB, 2896),
        (GIB, 4096),
        (2 * GIB, 5792),
        (4 * GIB, 8192),
        (16 * GIB, 16384),
        (1, 128),
        (0, 128),
        (1 << 40, 262144),
    ],
)
def test_default_min_free_kbytes(pages, kbytes):
    assert wm.default_min_free_kbytes(pages) == kbytes


@pytest.mark.conformance("WM-02")
def test_one_gib_zone():
    assert wm.zone_watermarks([(2, GIB)], 4096) == [Watermark(1024, 1286, 1548, 1810)]


@pytest.mark.conformance("WM-03")
def test_quarter_gib_zone():
    assert wm.zone_watermarks([(2, 256 * MIB)], 2048) == [Watermark(512, 640, 768, 896)]


THREE_ZONES = [(0, 4096), (1, 61440), (2, 65536)]


@pytest.mark.conformance("WM-04")
def test_three_zones_share_by_size():
    kbytes = wm.default_min_free_kbytes(sum(managed for _, managed in THREE_ZONES))
    assert kbytes >> 2 == 724
    marks = wm.zone_watermarks(THREE_ZONES, kbytes)
    assert [mark[:3] for mark in marks] == [(22, 27, 32), (339, 423, 507), (362, 452, 542)]


@pytest.mark.conformance("WM-05")
def test_three_zones_reserve():
    reserve = wm.lowmem_reserve([4096, 61440, 65536, 0])
    assert [row[:3] for row in reserve[:3]] == [[0, 240, 496], [0, 0, 256], [0, 0, 0]]


@pytest.mark.conformance("WM-13")
def test_spilling_into_dma32_meets_mark_and_reserve():
    kbytes = wm.default_min_free_kbytes(131072)
    dma32 = wm.zone_watermarks(THREE_ZONES, kbytes)[1]
    reserve = wm.lowmem_reserve([4096, 61440, 65536, 0])[1]
    assert (dma32.min + reserve[2], dma32.min + reserve[1]) == (595, 339)


@pytest.mark.conformance("WM-15")
def test_scale_factor_widens_the_step():
    assert wm.zone_watermarks([(2, GIB)], 4096, 100)[0][:3] == (1024, 3645, 6266)


@pytest.mark.conformance("PC-01")
@pytest.mark.parametrize(
    ("pages", "batch"),
    [
        (16 * MIB, 1),
        (64 * MIB, 3),
        (128 * MIB, 7),
        (256 * MIB, 15),
        (512 * MIB, 31),
        (GIB, 63),
        (64 * GIB, 63),
        (0, 1),
    ],
)
def test_batch(pages, batch):
    assert wm.zone_batchsize(pages) == batch


@pytest.mark.conformance("PC-02")
@pytest.mark.parametrize(("cpus", "high"), [(1, 1286), (4, 321), (8, 252)])
def test_high_min_is_the_older_kernels_high(cpus, high):
    high_min, high_max = wm.zone_high(GIB, 1286, 63, cpus, cpus)
    assert (high_min, high_max) == (high, max(GIB // 8 // cpus, 252))


@pytest.mark.parametrize(
    ("fraction", "cpus", "online", "bounds"),
    [
        (8, 4, 4, (8192, 8192)),  # a set share pins both
        (100000, 4, 4, (252, 252)),  # never under four batches
        (0, 0, 8, (252, 4096)),  # a node without CPUs: everybody's lists share
    ],
)
def test_high_with_fraction_and_cpuless_node(fraction, cpus, online, bounds):
    assert wm.zone_high(GIB, 1286, 63, cpus, online, fraction) == bounds


@pytest.mark.parametrize(("managed", "lowest"), [(1024, 32), (65536, 64), (1 << 20, 128), (0, 32)])
def test_movable_zone_keeps_a_token_minimum(managed, lowest):
    normal, movable = wm.zone_watermarks([(2, GIB), (3, managed)], 4096)
    assert movable.min == lowest
    step = max(1024 * managed // GIB >> 2, managed // 1000)
    assert movable == (lowest, lowest + step, lowest + 2 * step, lowest + 3 * step)
    assert normal.min == 1024, "a Movable zone takes nothing of the others' share"


def test_movable_memory_only():
    assert wm.zone_watermarks([(3, GIB)], 4096) == [Watermark(128, 390, 652, 914)]


# ---- properties ----

managed = st.integers(0, 1 << 34)


@given(
    st.lists(st.tuples(st.integers(0, 3), managed), min_size=1, max_size=16),
    st.integers(0, 1 << 31),
    st.integers(1, 3000),
)
def test_marks_ascend_evenly_and_share_out_the_whole(zones, kbytes, factor):
    marks = wm.zone_watermarks(zones, kbytes, factor)
    for (_, _), mark in zip(zones, marks, strict=True):
        steps = {b - a for a, b in itertools.pairwise(mark)}
        assert len(steps) == 1 and steps.pop() >= 0
    lowmem = [mark.min for (kind, _), mark in zip(zones, marks, strict=True) if kind != 3]
    pages_min = kbytes >> 2
    assert sum(lowmem) <= pages_min
    if any(size for kind, size in zones if kind != 3):
        assert sum(lowmem) > pages_min - len(zones), "only rounding may be lost"


@given(managed)
def test_batch_is_one_less_than_a_power_of_two(pages):
    batch = wm.zone_batchsize(pages)
    assert 1 <= batch <= 63 and batch & (batch + 1) == 0


# ---- the running kernel is the oracle ----


def read_zones() -> list[ZoneRecord]:
    return parse_zoneinfo(Path("/proc/zoneinfo").read_text())


def kernel_release() -> tuple[int, int]:
    major, minor = Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2]
    return int(major), int(re.match(r"\d+", minor)[0])


def marks_of(zones: list[ZoneRecord]) -> list[Watermark]:
    marks = wm.zone_watermarks(
        [(KINDS[zone.name], zone.managed) for zone in zones],
        sysctl("min_free_kbytes")[0],
        sysctl("watermark_scale_factor")[0],
    )
    if not any(zone.promo for zone in zones):  # older kernels do not show it
        marks = [mark._replace(promo=0) for mark in marks]
    if kernel_release() < (6, 18):  # nor did they give an empty Movable zone a minimum
        marks = [
            mark if zone.managed else Watermark(0, 0, 0, 0)
            for mark, zone in zip(marks, zones, strict=True)
        ]
    return marks


def shown_marks(zones: list[ZoneRecord]) -> list[Watermark]:
    """Give the marks that the file shows without the boost of the moment that it adds."""
    marks = []
    for zone in zones:
        mark = Watermark(*(getattr(zone, name) for name in Watermark._fields))
        marks.append(Watermark(*(pages - zone.boost if pages else 0 for pages in mark)))
    return marks


def recompute_marks() -> bool:
    """Have the kernel compute its marks anew by giving two sysctls the values they have."""
    try:
        for name in ("lowmem_reserve_ratio", "watermark_scale_factor"):
            (VM / name).write_text((VM / name).read_text())
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def host() -> list[ZoneRecord]:
    """
    Read the host's zones with marks made from the managed pages shown beside them.

    A balloon moves managed pages without a word to the watermarks, so where the figures differ
    they are looked at again after a recomputation.
    """
    zones = read_zones()
    if marks_of(zones) != shown_marks(zones):
        ballooned = any((zone.node_stats or {}).get("nr_balloon_pages") for zone in zones)
        if not recompute_marks() and ballooned:
            pytest.skip("a balloon moved pages since, and /proc/sys is read-only")
        zones = read_zones()
    return zones


def test_host_watermarks(host):
    assert marks_of(host) == shown_marks(host)


def test_host_lowmem_reserve(host):
    ratios = sysctl("lowmem_reserve_ratio")
    for _, group in itertools.groupby(host, key=lambda zone: zone.nid):
        zones = list(group)
        reserve = wm.lowmem_reserve([zone.managed for zone in zones], ratios)
        assert reserve == [list(zone.protection) for zone in zones]


def test_host_pcp_batch_and_bounds(host):
    fraction = sysctl("percpu_pagelist_high_fraction")[0]
    checked = 0
    for zone in host:
        cpus = Path(f"/sys/devices/system/node/node{zone.nid}/cpumap").read_text()
        cpus_of_node = bin(int(cpus.replace(",", ""), 16)).count("1")
        for pageset in zone.pagesets:
            batch = wm.zone_batchsize(zone.managed)
            bounds = wm.zone_high(
                zone.managed,
                zone.low - zone.boost,
                batch,
                cpus_of_node,
                len(zone.pagesets),
                fraction,
            )
            assert pageset.batch == batch
            if pageset.high_max:
                assert (pageset.high_min, pageset.high_max) == bounds
            elif kernel_release() < (6, 7):  # lists did not size themselves yet
                assert pageset.high == bounds[0]
            assert pageset.stat_threshold == wm.stat_threshold(zone.managed, len(zone.pagesets))
            checked += 1
    assert checked


def test_host_min_free_kbytes(host):
    """The host's own figure is the boot default, or what huge pages raise it to, or the user's."""
    zones = [(KINDS[zone.name], zone.managed) for zone in host]
    marks = [zone.high for zone in host]
    lowmem = wm.nr_free_buffer_pages((kind, managed, 0) for kind, managed in zones)
    populated = sum(1 for kind, managed in zones if managed and kind <= 2)
    buffer_pages = wm.nr_free_buffer_pages(
        (kind, managed, high) for (kind, managed), high in zip(zones, marks, strict=True)
    )
    raised = wm.thp_min_free_kbytes(populated, buffer_pages)
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    ours = wm.default_min_free_kbytes(lowmem)
    if enabled.exists() and "[never]" not in enabled.read_text():
        ours = max(ours, raised)
    theirs = sysctl("min_free_kbytes")[0]
    if ours != theirs and any(zone.present - zone.managed > zone.present // 4 for zone in host):
        pytest.skip("memory was plugged in after boot: min_free_kbytes is of the memory then")
    assert ours == theirs


def test_thp_raises_by_eleven_pageblocks_a_zone():
    assert wm.thp_min_free_kbytes(3, 1 << 22) == 67584
    assert wm.thp_min_free_kbytes(3, 65536) == 65536 // 20 * 4, "at most 5 % of lowmem"
    assert wm.thp_min_free_kbytes(1, 1 << 22) == 22528


def test_totalreserve_caps_at_managed():
    assert wm.totalreserve_pages([(1000, 500, [0, 300, 700]), (5000, 500, [0, 0, 700])]) == 2200


def test_totalreserve_agrees_with_host_memavailable(host):
    """MemAvailable is what is free above the reserves plus most of the caches."""
    reserve = wm.totalreserve_pages((zone.managed, zone.high, zone.protection) for zone in host)
    for _ in range(20):
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        kb = {words[0].rstrip(":"): int(words[1]) for words in lines}
        low = sum(zone.low for zone in host)
        cache = (kb["Active(file)"] + kb["Inactive(file)"]) // 4
        slab = kb["KReclaimable"] // 4
        available = kb["MemFree"] // 4 - reserve
        available += cache - min(cache // 2, low) + slab - min(slab // 2, low)
        if abs(max(available, 0) * 4 - kb["MemAvailable"]) <= 1024:
            return  # exact but for counters that move while the file is written
    assert max(available, 0) * 4 == kb["MemAvailable"]
