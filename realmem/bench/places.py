"""Where there are CPUs to run on and memory to run on, as far as this process may use them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from realmem.host.limits import mems_allowed
from realmem.host.sysfs import parse_list, read_text

_NODES = Path("/sys/devices/system/node")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Places:
    """
    What a matrix of CPU nodes and memory nodes is made of.

    :ivar cpus: node id to its CPUs that this process may run on; no node without CPUs.
    :ivar memory: ids of the nodes with memory that this process may use.
    :ivar llc_bytes: size of the largest cache, 32 MiB where the host does not tell.
    """

    cpus: dict[int, tuple[int, ...]]
    memory: tuple[int, ...]
    llc_bytes: int

    @property
    def local(self) -> int | None:
        """The first node that has both."""
        return next((node for node in self.memory if node in self.cpus), None)


def places() -> Places:
    """Look at the host."""
    runnable = os.sched_getaffinity(0)
    cpus = {
        int(path.name[4:]): tuple(
            cpu for cpu in parse_list(read_text(path / "cpulist")) if cpu in runnable
        )
        for path in _NODES.glob("node[0-9]*")
    }
    cpus = {node: cpus[node] for node in sorted(cpus) if cpus[node]}
    if not cpus:                            # a kernel without NUMA support
        cpus = {0: tuple(sorted(runnable))}
    allowed = mems_allowed()
    having = parse_list(read_text(_NODES / "has_memory")) or allowed or (0,)
    memory = tuple(node for node in having if not allowed or node in allowed)
    return Places(cpus, memory, _llc_bytes())


def _llc_bytes() -> int:
    sizes = [read_text(path) or "" for path in _CACHES.glob("index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size[:-1].isdigit()), default=32 << 20)
