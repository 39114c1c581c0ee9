"""Random raw accesses, unmaps, forks, exhaustion: with runs of frames or without, counts agree."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from backends import BACKENDS, needs_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st

import realmem as rm
from realmem import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem._bench.fault_loops import touch
from realmem.errors import OutOfMemory
from realmem.layout import GFP

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
PAGES = 3 * 512
TAKE = GFP.KERNEL | GFP.MEMALLOC | GFP.NOWARN

pages = st.integers(0, PAGES - 1)
ranges = st.tuples(pages, st.integers(1, 600))
steps = st.one_of(
    st.tuples(st.just("stores"), ranges, st.integers(1, 5)),
    st.tuples(st.just("scattered"), st.integers(0, 99), st.integers(1, 200)),
    st.tuples(st.just("loads"), ranges, st.integers(1, 9)),
    st.tuples(st.just("software"), ranges, st.integers(1, 5)),
    st.tuples(st.just("forget"), ranges, st.just(1)),
    st.tuples(st.just("unmap"), ranges, st.just(1)),
    st.tuples(st.just("protect"), ranges, st.just(1)),
    st.tuples(st.just("move"), ranges, st.just(1)),
    st.tuples(st.just("flush"), ranges, st.just(1)),
    st.tuples(st.just("fork"), ranges, st.integers(0, 1)),
    st.tuples(st.just("exit"), st.just(0), st.just(0)),
    st.tuples(st.just("exhaust"), st.just(0), st.integers(0, 300)),
    st.tuples(st.just("give back"), st.just(0), st.just(0)),
)


class World:
    """A machine with runs or without, and a process of it that random steps act on."""

    def __init__(self, runs):
        self.machine = rm.Machine(nodes=1, memory="24M", window="1G", host_vmas=2000)
        self.process = self.machine.spawn()
        self.machine._paging.mmu.set_runs(runs)
        self.at = self.process.mmap(None, PAGES * PAGE_SIZE, RW, ANON)
        self.spare = self.process.mmap(None, PAGES * PAGE_SIZE, RW, ANON)
        self.taken = []
        self.children = []
        self.usable = np.ones(PAGES, dtype=bool)

    def step(self, what, where, n):
        p = self.process
        if what in ("stores", "loads", "scattered"):
            self.raw(what, where, n)
        elif what == "software":
            for page in range(where[0], min(sum(where), PAGES), n):
                if self.usable[page]:
                    p.write(self.at + page * PAGE_SIZE + 8, b"soft")
        elif what == "exhaust":
            with contextlib.suppress(OutOfMemory):
                while True:
                    self.taken.append(self.machine.alloc_pages(TAKE, 0))
            for _ in range(min(n, len(self.taken))):
                self.machine.free_pages(self.taken.pop(), 0)
            self.leave_some()
        elif what == "give back":
            self.give_back()
        elif what == "exit":
            if self.children:
                self.children.pop().exit()
                p.wait()
        elif what == "fork":
            child = p.fork()
            self.children.append(child)
            if n:
                child.write(self.at + self.first_usable() * PAGE_SIZE, b"child")
        else:
            self.change(what, *where)

    def raw(self, what, where, n):
        if what == "scattered":
            chosen = np.random.default_rng(where).permutation(PAGES)[:n]
        else:
            chosen = np.arange(where[0], min(sum(where), PAGES), n)
        chosen = chosen[self.usable[chosen]].astype(np.uint32)
        touch(self.process.host_address(self.at), len(chosen), what != "loads", chosen)

    def change(self, what, first, count):
        p = self.process
        count = min(count, PAGES - first)
        start, length = self.at + first * PAGE_SIZE, count * PAGE_SIZE
        if what == "flush":
            p.mm.core.flush(start, start + length)
        elif what == "forget" and self.usable[first : first + count].all():
            p.madvise(start, length, MADV_DONTNEED)
        elif what == "protect" and self.usable[first : first + count].all():
            p.mprotect(start, length, PROT_READ)
            p.mprotect(start, length, RW)
        elif what == "unmap":
            p.munmap(start, length)
            self.usable[first : first + count] = False
        elif what == "move" and self.usable[first : first + count].all():
            p.mremap(start, length, length, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED,
                     self.spare + first * PAGE_SIZE)
            self.usable[first : first + count] = False

    def first_usable(self):
        return int(np.argmax(self.usable))

    def leave_some(self):
        """Faults that find nothing would end the step: a third stays for them."""
        self.machine.drain_all_pages()
        for _ in range(min(2048 - self.machine.nodes[0].free_pages, len(self.taken))):
            self.machine.free_pages(self.taken.pop(), 0)

    def give_back(self):
        while self.taken:
            self.machine.free_pages(self.taken.pop(), 0)

    def bytes(self):
        found = []
        for page in np.flatnonzero(self.usable):
            found.append(bytes(self.process.read(self.at + int(page) * PAGE_SIZE, 16)))
        return found

    def counts(self):
        """What Linux would show, that a fault's way to its frame has no part in."""
        machine, p = self.machine, self.process
        machine.drain_all_pages()
        vmstat = machine.vmstat
        names = ("nr_free_pages", "nr_anon_pages", "nr_page_table_pages", "pgfault", "pgfree",
                 "numa_hit", "numa_miss", "numa_local", "numa_other", "pgreuse")
        zones = [zone for zone in machine.nodes[0].zones]
        # At a zone's mark, what per-CPU lists hold decides which zone is next.
        taken = sum(vmstat[f"pgalloc_{kind}"] for kind in ("dma", "dma32", "normal", "movable"))
        return ({name: vmstat[name] for name in names}, taken, p.rss,
                [sum(n << order for order, n in enumerate(zone.free_area)) - zone.free_pages
                 for zone in zones])

    def close(self):
        self.give_back()
        for child in self.children:
            child.exit()
        self.process.exit()
        self.machine.check()
        self.machine.close()


