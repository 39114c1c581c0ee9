"""machine.vmstat and the NUMA counters, over a real machine."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import vmstat
from realmem.layout import GFP

QUIET = GFP.KERNEL | GFP.NORETRY | GFP.NOWARN
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")


@pytest.fixture(scope="module")
def machine():
    """Two nodes; the first has every CPU that this test may run on."""
    specs = [rm.NodeSpec("24M", cpus=sorted(os.sched_getaffinity(0))), rm.NodeSpec("24M", cpus=[])]
    with rm.Machine(nodes=specs, zones={"DMA": "4M", "DMA32": "24M"}) as machine:
        yield machine


@contextmanager
def counted(machine):
    """Collect what moved in vmstat and in each node's numastat while the block ran."""
    moved = {}
    before = machine.vmstat.snapshot()
    nodes = [node.stat for node in machine.nodes]
    yield moved
    after = machine.vmstat.snapshot()
    moved.update(
        (name, after[name] - before[name]) for name in after if after[name] != before[name]
    )
    for node, old in zip(machine.nodes, nodes, strict=True):
        new = node.stat
        moved[node.id] = {name: new[name] - old[name] for name in new if new[name] != old[name]}


def test_it_is_a_mapping_in_the_files_order(machine):
    stat = machine.vmstat
    assert list(stat) == list(vmstat.VMSTAT_ITEMS) == list(stat.snapshot())
    assert len(stat) == len(list(stat)) and "nr_free_pages" in stat and "nothing" not in stat
    assert dict(stat) == dict(stat.items()) == stat.snapshot()
    assert list(stat.values()) == list(stat.snapshot().values())
    assert stat["nr_free_pages"] == sum(node.free_pages for node in machine.nodes)
    assert stat["nr_memmap_boot_pages"] == 2 * 24 * 4
    with pytest.raises(KeyError):
        stat["nr_nothing"]
    with pytest.raises(TypeError):
        stat["pgfree"] = 0


@pytest.mark.conformance("CT-05", "CT-20")
@pytest.mark.parametrize("order", [0, 1, 3, 4, 9, 10])
def test_pages_and_allocations_are_counted_apart(machine, order):
    with counted(machine) as moved:
        page = machine.alloc_pages(GFP.KERNEL, order)
    zone = page.zone.name.lower()
    assert moved[f"pgalloc_{zone}"] == 1 << order
    assert (moved["numa_hit"], moved["numa_local"]) == (1, 1)
    assert moved[0] == {"numa_hit": 1, "local_node": 1} and moved[1] == {}
    with counted(machine) as moved:
        machine.free_pages(page, order)
    assert moved["pgfree"] == 1 << order
    assert not any(name.startswith(("pgalloc", "numa")) for name in moved if name not in (0, 1))


@pytest.mark.conformance("CT-07")
def test_the_preferred_node_of_another_cpu(machine):
    with counted(machine) as moved:
        page = machine.alloc_pages_node(1, GFP.KERNEL, 0)
    assert page.node == 1
    assert moved[1] == {"numa_hit": 1, "other_node": 1} and moved[0] == {}
    assert (moved["numa_hit"], moved["numa_other"]) == (1, 1)
    machine.free_page(page)


@pytest.mark.conformance("CT-09")
def test_an_interleaved_allocation_on_its_node(machine):
    with counted(machine) as moved:
        page = machine.alloc_page_interleave(GFP.KERNEL, 0, 1)
    assert moved[1] == {"numa_hit": 1, "interleave_hit": 1, "other_node": 1}
    assert moved["numa_interleave"] == 1
    machine.free_page(page)


@pytest.mark.conformance("CT-12")
def test_a_failed_allocation_counts_nothing():
    with rm.Machine(nodes=1, memory="8M", zones={"DMA": 0, "DMA32": "4G"}) as machine:
        pages = machine.alloc_pages_bulk(GFP.KERNEL | GFP.MEMALLOC, 4096)
        machine.drain_all_pages()
        with counted(machine) as moved, pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(QUIET, 3)
        assert set(moved) <= {0, "allocstall_dma32"} and moved[0] == {}
        assert moved["allocstall_dma32"] >= 1
        machine.free_pages_bulk(pages)


