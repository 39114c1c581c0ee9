"""The formulas of watermark.py applied to a machine's zones, and the result made known to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from realmem import watermark
from realmem.layout import ZONE_NAMES
from realmem.watermark import Watermark


@dataclass(frozen=True)
class VmKnobs:
    """The sysctls that enter a zone's marks, reserves and per-CPU lists."""

    min_free_kbytes: int
    watermark_scale_factor: int = watermark.DEFAULT_WATERMARK_SCALE_FACTOR
    lowmem_reserve_ratio: tuple[int, ...] = watermark.DEFAULT_LOWMEM_RESERVE_RATIO
    percpu_pagelist_high_fraction: int = 0


@dataclass(frozen=True)
class NodeShape:
    """What the formulas need of one node."""

    managed: Sequence[int]
    """Managed pages by zone kind, 0 for a zone without memory."""
    nr_cpus: int


@dataclass(frozen=True)
class ZoneSetup:
    """What is published to one zone."""

    watermark: Watermark
    lowmem_reserve: list[int]
    batch: int
    high_min: int
    high_max: int


def compute_zones(
    nodes: Sequence[NodeShape], knobs: VmKnobs, nr_online_cpus: int
) -> list[ZoneSetup]:
    """
    Compute every zone of every node, node by node, lowest zone first.

    :param nr_online_cpus: CPUs of the machine, at least 1; they share a node without CPUs.
    """
    marks = iter(
        watermark.zone_watermarks(
            [(kind, managed) for node in nodes for kind, managed in enumerate(node.managed)],
            knobs.min_free_kbytes,
            knobs.watermark_scale_factor,
        )
    )
    setups = []
    for node in nodes:
        reserves = watermark.lowmem_reserve(node.managed, knobs.lowmem_reserve_ratio)
        for managed, reserve in zip(node.managed, reserves, strict=True):
            mark = next(marks)
            batch = watermark.zone_batchsize(managed)
            bounds = watermark.zone_high(
                managed,
                mark.low,
                batch,
                node.nr_cpus,
                nr_online_cpus,
                knobs.percpu_pagelist_high_fraction,
            )
            setups.append(ZoneSetup(mark, reserve, batch, *bounds))
    return setups


def node_shapes(machine: Any) -> list[NodeShape]:
    """Read what compute_zones() needs from a machine."""
    shapes = []
    for node in machine.nodes:
        managed = dict.fromkeys(ZONE_NAMES, 0)
        managed.update((zone.name, zone.managed_pages) for zone in node.zones)
        shapes.append(NodeShape(list(managed.values()), machine.nr_cpus_of(node.id)))
    return shapes


def lowmem_pages(nodes: Sequence[NodeShape]) -> int:
    """Count the pages outside Movable zones."""
    return sum(sum(node.managed[: watermark.ZONE_MOVABLE]) for node in nodes)


def setup_per_zone(machine: Any, knobs: VmKnobs) -> None:
    """
    Give every zone its marks, reserves and list sizes.

    Compare mm/page_alloc.c:setup_per_zone_wmarks(), setup_per_zone_lowmem_reserve().
    """
    setups = compute_zones(node_shapes(machine), knobs, machine.cpus)
    for index, setup in enumerate(setups):
        machine._allocator.publish_zone(
            index,
            watermark=tuple(setup.watermark),
            lowmem_reserve=setup.lowmem_reserve,
            batch=setup.batch,
            high_min=setup.high_min,
            high_max=setup.high_max,
        )
