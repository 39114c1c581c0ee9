"""The machine underneath: what it has, what it allows, what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from realmem.host import limits, sysfs

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class HostNode:
    """A NUMA node of the host."""

    id: int


def usable_nodes() -> list[HostNode]:
    """List the nodes with memory that the cpuset allows."""
    with_memory = sysfs.parse_list(sysfs.read_text(_NODES / "has_memory")) or (0,)
    allowed = set(limits.mems_allowed())
    return [HostNode(n) for n in with_memory if n in allowed] or [HostNode(with_memory[0])]


@cache
def present_cpus() -> tuple[int, ...]:
    """List the CPUs that are present."""
    return sysfs.parse_list(sysfs.read_text(Path("/sys/devices/system/cpu/present"))) or (0,)


@cache
def distance(a: int, b: int) -> int:
    """Give the distance from one host node to another."""
    text = sysfs.read_text(_NODES / f"node{a}" / "distance")
    nodes = sysfs.parse_list(sysfs.read_text(_NODES / "online"))
    if text is None or b not in nodes:
        return 10 if a == b else 20
    return int(text.split()[nodes.index(b)])


@cache
def cpus_of(node: int) -> tuple[int, ...]:
    """List a node's CPUs, with those of nodes without memory that are nearest to it."""
    usable = [n.id for n in usable_nodes()]
    cpus: list[int] = []
    for other in sysfs.parse_list(sysfs.read_text(_NODES / "online")) or (0,):
        nearest = min(usable, key=lambda n: (distance(other, n), n))
        if other == node or (other not in usable and nearest == node):
            text = sysfs.read_text(_NODES / f"node{other}" / "cpulist")
            cpus += sysfs.parse_list(text) if text is not None else present_cpus()
    return tuple(sorted(cpus))
