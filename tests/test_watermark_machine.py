"""What the marks and reserves do: who is served with how many pages free."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem.layout import GFP

# A failing request returns at once and quietly.
KERNEL = GFP.KERNEL | GFP.NORETRY | GFP.NOWARN
ATOMIC = GFP.ATOMIC | GFP.NOWARN
RESERVES = GFP.KERNEL | GFP.MEMALLOC | GFP.NOWARN

ALLOC_OOM, ALLOC_NON_BLOCK, ALLOC_MIN_RESERVE = 0x08, 0x10, 0x20


@pytest.fixture(scope="module")
def machine():
    """One zone with the marks of a 1 GiB one: min 1024, low 1286, high 1548."""
    with rm.Machine(nodes=1, memory="64M", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        zone = machine.nodes[0].zones[0]
        machine.sysctl["vm.min_free_kbytes"] = 4096
        step = 262 * 10000 // zone.managed_pages + 1
        machine.sysctl["vm.watermark_scale_factor"] = step
        assert tuple(zone.watermark)[:3] == (1024, 1286, 1548)
        yield machine


@pytest.fixture
def taken(machine):
    """Blocks to be given back after the test."""
    blocks = []
    yield blocks
    for block in blocks:
        machine.free_pages(block, block.order)
    machine.drain_all_pages()
    machine.check()


def leave_free(machine, zone, pages, taken, gfp=RESERVES):
    """Allocate or free until exactly so many pages of a zone are free, none in per-CPU lists."""
    machine.drain_all_pages()
    while taken and zone.free_pages < pages:
        block = taken.pop()
        machine.free_pages(block, block.order)
        machine.drain_all_pages()
    # The largest block first: orders 4 to 8 and 10 come straight from the free areas.
    while (surplus := zone.free_pages - pages) > 0:
        order = min(surplus.bit_length() - 1, 10)
        order = 8 if order == 9 else order
        while order and not any(zone.free_area[order:]):
            order -= 1
        taken.append(machine.alloc_pages(gfp, order))
        machine.drain_all_pages()
    assert zone.free_pages == pages


def served(machine, gfp, taken, order=0):
    """Whether a request succeeds; its block is kept."""
    try:
        taken.append(machine.alloc_pages(gfp, order))
    except rm.OutOfMemory:
        return False
    return True


def events(machine):
    return machine._allocator.events()


@pytest.mark.conformance("WM-07")
def test_first_try_stops_at_low_and_the_slow_path_at_min(machine, taken):
    zone = machine.nodes[0].zones[0]
    for free, wakes, passes in [
        (1287, 0, True),
        (1286, 1, True),
        (1025, 1, True),
        (1024, 1, False),
    ]:
        leave_free(machine, zone, free, taken)
        before = events(machine)
        assert served(machine, KERNEL, taken) == passes, free
        after = events(machine)
        assert after["kswapd_wake"] - before["kswapd_wake"] == wakes, free
        stalls = after["allocstall_dma32"] - before["allocstall_dma32"]
        assert (stalls > 0) == (not passes), "only the last goes to direct reclaim"


@pytest.mark.conformance("WM-09")
@pytest.mark.parametrize(
    ("gfp", "limit"), [(KERNEL | GFP.HIGH, 512), (ATOMIC, 384), (KERNEL, 1024)]
)
def test_high_and_atomic_dip_below_min(machine, taken, gfp, limit):
    zone = machine.nodes[0].zones[0]
    leave_free(machine, zone, limit, taken)
    assert not served(machine, gfp, taken)
    leave_free(machine, zone, limit + 1, taken)
    assert served(machine, gfp, taken)


@pytest.mark.conformance("WM-10")
def test_nowait_has_no_reserve(machine, taken):
    zone = machine.nodes[0].zones[0]
    leave_free(machine, zone, 1024, taken)
    assert not served(machine, GFP.NOWAIT, taken)
    leave_free(machine, zone, 1025, taken)
    assert served(machine, GFP.NOWAIT, taken)


@pytest.mark.conformance("WM-11")
def test_memalloc_takes_everything_unless_overridden(machine, taken):
    zone = machine.nodes[0].zones[0]
    leave_free(machine, zone, 1, taken)
    assert not served(machine, RESERVES | GFP.NOMEMALLOC | GFP.NORETRY, taken)
    assert served(machine, RESERVES, taken)
    assert zone.free_pages == 0
    assert not served(machine, RESERVES | GFP.NORETRY, taken), "nothing is left"


@pytest.mark.conformance("WM-12")
@pytest.mark.parametrize(("flags", "limit"), [(0, 1024), (ALLOC_OOM, 512)])
def test_an_oom_victim_may_go_to_half_of_min(machine, taken, flags, limit):
    zone = machine.nodes[0].zones[0]
    for free, passes in [(limit, False), (limit + 1, True)]:
        leave_free(machine, zone, free, taken)
        assert machine._allocator.watermark_ok(zone.index, 0, 1024, 1, flags) == passes


@pytest.mark.conformance("WM-14")
def test_free_memory_stays_above_min_under_load(machine, taken):
    zone = machine.nodes[0].zones[0]
    for kbytes in (8192, 4096):  # lowering it lets more out at once
        machine.sysctl["vm.min_free_kbytes"] = kbytes
        assert zone.watermark.min == kbytes // 4
        for order in itertools.cycle((0, 3, 1)):
            if not served(machine, KERNEL, taken, order):
                break
        machine.drain_all_pages()
        assert kbytes // 4 <= zone.free_pages < kbytes // 4 + 64
        lines = machine.procfs["/proc/meminfo"].splitlines()
        assert lines[1] == f"MemFree: {zone.free_pages * 4:15} kB"
    machine.sysctl["vm.min_free_kbytes"] = 8192  # and raising it stops everybody at once
    assert not served(machine, KERNEL, taken)
    machine.sysctl["vm.min_free_kbytes"] = 4096


def model_watermark_ok(zone, order, mark, highest, flags):
    """Linux 6.18's test in words: what must stay free, and a block that fits."""
    least = mark
    if flags & ALLOC_MIN_RESERVE:
        least -= least // 2
        if flags & ALLOC_NON_BLOCK:
            least -= least // 4
    if flags & ALLOC_OOM:
        least -= least // 2
    enough = zone.free_pages - ((1 << order) - 1) > least + zone.lowmem_reserve[highest]
    return enough and (order == 0 or any(zone.free_area[order:]))


