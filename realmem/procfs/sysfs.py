"""
``machine.sysfs``: the files under ``/sys`` that describe a machine's nodes.

Compare drivers/base/node.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from realmem.procfs import extfrag, meminfo, vmstat
from realmem.procfs.masks import format_list, format_mask
from realmem.procfs.slabs import slab_files
from realmem.procfs.thp import thp_files
from realmem.procfs.tree import TextFile, TextTree
from realmem.vmstat import node_vmstat
from realmem.watermark import ZONE_MOVABLE
from realmem.zonestat import read_node_zones

NODES = "/sys/devices/system/node"


class SysFS(TextTree):
    """
    Mapping of paths under ``/sys`` to texts, made when read.

    :param machine: whose files they are.
    """

    def __init__(self, machine: Any) -> None:
        super().__init__(
            machine,
            self._state_files,
            self._node_files,
            self._debug_files,
            lambda: slab_files(machine),
            lambda: thp_files(machine),
        )

    def _state_files(self) -> Iterator[tuple[str, TextFile]]:
        machine = self._machine
        states = {
            "online": lambda node: True,
            "possible": lambda node: True,
            "has_cpu": lambda node: bool(node.cpus),
            "has_memory": lambda node: _present(machine, node),
            "has_normal_memory": lambda node: _present(machine, node, below=ZONE_MOVABLE),
            "has_generic_initiator": lambda node: False,
        }
        for name, holds in states.items():

            def text(holds: Any = holds) -> str:
                return format_list(node.id for node in machine.nodes if holds(node)) + "\n"

            yield f"{NODES}/{name}", TextFile(text)

    def _node_files(self) -> Iterator[tuple[str, TextFile]]:
        files = {
            "cpulist": _cpulist,
            "cpumap": _cpumap,
            "distance": _distance,
            "meminfo": meminfo.machine_node_meminfo,
            "numastat": lambda machine, node: vmstat.format_counters(node.stat),
            "vmstat": lambda machine, node: vmstat.format_counters(node_vmstat(machine, node)),
        }
        for node in self._machine.nodes:
            for name, read in files.items():
                yield f"{NODES}/node{node.id}/{name}", TextFile(partial(read, self._machine, node))

    def _debug_files(self) -> Iterator[tuple[str, TextFile]]:
        machine = self._machine
        for name, read in (
            ("extfrag_index", extfrag.machine_extfrag_index),
            ("unusable_index", extfrag.machine_unusable_index),
        ):
            yield f"{extfrag.EXTFRAG}/{name}", TextFile(partial(read, machine))


def _present(machine: Any, node: Any, below: int = ZONE_MOVABLE + 1) -> bool:
    return any(zone.populated for zone in read_node_zones(machine, node)[:below])


def _cpulist(machine: Any, node: Any) -> str:
    return format_list(node.cpus) + "\n"


def _cpumap(machine: Any, node: Any) -> str:
    nr_cpu_ids = 1 + max((cpu for other in machine.nodes for cpu in other.cpus), default=0)
    return format_mask(node.cpus, nr_cpu_ids) + "\n"


def _distance(machine: Any, node: Any) -> str:
    return " ".join(map(str, node.distance)) + "\n"