@pytest.mark.conformance("CT-19")
def test_pages_in_per_cpu_lists_are_not_free(machine):
    machine.drain_all_pages()
    free = machine.vmstat["nr_free_pages"]
    page = machine.alloc_pages(GFP.KERNEL, 0)
    machine.free_page(page)

    def blocks():
        lines = machine.procfs["/proc/buddyinfo"].splitlines()
        return sum(
            int(count) << order for line in lines for order, count in enumerate(line.split()[4:])
        )

    from realmem.procfs.zoneinfo import parse_zoneinfo

    listed = sum(
        pageset.count
        for zone in parse_zoneinfo(machine.procfs["/proc/zoneinfo"])
        for pageset in zone.pagesets
    )
    assert listed > 0
    assert machine.vmstat["nr_free_pages"] == blocks() == free - listed
    machine.drain_all_pages()
    assert machine.vmstat["nr_free_pages"] == blocks() == free


def test_frames_in_use_are_counted_by_what_they_are(machine):
    counters = machine._allocator.frame_stat(0)
    names = ("anon", "anon_huge", "shmem", "file", "dirty", "mapped", "mlocked", "mlocked_file",
             "active", "active_file", "table", "slab", "slab_reclaimable")
    assert counters == dict.fromkeys(names, 0)
    with pytest.raises(ValueError):
        machine._allocator.frame_stat(2)


@pytest.mark.conformance("CT-11")
@given(
    st.lists(
        st.tuples(st.integers(-1, 1), st.integers(0, 10), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_numa_counters_always_add_up(machine, requests):
    pages = []
    with counted(machine) as moved:
        for nid, order, interleave, keep in requests:
            try:
                if interleave:
                    page = machine.alloc_page_interleave(QUIET, order, max(nid, 0))
                else:
                    page = machine.alloc_pages_node(nid, QUIET, order)
            except rm.OutOfMemory:
                continue
            if keep:
                pages.append(page)
            else:
                machine.free_pages(page, order)
    total = {name: sum(moved[nid].get(name, 0) for nid in (0, 1)) for name in NUMASTAT}
    assert total["numa_hit"] + total["numa_miss"] == total["local_node"] + total["other_node"]
    assert total["numa_miss"] == total["numa_foreign"]
    assert total["interleave_hit"] <= total["numa_hit"]
    assert total["numa_hit"] == moved.get("numa_hit", 0)
    pgalloc = sum(count for name, count in moved.items() if str(name).startswith("pgalloc"))
    kept = sum(1 << page.order for page in pages)
    assert pgalloc - moved.get("pgfree", 0) == kept
    for page in pages:
        machine.free_pages(page, page.order)


def test_a_miss_is_counted_where_it_landed_and_where_it_was_wanted(machine):
    """Node 1 has no room: the page comes from node 0, which counts a miss and local_node."""
    pages = []
    gfp = GFP.KERNEL | GFP.MEMALLOC | GFP.THISNODE | GFP.NOWARN
    while machine.nodes[1].free_pages:
        pages.append(machine.alloc_pages_node(1, gfp, 0))
    with counted(machine) as moved:
        page = machine.alloc_pages_node(1, QUIET, 0)
    assert page.node == 0
    assert moved[0] == {"numa_miss": 1, "local_node": 1}
    assert moved[1] == {"numa_foreign": 1}
    machine.free_page(page)
    for page in pages:
        machine.free_page(page)
    machine.drain_all_pages()
    machine.check()


def test_a_closed_machine_has_no_counters():
    machine = rm.Machine(nodes=1, memory="8M")
    stat = machine.vmstat
    machine.close()
    with pytest.raises(ValueError):
        stat["pgfree"]
    with pytest.raises(ValueError):
        machine.vmstat
