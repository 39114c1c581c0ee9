"""Facts about the host that every run carries: figures mean nothing without them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import realmem
from realmem.host import hardware, limits, topology
from realmem.host.sysfs import format_list, read_text

_CPU = Path("/sys/devices/system/cpu")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_THP = Path("/sys/kernel/mm/transparent_hugepage")


def host_facts() -> dict[str, Any]:
    """
    Collect what a reader needs to judge a figure.

    :return: JSON's types only; what the host does not tell is None.
    """
    cpuinfo = read_text(Path("/proc/cpuinfo")) or ""
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), None)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "realmem": realmem.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": hardware.cpu_model(),
        "virtual": "hypervisor" in flags if flags else None,
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "nodes": [
            {
                "id": node.id,
                "cpus": format_list(node.cpus),
                "memory_bytes": node.memory_bytes,
                "distance": {str(k): v for k, v in topology.distances(node.id).items()},
            }
            for node in topology.nodes()
        ],
        "clock_source": read_text(_CLOCK),
        "governor": read_text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()),
        "thp_enabled": limits.choice(read_text(_THP / "enabled")),
        "thp_shmem_enabled": limits.choice(read_text(_THP / "shmem_enabled")),
    }


def is_busy(host: Mapping[str, Any]) -> bool:
    """Tell whether other programs had more than half of the CPUs when a run began."""
    load, cpus = host.get("load_average"), host.get("cpus_allowed")
    if not (isinstance(load, list) and isinstance(cpus, list)):
        return False                        # a file made by hand
    if not load or not isinstance(load[0], (int, float)):
        return False
    return bool(cpus and load[0] > 0.5 * len(cpus))
