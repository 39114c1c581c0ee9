"""What the flags of a request change."""

from __future__ import annotations

import os

import pytest

import realmem as rm
from realmem.layout import GFP

QUIET = GFP.KERNEL | GFP.NORETRY | GFP.NOWARN


@pytest.fixture
def machine():
    """Two nodes; the first has every CPU that this test may run on."""
    cpus = sorted(os.sched_getaffinity(0))
    specs = [rm.NodeSpec("8M", cpus=cpus), rm.NodeSpec("8M", cpus=[])]
    with rm.Machine(nodes=specs, zones={"DMA": 0, "DMA32": "4G"}) as machine:
        yield machine


@pytest.mark.conformance("GF-08")
@pytest.mark.parametrize("order", [0, 1, 3, 5, 9])
def test_zero_means_every_page(machine, order):
    size = 4096 << order
    page = machine.alloc_pages(GFP.KERNEL, order)
    with machine.view(page.address, size) as view:
        view[:] = b"\xff" * size
    pfn = page.pfn
    machine.free_pages(page, order)
    page = machine.alloc_pages(GFP.KERNEL | GFP.ZERO, order)
    assert page.pfn == pfn or order > 3, "the dirty one comes back, or the test shows nothing"
    with machine.view(page.address, size) as view:
        assert not any(bytes(view))


@pytest.mark.conformance("GF-09")
def test_a_failure_is_reported_with_order_and_mask_and_nowarn_prints_nothing(machine, capfd):
    with pytest.raises(rm.OutOfMemory) as caught:
        while True:
            machine.alloc_pages(GFP.KERNEL | GFP.NORETRY, 10)
    text = str(caught.value)
    assert "order:10, mode:0x10cc0(GFP_KERNEL|__GFP_NORETRY)" in text
    assert (caught.value.order, caught.value.gfp, caught.value.node) == (
        10,
        GFP.KERNEL | GFP.NORETRY,
        None,
    )
    assert "DMA32" in text and "min:" in text, "and how much is free where"
    with pytest.raises(rm.OutOfMemory):
        machine.alloc_pages(QUIET, 10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.conformance("GF-11")
@pytest.mark.parametrize("gfp", [GFP.DMA | GFP.HIGHMEM, GFP.DMA | GFP.DMA32])
def test_impossible_zones_are_rejected(machine, gfp):
    before = machine.vmstat.snapshot()
    with pytest.raises(ValueError):
        machine.alloc_pages(GFP.KERNEL | gfp, 0)
    assert machine.vmstat.snapshot() == before


@pytest.mark.conformance("GF-10")
def test_thisnode_fails_rather_than_go_remote(machine):
    with pytest.raises(rm.OutOfMemory) as caught:
        while True:
            page = machine.alloc_pages_node(1, QUIET | GFP.THISNODE, 3)
            assert page.node == 1
    assert caught.value.node == 1
    assert machine.alloc_pages_node(1, QUIET, 3).node == 0


@pytest.mark.parametrize(
    ("gfp", "name"),
    [
        (GFP.KERNEL, "GFP_KERNEL"),
        (GFP.ATOMIC, "GFP_ATOMIC"),
        (GFP.HIGHUSER_MOVABLE, "GFP_HIGHUSER_MOVABLE"),
        (GFP.KERNEL | GFP.ZERO | GFP.DMA, "GFP_KERNEL|GFP_DMA|__GFP_ZERO"),
        (GFP.NOFS | GFP.NOWARN, "GFP_NOFS|__GFP_NOWARN"),
        (GFP.THISNODE, "__GFP_THISNODE"),
        (0, "0"),
    ],
)
def test_flags_are_named_as_the_kernel_names_them(gfp, name):
    from realmem.layout import describe_gfp

    assert describe_gfp(gfp) == name
