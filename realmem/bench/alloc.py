"""
What a page allocation costs: by order, pattern and thread, local and remote, warm and cold.

All figures are nanoseconds for one block: a pair is one allocation and its free.  The loops are
compiled (``cython/realmem/_bench/alloc.pyx``) and call the allocator as any other compiled
module does; rows that are compared run in turns within one session, so that a clock that drifts
or a neighbour that wakes up meets all of them alike.

Two states of the free lists are measured: ``fresh``, as the machine came up, and ``aged``,
after three quarters of the memory were taken page by page and a random half of it given back.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from realmem.bench import alloc_python
from realmem.bench.alloc_rows import Row, Rows, llfree_path
from realmem.bench.pin import pinned_to
from realmem.bench.registry import Bench, Options
from realmem.bench.results import EMULATED, UNVERIFIED, Param, PeerResult, Result
from realmem.layout import MAX_PAGE_ORDER

if TYPE_CHECKING:
    from realmem.machine import Machine
    from realmem.node import Node

ORDERS = range(MAX_PAGE_ORDER + 1)
NODE_ORDERS = (0, 3, 9)
NODE_HELD_BYTES = 16 << 20      # blocks alive at once in the local and remote figures
BULK_PAGES = (16, 64, 512)


def run(options: Options) -> Iterator[Result]:
    """
    Measure one machine over the host's nodes, then the first of them in depth.

    :param options: see :class:`realmem.bench.registry.Options`.
    :return: results, as they come.
    """
    from realmem.machine import Machine

    memory = "128M" if options.quick else "512M"
    options.progress("a machine on every node")
    with Machine(memory=memory, seed=options.seed) as machine:
        yield from _by_node(machine, options)
        yield from _from_c(machine, options)
        yield from _from_python(machine, options)


# ---- local and remote ----


def _by_node(machine: Machine, options: Options) -> Iterator[Result]:
    """Yield the cost of alloc_pages_node() for each CPU node and memory node."""
    for cpu_node in machine.nodes:
        if not runnable(cpu_node):
            continue
        options.progress(f"alloc_pages_node from node {cpu_node.id}")
        rows = Rows(runnable(cpu_node)[:1], rounds=20 if options.quick else 60)
        for memory_node in machine.nodes:
            if not memory_node.memory:
                continue
            allocator = rows.realmem(machine, memory_node.id)
            for order, touch in itertools.product(NODE_ORDERS, (False, True)):
                held = max(1, NODE_HELD_BYTES >> 12 >> order)
                rows.add(
                    Row(
                        allocator,
                        "touch" if touch else "lifo",
                        order,
                        held=held,
                        turns=1,
                        label={"order": order, "first_touch": touch},
                        nodes=(cpu_node, memory_node),
                    )
                )
        rows.measure()
        for row in rows.rows:
            assert row.nodes is not None
            yield _result("alloc_pages_node", row.get_ns, row, machine)


# ---- orders, patterns, threads ----


def _from_c(machine: Machine, options: Options) -> Iterator[Result]:
    """Yield pairs and batches on the first node that has CPUs and memory."""
    node = _local(machine)
    if node is None:
        return
    most = min(len(runnable(node)), options.threads or 2, 2)
    for state in ("fresh",) if options.quick else ("fresh", "aged"):
        options.progress(f"orders and patterns, {state} free lists")
        rows = Rows(runnable(node)[:most], rounds=40 if options.quick else 300)
        allocator = rows.realmem(machine, node.id)
        with rows.aged(allocator, node.free_pages * 3 // 4, options.seed, state == "aged"):
            for row in _orders(allocator, node.free_pages, most, options):
                row.label["state"] = state
                row.nodes = (node, node)
                rows.add(row)
            rows.measure()
        for row in rows.rows:
            if row.pattern in ("pair", "random", "lifo"):
                yield _result("alloc+free", row.pair_ns, row, machine)
            if row.pattern == "bulk":
                yield _result("alloc_pages_bulk", row.get_ns, row, machine)
                yield _result("free_pages_bulk", row.put_ns, row, machine)


def _orders(allocator: object, free_pages: int, most: int, options: Options) -> Iterator[Row]:
    shuffler = random.Random(options.seed)
    for order in ORDERS:
        held = max(1, min(256, free_pages >> order >> 3))
        for pattern in ("pair",) if options.quick else ("pair", "lifo", "random"):
            # Batches of two threads only measure how long a zone's lock is fought over.
            alone = pattern != "pair" or (options.quick and order > 0)
            for threads in range(1, (1 if alone else most) + 1):
                yield batch_row(allocator, pattern, order, threads, held, shuffler)
    for pages in BULK_PAGES:
        label: dict[str, Param] = {"order": 0, "pattern": "bulk", "threads": 1, "pages": pages}
        yield Row(allocator, "bulk", 0, held=pages, turns=max(1, 1024 // pages), label=label)


def batch_row(
    allocator: object, pattern: str, order: int, threads: int, held: int, shuffler: random.Random
) -> Row:
    """
    Make a row of the session.

    :param allocator: see :class:`realmem.bench.alloc_rows.Rows`.
    :param pattern: ``"pair"``, ``"lifo"`` or ``"random"``.
    :param order: of the blocks.
    :param threads: how many run it at once.
    :param held: blocks alive at once, a thread; pairs hold one.
    :param shuffler: of the order in which ``"random"`` frees.
    """
    label: dict[str, Param] = {"order": order, "pattern": pattern, "threads": threads}
    if pattern == "pair":
        return Row(allocator, pattern, order, threads=threads, turns=4000, label=label)
    shuffle = list(range(held))
    shuffler.shuffle(shuffle)
    turns = max(1, 1024 // held)
    label["held"] = held
    return Row(
        allocator, pattern, order, threads, held, turns, shuffle=tuple(shuffle), label=label
    )


# ---- from Python ----


def _from_python(machine: Machine, options: Options) -> Iterator[Result]:
    """Yield what a Python loop pays, its own turn included."""
    node = _local(machine)
    if node is None:
        return
    options.progress("calls from Python")
    with pinned_to(runnable(node)[:1]):
        found = [*alloc_python.pages(machine, options), *alloc_python.sizes(machine, options)]
    for metric, samples, label in found:
        row = Row(None, "pair", 0, label=label, nodes=(node, node))
        yield _result(metric, samples, row, machine)


# ---- beside LLFree ----


def peers(options: Options) -> Iterator[PeerResult]:
    """
    Measure LLFree's C port and ours in turns, pairs of 1 GiB of frames.

    :param options: ``peers_dir`` is where ``libllfree.so`` is looked for.
    :return: one result for each of BESIDE, or one without figures where it is not there.
    """
    path = llfree_path(options.peers_dir)
    if path is None:
        yield PeerResult("alloc", "llfree", "alloc+free", "ns")
    else:
        yield from _beside(path, options)


# Orders and threads; two threads at order 10 make LLFree print warnings.
BESIDE = ((0, 1), (1, 1), (2, 1), (3, 1), (9, 1), (10, 1), (0, 2), (9, 2))


def _beside(path: Path, options: Options) -> Iterator[PeerResult]:
    from realmem.machine import Machine

    options.progress("page allocations beside LLFree")
    with Machine(nodes=1, memory="256M" if options.quick else "1G", seed=options.seed) as machine:
        node = machine.nodes[0]
        rows = Rows(runnable(node)[:2], rounds=60 if options.quick else 400)
        ours = rows.realmem(machine, 0)
        theirs = rows.llfree(path, frames=node.memory >> 12)
        shuffler = random.Random(options.seed)
        for order, threads in BESIDE:
            if threads <= rows.threads:
                for allocator in (ours, theirs):
                    rows.add(batch_row(allocator, "pair", order, threads, 1, shuffler))
        rows.measure()
        for mine, llfree in zip(rows.rows[::2], rows.rows[1::2], strict=True):
            yield PeerResult(
                "alloc",
                "llfree",
                "alloc+free",
                "ns",
                ours=tuple(mine.get_ns),
                theirs=tuple(llfree.get_ns),
                params=mine.label,
            )


def runnable(node: Node) -> list[int]:
    """Give the CPUs of a node that this process may run on."""
    return sorted(os.sched_getaffinity(0).intersection(node.cpus))


def _local(machine: Machine) -> Node | None:
    return next((node for node in machine.nodes if runnable(node) and node.memory), None)


def _result(metric: str, samples: Sequence[float], row: Row, machine: Machine) -> Result:
    assert row.nodes is not None
    cpu_node, memory_node = row.nodes
    stamps = []
    if cpu_node.emulated or memory_node.emulated:
        stamps.append(EMULATED)
    if machine.unverified:
        stamps.append(UNVERIFIED)
    return Result(
        "alloc",
        metric,
        "ns",
        tuple(samples),
        cpu_node=cpu_node.host_node,
        memory_node=memory_node.host_node,
        params=row.label,
        stamps=tuple(stamps),
    )


BENCH = Bench("alloc", "Cost of a page allocation", run, peers)
