"""Where there are CPUs to run on and memory to run on, as far as this process may use them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from realmem.host import hardware, topology

_USUAL_LLC_BYTES = 32 << 20


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
        node.id: tuple(cpu for cpu in node.cpus if cpu in runnable) for node in topology.nodes()
    }
    return Places(
        {node: mine for node, mine in cpus.items() if mine},
        tuple(node.id for node in topology.usable_nodes()),
        max((cache.size_bytes for cache in hardware.caches()), default=_USUAL_LLC_BYTES),
    )
