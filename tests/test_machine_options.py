"""Machines that cannot be, that are interrupted while they are made, and odd ones that can."""

from __future__ import annotations

from itertools import pairwise

import pytest
from lifetime import footprint

import realmem as rm
from realmem import GFP


@pytest.mark.parametrize("options", [
    {"nodes": 0}, {"nodes": -1}, {"nodes": 65}, {"nodes": []}, {"memory": 0},
    {"memory": -4096}, {"memory": 4097}, {"memory": "4K"}, {"memory": "12 parsecs"},
    {"memory": ""}, {"nodes": [rm.NodeSpec(0)]}, {"nodes": [rm.NodeSpec("4M", host_node=99)]},
    {"nodes": [rm.NodeSpec("4M", cpus=[9999])]},
    {"nodes": [rm.NodeSpec("4M", cpus=[0]), rm.NodeSpec("4M", cpus=[0])]},
    {"nodes": [rm.NodeSpec("4M", distance=[20])]},
    {"nodes": [rm.NodeSpec("4M", distance=[10, 20])]},
    {"zones": {"Highmem": "4M"}}, {"zones": {"DMA": "1M"}}, {"zones": {"DMA": "5G"}},
    {"zones": {"DMA": "-4M"}}, {"zones": {"Movable": "101%"}}, {"zones": {"Movable": "x%"}},
    {"backing": "5K"}, {"debug": 3}, {"debug": -1}, {"cpus": 0}, {"cpus": -3},
], ids=str)
def test_machines_that_cannot_be(options):
    before = footprint()
    with pytest.raises(ValueError):
        rm.Machine(**{"memory": "4M", **options})
    assert footprint() == before


@pytest.mark.parametrize("options", [
    {"nodes": "two"}, {"nodes": True}, {"nodes": 1.5}, {"nodes": [4]}, {"nodes": {"a": 1}},
    {"memory": 1.5}, {"memory": None}, {"memory": True}, {"memory": b"4M"},
    {"nodes": [rm.NodeSpec(1.5)]}, {"nodes": [rm.NodeSpec("4M", cpus=["0"])]},
    {"zones": "DMA"}, {"zones": {"DMA": 1.5}}, {"zones": {"DMA": None}},
    {"cpus": 1.5}, {"cpus": "2"}, {"cpus": True}, {"colour": "red"}, {"window_size": 1},
], ids=str)
def test_wrong_types_and_unknown_options(options):
    before = footprint()
    with pytest.raises(TypeError):
        rm.Machine(**{"memory": "4M", **options})
    assert footprint() == before


@pytest.mark.crash
def test_an_interrupt_during_construction_leaves_nothing(python):
    child = python("""
import gc, os, signal, time
import realmem as rm
from pathlib import Path
def left():
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return (len(os.listdir("/proc/self/fd")), maps.count("memfd:realmem"))
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
begin = time.perf_counter()
rm.Machine(2, "4M").close()
rm.Machine(2, "4M").close()
begin = time.perf_counter()
rm.Machine(2, "4M").close()
took = time.perf_counter() - begin
before, interrupted = left(), 0
for i in range(80):
    machine = None
    try:
        signal.setitimer(signal.ITIMER_REAL, took * (i + 1) / 60)
        machine = rm.Machine(2, "4M")
        signal.setitimer(signal.ITIMER_REAL, 0)
        machine.check()
        machine.close()
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    machine = None
    assert left() == before, (i, left(), before)
    try:
        raise SystemExit(f"a child is left: {os.waitpid(-1, os.WNOHANG)}")
    except ChildProcessError:
        pass
assert interrupted > 10, interrupted
with rm.Machine(2, "4M") as machine:
    machine.check()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


@pytest.mark.parametrize(("sizes", "zones"), [
    (["256K"], {}),
    (["260K"], {"DMA": "0", "DMA32": "0"}),
    (["4M", "256K", "4100K"], {"DMA": "4M", "DMA32": "8M"}),
    (["5M", "3M", "7M"], {"DMA": "0", "DMA32": "8M", "Movable": "50%"}),
    (["8M"], {"DMA": "0", "DMA32": "0", "Movable": "100%"}),
    (["9M", "8M"], {"Movable": "100%"}),
    (["18M"], {"DMA": "0", "DMA32": "0", "Movable": "50%"}),
    (["9M", "17M", "10M"], {"DMA": "0", "DMA32": "12M", "Movable": "60%"}),
    (["64M"], {"DMA": "4M", "DMA32": "4M", "Movable": "97%"}),
    (["300M"], {"DMA": "0", "DMA32": "0", "Movable": "99%"}),
    (["16M", 0, "16M"], {"DMA": "0", "DMA32": "20M"}),
    ([0, "8M"], {}),
    (["12M"], {"DMA": "8M", "DMA32": "8M", "Movable": "4M"}),
    (["12M"], {"DMA": "4M", "DMA32": "8M", "Movable": "1000M"}),
], ids=str)
def test_odd_shapes(sizes, zones):
    """Each frame is allocatable once, in its own zone, and comes back."""
    with rm.Machine([rm.NodeSpec(size) for size in sizes], zones=zones) as machine:
        machine.check()
        boot = [zone.free_area for node in machine.nodes for zone in node.zones]
        managed = sum(zone.managed_pages for node in machine.nodes for zone in node.zones)
        present = sum(zone.present_pages for node in machine.nodes for zone in node.zones)
        assert present == sum(node.memory for node in machine.nodes) >> 12
        assert sum(sum(n << o for o, n in enumerate(area)) for area in boot) == managed
        spans = sorted((zone.start_pfn, zone.spanned_pages)
                       for node in machine.nodes for zone in node.zones)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
        pages = machine.alloc_pages_bulk(GFP.HIGHUSER_MOVABLE | GFP.MEMALLOC, present)
        assert len(pages) == managed
        machine.check()
        with pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(GFP.HIGHUSER_MOVABLE | GFP.MEMALLOC, 0)
        for node in machine.nodes:
            inside = range(node.start_pfn, node.end_pfn)
            there = [page for page in pages if page.pfn in inside]
            assert len(there) == sum(zone.managed_pages for zone in node.zones)
            for page in there[::97]:
                assert page.node == node.id
                assert page.zone in node.zones
                zone = page.zone
                assert zone.start_pfn <= page.pfn < zone.start_pfn + zone.spanned_pages
        machine.free_pages_bulk(pages)
        machine.drain_all_pages()
        machine.check()
        assert [zone.free_area for node in machine.nodes for zone in node.zones] == boot
        str(machine.procfs["/proc/zoneinfo"])


def test_no_kernel_memory_at_all():
    """Movable takes everything: nothing is left for GFP_KERNEL."""
    with rm.Machine(1, "8M", zones={"DMA": "0", "DMA32": "0", "Movable": "100%"}) as machine:
        assert [zone.name for zone in machine.nodes[0].zones] == ["Movable"]
        for gfp in (GFP.KERNEL, GFP.ATOMIC, GFP.KERNEL | GFP.NOFAIL, GFP.DMA):
            with pytest.raises(rm.OutOfMemory) as caught:
                machine.alloc_pages(gfp, 0)
            assert "Movable" in str(caught.value)
        machine.free_page(machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 0))
        machine.check()
