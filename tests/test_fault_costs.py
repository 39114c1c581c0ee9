"""machine.fault_costs(): how many faults of which kind, between which nodes, and their parts."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from lifetime import address_space

import realmem as rm
from realmem import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem._core import fault_costs as core
from realmem.fault_costs import PARTS, FaultKey, Histogram

RW, ANON, SHARED = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
P = PAGE_SIZE


@pytest.fixture
def machine():
    with rm.Machine(nodes=2, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


def counts(machine, way=None):
    return {key: cost.count for key, cost in machine.fault_costs(way).items()}


def test_nothing_was_mapped_yet(machine):
    assert machine.fault_costs() == {}
    machine.spawn()
    assert machine.fault_costs() == {}


def test_each_kind_is_counted_between_its_nodes(machine):
    process = machine.spawn(node=1)
    at = process.mmap(None, 64 * P, RW, ANON)
    process.touch(at, 5 * P)
    zero = machine.pfn_to_page(process.walk(at)[-1].decoded["pfn"]).node
    assert counts(machine) == {("zero_page", 0, 1, zero): 5}
    process.touch(at, 3 * P, write=True)                # over the zero page, a new frame
    process.fill(at + 10 * P, 4 * P, 1)
    child = process.fork()
    child.run_on(node=0)
    child.write(at + 10 * P, b"x")                      # copied
    child.exit()
    process.write(at + 10 * P, b"y")                    # the last owner's
    process.write(at + 11 * P, b"y")
    shared = process.mmap(None, 8 * P, RW, SHARED)
    process.touch(shared, 2 * P, write=True)
    assert counts(machine) == {
        ("zero_page", 0, 1, zero): 5, ("anon", 0, 1, 1): 7, ("cow", 0, 0, 0): 1,
        ("reuse", 0, 1, 1): 2, ("shared", 0, 1, 1): 2,
    }
    assert counts(machine, "software") == counts(machine)
    assert counts(machine, "raw") == {}


def test_the_order_of_a_folio_is_told(machine):
    machine.sysfs["/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"] = "always"
    process = machine.spawn(node=0)
    at = process.mmap(None, 1 << 20, RW, ANON)
    process.write(at + 5 * P, b"x")
    assert counts(machine) == {("anon", 4, 0, 0): 1}


@pytest.mark.parametrize("way", ["software", "raw"])
def test_the_order_of_zero_pages_is_told(machine, way):
    machine.sysfs["/sys/kernel/mm/transparent_hugepage/enabled"] = "always"
    process = machine.spawn(node=0)
    at = process.mmap(None, 4 << 20, PROT_READ, ANON)
    at += -at % (2 << 20)
    small = process.mmap(None, P, PROT_READ, ANON)
    with process.guard():
        for where in (at, at + P, small):
            if way == "raw":
                process.view(where, P)[0]
            else:
                process.read(where, 1)
    counted = {}
    for (kind, order, *_), cost in machine.fault_costs(way).items():
        counted[kind, order] = counted.get((kind, order), 0) + cost.count
    assert counted == {("zero_page", 9): 1, ("zero_page", 0): 1}
    assert sum(cost.count for cost in machine.fault_costs().values()) == 2


def test_nodes_without_faults_take_no_addresses():
    with rm.Machine(nodes=64, memory="2M", window="1G") as machine:
        before = address_space()
        process = machine.spawn(node=63)
        at = process.mmap(None, P, RW, ANON)
        process.write(at, b"x")
        (key,) = machine.fault_costs()
        assert key[:3] == ("anon", 0, 63)
        # Two windows' worth while a place is looked for; a row is 13 MiB.
        assert address_space() - before < (1 << 30) + (200 << 20)
        held = address_space()
        for node in range(8):
            process.run_on(node=node)
            process.madvise(at, P, rm.MADV_DONTNEED)
            process.write(at, b"x")
        assert {key.cpu_node for key in machine.fault_costs()} == {*range(8), 63}
        assert address_space() - held < 150 << 20
        held = address_space()
        process.exit()
        del process
    del machine
    gc.collect()
    assert held - address_space() > 9 * (12 << 20)


def test_what_the_host_has_no_room_to_note_is_served_all_the_same(python):
    done = python("""if True:
        import resource
        from pathlib import Path
        import realmem as rm

        RW, ANON = rm.PROT_READ | rm.PROT_WRITE, rm.MAP_PRIVATE | rm.MAP_ANONYMOUS
        with rm.Machine(nodes=2, memory="16M", window="1G") as machine:
            process = machine.spawn(node=0)
            at = process.mmap(None, 8 * 4096, RW, ANON)
            view = process.view(at, 8 * 4096)
            process.write(at, b"x")
            first = machine.fault_costs()
            assert list(first) == [("anon", 0, 0, 0)], first
            process.run_on(node=1)
            machine.check()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
            process.write(at + 4096, b"y")
            with process.guard():
                view[2 * 4096] = 1
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            assert machine.pfn_to_page(process.walk(at + 4096)[-1].decoded["pfn"]).node == 1
            raw = sum(cost.count for cost in machine.fault_costs("raw").values())
            assert {key.cpu_node for key in machine.fault_costs("software")} == {0}
            process.write(at + 3 * 4096, b"z")      # and noted again once there is room
            assert {key.cpu_node for key in machine.fault_costs("software")} == {0, 1}
            machine.check()
            print("served", process.read(at + 4096, 1), raw in (0, 1))
    """)
    assert done.stdout == "served b'y' True\n", done.stderr


def test_raw_faults_have_a_signal_and_a_host_map(machine):
    process = machine.spawn()
    at = process.mmap(None, 64 * P, RW, ANON)
    view = process.view(at, 64 * P)
    with process.guard():
        for page in range(0, 64 * P, 2 * P):
            view[page] = 1
    process.touch(at + P, 1, write=True)
    raw, software = machine.fault_costs("raw"), machine.fault_costs("software")
    assert sum(cost.count for cost in raw.values()) == 32
    assert sum(cost.count for cost in software.values()) == 1
    (cost,) = (c for c in raw.values() if c.count > 16)     # the thread may have moved once
    medians = {part: getattr(cost, part).percentile(50) for part in PARTS}
    assert medians["signal"] > 300                          # a system call is dearer than that
    assert medians["host_map"] > 100
    # Of medians this is not exact; of one and the same fault it would be.
    parts = sum(ns for part, ns in medians.items() if part != "total")
    assert 0.5 < parts / medians["total"] < 1.5
    (cost,) = software.values()
    assert cost.signal.percentile(100) == 0
    assert cost.total.percentile(50) > cost.zero_or_copy.percentile(50) > 0
    assert sum(c.count for c in machine.fault_costs().values()) == 33


def test_signals_that_could_not_be_timed_are_not_said_to_be_free(monkeypatch, machine):
    """At the host's limit of VMAs there is no page to take their time with."""
    monkeypatch.setattr(core, "probe", list)
    process = machine.spawn()
    at = process.mmap(None, P, RW, ANON)
    process.view(at, P)[0] = 1
    (cost,) = machine.fault_costs().values()
    assert cost.count == cost.total.count == 1
    assert cost.signal.count == 0 and math.isnan(cost.signal.percentile(50))
    assert "nan" in str(machine.fault_costs())


