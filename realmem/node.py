"""Nodes and zones as Python sees them, and how a machine's nodes are described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realmem.arguments import as_int
from realmem.layout import MAX_NR_ZONES, MIGRATE_NAMES, PAGE_SHIFT, ZONE_NAMES
from realmem.watermark import Watermark

if TYPE_CHECKING:
    from realmem._core.pages import PageAllocator
    from realmem.machine import Machine
    from realmem.memmap import NodeRange

LOCAL_DISTANCE = 10
REMOTE_DISTANCE = 20

# What sysfs calls the NUMA events that /proc/vmstat has by other names, in the same order.
NUMASTAT_ITEMS = (
    "numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node",
)


@dataclass(frozen=True)
class NodeSpec:
    """
    One node of a machine to be built.

    :ivar memory: bytes or a size such as ``"256M"``; 0 for a node of CPUs only.
    :ivar host_node: host node to bind it to; None chooses one round-robin.
    :ivar cpus: host CPUs that belong to it; ``[]`` for a memory-only node; None for a share
        of its host node's.
    :ivar distance: its distances to every node in order, 10 for itself; None for the host's.
    """

    memory: int | str = "256M"
    host_node: int | None = None
    cpus: Sequence[int] | None = None
    distance: Sequence[int] | None = None


class _Figures:
    """What nodes and zones share: figures that are read when they are asked for."""

    def __init__(self, machine: Machine) -> None:
        self._allocator = machine._allocator

    @property
    def _core(self) -> PageAllocator:
        self._allocator.check_alive()
        return self._allocator


class Zone(_Figures):
    """A zone of a node; figures are read when asked for, in pages."""

    def __init__(self, machine: Machine, nid: int, kind: int) -> None:
        super().__init__(machine)
        self.kind = kind
        self.index = nid * MAX_NR_ZONES + kind
        self.name = ZONE_NAMES[kind]
        info = self._core.zone_info(self.index)
        self.start_pfn: int = info["start_pfn"]
        self.spanned_pages: int = info["spanned_pages"]
        self.present_pages: int = info["present_pages"]
        self.managed_pages: int = info["managed_pages"]

    @property
    def free_pages(self) -> int:
        """Pages in the free areas; those in per-CPU lists do not count, as in Linux."""
        return self._core.free_pages_of(self.index)

    @property
    def watermark(self) -> Watermark:
        """The marks in force."""
        return Watermark(*self._core.zone_info(self.index)["watermark"])

    @property
    def lowmem_reserve(self) -> list[int]:
        """Pages kept from requests that could use DMA, DMA32, Normal, Movable."""
        return list(self._core.zone_info(self.index)["lowmem_reserve"])

    @property
    def free_area(self) -> list[int]:
        """Free blocks of orders 0..10."""
        return [sum(by_type) for by_type in self._core.zone_stat(self.index)["nr_free"]]

    @property
    def free_area_by_type(self) -> dict[str, list[int]]:
        """Free blocks of orders 0..10 by the name of their migratetype."""
        nr_free = self._core.zone_stat(self.index)["nr_free"]
        return {
            name: [by_type[i] for by_type in nr_free] for i, name in enumerate(MIGRATE_NAMES)
        }

    def __repr__(self) -> str:
        return f"<realmem.Zone node {self.index // MAX_NR_ZONES} {self.name}>"


class Node(_Figures):
    """A node of a machine; figures are read when asked for."""

    def __init__(
        self,
        machine: Machine,
        nid: int,
        place: ResolvedNode,
        where: NodeRange,
        misplaced_pages: int,
    ) -> None:
        super().__init__(machine)
        self.id = nid
        self.host_node = place.host_node
        self.emulated = place.emulated
        self.cpus = list(place.cpus)
        self.distance = list(place.distance)
        self.memory = where.pages << PAGE_SHIFT
        self.start_pfn = where.start_pfn
        self.end_pfn = where.start_pfn + where.pages
        self.misplaced_pages = misplaced_pages
        self.zones = [
            Zone(machine, nid, kind) for kind in range(MAX_NR_ZONES) if where.zones[kind][1]
        ]

    def zone(self, name: str) -> Zone:
        """
        Give a zone by name.

        :raises KeyError: the node has no such zone.
        """
        for zone in self.zones:
            if zone.name == name:
                return zone
        raise KeyError(name)

    @property
    def free_pages(self) -> int:
        """Free pages of its zones, per-CPU lists not included."""
        return sum(zone.free_pages for zone in self.zones)

    @property
    def stat(self) -> Mapping[str, int]:
        """Allocations counted by the names of sysfs's ``nodeN/numastat``."""
        sums = [0] * 6
        core = self._core
        for kind in range(MAX_NR_ZONES):
            counts = core.zone_stat(self.id * MAX_NR_ZONES + kind)["numa"]
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
        return dict(zip(NUMASTAT_ITEMS, sums, strict=True))

    def __repr__(self) -> str:
        stamp = " emulated" if self.emulated else ""
        return f"<realmem.Node {self.id} on host node {self.host_node}{stamp}>"


@dataclass(frozen=True)
class ResolvedNode:
    """A NodeSpec with every choice made."""

    memory: int
    host_node: int
    emulated: bool
    cpus: tuple[int, ...]
    distance: tuple[int, ...]


