"""
What over-allocation costs: one store, by how much of the memory is wanted.

A process has touched so many percent of a machine's memory (``wanted``), pages of which it then
stores to at random, one word each.  Below 100 % all of them are present.  Above, what the others
push out comes back from a swap file, after something else went: the working set does not fit, and
no policy can help.  ``p50``, ``p99`` and ``p99.9`` are nanoseconds a store, of one round each;
they have the clock's own cost in them (``idle`` is the same on one page).  ``stores`` counts
those a second.

``by`` says how: raw stores through a window, whose faults the handler serves, or the software MMU.
The swap file lies where temporary files do, mostly in the host's page cache: a disk is slower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realmem.bench.pin import pinned_to
from realmem.bench.registry import Bench, Options
from realmem.bench.results import UNVERIFIED, Result
from realmem.layout import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from realmem.machine import Machine

MIB = 1 << 20
WANTED = (25, 50, 75, 90, 95, 100, 105, 110, 125, 150, 200, 300)
QUICK_WANTED = (50, 90, 110, 200)
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
STORES = 4000
WORD = 8


def run(options: Options) -> Iterator[Result]:
    """
    Measure stores on a machine of one node, from idle to thrashing.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: results: percentiles and stores a second, by the memory that is wanted.
    """
    from realmem.machine import Machine

    memory = (32 if options.quick else 128) * MIB
    rounds = 3 if options.quick else 9
    with tempfile.TemporaryDirectory(prefix="realmem-") as folder:
        for wanted in ("idle", *(QUICK_WANTED if options.quick else WANTED)):
            for by in ("raw",) if options.quick else ("raw", "software MMU"):
                options.progress(f"{wanted} % of the memory, {by}")
                with Machine(1, str(memory), seed=options.seed) as machine:
                    machine.swapon(Path(folder, "swap"), size=4 * memory)
                    yield from _figures(machine, wanted, by, rounds, options.seed)


def _figures(machine: Machine, wanted: int | str, by: str, rounds: int,
             seed: int) -> Iterator[Result]:
    import numpy as np

    node = machine.nodes[0]
    pages = 1 if wanted == "idle" else node.free_pages * int(wanted) // 100
    p = machine.spawn("bench")
    a = p.mmap(None, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in (*PERCENTILES, "stores")}
    with pinned_to(sorted(node.cpus)):
        if by == "raw":                 # the host has what is present mapped
            np.frombuffer(p.view(a, pages * PAGE_SIZE), dtype=np.uint64)[:: PAGE_SIZE // WORD] = 1
        else:
            p.touch(a, pages * PAGE_SIZE, write=True)
        for turn in range(rounds + 1):
            order = rng.integers(0, pages, STORES)
            times = _raw(p, a, pages, order) if by == "raw" else _software(p, a, order)
            if turn:                # the first one warms up
                for name, percent in PERCENTILES.items():
                    samples[name].append(float(np.percentile(times, percent)))
                samples["stores"].append(STORES / (float(times.sum()) / 1e9))
    stamps = (UNVERIFIED,) if machine.unverified else ()
    for name, values in samples.items():
        unit = "1/s" if name == "stores" else "ns"
        yield Result("pressure", name, unit, tuple(values), node.host_node, node.host_node,
                     {"wanted": wanted if wanted == "idle" else f"{wanted} %", "by": by},
                     stamps, higher_is_better=name == "stores")


def _raw(p: Any, a: int, pages: int, order: Any) -> Any:
    import numpy as np

    words = np.frombuffer(p.view(a, pages * PAGE_SIZE), dtype=np.uint64)
    where = (order * (PAGE_SIZE // WORD)).tolist()
    now = time.perf_counter_ns
    times = [0] * len(where)
    for i, at in enumerate(where):
        begin = now()
        words[at] = i
        times[i] = now() - begin
    return np.array(times)


def _software(p: Any, a: int, order: Any) -> Any:
    import numpy as np

    where = (order * PAGE_SIZE + a).tolist()
    now = time.perf_counter_ns
    times = [0] * len(where)
    for i, at in enumerate(where):
        begin = now()
        p.write(at, b"pressure")
        times[i] = now() - begin
    return np.array(times)


BENCH = Bench("pressure", "Cost of a store, by how much of the memory is wanted", run)