def test_many_faults_are_all_counted_and_some_timed(machine):
    process = machine.spawn(node=0)
    at = process.mmap(None, 4096 * P, RW, ANON)
    process.touch(at, 4096 * P, write=True)
    cost = machine.fault_costs()[FaultKey("anon", 0, 0, 0)]
    assert cost.count == 4096
    assert 256 < cost.total.count < 1024
    assert {getattr(cost, part).count for part in PARTS[1:]} == {cost.total.count}
    process.touch(at + P, P, write=False)
    shared = process.mmap(None, P, RW, SHARED)
    process.write(shared, b"x")         # the first of its kind is timed, however late it comes
    cost = machine.fault_costs()[FaultKey("shared", 0, 0, 0)]
    assert cost.count == cost.total.count == 1
    assert cost.total.percentile(50) > cost.alloc.percentile(50) > 0


def test_threads_lose_no_fault(machine):
    processes = [machine.spawn(node=0) for _ in range(4)]

    def touch(process):
        at = process.mmap(None, 512 * P, RW, ANON)
        for _ in range(10):
            process.touch(at, 512 * P, write=True)
            process.madvise(at, 512 * P, rm.MADV_DONTNEED)

    threads = [threading.Thread(target=touch, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(machine) == {("anon", 0, 0, 0): 4 * 10 * 512}


def test_what_could_not_be_served_is_not_counted(machine):
    process = machine.spawn(node=0)
    with pytest.raises(rm.SegmentationFault):
        process.read(0x1000, 1)
    at = process.mmap(None, P, PROT_READ, ANON)
    with pytest.raises(rm.SegmentationFault):
        process.write(at, b"x")
    at = process.mmap(None, P, RW, ANON)
    with machine.inject("page_alloc", probability=1), pytest.raises(rm.OutOfMemory):
        process.write(at, b"x")
    assert counts(machine) == {}


def test_another_way_is_refused(machine):
    with pytest.raises(ValueError, match="'raw', 'software' or None"):
        machine.fault_costs("hardware")
    with pytest.raises(TypeError, match="way"):
        machine.fault_costs(5)


def test_it_prints_as_a_table(machine):
    process = machine.spawn(node=1)
    process.touch(process.mmap(None, P, RW, ANON), P, write=True)
    head, names, row = str(machine.fault_costs()).splitlines()
    assert "ns" in head and names.split()[-len(PARTS):] == list(PARTS)
    assert row.split()[:4] == ["anon", "0", "1>1", "1"]


def test_a_closed_machine_has_none():
    machine = rm.Machine(nodes=1, memory="16M")
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.fault_costs()


# ---- the clock, the buckets, the percentiles --------------------------------

def test_the_clock_agrees_with_the_hosts(machine):
    process = machine.spawn()
    mmu = process.mm.core.mmu
    time.sleep(0.05)
    first = core.ns_per_cycle(mmu)
    time.sleep(0.2)
    assert core.ns_per_cycle(mmu) == pytest.approx(first, rel=0.02)


def test_buckets_are_narrow_and_leave_no_gap():
    bounds = core.bucket_bounds()
    assert bounds[:17] == list(range(17))
    assert all(a < b for a, b in pairwise(bounds))
    assert all((b - a) / a <= 1 / 8 for a, b in pairwise(bounds[16:]))


@pytest.mark.parametrize("q", [0, 1, 25, 50, 90, 99, 100])
def test_percentiles_are_numpys(q):
    rng = np.random.default_rng(q)
    samples = np.sort(rng.integers(0, 50, 1000))
    values, times = np.unique(samples, return_counts=True)
    histogram = Histogram(values.astype(float), times.astype(float))
    assert histogram.count == 1000
    assert histogram.percentile(q) == np.percentile(samples, q, method="inverted_cdf")


@pytest.mark.parametrize("q", [-1, 100.5, float("nan")])
def test_no_such_percentile(q):
    with pytest.raises(ValueError, match="within 0 and 100"):
        Histogram(np.ones(1), np.ones(1)).percentile(q)


def test_nothing_has_no_percentile():
    assert math.isnan(Histogram(np.empty(0), np.empty(0)).percentile(50))


def test_probing_leaves_the_signal_as_it_was(machine):
    process = machine.spawn()
    at = process.mmap(None, P, RW, ANON)
    process.view(at, P)[0] = 1
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSEGV])
    try:
        samples = core.probe()
        assert signal.SIGSEGV in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert len(samples) == core.NR_PROBES
    assert min(samples) > 100
    process.view(at, P)[1] = 1          # and faults are served as before
    assert process.read(at, 2) == b"\1\1"
