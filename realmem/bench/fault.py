"""
What a page fault costs: ours, the kernel's own, and the floor under ours.

All figures are nanoseconds a 4 KiB page (of ``software access``: an access), from compiled loops
that touch one word of each page.  In each round every figure is taken once, in rotated order, so
that a clock that drifts meets all alike; ratios are taken within a round.  ``order`` says how many
pages a fault may bring, ``who`` whose figure it is:

- ``realmem``: a raw load or store through a window, served by the handler; or, where the metric
  begins with ``software``, the software MMU.  ``cow copy`` is the parent's, which keeps the frame
  that its window has and gives the copy away; ``cow copy, child`` has to map it.  A fork is given
  a present page, what an empty address space costs taken off: of pages mapped writable in the
  window, and of page tables only.
- ``kernel``: the same on ordinary memory of this process, by the kernel it runs on: at the same
  order where its settings allow that, else there is none.  ``kernel 4K``: as many single pages.
- ``floor``: a bare C handler that makes the same host calls, as many and of the same pages, and
  does nothing else but copy, where ours does; ``floor+zero`` clears the pages as well.  Of a
  fork, one mprotect of the same window.  ``native``: the loads alone.  ``1 thread`` in ratios:
  the same by one.

``faults`` says which backend a machine's faults are filled by: all that the host allows are.
Where shared memory may have huge pages (``/sys/kernel/mm/transparent_hugepage/shmem_enabled`` is
``advise``), a machine with ``backing="thp"`` is measured, too, with folios of 2 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.backends import SIGSEGV, choose
from realmem.bench.fault_figures import filled
from realmem.bench.fault_floor import floors
from realmem.bench.fault_kernel import kernel_faults, kernel_fork, kernel_orders
from realmem.bench.fault_ours import FaultPlan, our_faults, our_fork
from realmem.bench.fault_software import software_steps
from realmem.bench.fault_threads import thread_steps
from realmem.bench.pin import pinned_to
from realmem.bench.registry import Bench, Options
from realmem.bench.results import UNVERIFIED, Param, Result
from realmem.thp import PMD_ORDER

if TYPE_CHECKING:
    from contextlib import ExitStack

    from realmem.bench.fault_figures import Figure, Step
    from realmem.machine import Machine

# Orders, and how many pages are touched at each.
PAGES = {0: 1024, 4: 4096, 9: 8192}


def run(options: Options) -> Iterator[Result]:
    """
    Measure faults on one node; of single pages by one thread if quick.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: results: times, then ratios.
    """
    from contextlib import ExitStack

    from realmem.machine import Machine

    options.progress("machines on one node")
    with ExitStack() as stack:
        machines = [
            stack.enter_context(
                Machine(nodes=1, memory="256M", seed=options.seed, faults=backend)
            )
            for backend in sorted({SIGSEGV, choose("auto")})
        ]
        if not options.quick:
            machines += _on_huge_pages(stack, options)
        machine = machines[0]
        node = machine.nodes[0]
        on = node.host_node
        stamps = (UNVERIFIED,) if machine.unverified else ()
        cpus = sorted(node.cpus)

        def result(figure: Figure, who: str, unit: str, values: list[float]) -> Result:
            params: dict[str, Param] = {**figure.params, "who": who}
            return Result("fault", figure.metric, unit, tuple(values), on, on, params, stamps)

        with pinned_to(cpus[:1]):
            samples = _rounds(_steps(machines, options, cpus), options)
        for figure, values in samples.items():
            yield result(figure, figure.who, "ns", values)
        for figure, values in samples.items():
            for who, theirs in _compared(figure, samples):
                ratios = [a / b for a, b in zip(values, theirs, strict=True) if b > 0]
                if ratios:
                    yield result(figure, f"realmem/{who}", "ratio", ratios)


def _on_huge_pages(stack: ExitStack, options: Options) -> list[Machine]:
    """Make a machine on huge pages, if the host gives them."""
    from realmem.errors import HostError
    from realmem.machine import Machine

    try:
        return [
            stack.enter_context(
                Machine(nodes=1, memory="256M", seed=options.seed, backing="thp", faults=SIGSEGV)
            )
        ]
    except HostError:
        return []


def _steps(machines: list[Machine], options: Options, cpus: list[int]) -> list[Step]:
    import numpy as np

    rng = np.random.default_rng(options.seed)
    theirs = kernel_orders()
    steps: list[Step] = []
    for order, n in PAGES.items():
        if options.quick and order:
            continue
        for pattern in ("in order", "scattered"):
            pages = rng.permutation(n).astype(np.uint32) if pattern == "scattered" else None
            for machine in machines:
                plan = FaultPlan(order, n, pattern, pages, filled(machine))
                if machine.backing == "4K":
                    steps += [partial(our_faults, machine, plan), partial(floors, plan)]
                elif order == PMD_ORDER:
                    steps.append(partial(our_faults, machine, plan))
            steps.append(partial(kernel_faults, plan, False))
            if order and order in theirs:
                steps.append(partial(kernel_faults, plan, True))
    steps += [partial(our_fork, machine) for machine in machines] + [kernel_fork]
    if not options.quick:
        for machine in machines:
            if machine.backing != "4K":
                continue
            steps += thread_steps(machine, cpus[: options.threads], machine is machines[0])
    steps += software_steps(machines[0], rng, options.quick)
    return steps


def _rounds(steps: list[Callable[[], Any]], options: Options) -> dict[Figure, list[float]]:
    rounds = 3 if options.quick else 25
    samples: dict[Figure, list[float]] = {}
    for turn in range(rounds + 1):
        options.progress(f"faults, round {turn + 1} of {rounds + 1}")
        for i in range(len(steps)):
            for figure, ns in steps[(turn + i) % len(steps)]():
                if turn:  # the first round warms up
                    samples.setdefault(figure, []).append(ns)
    return dict(sorted(samples.items()))


def _compared(
    figure: Figure, samples: dict[Figure, list[float]]
) -> Iterator[tuple[str, list[float]]]:
    """Give what one of our figures is compared with: whose, and the samples."""
    if figure.who != "realmem":
        return
    for who in ("kernel", "kernel 4K", "floor", "floor+zero", "native"):
        theirs = samples.get(figure.of(who))
        if theirs is not None:
            yield who, theirs
    if figure.threads > 1:
        yield "1 thread", samples[figure.by_one()]


BENCH = Bench("fault", "Cost of a page fault, beside the kernel's own", run)
