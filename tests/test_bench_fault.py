"""The bench of faults: which figures it takes, and which host calls its floor makes."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS, needs_backend
from fake_host import write

import realmem as rm
from realmem._bench.fault_floor import HOW, floor, floor_calls, write_protect
from realmem._bench.fault_loops import touch
from realmem._bench.kernel_pages import KernelPages, in_processes, load_all
from realmem.bench import fault, fault_software
from realmem.bench.fault_floor import floors
from realmem.bench.fault_kernel import kernel_faults, kernel_orders
from realmem.bench.fault_ours import ANON, BASE, CALLS, RW, FaultPlan, our_faults, our_fork
from realmem.bench.fault_threads import thread_steps
from realmem.bench.registry import Options

SETTINGS = "sys/kernel/mm/transparent_hugepage"
PMD, SMALLER = "hugepages-2048kB/enabled", "hugepages-64kB/enabled"
GIB = 1 << 30


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M", window="1G", faults="sigsegv") as machine:
        yield machine
        machine.check()


class Machines(dict[str, rm.Machine]):
    """A machine of each backend, made when it is asked for."""

    def __missing__(self, faults):
        needs_backend(faults)
        self[faults] = rm.Machine(nodes=1, memory="64M", window="1G", faults=faults)
        return self[faults]


@pytest.fixture(scope="module")
def machines():
    made = Machines()
    yield made
    for machine in made.values():
        machine.check()
        machine.close()


@pytest.mark.parametrize(
    ("words", "orders"),
    [
        ({}, {0}),
        ({"enabled": "always madvise [never]"}, {0}),
        ({"enabled": "always [madvise] never"}, {0, 9}),        # before 6.8
        ({"enabled": "[always] madvise never", PMD: "always [inherit] never",
          SMALLER: "[always] inherit never"}, {0, 9}),
        ({"enabled": "always madvise [never]", PMD: "always [inherit] never",
          SMALLER: "always inherit [madvise] never"}, {0, 4}),
        ({"enabled": "[always] madvise never", PMD: "always inherit [never]"}, {0}),
    ],
)
def test_orders_are_those_that_the_host_gives_who_asks(tmp_path, words, orders):
    write(tmp_path, {f"{SETTINGS}/{name}": text for name, text in words.items()})
    assert kernel_orders(tmp_path / SETTINGS) == orders


@pytest.mark.parametrize(("limit", "expected"), [("max", 8 * GIB), (str(2 * GIB), GIB)])
def test_what_is_left_is_what_the_cgroup_leaves(tmp_path, limit, expected):
    write(tmp_path, {
        "proc/meminfo": f"MemAvailable: {8 * GIB >> 10} kB",
        "proc/self/cgroup": "0::/a",
        "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/a/memory.max": limit, "sys/fs/cgroup/a/memory.current": str(GIB)})
    assert fault_software._memory_left(str(tmp_path)) == expected


@pytest.mark.parametrize("order", [0, 4, 9])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("faults", BACKENDS)
def test_the_floor_follows_our_faults(machines, faults, order, scattered):
    machine = machines[faults]
    n = 1024
    pages = np.random.default_rng(order).permutation(n).astype(np.uint32) if scattered else None
    plan = FaultPlan(order, n, "some", pages, faults)
    ours = dict(our_faults(machine, plan))
    assert all(ns > 0 for ns in ours.values())
    # Single pages are opened in runs that are mapped already; by userfaultfd, all below 2 MiB.
    opened = {"sigsegv": {0: "mprotect"}, "userfaultfd": {0: "continue", 4: "continue"}}
    assert plan.calls["anonymous write"] == (opened[faults].get(order, "mmap"), order)
    assert not machine.processes
    theirs = dict(floors(plan))
    assert all(ns > 0 for ns in theirs.values())
    kinds = {figure.metric for figure in ours} - {"software first touch"}
    bare = {"sigsegv": "signal+mprotect", "userfaultfd": "signal+continue"}
    assert {figure.metric for figure in theirs} == kinds | {"signal+mmap", bare[faults]}
    for huge in {False, order > 0}:
        kernels = {figure.metric for figure, ns in kernel_faults(plan, huge) if ns > 0}
        assert kernels == {figure.metric for figure in ours} - {"refill"}
    # The handler is ours again.
    p = machine.spawn()
    at = p.mmap(None, rm.PAGE_SIZE, RW, ANON)
    p.view(at, 1)[0] = 1
    assert p.min_flt == 1
    p.exit()


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("faults", BACKENDS)
def test_the_floor_makes_the_calls_that_ours_make(machines, faults, scattered):
    machine, n = machines[faults], 1024
    pages = np.random.default_rng(5).permutation(n).astype(np.uint32) if scattered else None
    p = machine.spawn()
    p.mmap(BASE, n * rm.PAGE_SIZE, RW, ANON | rm.MAP_FIXED)
    before = machine.hoststat
    assert touch(p.host_address(BASE), n, True, pages) > 0
    ours = {name: machine.hoststat[name] - before[name] for name in CALLS}
    p.exit()
    assert floor(n, {"sigsegv": "run", "userfaultfd": "run continue"}[faults], 0, pages) > 0
    assert floor_calls() == ours
    assert ours["map_fill"] < n / 10


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("copies", [False, True])
def test_floors_leave_nothing_mapped_or_open(how, copies):
    def held():
        here = Path("/proc/self")
        return len(list((here / "fd").iterdir())), (here / "maps").read_text().count("-floor")

    before = held()
    order = np.arange(63, -1, -1, dtype=np.uint32)
    assert floor(64, how, 4, order, copies) > 0
    assert held() == before
    made = {name for name, n in floor_calls().items() if n} - (
        {"map_fill"} if "run" in how else set())
    assert made == {"uffd_continue" if "continue" in how else
                    "map_fill" if how == "mmap" else "mprotect"}


def test_the_floor_of_forks_leaves_what_it_measured_writable(machine):
    p = machine.spawn()
    at = p.mmap(None, 64 * 4096, RW, ANON)
    view = p.view(at, 64 * 4096)
    view[:] = bytes([1]) * len(view)
    before = machine.hoststat["sigsegv"]
    assert write_protect(p.host_address(at), 64) > 0
    view[:] = bytes([2]) * len(view)
    assert machine.hoststat["sigsegv"] == before
    with pytest.raises(OSError, match="floor"):
        write_protect(4096 * 7, 64)


def test_huge_backing_is_measured_by_folios_of_2_mib(machine, monkeypatch):
    monkeypatch.setattr(machine, "backing", "thp")
    before = machine.hoststat["map_fill"]
    figures = dict(our_fork(machine))
    assert {figure.faults for figure in figures} == {"sigsegv on thp"}
    assert all(ns > 0 for ns in figures.values())
    # 16 folios, mapped a few times over, not 8192 pages.
    assert 0 < machine.hoststat["map_fill"] - before < 512
    steps = [s for s in fault._steps([machine], Options(), [0]) if isinstance(s, partial)]
    assert [step.args[1].order for step in steps if step.func is our_faults] == [9, 9]
    assert not any(step.func is floors for step in steps)


def test_what_the_host_refuses_is_an_error():
    with pytest.raises(OSError, match="floor") as caught:
        floor(1 << 40, "mmap")
    assert caught.value.errno in (errno.ENOMEM, errno.EFBIG, errno.EINVAL)
    with pytest.raises(MemoryError):
        KernelPages(1 << 40)
    with pytest.raises(ValueError, match="256 at most"):
        in_processes([0] * 257, 1)
    assert load_all(np.empty(0, np.uint64)) == 0.0


def test_threads_are_no_more_than_cpus(machine):
    cpus = sorted(os.sched_getaffinity(0))[:1]
    figures = [figure for step in thread_steps(machine, cpus) for figure, ns in step() if ns > 0]
    assert {(figure.threads, figure.who) for figure in figures} == {(1, "realmem"), (1, "kernel")}
    assert len(figures) == 4


def test_each_of_our_figures_stands_beside_others(monkeypatch):
    monkeypatch.setitem(fault.PAGES, 0, 64)
    monkeypatch.setattr(fault_software, "MIB", 1 << 10)
    monkeypatch.setattr(fault_software, "ACCESSES", 1 << 10)
    results = list(fault.run(Options(quick=True)))
    times = {(r.metric, r.params["pattern"], r.params["who"]) for r in results if r.unit == "ns"}
    ratios = {(r.metric, r.params["pattern"], r.params["who"]) for r in results if r.unit != "ns"}
    for metric, pattern, who in times:
        if who == "realmem" and (metric, pattern, "floor") in times:
            assert (metric, pattern, "realmem/floor") in ratios
    assert ("software access", "sequential", "realmem/native") in ratios
    assert not any(who == "realmem/kernel 4K" for _, _, who in ratios)
    assert all(len(r.samples) == 3 for r in results if r.unit == "ns")
