"""Accesses by the software MMU to what is present, beside plain loads of as much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.bench.fault_figures import Figure, Step
from realmem.bench.fault_ours import ANON, BASE, RW
from realmem.host import limits

if TYPE_CHECKING:
    from realmem.machine import Machine

MIB = 1 << 20
LARGE = 1024 * MIB
LARGE_ROUNDS = 6        # it takes seconds
ACCESSES = 1 << 20
LINE = 64
METRIC = "software access"


def software_steps(machine: Machine, rng: Any, quick: bool) -> list[Step]:
    """Give steps for each pattern; 1 GiB, which takes a machine of its own, unless quick."""
    steps: list[Step] = [
        partial(_step, machine, "sequential", 64 * MIB, None),
        partial(_step, machine, "random over 64 MiB", 64 * MIB, rng),
    ]
    if not quick and _memory_left() > 3 * LARGE:
        left = iter(range(LARGE_ROUNDS))
        steps.append(partial(_large, rng, left))
    return steps


def _memory_left(root: str = "/") -> int:
    """Give what the host, and every memory cgroup that this process is in, has left."""
    limit = limits.cgroup_memory_limits(root)[:1]
    return min([limits.available_memory(root) or 0, *(each.available_bytes for each in limit)])


def _large(rng: Any, left: Iterator[int]) -> Iterator[tuple[Figure, float]]:
    from realmem.machine import Machine

    if next(left, None) is not None:
        with Machine(nodes=1, memory="1200M") as machine:
            yield from _step(machine, "random over 1 GiB", LARGE, rng)


def _step(
    machine: Machine, pattern: str, length: int, rng: Any
) -> Iterator[tuple[Figure, float]]:
    import numpy as np

    from realmem._bench.kernel_pages import KernelPages, load_all

    offsets = (
        np.arange(ACCESSES, dtype=np.uint64) * np.uint64(LINE)
        if rng is None
        else rng.integers(0, length, ACCESSES).astype(np.uint64)
    )
    p = machine.spawn("bench")
    p.mmap(BASE, length, RW, ANON)
    p.touch(BASE, length, write=True)
    ours = offsets + np.uint64(BASE)
    access = p.mm.core.access_all
    access(ours, None)
    begin = time.perf_counter_ns()
    access(ours, None)
    ns = (time.perf_counter_ns() - begin) / len(ours)
    p.exit()
    yield Figure(METRIC, 0, pattern, 1, "realmem"), ns
    memory = KernelPages(length // 4096)
    memory.touch(True)
    theirs = offsets + np.uint64(memory.address)
    load_all(theirs)
    yield Figure(METRIC, 0, pattern, 1, "native"), load_all(theirs)
    memory.close()
