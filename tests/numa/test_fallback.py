"""Where an allocation goes when a node is full, and how it is counted: as the kernel would."""

import os

import pytest

import realmem as rm

pytestmark = pytest.mark.numa(nodes=2)

COUNTERS = ("numa_hit", "numa_miss", "numa_foreign", "local_node", "other_node")


def exhaust(machine, nid, gfp=rm.GFP_KERNEL, order=0):
    """Allocate from node `nid` on until nothing is left; give the pages in order."""
    pages = []
    try:
        while True:
            pages.append(machine.alloc_pages_node(nid, gfp, order))
    except rm.OutOfMemory:
        return pages


def first_seen(values):
    """Give each value once, in order of its first appearance."""
    return list(dict.fromkeys(values))


def test_order_agrees_with_the_kernels_own(kernel_fallback):
    """The same nodes and distances give the zonelists that this kernel printed at boot."""
    with rm.Machine(memory="16M") as machine:
        assert dict(enumerate(machine.fallback_orders)) == kernel_fallback


def test_allocations_follow_the_kernels_order(kernel_fallback, host_nodes, node_of):
    for nid in range(len(host_nodes)):
        with rm.Machine(memory="24M") as machine:
            pages = exhaust(machine, nid, order=3)
            nodes = [page.node for page in pages]
            assert first_seen(nodes) == kernel_fallback[nid]
            # and the frames that it gave lie where it says
            sample = [next(p for p in pages if p.node == n) for n in first_seen(nodes)]
            assert node_of([p.address for p in sample]) == [
                machine.nodes[p.node].host_node for p in sample]
            for page in pages:
                machine.free_pages(page, 3)
            machine.drain_all_pages()
            machine.check()


def test_order_follows_distance(host_nodes):
    for node in host_nodes:
        with rm.Machine(memory="16M") as machine:
            seen = first_seen(page.node for page in exhaust(machine, node.id, order=4))
            assert seen[0] == node.id
            far = [node.distance[other] for other in seen]
            assert far == sorted(far)


def test_thisnode_does_not_fall_back(host_nodes):
    with rm.Machine(memory="16M") as machine:
        for node in host_nodes:
            pages = exhaust(machine, node.id, rm.GFP_KERNEL | rm.GFP.THISNODE, order=4)
            assert {page.node for page in pages} == {node.id}


def test_local_is_the_calling_cpus_node(host_nodes, run_on):
    with rm.Machine(memory="16M") as machine:
        for node in host_nodes:
            if not node.cpus:
                continue
            run_on(node.cpus)
            page = machine.alloc_pages(rm.GFP_KERNEL, 0)
            assert page.node == node.id
            addr = machine.get_free_pages(rm.GFP_KERNEL, 0)
            assert machine.virt_to_page(addr).node == node.id
            machine.free_pages(page, 0)
            machine.free_pages(addr, 0)


def test_counters(host_nodes, run_on):
    """Served by the preferred node: hit.  By another: miss there, foreign at the preferred."""
    cpu_node = next(node for node in host_nodes if node.cpus)
    run_on(cpu_node.cpus)
    for preferred in host_nodes:
        with rm.Machine(memory="16M") as machine:
            expected = {node.id: dict.fromkeys(COUNTERS, 0) for node in host_nodes}
            for page in exhaust(machine, preferred.id, order=2):
                where = expected[page.node]
                if page.node == preferred.id:
                    where["numa_hit"] += 1
                else:
                    where["numa_miss"] += 1
                    expected[preferred.id]["numa_foreign"] += 1
                where["local_node" if page.node == cpu_node.id else "other_node"] += 1
            for node in machine.nodes:
                stat = node.stat
                assert {name: stat[name] for name in COUNTERS} == expected[node.id], node
                text = machine.sysfs[f"/sys/devices/system/node/node{node.id}/numastat"]
                shown = dict(line.split() for line in text.splitlines())
                assert {name: int(shown[name]) for name in COUNTERS} == expected[node.id]
            total = sum(row["numa_hit"] for row in expected.values())
            assert machine.vmstat["numa_hit"] == total


def test_counters_add_up_across_cpus(host_nodes):
    """Each allocation is one hit or one miss, and one local or one other."""
    with rm.Machine(memory="32M") as machine:
        count = 0
        before = os.sched_getaffinity(0)
        try:
            for cpu in sorted(before):
                os.sched_setaffinity(0, {cpu})
                for node in host_nodes:
                    pages = [machine.alloc_pages_node(node.id, rm.GFP_KERNEL, 0)
                             for _ in range(100)]
                    count += len(pages)
                    for page in pages:
                        machine.free_pages(page, 0)
        finally:
            os.sched_setaffinity(0, before)
        stats = [node.stat for node in machine.nodes]
        assert sum(s["numa_hit"] + s["numa_miss"] for s in stats) == count
        assert sum(s["local_node"] + s["other_node"] for s in stats) == count
        assert sum(s["numa_miss"] for s in stats) == sum(s["numa_foreign"] for s in stats)


def test_memory_only_node(host_nodes, run_on, node_of):
    """No CPU is local to it; it is used when asked for, and as the others' fallback."""
    last = host_nodes[-1].id
    specs = [rm.NodeSpec("16M", host_node=0), rm.NodeSpec("16M", host_node=last, cpus=[])]
    with rm.Machine(specs) as machine:
        assert machine.nodes[1].cpus == []
        for cpu in sorted(os.sched_getaffinity(0)):
            run_on([cpu])
            page = machine.alloc_pages(rm.GFP_KERNEL, 0)
            assert page.node == 0
            machine.free_pages(page, 0)
        page = machine.alloc_pages_node(1, rm.GFP_KERNEL, 0)
        assert page.node == 1 and node_of([page.address]) == [last]
        assert machine.nodes[1].stat["local_node"] == 0
        assert first_seen(p.node for p in exhaust(machine, 0, order=2)) == [0, 1]


def test_node_of_cpus_without_memory(host_nodes, run_on):
    """Its CPUs allocate from the nearest node with memory."""
    first, second = host_nodes[:2]
    specs = [rm.NodeSpec("16M", host_node=first.id, cpus=first.cpus),
             rm.NodeSpec(0, host_node=second.id, cpus=second.cpus)]
    with rm.Machine(specs) as machine:
        assert machine.nodes[1].zones == []
        run_on(second.cpus)
        page = machine.alloc_pages(rm.GFP_KERNEL, 0)
        assert page.node == 0
        assert machine.alloc_pages_node(1, rm.GFP_KERNEL, 0).node == 0
