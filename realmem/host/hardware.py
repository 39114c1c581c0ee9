"""What is slower to find out and only shown: caches, HMAT figures, memory tiers, CPU model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from realmem.host.sysfs import parse_list, read_int, read_text


@dataclass(frozen=True)
class Cache:
    """A CPU cache, and how many like it there are (each shared by so many CPUs)."""

    level: int
    type: str
    size_bytes: int
    line_bytes: int | None
    ways: int | None
    count: int
    shared_by: int


def caches(root: str = "/") -> list[Cache]:
    """Give the kinds of caches of the host, nearest to the CPU first."""
    seen: dict[tuple[int, str, int, int | None, int | None, int], set[str]] = {}
    cpus = Path(root) / "sys/devices/system/cpu"
    for path in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        size = _size(read_text(path / "size"))
        level, kind = read_int(path / "level"), read_text(path / "type")
        if size is None or level is None or kind is None:
            continue
        shared = read_text(path / "shared_cpu_list") or path.parts[-3]
        sort = (
            level,
            kind,
            size,
            read_int(path / "coherency_line_size"),
            read_int(path / "ways_of_associativity"),
            max(1, len(parse_list(shared))),
        )
        seen.setdefault(sort, set()).add(shared)
    return [
        Cache(*sort[:5], count=len(which), shared_by=sort[5])
        for sort, which in sorted(seen.items(), key=lambda item: str(item[0]))
    ]


def _size(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


@dataclass(frozen=True)
class Hmat:
    """
    What the firmware says of a node's memory, as seen from its nearest initiators.

    :ivar access: 0 counts any initiator, 1 only CPUs.
    :ivar initiators: nodes that the figures hold for.
    """

    node: int
    access: int
    initiators: tuple[int, ...]
    read_latency_ns: int | None
    write_latency_ns: int | None
    read_bandwidth_mbs: int | None
    write_bandwidth_mbs: int | None


def hmat(root: str = "/") -> list[Hmat]:
    """Give the ACPI HMAT figures that sysfs shows; most hosts have none."""
    found = []
    base = Path(root) / "sys/devices/system/node"
    for path in base.glob("node[0-9]*/access[0-9]*/initiators"):
        figures = [
            read_int(path / name)
            for name in ("read_latency", "write_latency", "read_bandwidth", "write_bandwidth")
        ]
        if not any(figures):
            continue
        initiators = sorted(int(p.name[4:]) for p in path.glob("node[0-9]*"))
        node, access = path.parts[-3], path.parts[-2]
        found.append(Hmat(int(node[4:]), int(access[6:]), tuple(initiators), *figures))
    return sorted(found, key=lambda each: (each.node, each.access))


def memory_tiers(root: str = "/") -> dict[str, tuple[int, ...]]:
    """Give the kernel's memory tiers, fastest first: name to nodes."""
    base = Path(root) / "sys/devices/virtual/memory_tiering"
    tiers = base.glob("memory_tier[0-9]*")
    return {
        path.name: parse_list(read_text(path / "nodelist"))
        for path in sorted(tiers, key=lambda path: int(path.name[len("memory_tier") :]))
    }


def cpu_model(root: str = "/") -> str | None:
    """Give the CPU's name, where /proc/cpuinfo has one."""
    for line in (read_text(Path(root) / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu model", "Model"):
            return value.strip()
    return None
