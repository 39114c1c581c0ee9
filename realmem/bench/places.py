"""Where there are CPUs to run on and memory to run on, as far as this process may use them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Places:
    """
    What a matrix of CPU nodes and memory nodes is made of.

    :ivar cpus: node id to its CPUs that this process may run on; no node without CPUs.
    :ivar memory: ids of the nodes with memory that this process may use.
    :ivar llc_bytes: size of the largest cache.
    """

    cpus: dict[int, tuple[int, ...]]
    memory: tuple[int, ...]
    llc_bytes: int


def places() -> Places:
    """Look at the host."""
    allowed_cpus = os.sched_getaffinity(0)
    status = Path("/proc/self/status").read_text()
    mems = next(
        (line.split()[1] for line in status.splitlines() if line.startswith("Mems_allowed_list")),
        "0",
    )
    cpus: dict[int, tuple[int, ...]] = {}
    for path in sorted(_NODES.glob("node[0-9]*")):
        here = sorted(set(parse_list((path / "cpulist").read_text())) & allowed_cpus)
        if here:
            cpus[int(path.name[4:])] = tuple(here)
    if not cpus:                                # a kernel without NUMA support
        cpus = {0: tuple(sorted(allowed_cpus))}
    try:
        having = parse_list((_NODES / "has_memory").read_text())
    except OSError:
        having = [0]
    memory = tuple(node for node in having if node in parse_list(mems))
    return Places(dict(sorted(cpus.items())), memory or (0,), _llc_bytes())


def parse_list(text: str) -> list[int]:
    """Read the kernel's list format: ``0-3,8`` is 0, 1, 2, 3, 8."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _llc_bytes() -> int:
    """Give the size of the largest cache that sysfs tells of, or 32 MiB."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=32 << 20)
