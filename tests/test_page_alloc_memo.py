"""The allocator's short cuts must not show: memos of the last request, merging that waits."""

from __future__ import annotations

import os
import random
import threading

import pytest

import realmem as rm
from realmem import GFP, GFP_ATOMIC, GFP_KERNEL, GFP_USER, Machine

# Requests that go to different lists, zones and depths.
FLAGS = (
    GFP_KERNEL,
    GFP_ATOMIC,
    GFP_USER | GFP.MOVABLE,
    GFP_KERNEL | GFP.RECLAIMABLE,
    GFP_KERNEL | GFP.DMA,
    GFP.HIGHUSER_MOVABLE,
    GFP_KERNEL | GFP.COMP,
)


def play(machine, seed, turns, look):
    """Play a game of allocations and frees; return what was given out, and what look() saw."""
    draw = random.Random(seed)
    held = []
    given = []
    if seed % 2:        # on free lists of long use, where small blocks are cut from small ones
        orders = [draw.choice((4, 4, 5, 6, 7)) for _ in range(200)]
        blocks = [(machine.alloc_pages(GFP_KERNEL, order), order) for order in orders]
        draw.shuffle(blocks)
        held, blocks = blocks[:110], blocks[110:]
        for page, order in blocks:
            machine.free_pages(page, order)
    for _ in range(turns):
        if held and draw.random() < 0.5:
            # The last one most often: that is whom merging waits for.
            page, order = held.pop(-1 if draw.random() < 0.8 else draw.randrange(len(held)))
            machine.free_pages(page, order)
        else:
            order = draw.choice((0, 1, 3, 4, 4, 4, 5, 6, 7, 8, 9, 10))
            try:
                page = machine.alloc_pages(draw.choice(FLAGS), order)
            except rm.OutOfMemory:
                given.append(None)
                continue
            given.append(page.pfn)
            held.append((page, order))
        look(machine)
    for page, order in held:
        machine.free_pages(page, order)
    return given


def areas(machine):
    return [zone.free_area_by_type for node in machine.nodes for zone in node.zones]


@pytest.mark.parametrize("seed", range(6))
def test_looking_at_the_free_lists_changes_nothing(seed):
    """Looking ends every wait; nobody may be able to tell by what is given out next."""
    with Machine(nodes=1, memory="64M") as seen, Machine(nodes=1, memory="64M") as unseen:
        assert play(seen, seed, 3000, areas) == play(unseen, seed, 3000, lambda machine: None)
        assert areas(seen) == areas(unseen)
        for machine in (seen, unseen):
            machine.drain_all_pages()
            machine.check()
        assert areas(seen) == areas(unseen)


@pytest.mark.parametrize("seed", range(3))
def test_forgetting_memos_changes_nothing(seed):
    """Draining forgets memos, and empties lists alike when both do it at the same turns."""

    def forget(machine):
        machine.vmstat["pgfree"]
        machine.check()             # freezes the areas

    with Machine(nodes=1, memory="64M") as seen, Machine(nodes=1, memory="64M") as unseen:
        assert play(seen, seed, 400, forget) == play(unseen, seed, 400, lambda machine: None)
        assert dict(seen.vmstat) == dict(unseen.vmstat)


@pytest.mark.parametrize("order", [4, 5, 8, 9, 10])
def test_a_block_that_waits_counts_as_merged(order):
    with Machine(nodes=1, memory="64M") as machine:
        machine.free_pages(machine.alloc_pages(GFP_KERNEL, order), order)
        machine.drain_all_pages()
        zone = machine.nodes[0].zone("DMA32")
        before = zone.free_area
        free = zone.free_pages
        for _ in range(3):
            page = machine.alloc_pages(GFP_KERNEL, order)
            assert zone.free_pages == free - (1 << order)
            machine.free_pages(page, order)
            machine.drain_all_pages()
            assert zone.free_pages == free
            assert zone.free_area == before
            # The same block comes again, and is not to be freed twice meanwhile.
            with pytest.raises(rm.AllocatorError):
                machine.free_pages(page, order)
        # All of the zone can be had in its largest blocks, the waiting one included.
        largest = []
        while machine.nodes[0].zone("DMA32").free_area[10]:
            largest.append(machine.alloc_pages(GFP_KERNEL | GFP.MEMALLOC, 10))
        assert len(largest) >= before[10]
        machine.check()


def test_marks_published_later_are_heeded():
    """The fast path's memo holds the zone's mark; raising it must stop the fast path."""
    with Machine(nodes=1, memory="64M") as machine:
        page = machine.alloc_pages(GFP_KERNEL, 0)
        machine.free_pages(page, 0)
        woken = machine.hoststat
        del woken
        machine.sysctl["vm.min_free_kbytes"] = 48 << 10
        before = machine.vmstat["pgalloc_dma32"] + machine.vmstat["pgalloc_dma"]
        taken = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                taken.append(machine.alloc_pages(GFP_KERNEL | GFP.NORETRY, 0))
        low = sum(zone.watermark.min for zone in machine.nodes[0].zones)
        assert machine.nodes[0].free_pages >= low // 2
        after = machine.vmstat["pgalloc_dma32"] + machine.vmstat["pgalloc_dma"]
        assert after - before == len(taken)
        for page in taken:
            machine.free_pages(page, 0)
        machine.check()


@pytest.mark.parametrize("order", [0, 1, 3, 9])
def test_the_fast_path_counts_what_it_gives(order):
    with Machine(nodes=1, memory="64M") as machine:
        names = ("pgalloc_dma32", "pgfree", "numa_hit", "numa_local", "numa_other")
        before = {name: machine.vmstat[name] for name in names}
        for _ in range(100):
            machine.free_pages(machine.alloc_pages(GFP_KERNEL, order), order)
        got = {name: machine.vmstat[name] - before[name] for name in names}
        assert got["pgalloc_dma32"] == got["pgfree"] == 100 << order
        assert got["numa_hit"] == got["numa_local"] + got["numa_other"] == 100
        machine.check()


def test_flags_left_on_a_page_are_cleared_on_the_way():
    """Compound pages leave the fast path, and come back to it clean."""
    with Machine(nodes=1, memory="64M") as machine:
        for gfp in (GFP_KERNEL, GFP_KERNEL | GFP.COMP, GFP_KERNEL) * 20:
            page = machine.alloc_pages(gfp, 2)
            assert ("head" in page.flags) == bool(gfp & GFP.COMP)
            machine.free_pages(page, 2)
        machine.check()


def test_threads_drained_meanwhile_lose_nothing():
    """Stealing areas and looking at lists, while two threads go round their fast paths."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    with Machine(nodes=1, memory="64M") as machine:
        machine.drain_all_pages()
        free = machine.nodes[0].free_pages
        stop = threading.Event()
        failures = []

        def work(order):
            try:
                while not stop.is_set():
                    for _ in range(200):
                        machine.free_pages(machine.get_free_pages(GFP_KERNEL, order), order)
            except BaseException as why:
                failures.append(why)

        threads = [threading.Thread(target=work, args=(order,)) for order in (0, 3, 5)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            machine.drain_all_pages()
            areas(machine)
            machine.check()
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        machine.drain_all_pages()
        assert machine.nodes[0].free_pages == free
        machine.check()
