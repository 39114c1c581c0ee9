"""Each simulated node's frames lie on its host node, by the kernel's own account."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

import realmem as rm

pytestmark = pytest.mark.numa(nodes=2)

MIB = 1 << 20


def frames(machine, node):
    """Give the host address of every frame of a node."""
    return [machine.va(pfn * rm.PAGE_SIZE) for pfn in range(node.start_pfn, node.end_pfn)]


def numa_maps(address):
    """Give the line of /proc/self/numa_maps for the mapping at an address."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if int(line.split()[0], 16) == address:
            return line
    raise AssertionError(f"no mapping at {address:#x}")


def test_every_frame_by_move_pages(node_of):
    with rm.Machine(memory="32M") as machine:
        for node in machine.nodes:
            assert set(node_of(frames(machine, node))) == {node.host_node}
            assert node.misplaced_pages == 0


def test_every_frame_by_numa_maps(node_of):
    with rm.Machine(memory="32M") as machine:
        for node in machine.nodes:
            pages = node.end_pfn - node.start_pfn
            first = frames(machine, node)[0]
            node_of(frames(machine, node))          # maps them here
            line = numa_maps(first)
            assert f" bind:{node.host_node} " in line
            assert re.findall(r" N(\d+)=(\d+)", line) == [(str(node.host_node), str(pages))]


def test_struct_pages_lie_on_their_node(node_of):
    """The kernel's second mapping of each memfd is the array that describes its frames."""
    with rm.Machine(memory="32M") as machine:
        arrays = [line for line in Path("/proc/self/numa_maps").read_text().splitlines()
                  if "realmem-node" in line]
        for node in machine.nodes:
            mine = [line for line in arrays if f"realmem-node{node.id}\\" in line]
            assert len(mine) >= 2, arrays
            for line in mine:
                assert {int(nid) for nid, _ in re.findall(r" N(\d+)=(\d+)", line)} <= {
                    node.host_node}


def test_a_store_does_not_move_it(node_of):
    with rm.Machine(memory="16M") as machine:
        for node in machine.nodes:
            page = machine.alloc_pages_node(node.id, rm.GFP_KERNEL | rm.GFP.THISNODE, 4)
            with machine.view(page.address, 16 * rm.PAGE_SIZE) as view:
                view[:] = bytes([node.id + 1]) * len(view)
            at = [page.address + i * rm.PAGE_SIZE for i in range(16)]
            assert node_of(at) == [node.host_node] * 16
            assert page.node == node.id
            assert {ctypes.c_ubyte.from_address(addr).value for addr in at} == {node.id + 1}
            machine.free_pages(page, 4)
        machine.check()


def test_nodes_in_another_order(host_nodes, node_of):
    """A simulated node is not its host node's namesake."""
    specs = [rm.NodeSpec("16M", host_node=node.id) for node in reversed(host_nodes)]
    with rm.Machine(specs) as machine:
        for node, there in zip(machine.nodes, reversed(host_nodes), strict=True):
            assert node.host_node == there.id and node.cpus == there.cpus
            assert set(node_of(frames(machine, node))) == {there.id}
        for a in machine.nodes:
            assert a.distance == [host_nodes[a.host_node].distance[b.host_node]
                                  for b in machine.nodes]


def test_more_nodes_than_the_host_has(host_nodes, node_of):
    count = len(host_nodes) + 1
    with rm.Machine(nodes=count, memory="16M") as machine:
        assert [node.host_node for node in machine.nodes] == [
            i % len(host_nodes) for i in range(count)]
        shared = {0, count - 1}
        assert {node.id for node in machine.nodes if node.emulated} == shared
        assert machine.emulated and "emulated" in repr(machine)
        for node in machine.nodes:
            assert set(node_of(frames(machine, node))) == {node.host_node}


def test_several_machines_at_once(node_of):
    with rm.Machine(memory="16M") as first, rm.Machine(memory="16M") as second:
        for machine in (first, second):
            for node in machine.nodes:
                assert set(node_of(frames(machine, node))) == {node.host_node}


def test_memory_is_taken_and_comes_back(host_nodes):
    """The kernel folds its per-CPU counts late, so some megabytes may be missing."""
    before = [node.shared for node in host_nodes]
    with rm.Machine(memory="64M"):
        taken = [node.shared - was for node, was in zip(host_nodes, before, strict=True)]
        assert all(abs(size - 64 * MIB) < 8 * MIB for size in taken), taken
    left = [node.shared - was for node, was in zip(host_nodes, before, strict=True)]
    assert all(abs(size) < 8 * MIB for size in left), left


def test_more_than_a_node_has(host_nodes):
    """A full bound node kills whoever populates it: HostError, and nothing else dies."""
    last = host_nodes[-1]
    with pytest.raises(rm.HostError) as caught:
        rm.Machine([rm.NodeSpec("16M", host_node=0),
                    rm.NodeSpec(last.memory + (64 << 20), host_node=last.id)])
    assert str(last.id) in str(caught.value)
    with rm.Machine(memory="16M") as machine:
        machine.check()


CPUSET = """
import os, sys, realmem as rm
folder, mems = sys.argv[1:]
with open(f"{folder}/cgroup.procs", "w") as procs:
    procs.write("0")
with rm.Machine(memory="16M") as machine:
    print([node.host_node for node in machine.nodes])
try:
    rm.Machine([rm.NodeSpec("16M", host_node=0)])
except (ValueError, rm.HostError) as error:
    print(type(error).__name__, "refused")
"""


def test_cpuset_limits_the_nodes(host_nodes):
    """Only in a guest, which is thrown away: it makes a cgroup."""
    if "virtme" not in Path("/proc/cmdline").read_text():
        pytest.skip("this is no guest of tools/guest.py: its cgroups are left alone")
    root = Path("/sys/fs/cgroup")
    if "cpuset" not in (root / "cgroup.controllers").read_text():
        pytest.skip("no cpuset controller")
    (root / "cgroup.subtree_control").write_text("+cpuset")
    group = root / "realmem-test"
    group.mkdir()
    try:
        last = host_nodes[-1].id
        (group / "cpuset.mems").write_text(str(last))
        done = subprocess.run([sys.executable, "-c", CPUSET, str(group), str(last)],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.stdout.splitlines() == [f"[{last}]", "ValueError refused"], done.stderr
    finally:
        group.rmdir()


def test_vmalloc_node(node_of):
    """Frames of a vmalloc area, asked for at the addresses that they are mapped at."""
    with rm.Machine(memory="32M") as machine:
        for node in machine.nodes:
            area = machine.vmalloc_node("1M", node.id)
            places = node_of([area + at for at in range(0, MIB, rm.PAGE_SIZE)])
            assert set(places) == {node.host_node}
            assert f" pages=256 vmalloc N{node.id}=256\n" in machine.procfs["/proc/vmallocinfo"]
            machine.vfree(area)
