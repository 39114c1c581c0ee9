"""
Measure what a machine's memory costs to set up, against the bare cost of populating it.

    .venv/bin/python tools/machine_cost.py [--memory 1G] [--nodes 1] [--rounds 5] [--json]

Bare is one memfd of that size mapped with MAP_POPULATE.  Against it, in turns within one run:
the pool alone (populated, bound and checked), and the whole machine.  Seconds, one sample a
round each; the ratios are of the medians.  The first round is not counted: a virtual machine's
first touch of memory that its own host has not backed yet costs many times more.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import time
from collections.abc import Callable

import realmem as rm
from realmem import host
from realmem.layout import parse_size
from realmem.pool import Pool, PoolNode


def bare(size: int, nodes: int) -> Callable[[], None]:
    """Populate the plainest way; give what undoes it."""
    fd = os.memfd_create("bare")
    os.ftruncate(fd, size)
    mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    os.close(fd)
    return mapping.close


def pool(size: int, nodes: int) -> Callable[[], None]:
    """Take the memory only."""
    each = size // nodes >> 20 << 20
    hosts = [node.id for node in host.usable_nodes()]
    return Pool([
        PoolNode(each, i * each, hosts[i % len(hosts)], i * each, each // 64)
        for i in range(nodes)
    ]).close


def machine(size: int, nodes: int) -> Callable[[], None]:
    """Build the whole machine."""
    close: Callable[[], None] = rm.Machine(nodes=nodes, memory=size // nodes).close
    return close


WAYS = {"bare": bare, "pool": pool, "machine": machine}


def measure(size: int, nodes: int, rounds: int) -> dict[str, list[float]]:
    """Give every sample but those of the first round, in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        names = list(WAYS)
        for name in names[turn % 3:] + names[: turn % 3]:
            start = time.perf_counter()
            undo = WAYS[name](size, nodes)
            taken = time.perf_counter() - start
            undo()
            if turn:
                samples[name].append(taken)
    return samples


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Cost of setting a machine up.")
    parser.add_argument("--memory", default="1G", help="in all")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    samples = measure(parse_size(chosen.memory), chosen.nodes, chosen.rounds)
    middle = {name: statistics.median(values) for name, values in samples.items()}
    if chosen.json:
        print(json.dumps({"unit": "s", "memory": chosen.memory, "nodes": chosen.nodes,
                          "samples": samples}))
        return
    for name, values in samples.items():
        print(f"{name:8} min {min(values):.3f}  median {middle[name]:.3f} s  "
              f"{middle[name] / middle['bare']:.2f} of bare")


if __name__ == "__main__":
    main()
