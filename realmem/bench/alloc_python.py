"""
Allocations as a Python loop pays for them.

The loop's own turn, about 20 ns, is in every figure.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from realmem.layout import GFP_KERNEL

if TYPE_CHECKING:
    from realmem.bench.registry import Options
    from realmem.bench.results import Param
    from realmem.machine import Machine

SIZES = (64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20)
QUICK_SIZES = (64, 4 << 10, 64 << 10, 1 << 20)
KMALLOC_MAX_SIZE = 4 << 20
ROUND_BYTES = 64 << 10          # so much a sample, and at least one allocation

Found = tuple[str, list[float], "dict[str, Param]"]


def pages(machine: Machine, options: Options) -> Iterator[Found]:
    """Yield page allocation: (metric, samples in ns, parameters)."""
    rounds = 30 if options.quick else 300
    yield (
        "get_free_pages+free_pages",
        [python_pair_ns(machine) for _ in range(rounds)],
        {"order": 0, "caller": "python"},
    )
    yield (
        "alloc_pages_bulk",
        [python_bulk_ns(machine, 64) for _ in range(rounds)],
        {"pages": 64, "caller": "python"},
    )


def sizes(machine: Machine, options: Options) -> Iterator[Found]:
    """
    Yield kmalloc, vmalloc and kvmalloc by size: what mapping pages costs a small request.

    They run in turns; kmalloc has no sizes beyond 4 MiB.
    """
    ways = {
        "kmalloc+kfree": (machine.kmalloc, machine.kfree),
        "vmalloc+vfree": (machine.vmalloc, machine.vfree),
        "kvmalloc+kvfree": (machine.kvmalloc, machine.kvfree),
    }
    samples: dict[tuple[str, int], list[float]] = {
        (metric, size): []
        for size in (QUICK_SIZES if options.quick else SIZES)
        for metric in ways
        if size <= KMALLOC_MAX_SIZE or metric != "kmalloc+kfree"
    }
    for _ in range(10 if options.quick else 40):
        for (metric, size), figures in samples.items():
            figures.append(python_size_ns(*ways[metric], size))
    for (metric, size), figures in samples.items():
        yield metric, figures, {"size_bytes": size}


def python_size_ns(
    alloc: Callable[[int], int], free: Callable[[int], None], size: int
) -> float:
    """Time an allocation of ``size`` bytes and its free."""
    turns = max(1, ROUND_BYTES // max(size, 1 << 10))
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, turns):
        free(alloc(size))
    return (time.perf_counter_ns() - start) / turns


def python_pair_ns(machine: Machine, turns: int = 1000) -> float:
    """Time ``machine.get_free_pages`` and ``machine.free_pages`` in a plain loop."""
    get, free, gfp = machine.get_free_pages, machine.free_pages, GFP_KERNEL
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, turns):
        free(get(gfp, 0), 0)
    return (time.perf_counter_ns() - start) / turns


def python_bulk_ns(machine: Machine, pages: int) -> float:
    """Time ``machine.alloc_pages_bulk``, a page; giving them back is not timed."""
    spent = 0
    turns = 16
    for _ in range(turns):
        start = time.perf_counter_ns()
        got = machine.alloc_pages_bulk(GFP_KERNEL, pages)
        spent += time.perf_counter_ns() - start
        machine.free_pages_bulk(got)
    return spent / (turns * pages)
