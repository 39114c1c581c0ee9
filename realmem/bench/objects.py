"""
What an object costs: slab caches and kmalloc, by size, pattern and thread, beside mallocs.

All figures are nanoseconds for one allocation and its free, with one store to the object between
them.  The loops are compiled (``cython/realmem/_bench/objects.pyx``); rows that are compared run
in turns within one session, and there are several sessions.

Beside them stand tcmalloc, mimalloc and jemalloc where the host has them installed (Debian's
``libtcmalloc-minimal4``, ``libmimalloc2.0``, ``libjemalloc2``).  Libraries that keep thread-local
data need room for it when a program loads them late: ``GLIBC_TUNABLES=
glibc.rtld.optional_static_tls=65536`` before the start makes that room.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from realmem.bench.alloc import runnable
from realmem.bench.pin import pinned_to, run_pinned
from realmem.bench.registry import Bench, Options
from realmem.bench.results import EMULATED, UNVERIFIED, Param, PeerResult, Result
from realmem.layout import SLAB

if TYPE_CHECKING:
    from realmem.machine import Machine

SIZES = (8, 64, 192, 1024, 4096)
BATCHES = (10, 100, 1000)
BATCH_PATTERNS = ("lifo", "fifo", "random")
SESSIONS = 5
OURS = ("kmem_cache", "kmalloc")
PEERS = (
    ("tcmalloc", ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"), "tc_"),
    ("mimalloc", ("libmimalloc.so.2", "libmimalloc.so.3"), "mi_"),
    ("jemalloc", ("libjemalloc.so.2",), ""),
)


@dataclass
class Row:
    """
    A row.

    :ivar allocator: its name.
    :ivar label: what tells the row from the others in results.
    :ivar ns: a sample a round.
    """

    allocator: str
    label: dict[str, Param]
    ns: list[float] = field(default_factory=list)


class Session:
    """
    Rows measured in turns by pinned threads, on one machine.

    :param machine: what serves ours.
    :param options: see :class:`realmem.bench.registry.Options`.
    """

    def __init__(self, machine: Machine, options: Options) -> None:
        from realmem._bench import objects

        node = machine.nodes[0]
        most = min(len(runnable(node)), options.threads or 2, 2)
        self._machine = machine
        self._quick = options.quick
        self._cpus = runnable(node)[:most]
        self._compiled = objects
        self._session = objects.Session(most, 20 if options.quick else 80)
        self._shuffler = random.Random(options.seed)
        self.rows: list[Row] = []

    def add_all(self, size: int, mallocs: Mapping[str, tuple[int, int]], passing: bool) -> None:
        """Add all rows of one size, those that are compared one after the other."""
        compiled = self._compiled
        cache = self._machine.kmem_cache_create(f"bench-{size}", size, flags=SLAB.NO_MERGE)
        everybody = [compiled.of_cache(cache), compiled.of_kmalloc(cache, size)]
        everybody += [compiled.of_malloc(name, *both, size) for name, both in mallocs.items()]
        for pattern, held, threads in plan(len(self._cpus), self._quick, passing):
            for allocator in everybody:
                self._add(allocator, pattern, size, held, threads)

    def _add(self, allocator: Any, pattern: str, size: int, held: int, threads: int) -> None:
        """Add a row of about two thousand pairs a sample."""
        shuffle = list(range(held))
        self._shuffler.shuffle(shuffle)
        turns = 100 if pattern == "passed" else max(1, 2000 // held)
        self._session.add(allocator, pattern, threads, held, turns, shuffle)
        label: dict[str, Param] = {"size": size, "pattern": pattern, "threads": threads}
        if held > 1:
            label["held"] = held
        self.rows.append(Row(allocator.name, label))

    def measure(self) -> None:
        """
        Run all rounds and fill in the rows' samples.

        :raises MemoryError: an allocator ran out.
        :raises OSError: a CPU is not allowed.
        """
        run_pinned(self._session, self._cpus)
        for number, row in enumerate(self.rows):
            row.ns = self._session.samples(number)


def plan(threads: int, quick: bool, passing: bool) -> Iterator[tuple[str, int, int]]:
    """List the (pattern, held, threads) of one size; what passes objects on stands apart."""
    if passing:
        if threads > 1:
            yield "passed", 1, 2
        return
    patterns: list[tuple[str, int]] = [("same", 1)]
    if quick:
        patterns += [("random", 100)]
    else:
        patterns += itertools.product(BATCH_PATTERNS, BATCHES)
    for pattern, held in patterns:
        for nr in range(1, threads + 1):
            yield pattern, held, nr


def run(options: Options) -> Iterator[Result]:
    """
    Measure slab caches and kmalloc on one node.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: results, as they come.
    """
    from realmem.machine import Machine

    rows = measure(options, {})
    with Machine(nodes=1, memory="256M" if options.quick else "512M") as machine:
        for row in rows:
            yield _result(row.allocator, row.ns, row.label, machine)
        options.progress("objects from Python")
        yield from _from_python(machine, options)
        yield from _constructed(machine, options)


def measure(options: Options, mallocs: Mapping[str, tuple[int, int]]) -> list[Row]:
    """
    Measure all rows in several sessions, each with a machine and threads of its own.

    How addresses fall on a processor's caches stays the same for a session and may make any
    row up to twice as slow: a row's samples are of several.  Passing objects between threads
    leaves every allocator's memory mixed, so those rows come after all others.

    :param options: see :class:`realmem.bench.registry.Options`.
    :param mallocs: allocators beside ours: addresses of malloc and free by name.
    :return: the rows, each with the samples of all sessions.
    """
    from realmem.machine import Machine

    rows: dict[tuple[object, ...], Row] = {}
    sessions = 1 if options.quick else SESSIONS
    for number in range(2 * sessions):
        options.progress(f"objects, session {number + 1} of {2 * sessions}")
        with Machine(nodes=1, memory="256M" if options.quick else "512M") as machine:
            session = Session(machine, options)
            for size in SIZES:
                session.add_all(size, mallocs, passing=number >= sessions)
            session.measure()
        for row in session.rows:
            key = (row.allocator, *row.label.items())
            if key in rows:
                rows[key].ns += row.ns
            else:
                rows[key] = row
    return list(rows.values())


# ---- from Python ----


def _from_python(machine: Machine, options: Options) -> Iterator[Result]:
    cache = machine.kmem_cache_create("bench-64", 64, flags=SLAB.NO_MERGE)
    rounds = 20 if options.quick else 100
    figures: dict[str, list[float]] = {"cache.alloc": [], "kmalloc": [], "alloc_bulk": []}
    with pinned_to(runnable(machine.nodes[0])[:1]):
        for _ in range(rounds):
            figures["cache.alloc"].append(_pair_ns(cache.alloc, cache.free))
            figures["kmalloc"].append(_sized_pair_ns(machine.kmalloc, machine.kfree))
            figures["alloc_bulk"].append(_bulk_ns(cache, 1000))
    for metric, samples in figures.items():
        yield _result(metric, samples, {"size": 64, "caller": "python"}, machine)


def _pair_ns(alloc: Any, free: Any, turns: int = 1000) -> float:
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, turns):
        free(alloc())
    return (time.perf_counter_ns() - start) / turns


def _sized_pair_ns(alloc: Any, free: Any, turns: int = 1000) -> float:
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, turns):
        free(alloc(64))
    return (time.perf_counter_ns() - start) / turns


def _bulk_ns(cache: Any, n: int) -> float:
    start = time.perf_counter_ns()
    cache.free_bulk(cache.alloc_bulk(n))
    return (time.perf_counter_ns() - start) / n


# ---- constructors ----


def _constructed(machine: Machine, options: Options) -> Iterator[Result]:
    """Yield what a constructor spares: a KiB initialised once, or at each allocation."""
    from realmem._bench import constructed

    size = constructed.SIZE
    made = machine.kmem_cache_create("bench-constructed", size, ctor=constructed.CONSTRUCTOR)
    plain = machine.kmem_cache_create("bench-initialised", size, flags=SLAB.NO_MERGE)
    rounds = 20 if options.quick else 100
    for held in (1, *BATCHES):
        with pinned_to(runnable(machine.nodes[0])[:1]):
            once, each = constructed.measure(made, plain, held, max(1, 2000 // held), rounds)
        label: dict[str, Param] = {"size": size, "pattern": "fifo" if held > 1 else "same"}
        if held > 1:
            label["held"] = held
        yield _result("constructed once", once, label, machine)
        yield _result("initialised each time", each, label, machine)


# ---- beside mallocs ----


def load(names: tuple[str, ...], prefix: str) -> tuple[int, int] | None:
    """
    Find an allocator's malloc and free.

    :param names: of its shared library, the first that can be loaded is taken.
    :param prefix: of the functions' names.
    :return: their addresses, or None where it is not installed or can't be loaded this late.
    """
    for name in names:
        try:
            library = ctypes.CDLL(name)
            found = [
                ctypes.cast(getattr(library, prefix + verb), ctypes.c_void_p).value
                for verb in ("malloc", "free")
            ]
        except (OSError, AttributeError):
            continue
        if found[0] and found[1]:
            return found[0], found[1]
    return None


def peers(options: Options) -> Iterator[PeerResult]:
    """
    Measure mallocs in turns with slab caches and kmalloc.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: for each peer, row and of ours one result; one without figures where a peer is
        missing.
    """
    found = {name: load(files, prefix) for name, files, prefix in PEERS}
    for name, functions in found.items():
        if functions is None:
            yield PeerResult("objects", name, "kmem_cache", "ns")
    if not any(found.values()):
        return
    yield from _compare(
        measure(options, {name: both for name, both in found.items() if both is not None})
    )


def _compare(rows: list[Row]) -> Iterator[PeerResult]:
    ours: dict[str, Row] = {}
    for row in rows:
        if row.allocator in OURS:
            ours[row.allocator] = row
            continue
        for metric, mine in ours.items():
            yield PeerResult(
                "objects",
                row.allocator,
                metric,
                "ns",
                ours=tuple(mine.ns),
                theirs=tuple(row.ns),
                params=row.label,
            )


def _result(
    metric: str, samples: list[float], label: dict[str, Param], machine: Machine
) -> Result:
    node = machine.nodes[0]
    stamps = [EMULATED] if node.emulated else []
    if machine.unverified:
        stamps.append(UNVERIFIED)
    return Result(
        "objects",
        metric,
        "ns",
        tuple(samples),
        cpu_node=node.host_node,
        memory_node=node.host_node,
        params=label,
        stamps=tuple(stamps),
    )


BENCH = Bench("objects", "Cost of an object: slab caches and kmalloc", run, peers)
