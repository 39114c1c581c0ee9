"""What a figure of the fault bench is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from realmem.bench.results import Param

if TYPE_CHECKING:
    from realmem.machine import Machine


@dataclass(frozen=True, order=True)
class Figure:
    """
    One row of the table.

    :ivar metric: the kind of fault.
    :ivar order: of what a fault may bring.
    :ivar pattern: how the pages are touched.
    :ivar threads: how many at once.
    :ivar who: ``"realmem"``, ``"kernel"``, ``"kernel 4K"``, ``"floor"``, ``"floor+zero"`` or
        ``"native"``.
    :ivar faults: how a machine fills, and what backs it if not 4 KiB pages (:func:`filled`); of
        the kernel and of plain loads, ``"-"``.
    """

    metric: str
    order: int
    pattern: str
    threads: int
    who: str
    faults: str = "sigsegv"

    def __post_init__(self) -> None:
        """Have what no machine did be of no backend."""
        if self.who in ("kernel", "kernel 4K", "native"):
            object.__setattr__(self, "faults", "-")

    def of(self, who: str) -> Figure:
        """Give the same figure of somebody else."""
        return replace(self, who=who)

    def by_one(self) -> Figure:
        """Give the same figure of one thread."""
        return replace(self, threads=1)

    @property
    def params(self) -> dict[str, Param]:
        """What was fixed."""
        return {
            "order": self.order,
            "pattern": self.pattern,
            "threads": self.threads,
            "faults": self.faults,
        }


def filled(machine: Machine) -> str:
    """Name how a machine's windows are filled: ``"sigsegv"``, ``"sigsegv on thp"``."""
    return machine.faults if machine.backing == "4K" else f"{machine.faults} on {machine.backing}"


# Takes some figures once: ns each.
Step = Callable[[], Iterator[tuple[Figure, float]]]
