"""Everything that can be told about the host, in one record (``realmem topology``)."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realmem.host import hardware, libnuma, limits, topology
from realmem.host.capabilities import Capability, capabilities
from realmem.host.hardware import Cache, Hmat
from realmem.host.limits import CgroupLimit, HugePages
from realmem.host.sysfs import parse_list, read_bytes_table, read_int, read_status, read_text
from realmem.host.topology import HostNode

SYSCTLS = (
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.unprivileged_userfaultfd",
    "vm.min_free_kbytes",
    "vm.watermark_scale_factor",
    "vm.zone_reclaim_mode",
    "kernel.numa_balancing",
)


@dataclass(frozen=True)
class Thp:
    """Transparent huge pages: the setting for each kind of memory, None where there is none."""

    enabled: str | None
    shmem_enabled: str | None
    defrag: str | None


@dataclass(frozen=True)
class NodeHugePages:
    """A node's pool of huge pages of one size."""

    node: int
    size_bytes: int
    total: int
    free: int


@dataclass(frozen=True)
class Cpuset:
    """What this process may use: CPUs by affinity, CPUs and nodes by cpuset."""

    affinity_cpus: tuple[int, ...]
    cpus: tuple[int, ...]
    mems: tuple[int, ...]
    cpu_quota: float | None


@dataclass(frozen=True)
class SimulatedNode:
    """A node of the default machine, the host node under it, and its CPUs."""

    id: int
    host_node: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Host:
    """
    The machine underneath.

    :ivar memory_bytes: the host's MemTotal; the nodes' own figures may add up to less, where a
        hypervisor has taken memory back.
    :ivar distances: by node number, then by node number.
    :ivar distance_source: ``"libnuma"``, or ``"sysfs"`` where libnuma is refused its calls.
    :ivar cgroup_limits: the tightest first.
    :ivar simulated_nodes: what ``realmem.Machine()`` would be made of.
    :ivar emulated: fewer than two host nodes can be used: several nodes would share one.
    :ivar unverified: the host does not bind memory, or does not tell where it lies.
    """

    kernel: str
    architecture: str
    cpu_model: str | None
    container: str | None
    seccomp: bool
    cpus_present: tuple[int, ...]
    memory_bytes: int
    available_bytes: int
    nodes: list[HostNode]
    distances: dict[int, dict[int, int]]
    distance_source: str
    cpuset: Cpuset
    cgroup_limits: list[CgroupLimit]
    caches: list[Cache]
    huge_pages: list[HugePages]
    node_huge_pages: list[NodeHugePages]
    thp: Thp
    hmat: list[Hmat]
    memory_tiers: dict[str, tuple[int, ...]]
    sysctls: dict[str, int | None]
    capabilities: list[Capability]
    simulated_nodes: list[SimulatedNode]
    emulated: bool
    unverified: bool

    def to_dict(self) -> dict[str, Any]:
        """Give JSON's types only; the schema is ``realmem.schema.TOPOLOGY``."""
        record: dict[str, Any] = dataclasses.asdict(self)
        record["distances"] = {
            str(a): {str(b): d for b, d in row.items()} for a, row in self.distances.items()
        }
        for node, plain in zip(self.nodes, record["nodes"], strict=True):
            plain["kind"] = node.kind
        return record


def survey(root: str = "/") -> Host:
    """
    Look at the host.

    :param root: where its /proc and /sys are found; system calls are tried on this one anyway.
    :raises HostError: libnuma.so.1 is not installed.
    """
    nodes = topology.nodes(root)
    table, source = _distances(nodes, root)
    usable = topology.usable_nodes(root)
    tried = capabilities()
    permitted = {capability.name for capability in tried if capability.permitted}
    memory = read_bytes_table(Path(root) / "proc/meminfo")
    thp = Path(root) / "sys/kernel/mm/transparent_hugepage"
    return Host(
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu_model=hardware.cpu_model(root),
        container=_container(root),
        seccomp=read_status(root, "Seccomp") not in (None, "0"),
        cpus_present=topology.present_cpus(root),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        nodes=nodes,
        distances=table,
        distance_source=source,
        cpuset=_cpuset(root),
        cgroup_limits=limits.cgroup_memory_limits(root),
        caches=hardware.caches(root),
        huge_pages=limits.huge_pages(root),
        node_huge_pages=[
            NodeHugePages(node.id, pages.size_bytes, pages.total, pages.free)
            for node in nodes
            for pages in limits.huge_pages(root, node.id)
        ],
        thp=Thp(
            limits.choice(read_text(thp / "enabled")),
            limits.shmem_thp(root)[0],
            limits.choice(read_text(thp / "defrag")),
        ),
        hmat=hardware.hmat(root),
        memory_tiers=hardware.memory_tiers(root),
        sysctls={
            name: read_int(Path(root) / "proc/sys" / name.replace(".", "/")) for name in SYSCTLS
        },
        capabilities=tried,
        simulated_nodes=[
            SimulatedNode(i, node.id, topology.cpus_of(node.id, root))
            for i, node in enumerate(usable)
        ],
        emulated=len(usable) < 2,
        unverified="mbind" not in permitted or not permitted & {"move_pages", "numa_maps"},
    )


def _distances(nodes: list[HostNode], root: str) -> tuple[dict[int, dict[int, int]], str]:
    ids = [node.id for node in nodes]
    if root == "/":
        table = libnuma.distances(ids)
        if all(table.values()):
            return table, "libnuma"
    return {a: {b: topology.distance(a, b, root) for b in ids} for a in ids}, "sysfs"


def _cpuset(root: str) -> Cpuset:
    import psutil

    status = parse_list(read_status(root, "Cpus_allowed_list"))
    affinity = tuple(psutil.Process().cpu_affinity() or ()) if root == "/" else status
    cpus = status
    for cgroup in limits.cgroup_directories(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            cpus = parse_list(read_text(cgroup.directory / name)) or cpus
    return Cpuset(affinity, cpus, limits.mems_allowed(root), _cpu_quota(root))


def _cpu_quota(root: str) -> float | None:
    """Give how many CPUs' time the tightest cgroup grants, None for no limit."""
    quotas = []
    for cgroup in limits.cgroup_directories(root, "cpu"):
        for directory in cgroup.up():
            if cgroup.version == 2:
                words = (read_text(directory / "cpu.max") or "max").split()
                quota = int(words[0]) if words[0].isdigit() else None
                period = int(words[1]) if len(words) > 1 else None
            else:
                quota = read_int(directory / "cpu.cfs_quota_us")
                period = read_int(directory / "cpu.cfs_period_us")
            if quota is not None and quota > 0 and period:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _container(root: str) -> str | None:
    """Name the container runtime, as far as it leaves traces."""
    for file, name in (
        (".dockerenv", "docker"),
        ("run/.containerenv", "podman"),
        ("run/host/container-manager", "container"),
    ):
        if (Path(root) / file).exists():
            return name
    return "lxc" if "lxc" in (read_text(Path(root) / "proc/1/cgroup") or "") else None
