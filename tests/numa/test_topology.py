"""`realmem topology` and Machine() see the nodes that the kernel shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import realmem as rm

pytestmark = pytest.mark.numa(nodes=2)


@pytest.fixture(scope="module")
def topology():
    done = subprocess.run([sys.executable, "-m", "realmem", "topology", "--json"],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nodes_cpus_and_memory(topology, host_nodes):
    assert [(node["id"], node["cpus"], node["memory_bytes"]) for node in topology["nodes"]] == [
        (node.id, node.cpus, node.memory) for node in host_nodes]


def test_distances(topology, host_nodes):
    seen = {int(a): {int(b): value for b, value in row.items()}
            for a, row in topology["distances"].items()}
    assert seen == {node.id: dict(enumerate(node.distance)) for node in host_nodes}


def test_kinds(topology, host_nodes):
    memory_only = {node["id"] for node in topology["nodes"] if not node["cpus"]}
    assert memory_only == {node.id for node in host_nodes if not node.cpus}
    kinds = {bool(node["cpus"]): node["kind"] for node in topology["nodes"]}
    assert len(set(kinds.values())) == len(kinds)


def test_the_table_is_for_people(host_nodes):
    done = subprocess.run([sys.executable, "-m", "realmem", "topology"],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    for node in host_nodes:
        assert " ".join(map(str, node.distance)) in " ".join(done.stdout.split())


def test_default_machine_is_the_host(host_nodes):
    with rm.Machine(memory="16M") as machine:
        assert [(node.host_node, node.cpus, node.distance, node.emulated)
                for node in machine.nodes] == [
            (node.id, node.cpus, node.distance, False) for node in host_nodes]
        assert machine.unverified is None and not machine.emulated
        for node in host_nodes:
            for name in ("distance", "cpulist"):
                path = f"/sys/devices/system/node/node{node.id}/{name}"
                assert machine.sysfs[path] == Path(path).read_text(), path
