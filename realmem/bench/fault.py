"""
What a page fault costs: ours, the kernel's own, and the floor under ours.

All figures are nanoseconds a 4 KiB page, from compiled loops that touch one word of each page.
In each round every figure is taken once, in rotated order, so that a clock that drifts meets all
alike; ratios are taken within a round.  ``who`` says whose figure it is:

- ``realmem``: a raw load or store through a window, served by the handler; or, where the metric
  begins with ``software``, the software MMU.  A fork is given a present page, what an empty
  address space costs taken off: of pages mapped writable in the window, and of page tables only.
- ``kernel``: the same on ordinary anonymous memory of this process, by the kernel it runs on.
- ``floor``: a bare C handler that makes the same host call and does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.bench.pin import pinned_to
from realmem.bench.registry import Bench, Options
from realmem.bench.results import UNVERIFIED, Param, Result
from realmem.layout import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from realmem.machine import Machine

PAGES = 1024
FORK_PAGES = 8192
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS

Figure = tuple[str, str, str]  # metric, pattern, who


def run(options: Options) -> Iterator[Result]:
    """
    Measure single faults of 4 KiB on one node.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: results: times, then ratios.
    """
    from realmem.machine import Machine

    options.progress("a machine on one node")
    with Machine(nodes=1, memory="256M", seed=options.seed) as machine:
        node = machine.nodes[0]
        with pinned_to(sorted(node.cpus)[:1]):
            samples = _measure(machine, options)
        on = node.host_node
        stamps = (UNVERIFIED,) if machine.unverified else ()
        for (metric, pattern, who), values in samples.items():
            params: dict[str, Param] = {"order": 0, "pattern": pattern, "who": who}
            yield Result("fault", metric, "ns", tuple(values), on, on, params, stamps)
        for metric, pattern, who in samples:
            if who == "realmem":
                continue
            ours = samples.get((metric, pattern, "realmem"))
            if ours is None:
                continue
            theirs = samples[metric, pattern, who]
            ratios = tuple(a / b for a, b in zip(ours, theirs, strict=True) if b > 0)
            if ratios:
                params = {"order": 0, "pattern": pattern, "who": f"realmem/{who}"}
                yield Result("fault", metric, "ratio", ratios, on, on, params, stamps)


def _measure(machine: Machine, options: Options) -> dict[Figure, list[float]]:
    import numpy as np

    rounds = 5 if options.quick else 25
    order = np.random.default_rng(options.seed).permutation(PAGES).astype(np.uint32)
    steps: list[Callable[[], Iterator[tuple[Figure, float]]]] = []
    for pattern, pages in (("in order", None), ("scattered", order)):
        steps += [
            partial(_ours, machine, pattern, pages),
            partial(_kernel, pattern, pages),
            partial(_floor, pattern, pages),
        ]
    steps += [partial(_our_fork, machine), _kernel_fork]
    samples: dict[Figure, list[float]] = {}
    for turn in range(rounds + 1):
        options.progress(f"faults, round {turn + 1} of {rounds + 1}")
        for i in range(len(steps)):
            for figure, ns in steps[(turn + i) % len(steps)]():
                if turn:  # the first round warms up
                    samples.setdefault(figure, []).append(ns)
    return dict(sorted(samples.items()))


def _ours(machine: Machine, pattern: str, order: Any) -> Iterator[tuple[Figure, float]]:
    from realmem._bench.fault_loops import touch

    p = machine.spawn("bench")
    length = PAGES * PAGE_SIZE
    a = p.mmap(None, length, RW, ANON)
    at = p.host_address(a)
    yield ("anonymous write", pattern, "realmem"), touch(at, PAGES, True, order)
    p.mm.core.flush(a, a + length)
    yield ("refill", pattern, "realmem"), touch(at, PAGES, True, order)
    child = p.fork()
    yield ("cow copy", pattern, "realmem"), touch(at, PAGES, True, order)
    child.exit()
    child = p.fork()
    child.exit()
    yield ("cow reuse", pattern, "realmem"), touch(at, PAGES, True, order)
    p.munmap(a, length)
    a = p.mmap(None, length, RW, ANON)
    at = p.host_address(a)
    yield ("zero page read", pattern, "realmem"), touch(at, PAGES, False, order)
    if order is None:
        p.munmap(a, length)
        a = p.mmap(None, length, RW, ANON)
        begin = time.perf_counter_ns()
        p.touch(a, length, write=True)
        ns = (time.perf_counter_ns() - begin) / PAGES
        yield ("software first touch", pattern, "realmem"), ns
    p.exit()


def _kernel(pattern: str, order: Any) -> Iterator[tuple[Figure, float]]:
    from realmem._bench.fault_loops import KernelPages, Sharer

    memory = KernelPages(PAGES)
    yield ("anonymous write", pattern, "kernel"), memory.touch(True, order)
    sharer = Sharer()
    yield ("cow copy", pattern, "kernel"), memory.touch(True, order)
    sharer.close()
    Sharer().close()
    yield ("cow reuse", pattern, "kernel"), memory.touch(True, order)
    memory.close()
    memory = KernelPages(PAGES)
    yield ("zero page read", pattern, "kernel"), memory.touch(False, order)
    memory.close()
    if order is None:
        memory = KernelPages(PAGES)
        yield ("software first touch", pattern, "kernel"), memory.touch(True)
        memory.close()


def _floor(pattern: str, order: Any) -> Iterator[tuple[Figure, float]]:
    from realmem._bench.fault_loops import floor

    by_map = floor(PAGES, "mmap", order)
    by_protect = floor(PAGES, "mprotect", order)
    yield ("signal+mmap", pattern, "floor"), by_map
    yield ("signal+mprotect", pattern, "floor"), by_protect
    yield ("anonymous write", pattern, "floor"), by_map
    yield ("zero page read", pattern, "floor"), by_map
    yield ("refill", pattern, "floor"), by_map
    yield ("cow copy", pattern, "floor"), floor(PAGES, "copy+mmap", order)
    yield ("cow reuse", pattern, "floor"), by_protect


def _our_fork(machine: Machine) -> Iterator[tuple[Figure, float]]:
    p = machine.spawn("bench")
    a = p.mmap(None, FORK_PAGES * PAGE_SIZE, RW, ANON)

    def fork() -> int:
        begin = time.perf_counter_ns()
        child = p.fork()
        spent = time.perf_counter_ns() - begin
        child.exit()
        p.wait()
        return spent

    empty = min(fork() for _ in range(3))
    p.touch(a, FORK_PAGES * PAGE_SIZE, write=True)
    present = min(fork() for _ in range(3))
    yield ("fork, tables only", "in order", "realmem"), (present - empty) / FORK_PAGES
    from realmem._bench.fault_loops import touch

    best = []
    for _ in range(3):
        touch(p.host_address(a), FORK_PAGES, True)  # writable in the window again
        best.append(fork())
    yield ("fork, mapped pages", "in order", "realmem"), (min(best) - empty) / FORK_PAGES
    p.exit()


def _kernel_fork() -> Iterator[tuple[Figure, float]]:
    from realmem._bench.fault_loops import KernelPages, Sharer

    def fork() -> float:
        sharer = Sharer()
        sharer.close()
        return float(sharer.fork_ns)

    empty = min(fork() for _ in range(3))
    memory = KernelPages(FORK_PAGES)
    memory.touch(True)
    present = min(fork() for _ in range(3))
    memory.close()
    ns = (present - empty) / FORK_PAGES
    yield ("fork, mapped pages", "in order", "kernel"), ns
    yield ("fork, tables only", "in order", "kernel"), ns


BENCH = Bench("fault", "Cost of a page fault, beside the kernel's own", run)
