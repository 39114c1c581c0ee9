"""What tests of a machine's life count: the host's side of it, before and after."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from realmem import GFP

SMALL = {"zones": {"DMA": "0", "DMA32": "0"}}


def footprint():
    """What this process holds of machines: descriptors, mappings, resident shared pages."""
    gc.collect()
    maps = [line.split(None, 5) for line in Path("/proc/self/maps").read_text().splitlines()]
    status = Path("/proc/self/status").read_text().split()
    return {
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "memfds": sum("memfd:realmem" in line[-1] for line in maps),
        "shmem": int(status[status.index("RssShmem:") + 1]),
    }


def address_space():
    """Count bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def with_zeros(machine, n=3):
    return [machine.get_zeroed_page(GFP.KERNEL) for _ in range(n)]


def wait_for(condition, seconds=20):
    """Give what happens at the end of a native thread, after join(), time to happen."""
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")
