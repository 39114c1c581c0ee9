"""Faults and forks of simulated processes, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from realmem.bench.fault_figures import Figure, filled
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.thp import PMD_ORDER

if TYPE_CHECKING:
    from realmem.machine import Machine
    from realmem.process import Process

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
SHARED = MAP_SHARED | MAP_ANONYMOUS
FORK_PAGES = 8192
# By who has none of the pages mapped, so that nothing can be donated.
COW_BY_CHILD = "cow copy, child"
# Aligned as the largest folio, and somewhere where nothing else is.
BASE = 1 << 32


# What hoststat counts, and what a floor calls it.
CALLS = {"map_fill": "mmap", "mprotect": "mprotect", "uffd_continue": "continue"}


@dataclass
class FaultPlan:
    """
    What is touched.

    :ivar order: of the folios that faults may bring.
    :ivar n: pages.
    :ivar pattern: its name.
    :ivar pages: permutation of page numbers; None goes up.
    :ivar faults: how the machine fills (:func:`realmem.bench.fault_figures.filled`).
    :ivar calls: by metric, the host call that most of our faults made, and the order of what one
        brought: the floor does the same.
    """

    order: int
    n: int
    pattern: str
    pages: Any
    faults: str = "sigsegv"
    calls: dict[str, tuple[str, int]] = field(default_factory=dict)

    def figure(self, metric: str, who: str) -> Figure:
        """Name a figure."""
        return Figure(metric, self.order, self.pattern, 1, who, self.faults)


class _Timed:
    """A process, and a look at which host calls its faults make."""

    def __init__(self, machine: Machine, plan: FaultPlan) -> None:
        self.machine = machine
        self.plan = plan
        self.process: Process = machine.spawn("bench")

    def map(self, flags: int) -> int:
        """Map the region anew."""
        length = self.plan.n * PAGE_SIZE
        self.process.mmap(BASE, length, RW, flags | MAP_FIXED)
        return self.process.host_address(BASE)

    def touch(
        self, metric: str, write: bool, process: Process | None = None
    ) -> tuple[Figure, float]:
        """Touch each page once, as another process than usual if one is given."""
        from realmem._bench.fault_loops import touch

        at = (process or self.process).host_address(BASE)
        before = self.machine.hoststat
        ns = touch(at, self.plan.n, write, self.plan.pages)
        after = self.machine.hoststat
        made = {name: after[name] - before[name] for name in (*CALLS, "sigsegv")}
        self.plan.calls[metric] = (
            CALLS[max(CALLS, key=lambda name: made[name])],
            min(self.plan.order, (self.plan.n // max(made["sigsegv"], 1)).bit_length() - 1),
        )
        return self.plan.figure(metric, "realmem"), ns


def our_faults(machine: Machine, plan: FaultPlan) -> Iterator[tuple[Figure, float]]:
    """Take each kind of fault once."""
    for order in machine.thp.orders:
        machine.thp.set_order(order, "always" if order == plan.order else "never")
    t = _Timed(machine, plan)
    p = t.process
    length = plan.n * PAGE_SIZE
    t.map(ANON)
    yield t.touch("anonymous write", True)
    p.mm.core.flush(BASE, BASE + length)
    yield t.touch("refill", True)
    child = p.fork()
    yield t.touch("cow copy", True)
    child.exit()
    if plan.order == 0:
        child = p.fork()
        yield t.touch(COW_BY_CHILD, True, child)
        child.exit()
        t.touch("cow reuse", True)  # opened again
    child = p.fork()
    child.exit()
    yield t.touch("cow reuse", True)
    t.map(ANON)
    yield t.touch("zero page read", False)
    if plan.order == 0:
        t.map(SHARED)
        yield t.touch("shared write", True)
    if plan.pages is None:
        t.map(ANON)
        begin = time.perf_counter_ns()
        p.touch(BASE, length, write=True)
        ns = (time.perf_counter_ns() - begin) / plan.n
        yield plan.figure("software first touch", "realmem"), ns
    p.exit()
    if plan.order:
        machine.thp.set_order(plan.order, "never")


def our_fork(machine: Machine) -> Iterator[tuple[Figure, float]]:
    """
    Fork a process with pages, and one without; by folios of 2 MiB on huge backing.

    Each fork, and the floor, comes after as many faults: what they left in the caches is the same.
    """
    from realmem._bench.fault_floor import write_protect
    from realmem._bench.fault_loops import touch

    p, faults = machine.spawn("bench"), filled(machine)
    bare = machine.spawn("bench")
    huge = machine.backing != "4K"
    if huge:
        machine.thp.set_order(PMD_ORDER, "always")
    a = p.mmap(BASE, FORK_PAGES * PAGE_SIZE, RW, ANON | MAP_FIXED)
    at = p.host_address(a)

    def fork(parent: Process) -> int:
        begin = time.perf_counter_ns()
        child = parent.fork()
        spent = time.perf_counter_ns() - begin
        child.exit()
        parent.wait()
        return spent

    def touched() -> None:
        fork(p)
        touch(at, FORK_PAGES, True)  # writable in the window again

    samples: dict[str, list[float]] = {}
    p.touch(a, FORK_PAGES * PAGE_SIZE, write=True)
    each = [(fork(p), fork(bare)) for _ in range(5)]
    tables = min(ours for ours, _ in each) - min(empty for _, empty in each)
    for _ in range(2):
        touched()
        samples.setdefault("floor", []).append(write_protect(at, FORK_PAGES))
        touched()
        samples.setdefault("bare", []).append(fork(bare))
        touched()
        samples.setdefault("mapped", []).append(fork(p))
    bare.exit()
    p.exit()
    if huge:
        machine.thp.set_order(PMD_ORDER, "never")
    mapped = min(samples["mapped"]) - min(samples["bare"])
    for metric, ns in (("fork, tables only", tables), ("fork, mapped pages", mapped)):
        yield Figure(metric, 0, "in order", 1, "realmem", faults), ns / FORK_PAGES
    floor = Figure("fork, mapped pages", 0, "in order", 1, "floor", faults)
    yield floor, min(samples["floor"])