def resolve(nodes: Any, memory: int | str, host: Any) -> list[ResolvedNode]:
    """
    Decide each node's size, host node, CPUs and distances.

    :param nodes: as Machine takes it: None, a number, or NodeSpecs.
    :param memory: bytes of each node where ``nodes`` does not say.
    :param host: what realmem.host offers: usable_nodes(), cpus_of(), distance(),
        present_cpus().
    :raises ValueError: no memory at all, unknown or doubly used CPUs or nodes, malformed
        distances.
    :raises TypeError: wrong types.
    """
    from realmem.layout import parse_size

    usable = [node.id for node in host.usable_nodes()]
    specs = _as_specs(nodes, memory, len(usable))
    hosts = [_host_node(spec, i, usable) for i, spec in enumerate(specs)]
    sizes = [parse_size(spec.memory, "memory") for spec in specs]
    if not any(sizes):
        raise ValueError("a machine needs a node with memory")
    cpus = _share_cpus(specs, hosts, host)
    return [
        ResolvedNode(
            memory=sizes[i],
            host_node=hosts[i],
            emulated=hosts.count(hosts[i]) > 1,
            cpus=cpus[i],
            distance=_distances(i, specs, hosts, host),
        )
        for i in range(len(specs))
    ]


def _as_specs(nodes: Any, memory: int | str, usable: int) -> list[NodeSpec]:
    if nodes is None:
        nodes = usable
    if isinstance(nodes, bool):
        raise TypeError("nodes must be None, a number of nodes or a list of NodeSpec, not a bool")
    if isinstance(nodes, int):
        if not 1 <= nodes <= 64:
            raise ValueError(f"nodes must be within 1 and 64: {nodes}")
        return [NodeSpec(memory) for _ in range(nodes)]
    try:
        specs = list(nodes)
    except TypeError:
        raise TypeError(
            f"nodes must be None, a number of nodes or a list of NodeSpec, not {nodes!r}"
        ) from None
    if not all(isinstance(spec, NodeSpec) for spec in specs):
        raise TypeError("nodes must be None, a number of nodes or a list of NodeSpec")
    if not 1 <= len(specs) <= 64:
        raise ValueError(f"a machine has 1 to 64 nodes, not {len(specs)}")
    return specs


def _host_node(spec: NodeSpec, i: int, usable: Sequence[int]) -> int:
    if spec.host_node is None:
        return usable[i % len(usable)]
    if as_int(spec.host_node, "host_node") not in usable:
        raise ValueError(
            f"host node {spec.host_node!r} has no memory that this process may use; "
            f"there are {list(usable)}"
        )
    return int(spec.host_node)


def _share_cpus(
    specs: Sequence[NodeSpec], hosts: Sequence[int], host: Any
) -> list[tuple[int, ...]]:
    present = set(host.present_cpus())
    named: set[int] = set()
    for spec in specs:
        for cpu in spec.cpus or ():
            if as_int(cpu, "cpus") not in present:
                raise ValueError(f"this host has no CPU {cpu}")
            if cpu in named:
                raise ValueError(f"CPU {cpu} stands in two nodes")
            named.add(cpu)
    result: list[tuple[int, ...]] = []
    for i, spec in enumerate(specs):
        if spec.cpus is not None:
            result.append(tuple(sorted(spec.cpus)))
            continue
        sharers = [j for j, at in enumerate(hosts) if at == hosts[i] and specs[j].cpus is None]
        free = [cpu for cpu in host.cpus_of(hosts[i]) if cpu not in named]
        result.append(_slice(free, sharers.index(i), len(sharers)))
    return result


def _slice(cpus: Sequence[int], k: int, n: int) -> tuple[int, ...]:
    """Cut CPUs into n runs, the first ones larger, and give the k-th."""
    size, rest = divmod(len(cpus), n)
    start = k * size + min(k, rest)
    return tuple(cpus[start : start + size + (k < rest)])


def _distances(
    i: int, specs: Sequence[NodeSpec], hosts: Sequence[int], host: Any
) -> tuple[int, ...]:
    given = specs[i].distance
    if given is None:
        return tuple(
            LOCAL_DISTANCE
            if i == j
            # Nodes that share a host node are equally near in truth; they are shown as
            # remote, since that is what they emulate.
            else REMOTE_DISTANCE
            if hosts[i] == hosts[j]
            else host.distance(hosts[i], hosts[j])
            for j in range(len(specs))
        )
    row = tuple(given)
    if len(row) != len(specs) or row[i] != LOCAL_DISTANCE or any(
        isinstance(d, bool) or not isinstance(d, int) or not LOCAL_DISTANCE <= d <= 255
        for d in row
    ):
        raise ValueError(
            f"distance of node {i} must be {len(specs)} ints within 10 and 255, "
            f"10 at its own place: {list(row)}"
        )
    return row


def cpu_map(nodes: Sequence[ResolvedNode], host: Any) -> list[int]:
    """
    Map every host CPU to a node id.

    A CPU that no node names belongs to the nearest node that has CPUs, by its host node: a
    memory-only node is local to nobody, even to the CPUs that are near it in truth.
    """
    owner = {cpu: nid for nid, node in enumerate(nodes) for cpu in node.cpus}
    cpus = host.present_cpus()
    result = []
    for cpu in range(max(cpus) + 1):
        if cpu in owner:
            result.append(owner[cpu])
            continue
        at = next((n.id for n in host.usable_nodes() if cpu in host.cpus_of(n.id)), None)
        result.append(min(range(len(nodes)), key=lambda nid: (
            not nodes[nid].cpus,
            at is not None and host.distance(at, nodes[nid].host_node), nid)))
    return result