@given(
    order=st.integers(0, 10),
    near=st.integers(-3, 3),
    mark=st.integers(0, 4096),
    highest=st.integers(1, 3),
    flags=st.sets(st.sampled_from([ALLOC_OOM, ALLOC_NON_BLOCK, ALLOC_MIN_RESERVE])),
)
def test_watermark_test_against_a_model(machine, order, near, mark, highest, flags):
    zone = machine.nodes[0].zones[0]
    bits = sum(flags)
    for asked in (mark, zone.free_pages - (1 << order) + 1 + near, 2 * zone.free_pages + near):
        assert machine._allocator.watermark_ok(
            zone.index, order, asked, highest, bits
        ) == model_watermark_ok(zone, order, asked, highest, bits)


# ---- reserves between zones ----


@pytest.fixture
def three_zones():
    sizes = {"DMA": "16M", "DMA32": "48M"}
    with rm.Machine(nodes=1, memory="80M", zones=sizes) as machine:
        # Nothing may come from DMA, and DMA32 keeps 32 pages of Normal's size away.
        machine.sysctl["vm.lowmem_reserve_ratio"] = (1, 32, 32, 0)
        yield machine


@pytest.mark.conformance("WM-13")
def test_spilling_down_meets_the_reserve(three_zones):
    machine, taken = three_zones, []
    node = machine.nodes[0]
    dma32, normal = node.zone("DMA32"), node.zone("Normal")
    reserve = dma32.lowmem_reserve[2]
    assert reserve == normal.managed_pages // 32 > 0
    leave_free(machine, normal, 0, taken)
    for gfp, limit in [
        (KERNEL, dma32.watermark.min + reserve),
        (KERNEL | GFP.DMA32, dma32.watermark.min),
    ]:
        leave_free(machine, dma32, limit + 1, taken, RESERVES | GFP.DMA32)
        assert served(machine, gfp, taken)
        assert taken[-1].zone.name == "DMA32"
        leave_free(machine, dma32, limit, taken, RESERVES | GFP.DMA32)
        assert not served(machine, gfp, taken)


def test_a_movable_zone_and_a_node_without_cpus_are_set_up():
    specs = [rm.NodeSpec("32M"), rm.NodeSpec("32M", cpus=[])]
    with rm.Machine(nodes=specs, zones={"DMA": 0, "DMA32": "4G", "Movable": "25%"}) as machine:
        from realmem import watermark

        zones = [zone for node in machine.nodes for zone in node.zones]
        assert [zone.name for zone in zones] == ["DMA32", "Movable"] * 2
        marks = watermark.zone_watermarks(
            [(zone.kind, zone.managed_pages) for zone in zones],
            machine.sysctl["vm.min_free_kbytes"],
        )
        assert [tuple(zone.watermark) for zone in zones] == marks
        assert all(zone.watermark.min == 32 for zone in zones if zone.name == "Movable")
        info = machine._allocator.zone_info(zones[2].index)
        low = zones[2].watermark.low
        assert info["high_min"] == max(low // machine.cpus, 4 * info["batch"])