@settings(max_examples=25)
@example([("stores", (0, 600), 1), ("unmap", (3, 40), 1), ("fork", (0, 1), 1),
          ("stores", (0, 600), 1), ("exit", 0, 0), ("forget", (512, 512), 1),
          ("stores", (512, 100), 1), ("flush", (512, 64), 1), ("stores", (512, 100), 1)])
@example([("stores", (0, 70), 1), ("exhaust", 0, 300), ("stores", (0, 600), 1),
          ("give back", 0, 0), ("stores", (600, 400), 1)])
@example([("loads", (0, 600), 3), ("stores", (0, 600), 1), ("move", (0, 300), 1),
          ("stores", (300, 300), 1)])
@given(st.lists(steps, min_size=1, max_size=14))
def test_counts_are_those_of_a_machine_without_runs(sequence):
    """Step by step: free pages, allocations, page tables, faults, resident pages, contents."""
    ours, theirs = World(True), World(False)
    try:
        for step in sequence:
            ours.step(*step)
            theirs.step(*step)
            assert ours.counts() == theirs.counts(), step
            ours.machine.check()
        assert ours.bytes() == theirs.bytes()
    finally:
        ours.close()
        theirs.close()


def test_a_run_is_reserved_only_where_there_is_plenty():
    """A zone that is nearly full keeps its last large blocks for whoever asks for such."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        p = machine.spawn()
        zone = machine.nodes[0].zones[-1]
        taken = []
        while zone.free_pages > zone.watermark.high + zone.managed_pages // 8 + 400:
            taken.append(machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 9))
        assert zone.free_area[9] + zone.free_area[10] > 0
        at = p.mmap(None, 1 << 21, RW, ANON)
        touch(p.host_address(at), 20, True, None)
        assert p.mm.core.nr_runs == 0
        for page in taken:
            machine.free_pages(page, 9)
        touch(p.host_address(at) + 20 * PAGE_SIZE, 20, True, None)
        assert p.mm.core.nr_runs == 1
        machine.check()


def test_a_chunk_is_mapped_at_once():
    """Stores in order take few maps, and what was open stays open when its chunk is mapped."""
    with rm.Machine(1, "64M", window="1G", faults="sigsegv") as machine:
        p = machine.spawn()
        at = p.mmap(None, 1 << 21, RW, ANON)
        before = machine.hoststat
        touch(p.host_address(at), 512, True, None)
        after = machine.hoststat
        assert after["map_fill"] - before["map_fill"] < 20
        touch(p.host_address(at), 512, True, None)
        assert machine.hoststat["sigsegv"] == after["sigsegv"] == before["sigsegv"] + 512
        machine.check()


def test_a_chunk_replaces_nothing_else():
    """Where the host maps other frames, the zero page here, no chunk takes their place."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        p = machine.spawn()
        at = p.mmap(None, 12 << 21, RW, ANON)
        p.fill(at, 12 << 21, 0xEE)              # frames that are not zero
        p.munmap(at, 12 << 21)
        at = p.mmap(None, 1 << 21, RW, ANON)
        window = np.frombuffer(p.view(at, 1 << 21), dtype=np.uint64)
        odd = np.arange(1, 64, 2, dtype=np.uint32)
        touch(p.host_address(at), len(odd), False, odd)
        touch(p.host_address(at), len(odd), True, odd - 1)
        assert not window[odd.astype(np.int64) * 512].any()
        machine.check()
        del window


