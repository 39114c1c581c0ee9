"""
Ask before taking: memory that is not there kills instead of failing.

Every check raises HostError with the errno that the kernel would have had, and says what to
change.  They are estimates, and they err on the side of trying: what they let through is
taken by a child process, so the worst that happens is that the child is killed.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from realmem.errors import HostError
from realmem.host import limits, topology
from realmem.layout import format_size

PAGES_PER_TABLE = 512
BACKINGS = {"4K": 4096, "thp": 4096, "hugetlb-2M": 2 << 20, "hugetlb-1G": 1 << 30}


@dataclass(frozen=True)
class Demand:
    """
    What one node of a pool takes from the host.

    :ivar bytes: in pages of the backing.
    :ivar side_bytes: in 4 KiB pages beside them (the page array of a hugetlb node).
    :ivar host_node: to take it from, or None for wherever the kernel likes.
    """

    bytes: int
    side_bytes: int
    host_node: int | None


def check(
    demands: Sequence[Demand], reserved_bytes: int, *, backing: str, mlock: bool, root: str = "/"
) -> None:
    """
    Raise HostError if a pool cannot be had.

    :param demands: one for each node.
    :param reserved_bytes: address space that the pool takes.
    :param backing: one of BACKINGS.
    :param mlock: the pool is to be locked.
    :raises HostError: the first limit that is in the way.
    """
    check_nodes(demands, root)
    if backing == "thp":
        check_thp(root)
    if backing.startswith("hugetlb"):
        check_hugetlb(demands, BACKINGS[backing], root)
    check_address_space(reserved_bytes)
    if mlock:
        check_memlock(sum(demand.bytes for demand in demands), root)
    ordinary = [
        Demand(0 if backing.startswith("hugetlb") else d.bytes, d.side_bytes, d.host_node)
        for d in demands
    ]
    check_cgroups(ordinary, root)
    check_free_memory(ordinary, root)


def check_nodes(demands: Sequence[Demand], root: str = "/") -> None:
    """Each host node exists, has memory, and is allowed by the cpuset."""
    allowed = limits.mems_allowed(root)
    for node in sorted({d.host_node for d in demands if d.host_node is not None and d.bytes}):
        memory = limits.node_memory(node, root)
        if allowed and node not in allowed:
            why = "is not allowed by this process's cpuset"
            if memory is None:
                why = "does not exist or has no memory"
            raise HostError(
                errno.EINVAL,
                f"host node {node} {why}: use one of {', '.join(map(str, allowed))} "
                "or widen cpuset.mems",
            )
        if memory is not None and memory.total_bytes == 0:
            raise HostError(
                errno.EINVAL, f"host node {node} has no memory: place the node on another one"
            )


def check_thp(root: str = "/") -> None:
    """Shared memory gets huge pages on request."""
    setting, file = limits.shmem_thp(root)
    if setting in (None, "never", "deny"):
        raise HostError(
            errno.EOPNOTSUPP,
            f"no huge pages for shared memory here ({file} is {setting or 'missing'}): "
            f"write advise to it, or use backing hugetlb-2M or 4K",
        )


def check_hugetlb(demands: Sequence[Demand], size: int, root: str = "/") -> None:
    """The pool of huge pages covers what is asked of it, as a whole and on each node."""
    name = f"hugepages-{size >> 10}kB"
    pools = {pages.size_bytes: pages for pages in limits.huge_pages(root)}
    if size not in pools:
        raise HostError(
            errno.EOPNOTSUPP,
            f"this host has no huge pages of {format_size(size)}: use another backing",
        )
    wanted = sum(demand.bytes for demand in demands) // size
    file = f"/sys/kernel/mm/hugepages/{name}/nr_hugepages"
    free = pools[size].free - pools[size].reserved
    if free < wanted:
        raise HostError(
            errno.ENOMEM,
            f"{wanted} huge pages of {format_size(size)} wanted, {max(0, free)} free: "
            f"write {pools[size].total + wanted - free} to {file}",
        )
    for node, nbytes in _by_host_node(demands, lambda demand: demand.bytes).items():
        on_node = {pages.size_bytes: pages for pages in limits.huge_pages(root, node)}.get(size)
        if on_node is not None and on_node.free < nbytes // size:
            raise HostError(
                errno.ENOMEM,
                f"{nbytes // size} huge pages of {format_size(size)} wanted on host node {node}, "
                f"{on_node.free} free: write {on_node.total + nbytes // size - on_node.free} to "
                f"/sys/devices/system/node/node{node}/hugepages/{name}/nr_hugepages",
            )


def check_address_space(reserved_bytes: int) -> None:
    """RLIMIT_AS leaves room for the reservation."""
    left = limits.address_space_left()
    if left is not None and left[1] < reserved_bytes:
        raise HostError(
            errno.ENOMEM,
            f"{format_size(reserved_bytes)} of address space wanted, {format_size(left[1])} left "
            f"of RLIMIT_AS {format_size(left[0])}: raise ulimit -v or ask for less memory",
        )


def check_memlock(nbytes: int, root: str = "/") -> None:
    """RLIMIT_MEMLOCK lets the pool be locked."""
    left = limits.memlock_left(root)
    if left is not None and left[1] < nbytes:
        raise HostError(
            errno.ENOMEM,
            f"{format_size(nbytes)} to be locked, {format_size(left[1])} left of RLIMIT_MEMLOCK "
            f"{format_size(left[0])}: raise ulimit -l or leave out mlock",
        )


def check_cgroups(demands: Sequence[Demand], root: str = "/") -> None:
    """The tightest memory cgroup has room, for the page tables too."""
    nbytes = sum(demand.bytes + demand.side_bytes for demand in demands)
    if not nbytes:
        return
    wanted = nbytes + overhead_bytes(nbytes)
    for limit in limits.cgroup_memory_limits(root)[:1]:
        if limit.available_bytes < wanted:
            raise HostError(
                errno.ENOMEM,
                f"{format_size(nbytes)} of memory wanted, but cgroup {limit.directory} has "
                f"{format_size(limit.available_bytes)} left of {format_size(limit.limit_bytes)}: "
                f"raise its {limit.file} or ask for less memory",
            )


def overhead_bytes(nbytes: int) -> int:
    """Page tables and page cache nodes that come with so much memory, and some slack."""
    return nbytes // PAGES_PER_TABLE * 2 + (1 << 20)


def check_free_memory(demands: Sequence[Demand], root: str = "/") -> None:
    """
    Every host node has that much free, and so has the host as a whole.

    Memory that a hypervisor has taken and would give back counts in the host's MemAvailable, but
    in no node's figures: it may turn up on any of them.
    """
    available = limits.available_memory(root)
    nodes = {node.id: limits.node_memory(node.id, root) for node in topology.nodes(root)}
    known = sum(memory.available_bytes for memory in nodes.values() if memory is not None)
    elsewhere = max(0, (available or 0) - known)
    wanted = _by_host_node(demands, lambda demand: demand.bytes + demand.side_bytes)
    for node, nbytes in wanted.items():
        memory = nodes.get(node)
        if memory is not None and memory.available_bytes + elsewhere < nbytes:
            raise HostError(
                errno.ENOMEM,
                f"{format_size(nbytes)} of memory wanted on host node {node}, "
                f"{format_size(memory.available_bytes)} free of "
                f"{format_size(memory.total_bytes)}: ask for less memory or use another node",
            )
    total = sum(demand.bytes + demand.side_bytes for demand in demands)
    if available is not None and available < total:
        raise HostError(
            errno.ENOMEM,
            f"{format_size(total)} of memory wanted, {format_size(available)} available on "
            "this host: ask for less memory",
        )


def _by_host_node(
    demands: Sequence[Demand], size_of: Callable[[Demand], int]
) -> dict[int, int]:
    """Add up demands by host node: simulated nodes may share one."""
    total: Counter[int] = Counter()
    for demand in demands:
        if demand.host_node is not None:
            total[demand.host_node] += size_of(demand)
    return total
