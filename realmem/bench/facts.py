"""Facts about the host that every run carries: figures mean nothing without them."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import realmem

_CPU = Path("/sys/devices/system/cpu")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_THP = Path("/sys/kernel/mm/transparent_hugepage")


def host_facts() -> dict[str, Any]:
    """
    Collect what a reader needs to judge a figure.

    :return: JSON's types only; what the host does not tell is None.
    """
    cpuinfo = _text(Path("/proc/cpuinfo")) or ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "realmem": realmem.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": model[1].strip() if model else None,
        "virtual": "hypervisor" in flags[1].split() if flags else None,
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "nodes": _nodes(),
        "clock_source": _text(_CLOCK),
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()),
        "thp_enabled": _chosen(_THP / "enabled"),
        "thp_shmem_enabled": _chosen(_THP / "shmem_enabled"),
    }


def _nodes() -> list[dict[str, Any]]:
    nodes = []
    for path in Path("/sys/devices/system/node").glob("node[0-9]*"):
        total = re.search(r"MemTotal:\s+(\d+) kB", _text(path / "meminfo") or "")
        nodes.append(
            {
                "id": int(path.name[4:]),
                "cpus": _text(path / "cpulist"),
                "memory_bytes": int(total[1]) * 1024 if total else 0,
                "distance": [int(word) for word in (_text(path / "distance") or "").split()],
            }
        )
    return sorted(nodes, key=lambda node: int(node["id"]))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _chosen(path: Path) -> str | None:
    """Give the word in brackets of a sysfs choice such as ``always [madvise] never``."""
    match = re.search(r"\[(\w+)\]", _text(path) or "")
    return match[1] if match else None