def test_no_run_for_what_is_no_whole_region():
    """2 MiB that are not one private VMA get single frames."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        p = machine.spawn()
        at = p.mmap(None, 1 << 22, RW, ANON)
        p.munmap(at + (1 << 20), PAGE_SIZE)
        touch(p.host_address(at), 10, True, None)
        assert p.mm.core.nr_runs == 0
        touch(p.host_address(at + (1 << 21)), 10, True, None)
        assert p.mm.core.nr_runs == 1
        machine.check()


def test_free_lists_show_what_runs_have_left():
    """buddyinfo and pagetypeinfo count a run's frames as the blocks that they would make."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        p = machine.spawn()
        at = p.mmap(None, 1 << 22, RW, ANON)
        touch(p.host_address(at), 3, True, None)
        for zone in machine.nodes[0].zones:
            assert sum(n << order for order, n in enumerate(zone.free_area)) == zone.free_pages
        machine.check()


@pytest.mark.parametrize("gfp", [GFP.ATOMIC | GFP.HIGH, GFP.KERNEL, GFP.KERNEL | GFP.RECLAIMABLE])
def test_pageblocks_that_change_their_type_take_runs_along(gfp):
    """Fallbacks and the high-atomic reserve find every frame that they would without runs."""
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        p = machine.spawn()
        at = p.mmap(None, 20 << 21, RW, ANON)
        for i in range(20):
            touch(p.host_address(at + (i << 21)), 5, True, None)
        # Frames that were given out and freed: others allocate them between the run's own.
        for i in range(20):
            p.madvise(at + (i << 21) + PAGE_SIZE, 3 * PAGE_SIZE, MADV_DONTNEED)
        machine.drain_all_pages()
        taken = []
        with contextlib.suppress(OutOfMemory):
            while True:
                taken.append(machine.alloc_pages(gfp | GFP.NOWARN, 1))
                if len(taken) % 1000 == 0:
                    machine.check()
        machine.check()
        for page in taken:
            machine.free_pages(page, 1)
        p.exit()
        machine.check()


@pytest.mark.parametrize("faults", BACKENDS)
@pytest.mark.parametrize("order", [2, 4, 8])
def test_folios_take_their_frames_from_runs(order, faults):
    """Neighbouring folios lie side by side, so that the host keeps them in one VMA."""
    needs_backend(faults)
    with rm.Machine(1, "64M", window="1G", faults=faults) as machine:
        machine.thp.set_order(order, "always")
        p = machine.spawn()
        at = p.mmap(None, 2 << 21, RW, ANON)
        assert at % (1 << 21) == 0
        free = machine.nodes[0].free_pages
        scattered = np.random.default_rng(order).permutation(1024).astype(np.uint32)
        touch(p.host_address(at), 1024, True, scattered)
        assert p.mm.core.nr_runs == 2
        assert p.min_flt == 1024 >> order
        assert p.mm.core.host_vmas <= 1 + 2 * 2
        frames = [p.walk(at + i * PAGE_SIZE)[-1].decoded["pfn"] for i in range(1024)]
        for base in (0, 512):
            assert frames[base:base + 512] == list(range(frames[base], frames[base] + 512))
        values = np.frombuffer(p.view(at, 2 << 21), np.uint64)[::512]
        assert values.tolist() == (np.argsort(scattered) + 1).tolist()
        machine.check()
        # A part of one that went is another frame when it comes back, and all are given back.
        p.madvise(at + 3 * PAGE_SIZE, PAGE_SIZE, rm.MADV_DONTNEED)
        assert values[3] == 0
        machine.check()
        child = p.fork()
        values = np.frombuffer(child.view(at, 2 << 21), np.uint64)[::512]
        assert values.tolist() == [0 if i == 3 else v
                                   for i, v in enumerate((np.argsort(scattered) + 1).tolist())]
        machine.check()
        child.exit()
        del values
        p.exit()
        machine.drain_all_pages()
        machine.check()
        assert machine.nodes[0].free_pages >= free
