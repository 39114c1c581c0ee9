"""
The guest kernel's own account of nodes and pages: what these tests compare realmem with.

Nothing here uses realmem to ask the kernel: files, libnuma's move_pages and the kernel's log.
"""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

NODES = Path("/sys/devices/system/node")


def numbers(text):
    """Read a kernel list such as "0-1,3"."""
    result = []
    for span in text.strip().split(","):
        if span:
            first, _, last = span.partition("-")
            result += range(int(first), int(last or first) + 1)
    return result


class HostNode:
    """A node as /sys describes it."""

    def __init__(self, nid):
        folder = NODES / f"node{nid}"
        self.id = nid
        self.cpus = numbers((folder / "cpulist").read_text())
        self.distance = [int(word) for word in (folder / "distance").read_text().split()]
        meminfo = (folder / "meminfo").read_text()
        self.memory = int(re.search(r"MemTotal:\s+(\d+) kB", meminfo)[1]) << 10

    @property
    def shared(self):
        """Bytes of shared memory on it now, which is what memfds are."""
        meminfo = (NODES / f"node{self.id}/meminfo").read_text()
        return int(re.search(r"Shmem:\s+(\d+) kB", meminfo)[1]) << 10


@pytest.fixture(scope="session")
def host_nodes():
    """The host's nodes, by id."""
    return [HostNode(nid) for nid in numbers((NODES / "online").read_text())]


@pytest.fixture(scope="session")
def kernel_fallback():
    """{node: node ids in the order that this kernel tries}, from its boot messages."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = {int(nid): [int(other) for other in order.split()] for nid, order in
             re.findall(r"Fallback order for Node (\d+): ([\d ]+)", done.stdout)}
    if not found:
        pytest.skip("the kernel's log has no line 'Fallback order for Node'")
    return found


@pytest.fixture(scope="session")
def node_of():
    """Ask the kernel where pages of this process lie: node_of(addresses) -> node ids."""
    libnuma = ctypes.CDLL("libnuma.so.1", use_errno=True)

    def ask(addresses):
        count = len(addresses)
        pages = (ctypes.c_void_p * count)(*addresses)
        status = (ctypes.c_int * count)()
        for address in addresses:
            ctypes.c_char.from_address(address).value       # the kernel tells of mapped pages
        if libnuma.move_pages(0, ctypes.c_ulong(count), pages, None, status, 0):
            raise OSError(ctypes.get_errno(), "move_pages")
        return list(status)
    return ask


@pytest.fixture
def run_on():
    """Pin the test to CPUs: run_on([2, 3]); undone at its end."""
    before = os.sched_getaffinity(0)
    yield lambda cpus: os.sched_setaffinity(0, cpus)
    os.sched_setaffinity(0, before)
