"""
Host nodes, their CPUs, memory and distances, from sysfs.

Cheap enough for every machine that is made: what hardly ever changes (CPUs, distances) is read
once; memory and what the cpuset allows are read each time.  Node numbers may have gaps, a node
may have CPUs but no memory, or memory but no CPUs; a kernel without NUMA support shows as one
node 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from realmem.host.limits import mems_allowed
from realmem.host.sysfs import parse_list, read_bytes_table, read_text

LOCAL_DISTANCE = 10  # include/linux/topology.h
REMOTE_DISTANCE = 20


@dataclass(frozen=True)
class HostNode:
    """
    A NUMA node of the host.

    :ivar cpus: its online CPUs, whether this process may run on them or not.
    :ivar memory_bytes: 0 for a node of CPUs only.
    :ivar allowed: the cpuset lets this process allocate from it.
    """

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int
    free_bytes: int
    allowed: bool

    @property
    def kind(self) -> str:
        """What the node is made of, in words."""
        if self.memory_bytes:
            return "CPUs and memory" if self.cpus else "memory only"
        return "CPUs only" if self.cpus else "empty"


def nodes(root: str = "/") -> list[HostNode]:
    """Give the online nodes of the host, by number."""
    base = Path(root) / "sys/devices/system/node"
    allowed = mems_allowed(root)
    numbers = _online(root)
    if not numbers:
        memory = read_bytes_table(Path(root) / "proc/meminfo")
        cpus = parse_list(read_text(Path(root) / "sys/devices/system/cpu/online"))
        cpus = cpus or tuple(range(os.cpu_count() or 1))
        return [HostNode(0, cpus, memory.get("MemTotal", 0), memory.get("MemFree", 0), True)]
    found = []
    for number in numbers:
        memory = read_bytes_table(base / f"node{number}/meminfo")
        found.append(
            HostNode(
                id=number,
                cpus=parse_list(read_text(base / f"node{number}/cpulist")),
                memory_bytes=memory.get("MemTotal", 0),
                free_bytes=memory.get("MemFree", 0),
                allowed=not allowed or number in allowed,
            )
        )
    return found


def usable_nodes(root: str = "/") -> list[HostNode]:
    """
    Give the nodes with memory that this process may allocate from, by number.

    Never empty: where neither /sys nor /proc tells, memory comes from the first node.
    """
    everyone = nodes(root)
    return [node for node in everyone if node.memory_bytes and node.allowed] or everyone[:1]


def distance(a: int, b: int, root: str = "/") -> int:
    """Give the distance from node a to node b as the firmware tells it: 10 is local."""
    return distances(a, root).get(b, LOCAL_DISTANCE if a == b else REMOTE_DISTANCE)


@cache
def distances(node: int, root: str = "/") -> dict[int, int]:
    """
    Give a node's distances by node number.

    The file lists the online nodes only, so with gaps a column is not a node number.
    """
    text = read_text(Path(root) / f"sys/devices/system/node/node{node}/distance") or ""
    values = [int(word) for word in text.split() if word.isdigit()]
    return dict(zip(_online(root), values, strict=False))


@cache
def cpus_of(node: int, root: str = "/") -> tuple[int, ...]:
    """
    Give the CPUs that count as a node's: its own, and those of nodes it serves.

    CPUs of a node without memory that can be used belong to the nearest node that has some, the
    lowest number first (compare mm/page_alloc.c:local_memory_node()).
    """
    everyone = nodes(root)
    usable = [each.id for each in usable_nodes(root)]
    cpus: list[int] = []
    for each in everyone:
        home = each.id
        if home not in usable:
            away = distances(home, root)
            home = min(usable, key=lambda other: (away.get(other, REMOTE_DISTANCE), other))
        if home == node:
            cpus.extend(each.cpus)
    return tuple(sorted(cpus))


@cache
def present_cpus(root: str = "/") -> tuple[int, ...]:
    """Give the CPUs that are plugged in, online or not (Linux's cpu_present_mask)."""
    present = parse_list(read_text(Path(root) / "sys/devices/system/cpu/present"))
    return present or tuple(range(os.cpu_count() or 1))


def _online(root: str) -> tuple[int, ...]:
    base = Path(root) / "sys/devices/system/node"
    online = parse_list(read_text(base / "online"))
    if online or not base.is_dir():
        return online
    return tuple(sorted(int(p.name[4:]) for p in base.glob("node[0-9]*") if p.name[4:].isdigit()))
