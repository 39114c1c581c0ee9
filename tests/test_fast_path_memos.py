"""The fast path remembers what the last request of an order came to; it must also forget."""

from __future__ import annotations

import os

import pytest

import realmem as rm
from realmem import GFP

PLAIN = {"DMA": "0", "DMA32": "0"}
ORDERS = (0, 1, 2, 3, 9)


def go_round(machine, gfp=GFP.KERNEL, orders=ORDERS):
    """Allocate and free each order a few times; give the nodes that served."""
    nodes = set()
    for order in orders:
        for _ in range(3):
            page = machine.alloc_pages(gfp, order)
            nodes.add(page.node)
            machine.free_pages(page, order)
    return nodes


def test_a_thread_that_changes_its_cpu_changes_its_node():
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    specs = [rm.NodeSpec("16M", cpus=[cpu]) for cpu in cpus[:2]]
    with rm.Machine(specs, zones=PLAIN) as machine:
        try:
            for turn in range(6):
                os.sched_setaffinity(0, {cpus[turn % 2]})
                # Whichever order comes first notices the move; the others must hear of it.
                orders = ORDERS[turn % 5:] + ORDERS[:turn % 5]
                assert go_round(machine, orders=orders) == {turn % 2}
        finally:
            os.sched_setaffinity(0, cpus)
        assert machine.nodes[0].stat["numa_hit"] == machine.nodes[0].stat["local_node"]
        machine.check()


@pytest.mark.parametrize("order", [0, 3])
def test_new_marks_hold_at_once(order):
    with rm.Machine(1, "8M", zones=PLAIN) as machine:
        before = machine.sysctl["vm.min_free_kbytes"]
        go_round(machine, GFP.NOWAIT, (order,))
        zone = machine.nodes[0].zones[0]
        assert zone.free_pages < zone.managed_pages, "its list holds what was freed"
        machine.sysctl["vm.min_free_kbytes"] = 8192
        assert zone.free_pages < zone.managed_pages
        assert machine.nodes[0].zones[0].watermark.min > machine.nodes[0].free_pages
        with pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(GFP.NOWAIT, order)
        machine.sysctl["vm.min_free_kbytes"] = before
        go_round(machine, GFP.NOWAIT, (order,))
        machine.check()


def test_requests_of_one_order_and_other_flags_are_told_apart():
    specs = [rm.NodeSpec("16M"), rm.NodeSpec("16M")]
    with rm.Machine(specs, zones={"DMA": "4M", "DMA32": "8M", "Movable": "25%"}) as machine:
        requests = [
            (GFP.KERNEL, 0, "Normal"), (GFP.KERNEL, 1, "Normal"), (GFP.KERNEL | GFP.DMA, 0, "DMA"),
            (GFP.KERNEL | GFP.DMA32, 0, "DMA32"), (GFP.HIGHUSER_MOVABLE, 1, "Movable"),
            (GFP.KERNEL | GFP.RECLAIMABLE, 1, "Normal"), (GFP.KERNEL, 0, "Normal"),
        ]
        for order in ORDERS[:4]:
            for _ in range(3):
                for gfp, nid, zone in requests:
                    page = machine.alloc_pages_node(nid, gfp, order)
                    assert (page.node, page.zone.name) == (nid, zone)
                    machine.free_pages(page, order)
        machine.check()


def test_a_page_goes_back_to_the_list_of_its_pageblock():
    """The block's type may have changed since the last one of its order was freed."""
    with rm.Machine(1, "16M", zones=PLAIN) as machine:
        unmovable = [machine.alloc_pages(GFP.KERNEL, 0) for _ in range(12)]
        movable = [machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 0) for _ in range(12)]
        for pages in zip(unmovable, movable, strict=True):
            for page in pages:
                machine.free_page(page)
        machine.check()
        assert machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 0) in movable
        assert machine.alloc_pages(GFP.KERNEL, 0) in unmovable
        machine.check()


@pytest.mark.parametrize("first", [True, False])
def test_machines_in_turn_do_not_share_what_is_remembered(first):
    with rm.Machine(1, "8M", zones=PLAIN) as one, rm.Machine(2, "8M", zones=PLAIN) as other:
        pair = (one, other) if first else (other, one)
        for _ in range(5):
            for machine in pair:
                base = machine.va(0)
                address = machine.get_free_pages(GFP.KERNEL, 1)
                assert 0 <= address - base < machine.nodes[-1].end_pfn << 12
                machine.free_pages(address, 1)
        one.check()
        other.check()
