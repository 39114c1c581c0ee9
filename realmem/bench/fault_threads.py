"""
Threads that fault at once: in one process, and each in its own.

All windows are of one host process: where the kernel's own threads or processes go on beside each
other, ours meet at its lock for every change of a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from realmem.bench.fault_figures import Figure, Step
from realmem.bench.fault_ours import ANON, RW
from realmem.bench.pin import run_pinned
from realmem.layout import PAGE_SIZE

if TYPE_CHECKING:
    from realmem.machine import Machine

PAGES = 1024    # a thread
ONE = "anonymous write, one process"
OWN = "anonymous write, own processes"


class _Touches:
    """Loops that each touch their own pages."""

    def __init__(self, touches: list[Callable[[], float]]) -> None:
        self._touches = touches
        self.ns = [0.0] * len(touches)

    def work(self, index: int) -> None:
        """Touch as thread ``index``."""
        self.ns[index] = self._touches[index]()

    def stop(self) -> None:
        """End soon: the loops are short."""


def thread_steps(machine: Machine, cpus: list[int], kernel: bool = True) -> list[Step]:
    """Give steps for 1, 2, 4 ... threads, a CPU each; the kernel's as well, or ours only."""
    counts = sorted({min(1 << i, len(cpus)) for i in range(len(cpus).bit_length() + 1)})
    return [
        partial(step, machine, cpus[:count])
        for count in counts
        for step in ((_ours, _kernels) if kernel else (_ours,))
    ]


def _slowest(touches: list[Callable[[], float]], cpus: list[int]) -> float:
    session = _Touches(touches)
    run_pinned(session, cpus)
    return max(session.ns)


def _ours(machine: Machine, cpus: list[int]) -> Iterator[tuple[Figure, float]]:
    from realmem._bench.fault_loops import touch

    length = PAGES * PAGE_SIZE
    for metric, own in ((ONE, False), (OWN, True)):
        processes = [machine.spawn("bench") for _ in (cpus if own else cpus[:1])]
        regions = [p.host_address(p.mmap(None, length, RW, ANON)) for p in processes]
        while len(regions) < len(cpus):
            p = processes[0]
            regions.append(p.host_address(p.mmap(None, length, RW, ANON)))
        ns = _slowest([partial(touch, at, PAGES, True) for at in regions], cpus)
        for p in processes:
            p.exit()
        yield Figure(metric, 0, "in order", len(cpus), "realmem", machine.faults), ns


def _kernels(machine: Machine, cpus: list[int]) -> Iterator[tuple[Figure, float]]:
    from realmem._bench.kernel_pages import KernelPages, in_processes

    memories = [KernelPages(PAGES) for _ in cpus]
    ns = _slowest([partial(memory.touch, True) for memory in memories], cpus)
    for memory in memories:
        memory.close()
    yield Figure(ONE, 0, "in order", len(cpus), "kernel"), ns
    yield Figure(OWN, 0, "in order", len(cpus), "kernel"), in_processes(cpus, PAGES)
