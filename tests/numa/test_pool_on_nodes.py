"""The pool on real nodes: every frame where it was asked for, by the kernel's own account."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import realmem as rm
from realmem import host, placement
from realmem.host import limits
from realmem.pool import Placement, Pool, PoolNode

MIB = 1 << 20
pytestmark = pytest.mark.numa(nodes=2)


def layout(hosts: list[int], size: int = 8 * MIB) -> list[PoolNode]:
    """One node of the pool for each of these host nodes, side by side."""
    return [PoolNode(size, i * size, node, i * size, size // 64) for i, node in enumerate(hosts)]


def usable() -> list[int]:
    return [node.id for node in host.usable_nodes()]


@pytest.mark.parametrize("backwards", [False, True])
def test_every_node_lies_where_it_was_asked_for(backwards: bool) -> None:
    hosts = usable()[::-1] if backwards else usable()
    pool = Pool(layout(hosts))
    try:
        assert pool.placement == [Placement(node, True, True, 0, None) for node in hosts]
        for node, each in zip(hosts, pool.nodes, strict=True):
            where = pool.direct_map + each.start_phys
            assert placement.numa_maps_pages(where, each.bytes) == {node: each.bytes // 4096}
            array = pool.vmemmap + each.start_phys // 64
            assert placement.numa_maps_pages(array, 4096) == {node: each.memmap_bytes // 4096}
    finally:
        pool.close()


def test_a_wrong_node_is_seen() -> None:
    first, second = usable()[:2]
    pool = Pool(layout([first]))
    try:
        found = placement.locate(pool.direct_map, 8 * MIB, 4096, second, None)
        assert found == Placement(second, True, True, 2048, None)
    finally:
        pool.close()


def test_node_memory_shrinks_by_what_is_taken() -> None:
    node = usable()[-1]
    before = limits.node_memory(node)
    pool = Pool(layout([node], 128 * MIB))
    during = limits.node_memory(node)
    pool.close()
    assert before is not None and during is not None
    assert before.free_bytes - during.free_bytes > 100 * MIB


def test_a_node_without_room_is_refused_while_others_have_it() -> None:
    node = usable()[-1]
    memory = limits.node_memory(node)
    assert memory is not None
    size = (memory.available_bytes // (4 * MIB) + 2) * 4 * MIB
    with pytest.raises(rm.HostError, match=f"host node {node}, .*use another node"):
        Pool(layout([node], size))


def test_a_full_bound_node_kills_only_the_child() -> None:
    """With the preflight blind, the kernel's killer takes the child that offers itself."""
    done = subprocess.run([sys.executable, "-c", f"""
import realmem as rm
from realmem import host, preflight
from realmem.host import limits
from realmem.pool import Pool, PoolNode
preflight.check_free_memory = lambda *args: None
node = host.usable_nodes()[-1].id
size = limits.node_memory(node).total_bytes // {4 * MIB} * {4 * MIB} + {64 * MIB}
try:
    Pool([PoolNode(size, 0, node, 0, size // 64)])
except rm.HostError as error:
    print(error)
Pool([PoolNode({8 * MIB}, 0, node, 0, {8 * MIB} // 64)]).close()
"""], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "killed" in done.stdout or "Cannot allocate" in done.stdout, done.stdout
    assert done.returncode != -signal.SIGKILL


def test_an_unbound_node_is_populated_from_its_own_cpus(refusing) -> None:  # type: ignore[no-untyped-def]
    """Where mbind is refused, first touch decides: the child runs on the node's CPUs."""
    hosts = [node.id for node in host.usable_nodes()
             if set(node.cpus) & os.sched_getaffinity(0)]
    if len(hosts) < 2:
        pytest.skip(f"{len(hosts)} nodes with memory and CPUs, 2 needed")
    done = refusing([sys.executable, "-c", f"""
from realmem.pool import Pool, PoolNode
size = {8 * MIB}
pool = Pool([PoolNode(size, i * size, node, i * size, size // 64)
             for i, node in enumerate({hosts})])
print([(each.bound, each.verified, each.misplaced_pages) for each in pool.placement])
"""], deny="mbind")
    assert done.stdout == f"{[(False, False, 0)] * len(hosts)}\n", done.stderr


def test_distances_are_the_kernels() -> None:
    for a, b in itertools.product(host.nodes(), repeat=2):
        text = Path(f"/sys/devices/system/node/node{a.id}/distance").read_text().split()
        order = [node.id for node in host.nodes()]
        assert host.distance(a.id, b.id) == int(text[order.index(b.id)])


def test_every_cpu_counts_for_one_node_with_memory() -> None:
    cpus = [cpu for node in host.usable_nodes() for cpu in host.cpus_of(node.id)]
    assert sorted(cpus) == sorted(cpu for node in host.nodes() for cpu in node.cpus)
    for node in host.usable_nodes():
        if node.kind == "memory only":
            assert set(host.cpus_of(node.id)) == {
                cpu for other in host.nodes() if not other.memory_bytes
                for cpu in other.cpus if min(
                    usable(), key=lambda n, o=other: (host.distance(o.id, n), n)) == node.id}
