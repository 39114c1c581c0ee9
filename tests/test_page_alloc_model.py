"""
The page allocator against a plain model: a million random operations, from one thread and two.

Every allocation must come from a zone and node that its flags allow, in the order that Linux
tries them, within the watermarks, aligned, and on nobody else's frames; every counter must say
what happened; and when everything is free again the free areas are what they were at boot.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import contextmanager

import pytest
from allocator_model import MIX, Mismatch, Model, random_walk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import realmem as rm
from realmem import GFP

# No ties, so that the order is the distances'.
DISTANCE = [[10, 20, 30], [20, 10, 40], [30, 40, 10]]


@contextmanager
def pinned(cpu):
    """Keep this thread on one CPU, so that its node is known."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def three_nodes(**options):
    """Build three small nodes: with all four zones, with Normal and Movable, without CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    specs = [
        rm.NodeSpec("24M", cpus=cpus[:1], distance=DISTANCE[0]),
        rm.NodeSpec("16M", cpus=cpus[1:], distance=DISTANCE[1]),
        rm.NodeSpec("12M", cpus=[], distance=DISTANCE[2]),
    ]
    zones = {"DMA": "4M", "DMA32": "16M", "Movable": "25%"}
    return rm.Machine(specs, zones=zones, **options), cpus[0]


def one_node(**options):
    """Build one node whose size is no multiple of the largest block."""
    cpus = sorted(os.sched_getaffinity(0))
    machine = rm.Machine([rm.NodeSpec(f"{10 * 1024 + 36}K", cpus=cpus)],
                         zones={"DMA": "0", "DMA32": "0"}, **options)
    return machine, cpus[0]


def test_the_machine_has_zones_of_every_kind():
    machine, _ = three_nodes()
    with machine:
        assert [[zone.name for zone in node.zones] for node in machine.nodes] == [
            ["DMA", "DMA32", "Normal", "Movable"], ["Normal", "Movable"], ["Normal"]]


@pytest.mark.conformance("BD-29", "CT-05", "CT-07", "CT-11", "CT-12", "CT-20")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_million_operations(seed, soak_factor):
    """Eight walks of 125,000 operations are the million."""
    machine, cpu = three_nodes(seed=seed)
    with machine, pinned(cpu):
        model = Model(machine, DISTANCE, cpu_nid=0)
        random_walk(model, seed, int(125_000 * soak_factor))
        assert model.failures > 1000, "the walk never ran out of memory"
        assert model.fallbacks > 1000, "the walk never fell back to another zone"
        model.free_everything()


def test_some_operations():
    """The same walk, short enough for every day."""
    machine, cpu = three_nodes()
    with machine, pinned(cpu):
        model = Model(machine, DISTANCE, cpu_nid=0)
        random_walk(model, 99, 25_000)
        model.free_everything()


@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_ends_within_a_block(seed):
    machine, cpu = one_node()
    with machine, pinned(cpu):
        model = Model(machine, [[10]], cpu_nid=0)
        random_walk(model, seed, 20_000)
        model.free_everything()


def test_with_poison_and_owners():
    machine, cpu = three_nodes(poison=True)
    with machine, pinned(cpu):
        model = Model(machine, DISTANCE, cpu_nid=0)
        random_walk(model, 11, 10_000, check_every=500)
        model.free_everything()


def test_changing_marks_midway():
    machine, cpu = three_nodes()
    with machine, pinned(cpu):
        model = Model(machine, DISTANCE, cpu_nid=0)
        rng = random.Random(5)
        for turn in range(8):
            machine.sysctl["vm.min_free_kbytes"] = rng.choice((128, 400, 2000, 6000))
            machine.sysctl["vm.percpu_pagelist_high_fraction"] = rng.choice((0, 8, 100))
            model.read_marks()
            random_walk(model, turn, 2000)
        model.free_everything()


def test_debug_2_recounts_after_each_operation():
    machine, cpu = one_node(debug=2)
    with machine, pinned(cpu):
        model = Model(machine, [[10]], cpu_nid=0)
        random_walk(model, 3, 1500)
        model.free_everything()


def test_the_model_notices():
    """The model itself is not blind: what it is told wrong, it refuses."""
    machine, cpu = three_nodes()
    with machine, pinned(cpu):
        model = Model(machine, DISTANCE, cpu_nid=0)
        block = model.alloc(GFP.KERNEL, 3, 1)
        with pytest.raises(Mismatch, match="overlaps"):
            model._take(block.page, 3)
        model.numa[1]["numa_hit"] += 1
        with pytest.raises(Mismatch, match="numa_hit"):
            model.check()
        model.numa[1]["numa_hit"] -= 1
        with pytest.raises(Mismatch, match="served from"):
            model._choice_is_right(model.zones[10], model.zonelist(GFP.DMA, 0), [1000], GFP.DMA, 0)
        with pytest.raises(Mismatch, match="though"):
            model._failure_is_right(
                model.zonelist(GFP.KERNEL, 2), [5000] * 5, GFP.KERNEL, 0)
        with pytest.raises(Mismatch, match="written"):
            machine.view(block.address, 8)[0] ^= 1
            model.free(0)
        machine.free_pages(block.page, 3)


# ---- threads ----

@pytest.mark.parametrize("pair", [0, 1])
def test_two_threads(pair):
    """Two threads allocate and free at once, a third recounts and drains."""
    machine, _ = three_nodes()
    used = bytearray(machine.nodes[-1].end_pfn)
    lock = threading.Lock()
    errors = []
    stop = threading.Event()
    with machine:
        boot = [zone.free_area for node in machine.nodes for zone in node.zones]

        def mark(pfns, order, value):
            with lock:
                for pfn in pfns:
                    span = slice(pfn, pfn + (1 << order))
                    assert used.count(1 - value, span.start, span.stop) == 1 << order, pfn
                    used[span] = bytes([value]) * (1 << order)

        def work(seed):
            rng = random.Random(seed)
            kept = []
            kinds = [gfp for gfp, _ in MIX]
            try:
                for turn in range(4000):
                    gfp = rng.choice(kinds)
                    if rng.random() < 0.5 and len(kept) < 60:
                        # These leave Python's lock: they really run side by side.
                        if turn & 1:
                            pages = machine.alloc_pages_bulk(gfp, rng.randrange(200))
                            mark(pages.pfns.tolist(), 0, 1)
                            kept.append((pages, None))
                            continue
                        order = rng.choice((0, 1, 3, 5, 9, 10))
                        try:
                            page = machine.alloc_pages(gfp, order)
                        except rm.OutOfMemory:
                            continue
                        mark([page.pfn], order, 1)
                        kept.append((page, order))
                    elif kept:
                        give_back(*kept.pop(rng.randrange(len(kept))))
                while kept:
                    give_back(*kept.pop())
            except BaseException as error:
                errors.append(error)
                raise

        def give_back(what, order):
            if order is None:
                mark(what.pfns.tolist(), 0, 0)
                machine.free_pages_bulk(what)
            else:
                mark([what.pfn], order, 0)
                machine.free_pages(what, order)

        def watch():
            try:
                turn = 0
                while not stop.wait(0.002):
                    turn += 1
                    machine.check()
                    if turn % 4 == 0:
                        machine.drain_all_pages()
            except BaseException as error:
                errors.append(error)
                raise

        watcher = threading.Thread(target=watch)
        workers = [threading.Thread(target=work, args=(10 * pair + i,)) for i in range(2)]
        for thread in (watcher, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        stop.set()
        watcher.join()
        assert errors == []
        # The threads' own lists went back when they ended: nothing is left to drain but ours.
        machine.check()
        machine.drain_all_pages()
        assert [zone.free_area for node in machine.nodes for zone in node.zones] == boot


# ---- hypothesis looks for short failing stories ----

class Story(RuleBasedStateMachine):
    """Any sequence of operations on one machine, which lives for all examples."""

    machine = None
    cpu = 0

    @initialize()
    def begin(self):
        if Story.machine is None:
            Story.machine, Story.cpu = three_nodes()
        self.model = Model(Story.machine, DISTANCE, cpu_nid=0)

    @rule(gfp=st.sampled_from([gfp for gfp, _ in MIX]), order=st.integers(0, 10),
          nid=st.sampled_from([None, 0, 1, 2]), n=st.integers(1, 40))
    def alloc(self, gfp, order, nid, n):
        for _ in range(n):
            if self.model.alloc(gfp, order, nid) is None:
                break

    @rule(gfp=st.sampled_from([gfp for gfp, _ in MIX]), n=st.integers(0, 3000),
          nid=st.sampled_from([None, 0, 1, 2]))
    def bulk(self, gfp, n, nid):
        self.model.bulk(gfp, n, nid)

    @precondition(lambda self: self.model.blocks)
    @rule(data=st.data(), n=st.integers(1, 400), how=st.sampled_from(["page", "addr"]))
    def free(self, data, n, how):
        for _ in range(min(n, len(self.model.blocks))):
            at = data.draw(st.integers(0, len(self.model.blocks) - 1)) if n < 5 else n % len(
                self.model.blocks)
            self.model.free(at, how)

    @rule()
    def drain(self):
        Story.machine.drain_all_pages()

    @rule(kbytes=st.sampled_from([128, 1000, 4000]))
    def marks(self, kbytes):
        Story.machine.sysctl["vm.min_free_kbytes"] = kbytes
        self.model.read_marks()

    @invariant()
    def the_books_are_right(self):
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self):
        if hasattr(self, "model"):
            self.model.free_everything()


def test_stories(soak_factor):
    machine, cpu = three_nodes()
    with machine, pinned(cpu):
        Story.machine, Story.cpu = machine, cpu
        try:
            from hypothesis.stateful import run_state_machine_as_test

            run_state_machine_as_test(Story, settings=settings(
                settings.get_profile("ci" if os.environ.get("CI") else "hand"),
                max_examples=int(25 * soak_factor), stateful_step_count=25))
        finally:
            Story.machine = None
